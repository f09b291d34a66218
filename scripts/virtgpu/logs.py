# SPDX-License-Identifier: GPL-2.0
"""Reads what guests leave behind in build/logs, also while it is still being written.

A guest has a folder there, with its name. Its kernel's log, console.log, has lines of its first
process among the kernel's, which begin with MARKER and a word and say how far it is.
"""

import json
import os
import time

from . import environment

MARKER = "VIRTGPU-GUEST-"


def folder(name):
    """Where the logs of a guest are, or with an ending the output of a command."""
    return f"{environment.BUILD}/logs/{name}"


def shown(path):
    """The path for people, from the top folder of the clone on."""
    return path.replace(environment.PROJECT + "/", "")


def lines(path):
    """The lines of a log, of which some end with a carriage return, too."""
    with open(path, errors="replace", newline="\n") as f:
        for line in f:
            yield line.rstrip("\r\n")


def tail(path, count=20):
    """The last lines of a log, none if there is no such log."""
    try:
        with open(path, errors="replace") as f:
            return [line.rstrip() for line in f.readlines()[-count:]]
    except OSError:
        return []


def marker(line):
    """The word of a line with a marker, and what follows it; None of another line."""
    at = line.find(MARKER)
    if at < 0:
        return None
    word, _, rest = line[at + len(MARKER):].strip().partition(" ")
    return word, rest


def forget_result(name):
    """Removes what an earlier guest of this name has left."""
    if os.path.exists(f"{folder(name)}/result"):
        os.unlink(f"{folder(name)}/result")


def write_result(run, result):
    """Writes down how a guest has ended, into its folder."""
    with open(f"{run}/result", "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")


def read_result(name):
    """How a guest has ended; OSError if it was not even begun."""
    with open(f"{folder(name)}/result") as f:
        return json.load(f)


class Follower:
    """Reads a growing file line by line."""

    def __init__(self, path):
        self.path, self.file, self.rest = path, None, ""

    def lines(self):
        if self.file is None:
            if not os.path.exists(self.path):
                return
            self.file = open(self.path, errors="replace", newline="")
        self.rest += self.file.read()
        *complete, self.rest = self.rest.split("\n")
        for line in complete:
            yield line.rstrip("\r")


class Phases:
    """When a guest has said what: how long it took to boot, to work, and to end."""

    def __init__(self, run):
        self.follower, self.start, self.at = Follower(f"{run}/console.log"), time.monotonic(), {}

    def look(self):
        for line in self.follower.lines():
            if found := marker(line):
                self.at.setdefault(found[0], time.monotonic())

    def seconds(self):
        self.look()
        end = time.monotonic()
        job = self.at.get("JOB", end)
        unload = max(self.at.get("END", end), job)
        return {"boot": round(job - self.start, 1), "work": round(unload - job, 1),
                "unload": round(end - unload, 1)}
