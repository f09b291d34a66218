#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Shows that the tests notice a broken contract: suite `mutants`.

Started by check.py inside the build root. A mutant is a driver or a device that
breaks the contract of mirrored memory in one place; tests/mutants/mutants.toml
says which tests must notice which.

Driver mutants are all in one module, built from a copy of the tree to which
tests/mutants/driver.patch was applied; its parameter `mutant` says which it is.
Where a mutant is right most of the time, the parameter `window` names a place
where the driver waits a little, so that others can come in between. Device
mutants are `virtgpu-device --mutant`, with the module as it is.

First everybody must pass with no mutant, and with each window open. Then a guest
for each mutant: one of its tests must fail, or the kernel's log or the device's
event log must show something. That is printed as `NAME: killed by TEST`, and
KTAP for check.py; VIRTGPU_MUTANTS=NAME,… runs only these.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import check
import ktap

PROJECT, BUILD = check.PROJECT, check.BUILD
MUTANTS = PROJECT + "/tests/mutants"
WORK = BUILD + "/mutants"
MODULE = WORK + "/module/virtgpu_userptr.ko"
DEVICE = os.path.dirname(check.TESTS) + "/virtgpu-device"
# What the module is made of.
PARTS = ["Kbuild", "src", "protocol", "uapi"]
# The long loops run in full in the other suites.
SCALE = "export VIRTGPU_TESTS_SCALE=10; "
# Freed pages that are written show in the kernel's log when they are used again.
APPEND = "page_poison=1"


class Problem(Exception):
    """The suite cannot say anything."""


def numbers(enum, text):
    """The values of a Rust enum, by names as in mutants.toml."""
    body = re.search(r"enum " + enum + r" \{(.*?)\}", text, re.S)
    if not body:
        raise Problem(f"driver.patch has no enum {enum}")
    kebab = lambda name: re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower()
    return {kebab(n): int(v) for n, v in re.findall(r"(\w+) = (\d+),", body[1])}


