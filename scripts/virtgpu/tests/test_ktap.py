# SPDX-License-Identifier: GPL-2.0
"""Shows what ktap.py reads in the output of tests, and what it says they took."""

import unittest
from unittest import mock

from .. import ktap

NESTED = """KTAP version 1
1..3
    KTAP version 1
    # Subtest: pin
    1..2
    ok 1 small
    # why it failed
    not ok 2 large
not ok 1 pin
    1..1
    ok 1 unnamed_until_the_end # SKIP no memory
ok 2 life
ok 3 flat
"""
CUT = """KTAP version 1
1..2
    # Subtest: pin
    1..3
    ok 1 small
"""
LYING = """1..1
    # Subtest: pin
    1..1
    ok 1 small
not ok 1 pin
"""
CARGO = """     Running unittests src/lib.rs (build/target/release/deps/virtgpu_protocol-0123abcd)
test runs::merge ... ok
test runs::split ... FAILED
test slow ... ignored, needs an hour
     Running unittests examples/draw.rs (build/target/release/examples/draw-0123abcd)
test tests::three_digits ... ok
   Doc-tests virtgpu_client
test client/src/lib.rs - (line 12) ... ok
"""
# Lines with the second at which they come. Neither the build nor the boot is a test's.
CARGO_TIMES = """0|   Compiling virtgpu-bench v0.1.0
400|    Finished `release` profile [optimized] target(s) in 6m 40s
401|     Running unittests src/main.rs (build/target/release/deps/virtgpu_bench-0123abcd)
402|test report::tests::medians ... ok
405|test report::tests::goals ... ok
500|   Doc-tests virtgpu_client
507|test client/src/lib.rs - (line 12) ... ok
"""
KTAP_TIMES = """0|booting
30|KTAP version 1
30|1..2
31|ok 1 small
35|ok 2 large
"""


class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 0

    def monotonic(self):
        return self.now


class Ktap(unittest.TestCase):
    def check(self, reader, text, *wanted):
        """Whether these results are read: names, statuses and reasons."""
        results = [r for line in text.splitlines() for r in reader.feed(line)]
        results += reader.finish()
        self.assertEqual([(r.name, r.status, r.reason) for r in results], list(wanted))

    def check_times(self, make, text, *wanted):
        """Whether these results are read: names and seconds."""
        clock, results = Clock(), []
        with mock.patch.object(ktap, "time", clock):
            reader = make()
            for line in text.splitlines():
                now, _, line = line.partition("|")
                clock.now = int(now)
                results += reader.feed(line)
        self.assertEqual([(r.name, r.seconds) for r in results], list(wanted))

    def test_nested(self):
        self.check(ktap.Ktap(), NESTED,
                   ("pin/small", "ok", ""), ("pin/large", "not ok", ""),
                   ("life/unnamed_until_the_end", "skip", "no memory"), ("flat", "ok", ""))

    def test_cut_short(self):
        self.check(ktap.Ktap(), CUT,
                   ("pin/small", "ok", ""), ("plan", "not ok", "2 tests planned, 0 reported"),
                   ("pin", "not ok", "3 tests planned, 1 reported"))

    def test_group_fails_alone(self):
        self.check(ktap.Ktap(), LYING, ("pin/small", "ok", ""),
                   ("pin", "not ok", "the group failed, none of its tests did"))

    def test_nothing(self):
        self.check(ktap.Ktap(), "hello\n", ("results", "not ok", "no test result was printed"))

    def test_cargo(self):
        self.check(ktap.Cargo(), CARGO,
                   ("virtgpu_protocol/runs::merge", "ok", ""),
                   ("virtgpu_protocol/runs::split", "not ok", ""),
                   ("virtgpu_protocol/slow", "skip", "needs an hour"),
                   ("draw/tests::three_digits", "ok", ""),
                   ("virtgpu_client/doc/client/src/lib.rs:12", "ok", ""))

    def test_cargo_times(self):
        self.check_times(ktap.Cargo, CARGO_TIMES,
                         ("virtgpu_bench/report::tests::medians", 1),
                         ("virtgpu_bench/report::tests::goals", 3),
                         ("virtgpu_client/doc/client/src/lib.rs:12", 7))

    def test_ktap_times(self):
        self.check_times(ktap.Ktap, KTAP_TIMES, ("small", 1), ("large", 4))
