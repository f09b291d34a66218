# SPDX-License-Identifier: GPL-2.0
"""Stands in for guests: runs those of suites without starting any."""

import contextlib
import io
import json
import os
import tempfile
import types
import unittest
from unittest import mock

from .. import commands, environment, families, guests, result, suites

# What `vm` says of a guest that ended well.
GUEST = {"name": "x", "starts": 1, "cpu": 1.0, "boot": 1, "work": 1, "unload": 1,
         "stood_still": 0, "marker": True, "rc": 0, "errors": [], "scan": [], "cases": []}
# Guests of suites: one that has a device for each family, and one with a job.
ALL = {"name": "g", "each_device": ".", "families": ["a", "b", "c"]}
ONE = {"name": "g", "job": "x"}

LEAK = "BUG: KASAN: slab-use-after-free in foo+0x1/0x2"
LOCKUP = "watchdog: BUG: soft lockup - CPU#0 stuck for 62s! [sh:1]"


def family(name, device="--x"):
    """A family of virtgpu-tests that wants a device with these arguments."""
    return families.Family(f"{name}\tany\tours\t{device}\t")


def document(*names, status="ok"):
    """What virtgpu-tests prints for families."""
    lines = []
    for name in names:
        lines += ["KTAP version 1", "1..1", "    1..1", f"    {status} 1 works",
                  f"{status} 1 {name}"]
    return lines


def case(name, rc=0, errors=()):
    """What `vm` says of a case."""
    return {"name": name, "begun": True, "rc": rc, "errors": list(errors)}


def cases(*names):
    """What `vm` says of a guest in which these cases went well."""
    return {"cases": [case(name) for name in names]}


class FakeGuests(unittest.TestCase):
    """Tests that have a folder for builds of their own, in which no guest has passed yet, and an
    environment that says nothing.
    """

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.build = folder.name
        # What the run was told in which these tests are a suite must not reach them.
        given = mock.patch.dict(os.environ)
        given.start()
        self.addCleanup(given.stop)
        for name in [name for name in os.environ if name.startswith("VIRTGPU_")]:
            del os.environ[name]
        self.replace(environment, "BUILD", self.build)
        self.replace(families, "offered", lambda: {name: family(name) for name in "abc"})

    def replace(self, module, name, value):
        """Puts something else into a module until the end of the test."""
        patch = mock.patch.object(module, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def variables(self, **values):
        """Sets variables of the environment for what is in the block."""
        return mock.patch.dict(os.environ, values)

    def run_guest(self, outcomes, run):
        """Runs a guest of suite `s`, and says what came of it: the names of what failed, the names
        of all, the text, and the commands. `outcomes` are what the guests print, and say at last.
        """
        started, outcomes = [], list(outcomes)

        def feed(reader, part, suite, command, log, show=None):
            started.append(command)
            lines, outcome = outcomes.pop(0)
            for line in lines:
                part.add_all(suite, reader.feed(line))
            folder = f"{self.build}/logs/{command[command.index('--name') + 1]}"
            os.makedirs(folder, exist_ok=True)
            if outcome is not None:
                with open(f"{folder}/result", "w") as f:
                    json.dump(dict(GUEST, **outcome), f)
            return 0, 0.0

        text, report = io.StringIO(), result.Report()
        with contextlib.redirect_stdout(text), mock.patch.object(commands, "feed", feed):
            guests.run_guest(result.Part(report), suites.Guest("s", {"kernel": "stock"}, run))
            report.finish()
        self.assertFalse(outcomes, "a guest was not started")
        return types.SimpleNamespace(
            failed={r.name for r in report.results if r.status == "not ok"},
            names=[r.name for r in report.results], text=text.getvalue(), commands=started)
