# SPDX-License-Identifier: GPL-2.0
"""Runs the guests of suites, several at a time, each by command `vm`, and reports how they ended.

Where a guest stops in the middle of its families (see vm.py), the next one does the rest. A guest
during which the machine stood still for more than ten seconds is run once more: its results do not
count, except for what no pause explains.
"""

import os
import queue
import re
import shlex
import shutil
import threading
import time

from . import commands, environment, inputs, ktap, logs
from .result import GUEST_TEST, UNCHANGED, Part

# More than this, and a guest has seen a machine that no user has.
STOOD_STILL_SECONDS = 10
# What a machine that stands still makes a kernel say.
PAUSES = re.compile(
    r"soft lockup|hard LOCKUP|rcu:? .*stall|workqueue lockup|blocked for more than|"
    r"blocked in I/O wait|Call Trace:|killed after \d+ s")


def run_all(report, guests, jobs, made):
    """Starts guests, `jobs` at a time, and as many of those that mostly wait; returns the threads.
    `made` has an event for each suite with commands, which its guests wait for."""
    def order(guest):
        return guest.suite in made, guest.kernel != "debug", -guest.option("timeout", 0)

    def work(waiting):
        while True:
            try:
                guest = waiting.get_nowait()
            except queue.Empty:
                return
            part = Part(report)
            if guest.suite in made:
                made[guest.suite].wait()
            try:
                run_guest(part, guest)
            except Exception as error:  # must not pass for a run without failures
                part.add(guest.name, "not ok", None, f"check: {error!r}")

    workers = []
    for waits in (False, True):
        waiting = queue.SimpleQueue()
        for guest in sorted(guests, key=order):
            if guest.option("waits", False) == waits:
                waiting.put(guest)
        workers += [threading.Thread(target=work, args=[waiting])
                    for _ in range(min(jobs, waiting.qsize()))]
    for worker in workers:
        worker.start()
    return workers


def run_guest(part, guest):
    """Runs a guest of a suite, and those that do what it could not."""
    wanted = guest.wanted_families(part)
    if not wanted and not guest.run.get("job"):
        part.add(guest.name, "not ok", None, "no family of virtgpu-tests applies")
        return
    job, expected = guest.job(wanted), guest.expected_tests()
    # Before the job has the seed of this commit, which changes nothing.
    key = inputs.key(guest, job, wanted + expected)
    if environment.changed_only() and inputs.has_passed(key):
        part.add(guest.name + GUEST_TEST, "skip", None, UNCHANGED)
        return
    for variable in guest.option("host_env", []):
        if variable in os.environ:
            job = f"export {variable}={shlex.quote(os.environ[variable])}; {job}"
    options = [os.path.expandvars(word) if word.startswith("--device-args=") else word
               for word in guest.vm_options()]
    if guest.run.get("each_device"):
        run_families(part, guest, wanted, options, job, expected)
    else:
        Run(guest, "", [*options, "--", job], expected).run(part)
    if not part.failed:
        inputs.remember(key, guest)


def run_families(part, guest, wanted, options, job, expected):
    """Runs families, each with a device of its own, in as many guests as it takes."""
    number = 1
    while wanted:
        label = "" if number == 1 else f"-again-{number}"
        families = f"--families={','.join(wanted)}"
        result = Run(guest, label, [*options, families, "--", job], expected).run(part)
        begun = {case["name"] for case in result["cases"]} if result else set()
        wanted = [f for f in wanted if f not in begun]
        number += 1
        if wanted and not begun:
            for f in wanted:
                part.add(f"{guest.suite}/{f}", "not ok", None, "no guest came as far as this")
            return
        if wanted:
            part.print(f"# {guest.name}: stopped; the next guest runs the other "
                       f"{len(wanted)} families")


