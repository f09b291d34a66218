# SPDX-License-Identifier: GPL-2.0
"""Shows what suites.py reads from a suite: the tests that must come, and the guests."""

import subprocess

from . import fakes
from .. import families, suites
from .fakes import ONE, document, family


class Suites(fakes.FakeGuests):
    def test_what_is_expected_must_come(self):
        r = self.run_guest([(document("a"), {})],
                           dict(ONE, expect="echo a/works; echo a/is_missing"))
        self.assertEqual(r.failed, {"s/a/is_missing"})
        self.assertIn("s/a/works", r.names)

    def test_what_cannot_be_listed_fails(self):
        with self.assertRaises(subprocess.CalledProcessError):
            self.run_guest([], dict(ONE, expect="false"))

    def test_devices_are_those_that_match_or_are_named(self):
        offered = {"a": family("a", "--x"), "b": family("b", "--y"), "c": family("c", "")}
        self.replace(families, "offered", lambda: offered)

        def named(**run):
            spec = {"kernel": "stock", "guest": [dict(run, name="g")]}
            return [guest.run["families"] for guest in suites.guests("s", spec)]

        self.assertEqual(named(each_device="x"), [["a"]])
        self.assertEqual(named(each_device=".", guests=2), [["a"], ["b"]])
        self.assertEqual(named(each_device=".", families=["b", "unknown"]), [["b", "unknown"]])
