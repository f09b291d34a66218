#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Sums up what of the module was reached in guests that ran with VIRTGPU_COVERAGE=1.

QEMU writes each block of instructions to coverage.log when it translates it, which is when it is
reached first; the guest says where the module's code is. What the processor reached says what
lines it came to, if the module has debug information (the debug kernel's has none), and what functions.
A part of a line counts as the line, and code that the compiler left out is nowhere.
"""

import collections
import json
import os
import re
import subprocess
import sys

PROJECT = "/project"
BUILD = PROJECT + "/build"
# What the driver is; the rest is the kernel's and the language's.
SOURCE = PROJECT + "/src/"
SECTION = ".text"
PLACE = re.compile(rf"VIRTGPU-(?:GUEST-)?TEXT (0x[0-9a-f]+)")
CODE = re.compile(r"^0x([0-9a-f]+):")

Function = collections.namedtuple("Function", "name start end")


def output(*command, given=None):
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          errors="replace", check=True).stdout


class Module:
    """The module of a kind of kernel, and what was reached of it."""

    def __init__(self, kind):
        self.path = f"{BUILD}/module/{kind}/virtgpu_userptr.ko"
        section = re.search(rf" \{SECTION} +PROGBITS +\w+ +\w+ +(\w+) ", output("readelf", "-SW", self.path))
        self.length, self.reached = int(section[1], 16), set()
        self.functions = []
        for line in output("objdump", "--syms", "--demangle", "-j", SECTION, self.path).splitlines():
            if m := re.match(rf"(\w+) .{{6}}F \{SECTION}\t(\w+) +(?:\.hidden )?(.*)$", line):
                start, size = int(m[1], 16), int(m[2], 16)
                # What is before a function is none.
                if size and not m[3].startswith("__pfx_"):
                    self.functions.append(Function(m[3], start, start + size))

    def add(self, run):
        """Takes in what a guest has reached."""
        places = set()
        for log in ("console.log", "job.log"):
            with open(f"{run}/{log}", errors="replace") as f:
                places |= {int(m[1], 16) for line in f if (m := PLACE.search(line))}
        if not places:
            sys.exit(f"coverage.py: {run} does not say where the module was; it ran without VIRTGPU_COVERAGE=1")
        with open(f"{run}/coverage.log", errors="replace") as f:
            for line in f:
                if m := CODE.match(line):
                    at = int(m[1], 16)
                    self.reached |= {at - place for place in places if 0 <= at - place < self.length}

    def lines(self):
        """All lines of the driver that there is code for, and those that were reached: (file, line)."""
        code = re.findall(r"^ +([0-9a-f]+):\t", output("objdump", "-d", "--no-show-raw-insn", "-j", SECTION, self.path),
                          re.M)
        said = output("addr2line", "-a", "-i", "-j", SECTION, "-e", self.path, given="\n".join(code))
        every, reached, at = set(), set(), 0
        for line in said.splitlines():
            if line.startswith("0x"):
                at = int(line, 16)
            elif line.startswith(SOURCE):
                # The wire's structures are in protocol/.
                name, _, number = os.path.normpath(line[len(PROJECT) + 1:].split(" ")[0]).rpartition(":")
                if number.isdigit() and int(number):
                    every.add((name, int(number)))
                    if at in self.reached:
                        reached.add((name, int(number)))
        return every, reached


def ranges(numbers):
    """1 2 3 7 as 1-3 7."""
    parts = []
    for n in sorted(numbers):
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return " ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in parts)


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: coverage.sh GUEST...")
    modules = {}
    for name in sys.argv[1:]:
        run = f"{BUILD}/logs/{name}"
        with open(f"{run}/result") as f:
            kind = json.load(f)["kernel"]
        if kind not in modules:
            modules[kind] = Module(kind)
        modules[kind].add(run)

    every, reached = set(), set()
    for module in modules.values():
        for all_of, parts in zip((every, reached), module.lines()):
            all_of |= parts
    files = collections.defaultdict(set)
    for name, number in every - reached:
        files[name].add(number)
    print("lines never reached:")
    for name in sorted(files):
        print(f"  {name}: {ranges(files[name])}")

    # The compiler makes other functions for another kernel; those of the same name are the same.
    names = collections.defaultdict(bool)
    for module in modules.values():
        for f in module.functions:
            names[f.name] |= any(at in module.reached for at in range(f.start, f.end))
    print("functions never reached:")
    for name in sorted(n for n, was in names.items() if not was):
        print(f"  {name}")
    if every:
        print(f"lines: {len(reached)} of {len(every)} reached ({100 * len(reached) / len(every):.1f} percent)")
    print(f"functions: {sum(names.values())} of {len(names)} reached ({100 * sum(names.values()) / len(names):.1f} percent)")


if __name__ == "__main__":
    main()