class Run:
    """One start of `vm` for a guest of a suite, with its options and job."""

    def __init__(self, guest, label, words, expected):
        self.suite, self.name, self.folder = guest.suite, guest.name + label, guest.folder + label
        self.show, self.words, self.expected = guest.option("show"), words, expected

    def run(self, part):
        """Runs the guest, and once more if the machine stood still meanwhile; returns what `vm`
        says."""
        for attempt in (1, 2):
            mine = Part(part.report)
            result = self.run_once(mine)
            still = result["stood_still"] if result else 0
            if still <= STOOD_STILL_SECONDS or attempt == 2:
                if still > STOOD_STILL_SECONDS:
                    mine.print(f"# {self.name}: the machine stood still for {still} s again")
                part.failed += mine.failed
                return result
            self.discard(part, mine, result)

    def discard(self, part, mine, result):
        """Takes back what a guest has reported that a pause explains, and puts its logs aside."""
        failed = [r.name for r in mine.results if r.status == "not ok"]
        mine.discard()
        also = f": failed {', '.join(failed)}" if failed else ""
        mine.print(f"# {self.name}: the machine stood still for {result['stood_still']} s. "
                   f"It is run once more, and what came out does not count{also}")
        everything = result["errors"] + result["scan"]
        everything += [e for c in result["cases"] for e in c["errors"]]
        unexplained = [e for e in everything if not PAUSES.search(e)]
        if unexplained:
            part.add(f"{self.name}-paused{GUEST_TEST}", "not ok", None, unexplained[0],
                     unexplained[1:])
        folder = logs.folder(self.folder)
        shutil.rmtree(folder + "-paused", ignore_errors=True)
        os.rename(folder, folder + "-paused")

    def run_once(self, part):
        """Runs the guest and reports what it prints and how it ended."""
        start, reader = time.monotonic(), ktap.Ktap()
        log = logs.folder(self.folder + ".out")
        logs.forget_result(self.folder)
        command = [*environment.ENTRY, "vm", "--name", self.folder, *self.words]
        status, _ = commands.feed(reader, part, self.suite, command, log, self.show)
        part.add_all(self.name, reader.finish(), timed=False)
        reported = {r.name for r in part.results}
        for test in self.expected:
            if f"{self.suite}/{test}" not in reported:
                part.add(f"{self.suite}/{test}", "not ok", None, "the guest did not report it")
        try:
            result = logs.read_result(self.folder)
        except OSError:
            part.add(self.name + GUEST_TEST, "not ok", time.monotonic() - start,
                     f"the guest could not be started (status {status})", logs.tail(log))
            return None
        with part.report.lock:
            part.report.guests.append(result)
        for case in result["cases"]:
            self.validate_case(part, case)
        self.validate(part, result, time.monotonic() - start)
        return result

    def validate_case(self, part, case):
        """Reports whether a case ended well, which is a test itself."""
        problems, prefix = case["errors"], f"{self.suite}/{case['name']}/"
        mine = [r for r in part.results if r.name.startswith(prefix)]
        if case["rc"] is None and not problems:
            problems = ["the guest ended in the middle of it, or was not as before"]
        elif case["rc"] and not any(r.status == "not ok" for r in mine):
            problems.append(f"virtgpu-tests returned {case['rc']}, yet no test failed")
        elif not mine:
            problems.append("no test result was printed")
        part.add(f"{self.suite}/{case['name']}{GUEST_TEST}", "not ok" if problems else "ok", None,
                 problems[0] if problems else "", problems[1:])

    def validate(self, part, result, seconds):
        """Reports whether the guest ended well and left a clean log, which is a test itself."""
        again = ""
        if result["starts"] > 1:
            again = "its kernel hung at the first start, before its first process"
        problems = result["errors"] + result["scan"]
        if result["marker"] and result["rc"] and not part.failed:
            problems.append(f"the job returned {result['rc']}, yet no test failed")
        part.add(self.name + GUEST_TEST, "not ok" if problems else "ok", seconds,
                 problems[0] if problems else again, problems[1:])
        if part.failed:
            part.print(f"    logs: build/logs/{self.folder}/")
        part.print(f"# {self.name}: boot {result['boot']} s, work {result['work']} s, "
                   f"unload {result['unload']} s; CPU {result['cpu']} s")
