# SPDX-License-Identifier: GPL-2.0
"""Runs commands, keeps their output in logs, and reports what it says.

The commands of suites run here; feed() is for guests, too.
"""

import re
import subprocess
import time

from . import ktap, logs, processes
from .environment import PROJECT


def feed(reader, part, suite, command, log, show=None):
    """Runs a command, reports what its output says, returns its exit status and processor time."""
    with open(log, "w") as out:
        p = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             errors="replace")
        for line in p.stdout:
            out.write(line)
            out.flush()
            if show and re.search(show, line):
                part.print(line.rstrip("\n"))
            part.add_all(suite, reader.feed(line.rstrip("\n")))
        return processes.wait(p)


def run_command(part, suite, run):
    """Runs a [[command]] of a suite."""
    name, log = f"{suite}/{run['name']}", logs.folder(f"{suite}-{run['name']}.log")
    start, form = time.monotonic(), run.get("format", "status")
    command = ["sh", "-c", run["run"]]
    if form == "status":
        with open(log, "w") as out:
            status, cpu = processes.wait(subprocess.Popen(
                command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=out, stderr=out))
        part.print(f"# {name}: CPU {cpu:.1f} s")
        failure = f"exit status {status}, log: {logs.shown(log)}" if status else ""
        part.add(name, "not ok" if status else "ok", time.monotonic() - start, failure,
                 logs.tail(log))
        return
    reader = ktap.Cargo() if form == "cargo" else ktap.Ktap()
    prefix = suite if form == "cargo" else name
    status, cpu = feed(reader, part, prefix, command, log, run.get("show"))
    part.print(f"# {name}: {time.monotonic() - start:.1f} s; CPU {cpu:.1f} s")
    part.add_all(name, reader.finish(), timed=False)
    if status and not part.failed:
        part.add(name, "not ok", time.monotonic() - start,
                 f"exit status {status}, log: {logs.shown(log)}", logs.tail(log))
    elif part.failed:
        part.print(f"    log: {logs.shown(log)}")
