#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Shows that the tests notice a broken contract: suites `mutants` and `sample`.

Started by check.py inside the build root. A mutant is a driver or a device that
breaks the contract in one place; tests/mutants/mutants.toml says which tests must
notice which.

Driver mutants are all in one module, built from a copy of the tree to which
tests/mutants/driver.patch was applied; its parameter `mutant` says which it is.
Where a mutant is right most of the time, the parameter `window` names a place
where the driver waits a little, so that others can come in between. Device
mutants are `virtgpu-device --mutant`, with the module as it is.

Each is a case of a guest (vm.py --case), with a device process and an event log of its
own, and with the module loaded for it. The same tests must pass with no mutant and
each window open. A mutant that spoils a guest for others (`alone`) is the last case of
one. What must notice is an assertion of a test, the kernel's log, or the device's event
log; a time limit does not count. The outcome is printed as `NAME: killed by TEST`, and
as KTAP for check.py.

VIRTGPU_MUTANTS=NAME,… runs only these. `--sample N` takes N that stand side by
side, beginning where the hash of the commit says (VIRTGPU_COMMIT).
"""

import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import check
import families
import ktap

PROJECT, BUILD = check.PROJECT, check.BUILD
MUTANTS = PROJECT + "/tests/mutants"
WORK = BUILD + "/mutants"
DEVICE = os.path.dirname(families.TESTS) + "/virtgpu-device"
# What the module is made of.
PARTS = ["Kbuild", "src", "protocol", "uapi"]
# The long loops run in full in the other suites.
SCALE = "10"
# Freed pages that are written show in the kernel's log when they are used again.
APPEND = "page_poison=1"
# How a test is ended that takes too long.
HANGS = "hangs"
# What vm.py says of a guest that shows nothing by itself.
SHOWS_NOTHING = re.compile("killed after|the guest('s first process| did not print)")


class Problem(Exception):
    """The suite cannot say anything."""


def numbers(enum, text):
    """The values of a Rust enum, by names as in mutants.toml."""
    body = re.search(r"enum " + enum + r" \{(.*?)\}", text, re.S)
    if not body:
        raise Problem(f"driver.patch has no enum {enum}")
    kebab = lambda name: re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower()
    return {kebab(n): int(v) for n, v in re.findall(r"(\w+) = (\d+),", body[1])}


def copy_tree():
    """Makes the tree with the mutants; returns the numbers of mutants and windows."""
    tree = WORK + "/tree"
    # Times are kept, so that only what changes is built again.
    os.makedirs(tree, exist_ok=True)
    subprocess.run(["rsync", "-a", "--delete", *(f"{PROJECT}/{p}" for p in PARTS), tree + "/"], check=True)
    patch = subprocess.run(["busybox", "patch", "-p1", "-i", MUTANTS + "/driver.patch"], cwd=tree,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if patch.returncode:
        raise Problem("tests/mutants/driver.patch does not apply any more: "
                      + " / ".join(l for l in patch.stdout.splitlines() if re.search("FAILED|can't", l)))
    with open(tree + "/src/mutant.rs") as f:
        text = f.read()
    return numbers("Mutant", text), numbers("Window", text)


def module_of(kind):
    return f"{WORK}/module-{kind}/virtgpu_userptr.ko"


def build(kind):
    """Builds the module with the mutants for a kernel."""
    kernel, module = os.environ["VIRTGPU_KERNEL_" + kind.upper()], module_of(kind)
    with open(kernel + "/make-args") as f:
        args = f.read().split()
    os.makedirs(os.path.dirname(module), exist_ok=True)
    if os.path.exists(module):
        os.unlink(module)
    log = f"logs/mutants-module-{kind}.log"
    with open(f"{BUILD}/{log}", "w") as out:
        status = subprocess.run(["make", "-C", kernel + "/build", *args, f"M={WORK}/tree",
                                 f"MO={os.path.dirname(module)}", f"-j{os.cpu_count()}", "modules"],
                                stdout=out, stderr=out).returncode
    if status or not os.path.exists(module):
        raise Problem(f"the module with driver.patch could not be built, log: build/{log}")


class Shown:
    """What a case has shown: what its tests say, and what the logs do."""

    def __init__(self, lines, errors):
        reader = ktap.Ktap()
        self.results = [r for line in lines for r in reader.feed(line)]
        self.rest = reader.finish() if lines else []
        self.begun = any(line.startswith("KTAP version") for line in lines)
        self.errors = errors

    def failed(self):
        return [r for r in self.results if r.status == "not ok"]

    @staticmethod
    def words(result):
        """What a test said last, apart from its time."""
        notes = [n for n in result.notes if not re.fullmatch(r"[0-9.]+ s", n)]
        return result.reason or (notes[-1] if notes else "")

    def wrong(self, tests):
        """Why not all is well, if it is not."""
        for r in self.failed() + self.rest:
            return f"{r.name}: {self.words(r)}"
        for problem in self.errors:
            return problem
        for test in tests:
            name = test.replace(".", "/", 1)
            # Its parts are results, of which the kernel may not have all.
            parts = [r for r in self.results if r.name.startswith(name + "/")]
            results = [r for r in parts if r.status != "skip"] or parts
            statuses = {(r.status, r.reason) for r in self.results if r.name == name or r in results}
            if {s for s, _ in statuses} != {"ok"}:
                return f"{test} was not run " + ", ".join(r for _, r in statuses)
        return None

    def killer(self, tests):
        """Which test has noticed, and how; None if none has."""
        for r in self.failed():
            if HANGS not in " ".join([r.reason, *r.notes]):
                return r.name.replace("/", ".", 1), self.words(r)
        test = tests[0] if len(tests) == 1 else "one of " + ", ".join(tests)
        for problem in self.errors:
            if not SHOWS_NOTHING.match(problem):
                return test, problem.strip()
        return None


class Case:
    """A driver and a device on which tests are run."""

    def __init__(self, name, kernel, kept, parameters, device, tests, last=False):
        self.name, self.kernel, self.kept = name, kernel, kept
        self.parameters, self.device, self.tests, self.last = parameters, device, tests, last
        self.shown = self.guest = None


def run_guest(name, kernel, cases):
    """Runs cases in a guest, as far as it gets."""
    name = "mutants-" + name
    job = f"export VIRTGPU_TESTS_SCALE={SCALE}\necho \"# case $VIRTGPU_CASE\"\ncase $VIRTGPU_CASE in\n"
    job += "".join(f"{c.name}) export VIRTGPU_MODULE_ARGS='{c.kept}'; {run_tests(c.tests)} ;;\n" for c in cases)
    command = [PROJECT + "/scripts/vm.py", "--name", name, "--kernel", kernel, "--timeout", "600",
               f"--append={APPEND}", f"--module={module_of(kernel)}",
               *(f"--case={c.name}|{c.parameters} {c.kept}|{c.device}" for c in cases)]
    folder = f"{BUILD}/logs/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    with open(folder + ".out", "w+", errors="replace") as out:
        subprocess.run([*command, "--", job + "esac"], cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=out,
                       stderr=subprocess.STDOUT)
        out.seek(0)
        parts, current = {}, []
        for line in out.read().splitlines():
            if line.startswith("# case "):
                current = parts[line.split()[2]] = []
            elif not line.startswith("vm: "):
                current.append(line)
    try:
        with open(folder + "/result") as f:
            result = json.load(f)
    except OSError:
        return
    errors = {case["name"]: case["errors"] for case in result["cases"]}
    for c in cases:
        if c.name in errors:
            c.shown = Shown(parts.get(c.name, []), errors[c.name])
            c.guest = name


def run_tests(tests):
    """The command that runs tests in a guest, which print nothing but KTAP."""
    families = list(dict.fromkeys(t.split(".")[0] for t in tests))
    return f"virtgpu-tests run {' '.join(families)} --filter {','.join(tests)}"


class Suite:
    def __init__(self, sample):
        with open(MUTANTS + "/mutants.toml", "rb") as f:
            lists = tomllib.load(f)
        self.families = families.families()
        for kind in ("driver", "device"):
            for m in lists[kind]:
                m["kind"] = kind
                m.setdefault("kernel", "stock")
                for test in m["tests"]:
                    if test.split(".")[0] not in self.families:
                        raise Problem(f"{m['name']}: virtgpu-tests knows no {test}")
                devices = {self.device(t) for t in m["tests"]}
                if len(devices) != 1:
                    raise Problem(f"{m['name']}: its tests want different devices")
                m["device"] = devices.pop()
        self.mutants = lists["driver"] + lists["device"]
        self.chosen = self.mutants
        if wanted := os.environ.get("VIRTGPU_MUTANTS"):
            self.chosen = [m for m in self.mutants if m["name"] in wanted.split(",")]
        elif sample:
            self.chosen = self.sample(sample)
        self.count = self.failures = 0

    def device(self, test):
        return self.families[test.split(".")[0]].device

    def sample(self, count):
        """Those that the commit's hash chooses; neighbours want the same device more often than not."""
        commit = os.environ.get("VIRTGPU_COMMIT") or hashlib.sha1(open(MUTANTS + "/driver.patch", "rb").read()).hexdigest()
        pool = sorted((m for m in self.mutants if m["kernel"] == "stock"),
                      key=lambda m: (m["kind"], m["device"], m["name"]))
        first = int(commit[:8], 16) % len(pool)
        sample = [pool[(first + n) % len(pool)] for n in range(count)]
        print(f"sample: {', '.join(m['name'] for m in sample)} ({count} of {len(pool)}, by {commit[:12]})", flush=True)
        return sample

    def report(self, name, problem, *lines):
        self.count += 1
        for line in lines:
            print(line)
        if problem:
            self.failures += 1
            print(f"# {problem}")
        print(f"{'not ok' if problem else 'ok'} {self.count} {name}", flush=True)

    def complete(self, drivers, windows):
        """No one may be left out, nor asked for who does not exist."""
        listed = subprocess.check_output([DEVICE, "--list-mutants"], text=True).splitlines()
        for kind, known in (("driver", set(drivers)), ("device", {l.split()[0] for l in listed if l.strip()})):
            mentioned = {m["name"] for m in self.mutants if m["kind"] == kind}
            if kind == "driver":
                mentioned |= {m["driver"] for m in self.mutants if "driver" in m}
            if mentioned != known:
                raise Problem(f"{kind} mutants: mutants.toml and the {kind} differ in "
                              + ", ".join(sorted(mentioned ^ known)))
        for m in self.mutants:
            if "window" in m and m["window"] not in windows:
                raise Problem(f"{m['name']}: driver.patch has no such window")

    def module_args(self, m, broken=True):
        """Parameters for a mutant, or for all but that it is one."""
        args = []
        if "driver" in m or m["kind"] == "driver" and broken:
            args.append(f"mutant={self.drivers[m.get('driver', m['name'])]}")
        if "window" in m:
            args.append(f"window={self.windows[m['window']]}")
        return " ".join(args)

    def healthy(self, m):
        """The case in which nothing is broken."""
        key = m["kernel"], m["device"], self.module_args(m, broken=False)
        if key not in self.right:
            parameters = self.families[m["tests"][0].split(".")[0]].module
            self.right[key] = Case(f"right-{len(self.right)}", m["kernel"], key[2], parameters, m["device"], [])
        case = self.right[key]
        case.tests += [t for t in m["tests"] if t not in case.tests]
        return case

    def broken(self, m):
        """The case in which it is at work."""
        device = m["device"] + (f" --mutant {m['name']}" if m["kind"] == "device" else "")
        parameters = self.families[m["tests"][0].split(".")[0]].module
        return Case(m["name"], m["kernel"], self.module_args(m), parameters, device.strip(), m["tests"],
                    m.get("alone", False))

    def run_cases(self, kernel, cases, pool, jobs):
        """Runs cases in as few guests as it takes, until each has shown something or no guest gets on."""
        attempt = 0
        while left := [c for c in cases if not c.shown]:
            last = [c for c in left if c.last]
            others = [c for c in left if not c.last]
            count = max(len(last), min(jobs, len(others)))
            guests = [others[n::count] + last[n:n + 1] for n in range(count)]
            names = [f"{kernel}-{attempt}-{n}" for n in range(count)]
            list(pool.map(run_guest, names, [kernel] * count, guests))
            attempt += 1
            if not any(c.shown for c in left):
                return

    def validate(self, m, right, broken):
        name = f"{m['kind']}/{m['name']}"
        wrong = right.shown.wrong(right.tests) if right.shown else "no guest came to it"
        if wrong:
            return self.report(name, f"without a mutant: {wrong}", f"{m['name']}: not run")
        shown = broken.shown
        if not shown or not shown.begun:
            problem = "; ".join(shown.errors if shown else []) or "no test was begun"
            return self.report(name, problem, f"{m['name']}: not run")
        if killer := shown.killer(m["tests"]):
            return self.report(name, None, f"{m['name']}: killed by {killer[0]}", f"# {killer[1]}")
        late = [r.name for r in shown.failed()] + shown.errors
        problem = f"no test has noticed{', but ' + late[0] if late else ''}, log: build/logs/{broken.guest}"
        return self.report(name, problem, f"{m['name']}: survived")

    def run(self):
        self.drivers, self.windows = copy_tree()
        self.complete(self.drivers, self.windows)
        self.right = {}
        chosen = [(m, self.healthy(m), self.broken(m)) for m in self.chosen]
        jobs = int(os.environ.get("JOBS") or os.cpu_count())
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for kernel in sorted({m["kernel"] for m, _, _ in chosen}):
                build(kernel)
                cases = [*self.right.values(), *(broken for _, _, broken in chosen)]
                self.run_cases(kernel, [c for c in cases if c.kernel == kernel], pool, jobs)
        for m, right, broken in chosen:
            self.validate(m, right, broken)


def main():
    print("KTAP version 1", flush=True)
    sample = int(sys.argv[2]) if sys.argv[1:2] == ["--sample"] else 0
    suite = None
    try:
        suite = Suite(sample)
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
