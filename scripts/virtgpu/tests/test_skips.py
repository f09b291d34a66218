# SPDX-License-Identifier: GPL-2.0
"""Shows which skips are failures, and that tests/skips.toml can be read."""

import contextlib
import glob
import io
import os
import unittest

from .. import result, skips
from ..environment import TESTS

SKIPS = """skips = [
    { test = "s/a/*", reason = "no *", why = "w" },
    { test = "{s,t}/b/x", reason = "no c", why = "w" },
    { test = "s/c/x", reason = "*", why = "w", maybe = true },
]
"""
ALL_SKIPS = [("s/a/1", "no a"), ("s/b/x", "no c"), ("t/b/x", "no c")]


def problems(skipped, suites=("s", "t"), others=(), text=SKIPS):
    """What is wrong with these skips: the names of failures, and the text."""
    report, out = result.Report(), io.StringIO()
    with contextlib.redirect_stdout(out):
        for name, reason in skipped:
            report.add(name, "skip", None, reason)
        for name, status in others:
            report.add(name, status)
        report.check_skips(suites, text)
    failed = {r.name for r in report.results
              if r.status == "not ok" and r.name.startswith("skips/")}
    return failed, out.getvalue()


def failures(*args, **kwargs):
    """The names of failures alone."""
    return problems(*args, **kwargs)[0]


class Skips(unittest.TestCase):
    def test_expected_skips_pass(self):
        self.assertFalse(failures(ALL_SKIPS))
        self.assertFalse(failures(ALL_SKIPS + [("s/c/x", "z")]))

    def test_a_new_skip_fails(self):
        new = ALL_SKIPS + [("s/d/x [1]", 'what "it" says')]
        failed, text = problems(new)
        self.assertEqual(failed, {"skips/s/d/x_[1]"})
        # The line that it says to add is right.
        lines = [line.strip() for line in text.splitlines()]
        added = next(line for line in lines if line.startswith("{"))
        self.assertFalse(failures(new, text=SKIPS.replace("]\n", added + "\n]\n", 1)))

    def test_another_reason_fails(self):
        self.assertIn("skips/s/a/1",
                      failures([("s/a/1", "yes"), ("s/b/x", "no c"), ("t/b/x", "no c")]))
        self.assertEqual(failures(ALL_SKIPS + [("s/b/x", "")]), {"skips/s/b/x"})

    def test_a_skip_that_is_missed_fails(self):
        self.assertEqual(failures(ALL_SKIPS[:2]), {"skips/t/b/x"})

    def test_only_whole_suites_miss_skips(self):
        guest = "t/g/guest_log_and_unload"
        self.assertFalse(failures(ALL_SKIPS[:2], ["s"]))
        self.assertFalse(failures(ALL_SKIPS[:2], others=[(guest, "not ok")]))
        self.assertFalse(failures(ALL_SKIPS[:2] + [(guest, result.UNCHANGED)]))

    def test_a_bad_list_of_skips_fails(self):
        for text in ('skips = [{ test = "s/a", reason = "x" }]',
                     'skips = [{ test = "*/a", reason = "x", why = "y" }]',
                     'skips = [{ test = "s/a", reason = "x", why = "y", unless = 1 }]',
                     "[", "x = 1", "skips = [1]"):
            with self.subTest(text):
                self.assertEqual(failures([], text=text), {"skips/list"})

    def test_the_list_of_skips_is_right(self):
        with open(f"{TESTS}/skips.toml") as f:
            expected = skips.parse(f.read())
        paths = glob.glob(f"{TESTS}/suites/*.toml")
        suites = {os.path.basename(path).removesuffix(".toml") for path in paths}
        self.assertTrue(expected)
        self.assertLessEqual({e.suite for e in expected}, suites)
