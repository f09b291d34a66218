#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Runs test suites and reports one line a test. Started by check.sh, inside the
build root, when everything is built.

A suite is a file tests/suites/NAME.toml:

  description = "one line for LIST=1"
  order = 10              # suites are named, and their commands run, in this order
  kernel = "stock"        # of its guests, unless a run says otherwise
  driver = "ours"
  default = false         # only when asked for by name

  [[command]]             # something that runs here
  name = "protocol"
  run = "cargo test …"    # a shell command
  format = "cargo"        # cargo, ktap, or status (the default: one test)
  show = "REGEX"          # lines of its output that are printed as they are

  [[guest]]               # a guest
  name = "all"
  families = ["pin"]      # of virtgpu-tests; ["*"] are all that apply to the
                          # kernel and driver, want a well-behaved device and are
                          # not named by another run of the suite
  except = ["slow"]       # families that "*" leaves out
  except_suites = ["big"] # suites whose named families "*" leaves out
  each_device = "REGEX"   # instead: a guest for each family that wants a device
                          # with arguments of its own, if they match
  job = "…"               # instead: a shell command that prints KTAP
  env = "NAME=value"      # for the job
  host_env = ["NAME"]     # variables that the job gets from this environment, if set
  show = "REGEX"          # as with commands
  kernel, driver, mem, cpus, timeout, device_args, module_args, append, display, host_gpu,
  trees, files            # as the options of vm.sh

Guests run when all commands have, JOBS of them at a time (one a core, if nothing
else is said), those with the longest time limit first.

