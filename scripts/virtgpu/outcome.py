# SPDX-License-Identifier: GPL-2.0
"""Says how a guest has ended: what the guest itself, its kernel's log, and its devices say.

Whatever is wrong belongs to a case, if it came while one ran, and else to the guest.
"""

import re
import subprocess

from . import logs
from .environment import SCRIPTS

# What the driver says when it has lost a device, and when the guest's user wants it so.
LOST = "device lost: "
BUS_RESET = LOST + "its bus resets it"


class Cases:
    """What the guest's log says about each case, and to which case a line of it belongs."""

    def __init__(self, names):
        self.all = {name: {"name": name, "begun": False, "rc": None, "errors": []}
                    for name in names}
        self.current = self.last = None
        self.since = []  # from when which is the current one, in jiffies

    def marker(self, word, rest):
        """Takes in what the guest says of its cases."""
        name = rest.split(" ")[0]
        if word == "CASE":
            self.current = self.last = name
            self.all[name]["begun"] = True
            if at := re.search(r"jiffies=(\d+)", rest):
                self.since.append((int(at[1]), name))
        elif word == "CASE-END":
            self.all[name]["rc"] = int(rest.partition("rc=")[2])
        elif word == "END":
            self.current = None

    def of_object(self, text):
        """The case in which an object was allocated that kmemleak describes, if it was in one."""
        at = re.search(r"jiffies (\d+)", text)
        begun = [name for since, name in self.since if at and since <= int(at[1])]
        return begun[-1] if begun else None

    def add(self, case, error, others):
        """Counts an error against a case, or puts it with the others if it belongs to none."""
        (self.all[case]["errors"] if case in self.all else others).append(error)

    def begun(self):
        return [case for case in self.all.values() if case["begun"]]


class Console:
    """What the guest's kernel log says."""

    def __init__(self, run, cases, result):
        self.cases, self.result = cases, result
        self.lockdep = False  # whether the guest has said that lockdep was still on
        self.lost = {}  # lines that say that a device was lost, by cases
        self.findings = self.scan(f"{run}/console.log")
        self.read(list(logs.lines(f"{run}/console.log")))

    def scan(self, path):
        """Lines that mean that something went wrong in the kernel."""
        scan = subprocess.run([SCRIPTS + "/scan-log.sh", path], stdout=subprocess.PIPE, text=True)
        findings = scan.stdout.splitlines()
        if scan.returncode and not findings:
            self.result["errors"].append("the kernel log could not be scanned")
        return findings

    def read(self, lines):
        """Takes in the lines of the log, and what was found among them."""
        left, cases = set(self.findings), self.cases
        for number, line in enumerate(lines):
            if marker := logs.marker(line):
                self.marker(*marker)
            if LOST in line and BUS_RESET not in line:
                self.lost.setdefault(cases.current, []).append(line)
            if line in self.findings:
                case = cases.current
                if line.startswith("unreferenced object") and number + 1 < len(lines):
                    case = cases.of_object(lines[number + 1])
                cases.add(case, line, self.result["scan"])
                left.discard(line)
        # What is said of the log as a whole, as of a taint, comes from the last case: after it
        # nothing ran.
        for line in self.findings:
            if line in left:
                cases.add(cases.last, line, self.result["scan"])

    def marker(self, word, rest):
        """Takes in what the guest's first process says."""
        cases, result = self.cases, self.result
        cases.marker(word, rest)
        if word == "DONE":
            result["marker"], result["rc"] = True, int(rest.removeprefix("rc="))
        elif word == "RMMOD":
            if result["rmmod"] != "failed":
                result["rmmod"] = rest
            if rest == "failed":
                cases.add(cases.current, "the module could not be unloaded", result["errors"])
        elif word == "TAINTED":
            result["tainted"] = int(rest)
        elif word == "LOCKDEP":
            self.lockdep = True
        elif word == "ERROR":
            cases.add(cases.current, rest, result["errors"])


def good_devices_that_were_lost(lost, devices):
    """Yields cases and what is wrong with them.

    A driver loses a device that misbehaves, or that a test kills or stops. It must get along with
    the others.
    """
    for case, lines in lost.items():
        mine = [device for device in devices if device.case == case]
        if not any(device.misbehaves() for device in mine):
            allowed = sum(device.killed or device.stopped for device in mine)
            for line in lines[allowed:]:
                yield case, f"a good device was lost: {line}"


def problems_of(devices):
    """Yields cases and what is wrong with their devices."""
    for device in devices:
        for problem in device.problems():
            yield device.case, problem
    # A device that only behaves shows nothing of how the driver takes it that one does not. But
    # the driver may refuse it before it has asked anything.
    adversaries = [device for device in devices if device.is_adversary()]
    asked = {device.case for device in adversaries if device.requests}
    for case in asked - {device.case for device in adversaries if device.mistreated}:
        yield case, "the device was told to misbehave, and never did"


def validate(args, run, qemu, hang, gpus):
    """What is to be written down as the result of a guest, but for its times."""
    result = {"timed_out": hang is not None, "qemu": qemu.returncode, "marker": False, "rc": None,
              "rmmod": None, "tainted": None, "errors": [], "scan": []}
    errors, cases = result["errors"], Cases(case.name for case in args.cases)
    devices = gpus.all if gpus else []
    console = Console(run, cases, result)
    for case, error in good_devices_that_were_lost(console.lost, devices):
        cases.add(case, error, errors)
    if args.kernel == "debug" and result["marker"] and not console.lockdep:
        errors.append("the guest did not say whether lockdep was still on")
    for case, error in problems_of(devices):
        cases.add(case, error, errors)
    # Guest and unload problems, apart from what the job itself returned.
    if hang:
        cases.add(cases.current, hang, errors)
    elif not result["marker"]:
        cases.add(cases.current, "the guest did not print its completion marker", errors)
    elif qemu.returncode:
        errors.append(f"QEMU ended with status {qemu.returncode}, see qemu.log")
    result["cases"] = cases.begun()
    bad = errors + result["scan"] + [e for case in cases.all.values() for e in case["errors"]]
    result["ok"] = bool(result["marker"] and result["rc"] == 0 and not bad
                        and len(result["cases"]) == len(args.cases))
    return result