def build():
    """Builds the module with the mutants; returns the numbers of mutants and windows."""
    tree, kernel = WORK + "/tree", os.environ["VIRTGPU_KERNEL_STOCK"]
    # Times are kept, so that only what changes is built again.
    os.makedirs(tree, exist_ok=True)
    subprocess.run(["rsync", "-a", "--delete", *(f"{PROJECT}/{p}" for p in PARTS), tree + "/"], check=True)
    patch = subprocess.run(["busybox", "patch", "-p1", "-i", MUTANTS + "/driver.patch"], cwd=tree,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if patch.returncode:
        raise Problem("tests/mutants/driver.patch does not apply any more: "
                      + " / ".join(l for l in patch.stdout.splitlines() if re.search("FAILED|can't", l)))
    with open(kernel + "/make-args") as f:
        args = f.read().split()
    os.makedirs(os.path.dirname(MODULE), exist_ok=True)
    if os.path.exists(MODULE):
        os.unlink(MODULE)
    with open(BUILD + "/logs/mutants-module.log", "w") as log:
        status = subprocess.run(["make", "-C", kernel + "/build", *args, f"M={tree}",
                                 f"MO={os.path.dirname(MODULE)}", f"-j{os.cpu_count()}", "modules"],
                                stdout=log, stderr=log).returncode
    if status or not os.path.exists(MODULE):
        raise Problem("the module with driver.patch could not be built, log: build/logs/mutants-module.log")
    with open(tree + "/src/mutant.rs") as f:
        text = f.read()
    return numbers("Mutant", text), numbers("Window", text)


class Run:
    """What a guest showed."""

    def __init__(self, name, job, device_args, module=None, module_args=""):
        self.name = "mutants-" + name
        command = [PROJECT + "/scripts/vm.py", "--name", self.name, "--kernel", "stock", "--mem", "1G",
                   "--timeout", "300", f"--append={APPEND}", f"--device-args={device_args}"]
        if module:
            command += [f"--module={module}", f"--module-args={module_args}"]
        folder = f"{BUILD}/logs/{self.name}"
        shutil.rmtree(folder, ignore_errors=True)
        with open(folder + ".out", "w+") as out:
            subprocess.run([*command, "--", SCALE + job], cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=out,
                           stderr=subprocess.STDOUT)
            out.seek(0)
            lines = out.read().splitlines()
        reader = ktap.Ktap()
        self.results = [r for line in lines for r in reader.feed(line)]
        self.rest = reader.finish()
        self.begun = any(line.startswith("KTAP version") for line in lines)
        try:
            with open(folder + "/result") as f:
                result = json.load(f)
        except OSError:
            result = {"errors": ["the guest could not be started"], "scan": []}
        self.scan = result["scan"]
        # The device's own checker speaks for the event log, the rest for the guest.
        self.events = [e for e in result["errors"] if e.startswith("check-log")]
        self.errors = [e for e in result["errors"] if not e.startswith("check-log")]

    def failed(self):
        return [r for r in self.results if r.status == "not ok"]

    @staticmethod
    def words(result):
        """What a test said last, apart from its time."""
        notes = [n for n in result.notes if not re.fullmatch(r"[0-9.]+ s", n)]
        return notes[-1] if notes else result.reason

    def wrong(self, tests):
        """Why not all is well, if it is not."""
        for r in self.failed() + self.rest:
            return f"{r.name}: {self.words(r)}"
        for problem in self.scan + self.events + self.errors:
            return problem
        for test in tests:
            statuses = {(r.status, r.reason) for r in self.results if r.name == test.replace(".", "/", 1)}
            if {s for s, _ in statuses} != {"ok"}:
                return f"{test} was not run " + ", ".join(r for _, r in statuses)
        return None

    def killer(self, tests):
        """Which test has noticed, and how; None if none has."""
        for r in self.failed():
            return r.name.replace("/", ".", 1), self.words(r)
        if not self.begun:
            raise Problem("; ".join(self.errors) or "no test was begun")
        test = tests[0] if len(tests) == 1 else "one of " + ", ".join(tests)
        for how, problems in (("event log", self.events), ("kernel log", self.scan), ("guest", self.errors)):
            if problems:
                return test, f"{how}: {problems[0].strip()}"
        return None


def job(tests):
    """The command that runs tests in a guest, which print nothing but KTAP."""
    families = list(dict.fromkeys(t.split(".")[0] for t in tests))
    return f"virtgpu-tests run {' '.join(families)} --filter {','.join(tests)}"


def reloaded(args, tests):
    """The same with parameters of the module."""
    return f"rmmod virtgpu_userptr; insmod /job/virtgpu_userptr.ko {args}; {job(tests)}"


class Suite:
    def __init__(self):
        with open(MUTANTS + "/mutants.toml", "rb") as f:
            lists = tomllib.load(f)
        self.families = check.families()
        for kind in ("driver", "device"):
            for m in lists[kind]:
                m["kind"] = kind
                for test in m["tests"]:
                    if test.split(".")[0] not in self.families:
                        raise Problem(f"{m['name']}: virtgpu-tests knows no {test}")
                devices = {self.device(t) for t in m["tests"]}
                if len(devices) != 1:
                    raise Problem(f"{m['name']}: its tests want different devices")
                m["device"] = devices.pop()
        self.mutants = lists["driver"] + lists["device"]
        wanted = os.environ.get("VIRTGPU_MUTANTS")
        self.chosen = [m for m in self.mutants if not wanted or m["name"] in wanted.split(",")]
        self.count = self.failures = 0

    def device(self, test):
        return self.families[test.split(".")[0]].device

    def report(self, name, problem, note=""):
        self.count += 1
        if problem:
            self.failures += 1
            print(f"# {problem}")
        print(f"{'not ok' if problem else 'ok'} {self.count} {name}{' # ' + note if note else ''}", flush=True)

    def complete(self, drivers, windows):
        """Nobody may be left out, nor asked for who does not exist."""
        listed = subprocess.check_output([DEVICE, "--list-mutants"], text=True).splitlines()
        for kind, known in (("driver", set(drivers)), ("device", {l.split()[0] for l in listed if l.strip()})):
            named = {m["name"] for m in self.mutants if m["kind"] == kind}
            if kind == "driver":
                named |= {m["driver"] for m in self.mutants if "driver" in m}
            if named != known:
                raise Problem(f"{kind} mutants: mutants.toml and the {kind} differ in "
                              + ", ".join(sorted(named ^ known)))
        for m in self.mutants:
            if "window" in m and m["window"] not in windows:
                raise Problem(f"{m['name']}: driver.patch has no such window")

    def baseline(self, drivers, windows):
        """All tests must pass where nothing is broken."""
        runs = {}
        for m in self.chosen:
            args = ""
            if "window" in m:
                args = f"window={windows[m['window']]}"
            elif "driver" in m:
                args = f"mutant={drivers[m['driver']]}"
            # Without parameters the module is as good as the one without mutants.
            runs.setdefault(m["device"], {}).setdefault(args, []).extend(m["tests"])
        for number, (device, by_args) in enumerate(sorted(runs.items())):
            by_args = {a: list(dict.fromkeys(t)) for a, t in sorted(by_args.items())}
            jobs = [reloaded(a, t) if a else job(t) for a, t in by_args.items()]
            run = Run(f"baseline-{number}", "; ".join(jobs), device, MODULE)
            tests = [t for tests in by_args.values() for t in tests]
            self.report(f"no_mutant/{device or 'plain device'}", run.wrong(tests))

    def judge(self, m, drivers, windows):
        module, args = None, []
        if m["kind"] == "driver" or "driver" in m:
            module = MODULE
            args.append(f"mutant={drivers[m.get('driver', m['name'])]}")
        if "window" in m:
            args.append(f"window={windows[m['window']]}")
        device = m["device"] + (f" --mutant {m['name']}" if m["kind"] == "device" else "")
        try:
            killer = Run(m["name"], job(m["tests"]), device.strip(), module, " ".join(args)).killer(m["tests"])
        except Problem as problem:
            print(f"{m['name']}: not run: {problem}")
            return self.report(f"{m['kind']}/{m['name']}", str(problem))
        if not killer:
            print(f"{m['name']}: survived")
            return self.report(f"{m['kind']}/{m['name']}", "no test has noticed")
        test, how = killer
        print(f"{m['name']}: killed by {test}")
        print(f"# {how}")
        return self.report(f"{m['kind']}/{m['name']}", None)

    def run(self):
        drivers, windows = build()
        self.complete(drivers, windows)
        self.baseline(drivers, windows)
        if self.failures:
            raise Problem("a test fails without a mutant, so nothing can be said about mutants")
        for m in self.chosen:
            self.judge(m, drivers, windows)


def main():
    print("KTAP version 1", flush=True)
    suite = None
    try:
        suite = Suite()
        suite.run()
    except Problem as problem:
        print(f"# {problem}")
        print(f"not ok {suite.count + 1 if suite else 1} mutants")
        print(f"1..{suite.count + 1 if suite else 1}")
        sys.exit(1)
    print(f"1..{suite.count}")
    sys.exit(1 if suite.failures else 0)


if __name__ == "__main__":
    main()