`virtgpu-tests list` prints a family a line: name, kernel (any or debug), driver
(ours, c or both), and arguments for the device, if it wants any.
"""

import json
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time
import tomllib

import ktap

PROJECT = "/project"
BUILD = PROJECT + "/build"
SUITES = PROJECT + "/tests/suites"
TESTS = BUILD + "/target/x86_64-unknown-linux-gnu/release/virtgpu-tests"


class Part:
    """What one command or guest reports, counted apart."""

    def __init__(self, report):
        self.report = report
        self.failed = 0

    def add(self, name, status, seconds=None, reason="", notes=()):
        self.failed += status not in ("ok", "skip")
        with self.report.lock:
            self.report.add(name, status, seconds, reason, notes)

    def print(self, line):
        with self.report.lock:
            print(line, flush=True)


class Report:
    """Counts and prints; the last line is the sum."""

    def __init__(self):
        self.lock = threading.Lock()
        self.passed = self.failed = self.skipped = 0
        self.failures = []

    def add(self, name, status, seconds, reason, notes):
        name = name.replace(" ", "_")
        line = f"{status} {name}"
        if status == "ok":
            self.passed += 1
        elif status == "skip":
            self.skipped += 1
        else:
            self.failed += 1
            self.failures.append(f"{name} # {reason}" if reason else name)
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


class Family:
    """A line of `virtgpu-tests list`."""

    def __init__(self, line):
        self.name, self.kernel, self.driver, *device = line.split(None, 3)
        self.device = device[0].strip() if device else ""

    def applies(self, kernel, driver):
        return self.kernel in ("any", kernel) and self.driver in ("both", driver)


def families():
    """What the guest program offers, by name."""
    if not os.path.exists(TESTS):
        return {}
    lines = subprocess.check_output([TESTS, "list"], text=True).splitlines()
    return {f.name: f for f in map(Family, filter(None, lines))}


def feed(reader, report, suite, command, log, show=None):
    """Runs a command, reports what its output says, returns its exit status."""
    with open(log, "w") as out:
        p = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, errors="replace")
        for line in p.stdout:
            out.write(line)
            out.flush()
            if show and re.search(show, line):
                report.print(line.rstrip("\n"))
            for r in reader.feed(line.rstrip("\n")):
                report.add(f"{suite}/{r.name}", r.status, r.seconds, r.reason, r.notes)
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
    start = time.monotonic()
    form = run.get("format", "status")
    if form == "status":
        with open(log, "w") as out:
            status = subprocess.run(["sh", "-c", run["run"]], cwd=PROJECT, stdin=subprocess.DEVNULL,
                                    stdout=out, stderr=out).returncode
        report.add(name, "not ok" if status else "ok", time.monotonic() - start,
                   f"exit status {status}, log: {shown}" if status else "", tail(log))
        return
    reader = ktap.Cargo() if form == "cargo" else ktap.Ktap()
    prefix = suite if form == "cargo" else name
    status = feed(reader, report, prefix, ["sh", "-c", run["run"]], log, run.get("show"))
    for r in reader.finish():
        report.add(f"{name}/{r.name}", r.status, None, r.reason, r.notes)
    if status and not report.failed:
        report.add(name, "not ok", time.monotonic() - start, f"exit status {status}, log: {shown}", tail(log))
    elif report.failed:
        report.print(f"    log: {shown}")


def load_suite(suite):
    with open(f"{SUITES}/{suite}.toml", "rb") as f:
        return tomllib.load(f)


def run_guest(report, suite, spec, run):
    option = lambda key, default=None: run.get(key, spec.get(key, default))
    kernel, driver = option("kernel", "stock"), option("driver", "ours")
    name, run_name = f"{suite}/{run['name']}", f"{suite}-{run['name']}"
    start = time.monotonic()
    job = run.get("job")
    if not job:
        offered = families()
        wanted = list(run["families"])
        if "*" in wanted:
            specs = [spec] + [load_suite(other) for other in run.get("except_suites", [])]
            named = {f for s in specs for g in s["guest"] for f in g.get("families", [])}
            named |= set(run.get("except", []))
            wanted = [f.name for f in offered.values()
                      if f.applies(kernel, driver) and not f.device and f.name not in named]
        for f in wanted:
            if f not in offered:
                report.add(f"{suite}/{f}", "not ok", None, "virtgpu-tests knows no such family")
        wanted = [f for f in wanted if f in offered]
        if not wanted:
            report.add(name, "not ok", None, "no family of virtgpu-tests applies")
            return
        job = "virtgpu-tests run " + " ".join(wanted)
    if option("env"):
        job = f"export {option('env')}; {job}"
    for variable in option("host_env", []):
        if variable in os.environ:
            job = f"export {variable}={shlex.quote(os.environ[variable])}; {job}"
    command = [PROJECT + "/scripts/vm.py", "--name", run_name, "--kernel", kernel, "--driver", driver]
    for key in ("mem", "cpus", "timeout", "device_args", "module_args", "append", "host_gpu", "trees",
                "files"):
        if option(key) is not None:
            command.append(f"--{key.replace('_', '-')}={option(key)}")
    if option("display"):
        command.append("--display")
    command += ["--", job]
    log = f"{BUILD}/logs/{run_name}.out"
    reader = ktap.Ktap()
    again = ""
    result_file = f"{BUILD}/logs/{run_name}/result"
    if os.path.exists(result_file):
        os.unlink(result_file)
    status = feed(reader, report, suite, command, log, option("show"))
    for r in reader.finish():
        report.add(f"{name}/{r.name}", r.status, None, r.reason, r.notes)
    # The guest itself is a test: it must have ended well and left a clean log.
    try:
        with open(result_file) as f:
            result = json.load(f)
        problems = result["errors"] + result["scan"]
        if result["starts"] > 1:
            again = "its kernel hung at the first start, before its first process"
        if result["marker"] and result["rc"] and not report.failed:
            problems.append(f"the job returned {result['rc']}, yet no test failed")
    except OSError:
        problems = [f"the guest could not be started (status {status})"] + tail(log)
    report.add(f"{name}/guest_log_and_unload", "not ok" if problems else "ok", time.monotonic() - start,
               problems[0] if problems else again, problems[1:])
    if report.failed:
        report.print(f"    logs: build/logs/{run_name}/")


def guests(spec):
    """The guests of a suite, `each_device` spelt out."""
    for run in spec.get("guest", []):
        if not run.get("each_device"):
            yield run
            continue
        kernel, driver = run.get("kernel", spec["kernel"]), run.get("driver", spec.get("driver", "ours"))
        for f in families().values():
            if f.device and re.search(run["each_device"], f.device) and f.applies(kernel, driver):
                yield dict(run, name=f.name, families=[f.name], device_args=f.device)


def run_guests(report, runs, jobs):
    """Runs guests, `jobs` at a time."""
    waiting = queue.SimpleQueue()
    for run in sorted(runs, key=lambda run: -run[2].get("timeout", run[1].get("timeout", 0))):
        waiting.put(run)

    def work():
        while True:
            try:
                suite, spec, run = waiting.get_nowait()
            except queue.Empty:
                return
            part = Part(report)
            try:
                run_guest(part, suite, spec, run)
            except Exception as error:  # must not pass for a run without failures
                part.add(f"{suite}/{run['name']}", "not ok", None, f"check.py: {error!r}")

    workers = [threading.Thread(target=work) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main():
    report = Report()
    os.makedirs(BUILD + "/logs", exist_ok=True)
    specs = [(suite, load_suite(suite)) for suite in sys.argv[1:]]
    for suite, spec in specs:
        for run in spec.get("command", []):
            run_command(Part(report), suite, run)
    runs = [(suite, spec, run) for suite, spec in specs for run in guests(spec)]
    run_guests(report, runs, int(os.environ.get("JOBS") or os.cpu_count()))
    sys.exit(report.finish())


if __name__ == "__main__":
    main()
