# SPDX-License-Identifier: GPL-2.0
"""Reports the results of suites, a line a test, and sums them up in the last line.

Several commands and guests report at the same time: each has a Part, whose results can be taken
back.
"""

import threading
import time

from . import processes, skips

# Each guest is a test itself.
GUEST_TEST = "/guest_log_and_unload"
# Why a guest was not started with VIRTGPU_CHANGED.
UNCHANGED = "nothing that goes into it has changed since it passed"
# Why a family is left out where `share` says so.
OTHERS = "it is the turn of others with this commit; ALL=1 runs all"


class Line:
    """A result that was printed."""

    def __init__(self, name, status, seconds, reason):
        self.name, self.status, self.seconds, self.reason = name, status, seconds, reason

    def failed(self):
        return self.status not in ("ok", "skip")


class Part:
    """What one command or guest reports, counted apart."""

    def __init__(self, report):
        self.report, self.failed, self.results = report, 0, []

    def add(self, name, status, seconds=None, reason="", notes=()):
        """Reports a result."""
        with self.report.lock:
            result = self.report.add(name, status, seconds, reason, notes)
            self.failed += result.failed()
            self.results.append(result)

    def add_all(self, prefix, results, timed=True):
        """Reports results that a reader has found in some output."""
        for r in results:
            seconds = r.seconds if timed else None
            self.add(f"{prefix}/{r.name}", r.status, seconds, r.reason, r.notes)

    def print(self, line):
        """Prints a line that is no result."""
        with self.report.lock:
            print(line, flush=True)

    def discard(self):
        """Takes everything back that was reported."""
        with self.report.lock:
            for result in self.results:
                self.report.results.remove(result)
        self.failed, self.results = 0, []


class Report:
    """All results of a run."""

    def __init__(self):
        self.lock = threading.Lock()
        self.results = []
        self.guests = []  # what `vm` says of each
        self.start = time.monotonic()

    def add(self, name, status, seconds=None, reason="", notes=()):
        """Prints a result, and what explains it if it is a failure."""
        result = Line(name.replace(" ", "_"), status, seconds, reason)
        self.results.append(result)
        line = f"{status} {result.name}"
        if seconds is not None and status != "skip":
            line += f" ({seconds:.1f} s)"
        if reason:
            line += f" # {reason}"
        elif status == "skip":
            result.reason = "no reason given"
            line += f" # {result.reason}"
        print(line, flush=True)
        if status == "not ok":
            for note in list(notes)[-15:]:
                print(f"    {note}", flush=True)
        return result

    def check_skips(self, suites, text):
        """Compares the skips with those that `text` expects. `suites` are those that were run."""
        results = [r for r in self.results
                   if not (r.status == "skip" and r.reason in (UNCHANGED, OTHERS))]
        # What fails may have kept others from being skipped, and so may a guest that was left out.
        broken = {r.name.partition("/")[0] for r in self.results
                  if r.status == "not ok" or r not in results}
        try:
            wrong = skips.problems(skips.parse(text), results, set(suites) - broken)
        except (KeyError, TypeError, ValueError) as error:
            wrong = [("list", f"tests/skips.toml: {error}", [])]
        for name, reason, notes in wrong:
            self.add(f"skips/{name}", "not ok", None, reason, notes)

    def print_costs(self):
        """Says how much the guests have cost, and which tests took longest."""
        cpu, every = sum(g["cpu"] for g in self.guests), processes.children_seconds()
        print(f"# {len(self.guests)} guests, {cpu / 60:.1f} CPU-minutes, "
              f"of {every / 60:.1f} in all; {(time.monotonic() - self.start) / 60:.1f} minutes")
        tests = [r for r in self.results if r.seconds and not r.name.endswith(GUEST_TEST)]
        longest = sorted(tests, key=lambda r: -r.seconds)[:20]
        print("# longest: " + ", ".join(f"{r.name} {r.seconds:.0f} s" for r in longest))

    def finish(self):
        """Prints the sum; returns the exit status."""
        hung = [g["name"] for g in self.guests if g["starts"] > 1]
        if len(hung) > 1:
            self.add("guests/boot", "not ok", None,
                     f"hung before their first process: {', '.join(hung)}")
        if self.guests:
            self.print_costs()
        passed = sum(r.status == "ok" for r in self.results)
        skipped = sum(r.status == "skip" for r in self.results)
        failures = [r for r in self.results if r.failed()]
        if failures:
            print("failed:")
            for r in failures:
                print(f"    {r.name} # {r.reason}" if r.reason else f"    {r.name}")
        print(f"{passed} passed, {len(failures)} failed, {skipped} skipped", flush=True)
        return 1 if failures or not (passed or skipped) else 0
