# SPDX-License-Identifier: GPL-2.0
"""Chooses mutants, runs them and says whether the tests have noticed each.

Driver mutants are parameters of a module of their own (see module.py). Device mutants are
`virtgpu-device --mutant`, with that module as it is. The same tests must pass with no mutant and
each window open. A mutant that spoils a guest for others (`alone`) is the last case of one. The
outcome is printed as `NAME: killed by TEST`, and as KTAP for `check`.

VIRTGPU_MUTANTS=NAME,… runs only these. The words `--sample N` take N that stand side by side,
beginning where the hash of the commit says (VIRTGPU_COMMIT).
"""

import concurrent.futures
import hashlib
import subprocess
import tomllib

from . import MUTANTS, Problem, guests, module
from .. import environment, families
from ..environment import TARGET

DEVICE = TARGET + "/virtgpu-device"


class Suite:
    """The mutants of tests/mutants/mutants.toml, those that are chosen, and the report."""

    def __init__(self, sample):
        with open(MUTANTS + "/mutants.toml", "rb") as f:
            lists = tomllib.load(f)
        self.families = families.offered()
        for kind in ("driver", "device"):
            for m in lists[kind]:
                self.complement(m, kind)
        self.mutants = lists["driver"] + lists["device"]
        self.chosen = self.mutants
        if wanted := environment.wanted_mutants():
            self.chosen = [m for m in self.mutants if m["name"] in wanted]
        elif sample:
            self.chosen = self.sample(sample)
        self.right = {}
        self.count = self.failures = 0

    def complement(self, m, kind):
        """Adds to a mutant what the list does not say, and refuses it if it cannot be run."""
        m["kind"] = kind
        m.setdefault("kernel", "stock")
        for test in m["tests"]:
            if test.split(".")[0] not in self.families:
                raise Problem(f"{m['name']}: virtgpu-tests knows no {test}")
        devices = {self.family(t).device for t in m["tests"]}
        if len(devices) != 1:
            raise Problem(f"{m['name']}: its tests want different devices")
        m["device"] = devices.pop()

    def family(self, test):
        """The family that a test is of."""
        return self.families[test.split(".")[0]]

    def sample(self, count):
        """Those that the commit's hash chooses; neighbours want the same device more often than
        not."""
        commit = environment.commit()
        if not commit:
            with open(MUTANTS + "/driver.patch", "rb") as f:
                commit = hashlib.sha1(f.read()).hexdigest()
        pool = sorted((m for m in self.mutants if m["kernel"] == "stock"),
                      key=lambda m: (m["kind"], m["device"], m["name"]))
        first = int(commit[:8], 16) % len(pool)
        sample = [pool[(first + n) % len(pool)] for n in range(count)]
        print(f"sample: {', '.join(m['name'] for m in sample)} "
              f"({count} of {len(pool)}, by {commit[:12]})", flush=True)
        return sample

    def report(self, name, problem, *lines):
        """Prints the result for a mutant, as KTAP."""
        self.count += 1
        for line in lines:
            print(line)
        if problem:
            self.failures += 1
            print(f"# {problem}")
        print(f"{'not ok' if problem else 'ok'} {self.count} {name}", flush=True)

    def complete(self):
        """No one may be left out, nor asked for who does not exist."""
        listed = subprocess.check_output([DEVICE, "--list-mutants"], text=True).splitlines()
        devices = {line.split()[0] for line in listed if line.strip()}
        for kind, known in (("driver", set(self.drivers)), ("device", devices)):
            mentioned = {m["name"] for m in self.mutants if m["kind"] == kind}
            if kind == "driver":
                mentioned |= {m["driver"] for m in self.mutants if "driver" in m}
            if mentioned != known:
                raise Problem(f"{kind} mutants: mutants.toml and the {kind} differ in "
                              + ", ".join(sorted(mentioned ^ known)))
        for m in self.mutants:
            if "window" in m and m["window"] not in self.windows:
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
            self.right[key] = guests.Case(f"right-{len(self.right)}", m["kernel"], key[2],
                                          self.family(m["tests"][0]).module, m["device"], [])
        case = self.right[key]
        case.tests += [t for t in m["tests"] if t not in case.tests]
        return case

    def broken(self, m):
        """The case in which it is at work."""
        device = m["device"] + (f" --mutant {m['name']}" if m["kind"] == "device" else "")
        return guests.Case(m["name"], m["kernel"], self.module_args(m),
                           self.family(m["tests"][0]).module, device.strip(), m["tests"],
                           m.get("alone", False))

    def validate(self, m, right, broken):
        """Reports whether a mutant was noticed, and only it."""
        name = f"{m['kind']}/{m['name']}"
        if "driver" in m:
            for case in (right, broken):
                if case.shown:
                    case.shown.excuse_driver()
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
        problem = (f"no test has noticed{', but ' + late[0] if late else ''}, "
                   f"log: build/logs/{broken.guest}")
        return self.report(name, problem, f"{m['name']}: survived")

    def run(self):
        """Builds what is needed, runs the mutants and reports them."""
        self.drivers, self.windows = module.copy_tree()
        self.complete()
        chosen = [(m, self.healthy(m), self.broken(m)) for m in self.chosen]
        jobs = environment.jobs()
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for kernel in sorted({m["kernel"] for m, _, _ in chosen}):
                module.build(kernel)
                cases = [*self.right.values(), *(broken for _, _, broken in chosen)]
                mine = [c for c in cases if c.kernel == kernel]
                guests.run_cases(kernel, mine, pool, jobs)
        for m, right, broken in chosen:
            self.validate(m, right, broken)


def main(words):
    print("KTAP version 1", flush=True)
    suite = None
    try:
        suite = Suite(int(words[1]) if words[:1] == ["--sample"] else 0)
        suite.run()
    except Problem as problem:
        number = suite.count + 1 if suite else 1
        print(f"# {problem}\nnot ok {number} mutants\n1..{number}")
        return 1
    print(f"1..{suite.count}")
    return 1 if suite.failures else 0
