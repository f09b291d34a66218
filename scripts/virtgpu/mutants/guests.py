# SPDX-License-Identifier: GPL-2.0
"""Runs mutants in guests, and says what they have shown there.

Each mutant is a case of a guest (vm.sh --case), with a device process and an event log of its own,
and with the module loaded for it. What must notice it is an assertion of a test, the kernel's log,
or the device's event log; a time limit does not count.
"""

import re
import shutil
import subprocess

from . import module
from .. import environment, ktap, logs
from ..environment import PROJECT

# The long loops run in full in the other suites.
SCALE = "10"
# Freed pages that are written show in the kernel's log when they are used again.
APPEND = "page_poison=1"
# How a test is ended that takes too long.
HANGS = "hangs"
# What `check-log` says of a driver, and not of a device; and its summary, which says no more than
# the other lines.
OF_DRIVER = re.compile(r"check-log \S+: (line \d+: the driver |\d+ lines, )")
# What `vm` says of a guest that shows nothing by itself.
SHOWS_NOTHING = re.compile("killed after|the guest('s first process| did not print)")


class Shown:
    """What a case has shown: what its tests say, and what the logs do."""

    def __init__(self, lines, errors):
        reader = ktap.Ktap()
        self.results = [r for line in lines for r in reader.feed(line)]
        self.rest = reader.finish() if lines else []
        self.begun = any(line.startswith("KTAP version") for line in lines)
        self.errors = errors

    def excuse_driver(self):
        """Only the device is to be noticed."""
        self.errors = [e for e in self.errors if not OF_DRIVER.match(e)]

    def failed(self):
        return [r for r in self.results if r.status == "not ok"]

    @staticmethod
    def words(result):
        """What a test said last, apart from its time."""
        notes = [n for n in result.notes if not re.fullmatch(r"[0-9.]+ s", n)]
        return result.reason or (notes[-1] if notes else "")

    def wrong(self, tests):
        """Why not all is well, if it is not."""
        for r in self.failed() + self.rest:
            return f"{r.name}: {self.words(r)}"
        for problem in self.errors:
            return problem
        for test in tests:
            name = test.replace(".", "/", 1)
            # Its parts are results, of which the kernel may not have all.
            parts = [r for r in self.results if r.name.startswith(name + "/")]
            results = [r for r in parts if r.status != "skip"] or parts
            statuses = {(r.status, r.reason) for r in self.results
                        if r.name == name or r in results}
            if {s for s, _ in statuses} != {"ok"}:
                return f"{test} was not run " + ", ".join(r for _, r in statuses)
        return None

    def killer(self, tests):
        """Which test has noticed, and how; None if none has."""
        for r in self.failed():
            if HANGS not in " ".join([r.reason, *r.notes]):
                return r.name.replace("/", ".", 1), self.words(r)
        test = tests[0] if len(tests) == 1 else "one of " + ", ".join(tests)
        for problem in self.errors:
            if not SHOWS_NOTHING.match(problem):
                return test, problem.strip()
        return None


class Case:
    """A driver and a device on which tests are run."""

    def __init__(self, name, kernel, kept, parameters, device, tests, last=False):
        self.name, self.kernel, self.kept = name, kernel, kept
        self.parameters, self.device, self.tests, self.last = parameters, device, tests, last
        self.shown = self.guest = None

    def option(self):
        """As vm.sh wants it."""
        return f"--case={self.name}|{self.parameters} {self.kept}|{self.device}"

    def job(self):
        """The branch of the guest's job that runs the tests, which print nothing but KTAP."""
        families = list(dict.fromkeys(t.split(".")[0] for t in self.tests))
        run = f"virtgpu-tests run {' '.join(families)} --filter {','.join(self.tests)}"
        return f"{self.name}) export VIRTGPU_MODULE_ARGS='{self.kept}'; {run} ;;\n"


def run_cases(kernel, cases, pool, jobs):
    """Runs cases in as few guests as it takes, until each has shown something or no guest gets
    on."""
    attempt = 0
    while left := [c for c in cases if not c.shown]:
        last = [c for c in left if c.last]
        others = [c for c in left if not c.last]
        count = max(len(last), min(jobs, len(others)))
        guests = [others[n::count] + last[n:n + 1] for n in range(count)]
        names = [f"{kernel}-{attempt}-{n}" for n in range(count)]
        list(pool.map(run_guest, names, [kernel] * count, guests))
        attempt += 1
        if not any(c.shown for c in left):
            return


def run_guest(name, kernel, cases):
    """Runs cases in a guest, as far as it gets."""
    name = "mutants-" + name
    job = f"export VIRTGPU_TESTS_SCALE={SCALE}\n"
    job += "echo \"# case $VIRTGPU_CASE\"\ncase $VIRTGPU_CASE in\n"
    job += "".join(c.job() for c in cases)
    command = [*environment.ENTRY, "vm", "--name", name, "--kernel", kernel, "--timeout", "600",
               f"--append={APPEND}", f"--module={module.path(kernel)}",
               *(c.option() for c in cases)]
    folder = logs.folder(name)
    shutil.rmtree(folder, ignore_errors=True)
    with open(folder + ".out", "w+", errors="replace") as out:
        subprocess.run([*command, "--", job + "esac"], cwd=PROJECT, stdin=subprocess.DEVNULL,
                       stdout=out, stderr=subprocess.STDOUT)
        out.seek(0)
        parts = output_of_cases(out.read())
    try:
        result = logs.read_result(name)
    except OSError:
        return
    errors = {case["name"]: case["errors"] for case in result["cases"]}
    for c in cases:
        if c.name in errors:
            c.shown = Shown(parts.get(c.name, []), errors[c.name])
            c.guest = name


def output_of_cases(text):
    """What the job has printed, by cases."""
    parts, current = {}, []
    for line in text.splitlines():
        if line.startswith("# case "):
            current = parts[line.split()[2]] = []
        elif not line.startswith("vm: "):
            current.append(line)
    return parts
