#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Runs test suites and reports one line a test. Started by check.sh, inside the
build root, when everything is built.

A suite is a file tests/suites/NAME.toml:

  description = "one line for LIST=1"
  order = 10              # suites run in this order
  kernel = "stock"        # of its guests, unless a run says otherwise
  driver = "ours"

  [[command]]             # something that runs here
  name = "protocol"
  run = "cargo test …"    # a shell command
  format = "cargo"        # cargo, ktap, or status (the default: one test)

  [[guest]]               # a guest
  name = "all"
  families = ["pin"]      # of virtgpu-tests; ["*"] is what applies and no other
                          # run of the suite names; or instead of families:
  job = "…"               # a shell command that prints KTAP
  except = ["slow"]       # families that "*" leaves out
  kernel, driver, mem, cpus, timeout, device_args, module_args, append
                          # as the options of vm.sh

`virtgpu-tests list` prints a family and its needs on each line. Needs are words:
a name of a kernel (debug: only there), or "ours"/"c" (only with that driver), or
"alone" (never together with others: a suite must name it), or KEY=VALUE (left to
the suite). A family with driver "c" on a run needs the word "c" or "any".
"""

import json
import os
import subprocess
import sys
import time
import tomllib

import ktap

PROJECT = "/project"
BUILD = PROJECT + "/build"
SUITES = PROJECT + "/tests/suites"
TESTS = BUILD + "/target/x86_64-unknown-linux-gnu/release/virtgpu-tests"


class Report:
    """Counts and prints; the last line is the sum."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures = []

    def add(self, name, status, seconds=None, reason="", notes=()):
        name = name.replace(" ", "_")
        line = f"{status} {name}"
        if status == "ok":
            self.passed += 1
        elif status == "skip":
            self.skipped += 1
        else:
            self.failed += 1
            self.failures.append(name)
        if seconds is not None and status != "skip":
            line += f" ({seconds:.1f} s)"
        if reason:
            line += f" # {reason}"
        elif status == "skip":
            line += " # no reason given"
        print(line, flush=True)
        if status == "not ok":
            for note in list(notes)[-15:]:
                print(f"    {note}", flush=True)

    def finish(self):
        if self.failures:
            print("failed:")
            for name in self.failures:
                print(f"    {name}")
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped", flush=True)
        return 1 if self.failed or not (self.passed or self.skipped) else 0


def families():
    """What the guest program offers: {family: [needs]}."""
    if not os.path.exists(TESTS):
        return {}
    found = {}
    for line in subprocess.check_output([TESTS, "list"], text=True).splitlines():
        words = line.replace(",", " ").split()
        if words and not line.startswith("#"):
            found[words[0].rstrip(":")] = words[1:]
    return found


def applies(needs, kernel, driver):
    kernels = [n for n in needs if n in ("stock", "debug", "release")]
    if kernels and kernel not in kernels:
        return False
    if driver == "c":
        return "c" in needs or "any" in needs
    return "c" not in needs or "ours" in needs


def feed(reader, report, suite, command, log):
    """Runs a command, reports what its output says, returns its exit status."""
    last = time.monotonic()
    with open(log, "w") as out:
        p = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, errors="replace")
        for line in p.stdout:
            out.write(line)
            out.flush()
            for r in reader.feed(line.rstrip("\n")):
                now = time.monotonic()
                report.add(f"{suite}/{r.name}", r.status, now - last, r.reason, r.notes)
                last = now
        return p.wait()


def tail(path, lines=20):
    try:
        with open(path, errors="replace") as f:
            return [l.rstrip() for l in f.readlines()[-lines:]]
    except OSError:
        return []


def run_command(report, suite, run):
    name = f"{suite}/{run['name']}"
    log = f"{BUILD}/logs/{suite}-{run['name']}.log"
    shown = log.replace(PROJECT + "/", "")
    start, failed = time.monotonic(), report.failed
    form = run.get("format", "status")
    if form == "status":
        with open(log, "w") as out:
            status = subprocess.run(["sh", "-c", run["run"]], cwd=PROJECT, stdin=subprocess.DEVNULL,
                                    stdout=out, stderr=out).returncode
        report.add(name, "not ok" if status else "ok", time.monotonic() - start,
                   f"exit status {status}, log: {shown}" if status else "", tail(log))
        return
    reader = ktap.Cargo() if form == "cargo" else ktap.Ktap()
    status = feed(reader, report, suite, ["sh", "-c", run["run"]], log)
    for r in reader.finish():
        report.add(f"{name}/{r.name}", r.status, None, r.reason, r.notes)
    if status and report.failed == failed:
        report.add(name, "not ok", time.monotonic() - start, f"exit status {status}, log: {shown}", tail(log))
    elif report.failed > failed:
        print(f"    log: {shown}", flush=True)


def run_guest(report, suite, spec, run):
    option = lambda key, default=None: run.get(key, spec.get(key, default))
    kernel, driver = option("kernel", "stock"), option("driver", "ours")
    name, run_name = f"{suite}/{run['name']}", f"{suite}-{run['name']}"
    start, failed = time.monotonic(), report.failed
    job = run.get("job")
    if not job:
        offered = families()
        wanted = list(run["families"])
        if "*" in wanted:
            named = {f for g in spec["guest"] for f in g.get("families", [])} | set(run.get("except", []))
            wanted = [f for f, needs in offered.items()
                      if applies(needs, kernel, driver) and "alone" not in needs and f not in named]
        unknown = [f for f in wanted if f not in offered]
        for f in unknown:
            report.add(f"{suite}/{f}", "not ok", None, "virtgpu-tests knows no such family")
        wanted = [f for f in wanted if f in offered]
        if not wanted:
            report.add(name, "not ok", None, "no family of virtgpu-tests applies")
            return
        job = "virtgpu-tests run " + " ".join(wanted)
    command = [PROJECT + "/scripts/vm.py", "--name", run_name, "--kernel", kernel, "--driver", driver]
    for key in ("mem", "cpus", "timeout", "device_args", "module_args", "append"):
        if option(key) is not None:
            command.append(f"--{key.replace('_', '-')}={option(key)}")
    command += ["--", job]
    log = f"{BUILD}/logs/{run_name}.out"
    reader = ktap.Ktap()
    result_file = f"{BUILD}/logs/{run_name}/result"
    if os.path.exists(result_file):
        os.unlink(result_file)
    status = feed(reader, report, run_name if run.get("qualify") else suite, command, log)
    for r in reader.finish():
        report.add(f"{name}/{r.name}", r.status, None, r.reason, r.notes)
    # The guest itself is a test: it must have ended well and left a clean log.
    try:
        with open(result_file) as f:
            result = json.load(f)
        problems = result["errors"] + result["scan"]
        if result["marker"] and result["rc"] and report.failed == failed:
            problems.append(f"the job returned {result['rc']}, yet no test failed")
    except OSError:
        problems = [f"the guest could not be started (status {status})"] + tail(log)
    report.add(f"{name}/guest_log_and_unload", "not ok" if problems else "ok", time.monotonic() - start,
               problems[0] if problems else "", problems[1:])
    if report.failed > failed:
        print(f"    logs: build/logs/{run_name}/", flush=True)


def main():
    report = Report()
    os.makedirs(BUILD + "/logs", exist_ok=True)
    for suite in sys.argv[1:]:
        with open(f"{SUITES}/{suite}.toml", "rb") as f:
            spec = tomllib.load(f)
        for run in spec.get("command", []):
            run_command(report, suite, run)
        for run in spec.get("guest", []):
            run_guest(report, suite, spec, run)
    sys.exit(report.finish())


if __name__ == "__main__":
    main()
