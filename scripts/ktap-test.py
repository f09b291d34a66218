#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Self-test of ktap.py; prints KTAP itself."""

import sys

import ktap

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


def read(reader, text):
    out = []
    for line in text.splitlines():
        out += reader.feed(line)
    return [(r.name, r.status, r.reason) for r in out + reader.finish()]


CASES = {
    "nested": (ktap.Ktap(), NESTED, [
        ("pin/small", "ok", ""), ("pin/large", "not ok", ""),
        ("life/unnamed_until_the_end", "skip", "no memory"), ("flat", "ok", "")]),
    "cut_short": (ktap.Ktap(), CUT, [
        ("pin/small", "ok", ""), ("plan", "not ok", "2 tests planned, 0 reported"),
        ("pin", "not ok", "3 tests planned, 1 reported")]),
    "group_fails_alone": (ktap.Ktap(), LYING, [
        ("pin/small", "ok", ""), ("pin", "not ok", "the group failed, none of its tests did")]),
    "nothing": (ktap.Ktap(), "hello\n", [("results", "not ok", "no test result was printed")]),
    "cargo": (ktap.Cargo(), CARGO, [
        ("virtgpu_protocol/runs::merge", "ok", ""), ("virtgpu_protocol/runs::split", "not ok", ""),
        ("virtgpu_protocol/slow", "skip", "needs an hour"),
        ("draw/tests::three_digits", "ok", ""),
        ("virtgpu_client/doc/client/src/lib.rs:12", "ok", "")]),
}



class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 0

    def monotonic(self):
        return self.now


def seconds(make, text):
    """What the tests in `text` took, if each of its lines begins with the time at which it came."""
    ktap.time, real = Clock(), ktap.time
    try:
        reader, out = make(), []
        for line in text.splitlines():
            now, _, line = line.partition("|")
            ktap.time.now = int(now)
            out += reader.feed(line)
        return [(r.name, r.seconds) for r in out]
    finally:
        ktap.time = real


# Neither the build nor the boot is a test's.
TIMES = {
    "cargo_times": (ktap.Cargo, """0|   Compiling virtgpu-bench v0.1.0
400|    Finished `release` profile [optimized] target(s) in 6m 40s
401|     Running unittests src/main.rs (build/target/release/deps/virtgpu_bench-0123abcd)
402|test report::tests::medians ... ok
405|test report::tests::goals ... ok
500|   Doc-tests virtgpu_client
507|test client/src/lib.rs - (line 12) ... ok
""", [("virtgpu_bench/report::tests::medians", 1), ("virtgpu_bench/report::tests::goals", 3),
      ("virtgpu_client/doc/client/src/lib.rs:12", 7)]),
    "ktap_times": (ktap.Ktap, """0|booting
30|KTAP version 1
30|1..2
31|ok 1 small
35|ok 2 large
""", [("small", 1), ("large", 4)]),
}

print(f"KTAP version 1\n1..{len(CASES) + len(TIMES)}")
failed = 0
results = [(name, want, read(reader, text)) for name, (reader, text, want) in CASES.items()]
results += [(name, want, seconds(make, text)) for name, (make, text, want) in TIMES.items()]
for number, (name, want, got) in enumerate(results, 1):
    good = got == want
    failed += not good
    if not good:
        print(f"# want {want}\n# got  {got}")
    print(f"{'ok' if good else 'not ok'} {number} {name}")
sys.exit(failed > 0)
