# SPDX-License-Identifier: GPL-2.0
"""Runs test suites and reports one line a test; the last line is the sum.

The words are the names of suites; suites.py says what is in one. scripts/check.sh starts this,
when everything is built.

Guests run JOBS at a time (one a core, if nothing else is said), and as many again of those that
mostly wait; those in the debug kernel first, then those with the longest time limit. Commands run
one after the other beside them. A guest whose suite has commands comes last, and begins when these
are over: it may need what they have made.

A guest that hung before its first process is started again by `vm`; more than one of them in a run
is a failure. A skip that tests/skips.toml does not expect is a failure, and so is one that it
expects in vain.
"""

import os
import threading

from . import commands, environment, guests, logs, suites
from .environment import TESTS
from .result import Part, Report


def main(names):
    report = Report()
    os.makedirs(logs.folder(""), exist_ok=True)
    specs = [(suite, suites.load(suite)) for suite in names]
    all_guests = [guest for suite, spec in specs for guest in suites.guests(suite, spec)]
    with_commands = {suite: spec["command"] for suite, spec in specs if "command" in spec}
    with_guests = {guest.suite for guest in all_guests}
    made = {suite: threading.Event() for suite in with_commands if suite in with_guests}
    workers = guests.run_all(report, all_guests, environment.jobs(), made)
    # First those that guests wait for.
    for suite in sorted(with_commands, key=lambda suite: suite not in made):
        try:
            for run in with_commands[suite]:
                commands.run_command(Part(report), suite, run)
        finally:
            if suite in made:
                made[suite].set()
    for worker in workers:
        worker.join()
    with open(f"{TESTS}/skips.toml") as f:
        report.check_skips([suite for suite, _ in specs], f.read())
    return report.finish()
