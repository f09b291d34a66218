# SPDX-License-Identifier: GPL-2.0
"""Sums up what of the module was reached in guests that ran with VIRTGPU_COVERAGE=1.

The words are the names of the guests' folders in build/logs. QEMU writes each block of instructions
to coverage.log when it translates it, which is when it is reached first; the guest says where the
module's code is. What the processor reached says what lines it came to, if the module has debug
information (the debug kernel's has none), and what functions. A part of a line counts as the line,
and code that the compiler left out is nowhere.
"""

import collections
import os
import re
import subprocess
import sys

from . import environment, logs
from .environment import PROJECT

# What the driver is; the rest is the kernel's and the language's.
SOURCE = PROJECT + "/src/"
SECTION = ".text"
PLACE = re.compile(r"VIRTGPU-(?:GUEST-)?TEXT (0x[0-9a-f]+)")
CODE = re.compile(r"^0x([0-9a-f]+):")

Function = collections.namedtuple("Function", "name start end")


def output(*command, given=None):
    """What a command prints."""
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True, errors="replace", check=True).stdout


class Module:
    """The module of a kind of kernel, and what was reached of it."""

    def __init__(self, kind):
        self.path = environment.module(kind)
        sections = output("readelf", "-SW", self.path)
        section = re.search(rf" \{SECTION} +PROGBITS +\w+ +\w+ +(\w+) ", sections)
        self.length, self.reached = int(section[1], 16), set()
        self.functions = []
        symbols = output("objdump", "--syms", "--demangle", "-j", SECTION, self.path)
        for line in symbols.splitlines():
            if m := re.match(rf"(\w+) .{{6}}F \{SECTION}\t(\w+) +(?:\.hidden )?(.*)$", line):
                start, size = int(m[1], 16), int(m[2], 16)
                # What is before a function is none.
                if size and not m[3].startswith("__pfx_"):
                    self.functions.append(Function(m[3], start, start + size))

    def add(self, run):
        """Takes in what a guest has reached."""
        places = set()
        for log in ("console.log", "job.log"):
            said = (PLACE.search(line) for line in logs.lines(f"{run}/{log}"))
            places |= {int(m[1], 16) for m in said if m}
        if not places:
            sys.exit(f"coverage: {run} does not say where the module was; "
                     "it ran without VIRTGPU_COVERAGE=1")
        for line in logs.lines(f"{run}/coverage.log"):
            if m := CODE.match(line):
                offsets = (int(m[1], 16) - place for place in places)
                self.reached |= {at for at in offsets if 0 <= at < self.length}

    def lines(self):
        """The driver's lines, (file, line), that have code, and those that were reached."""
        listing = output("objdump", "-d", "--no-show-raw-insn", "-j", SECTION, self.path)
        code = re.findall(r"^ +([0-9a-f]+):\t", listing, re.M)
        said = output("addr2line", "-a", "-i", "-j", SECTION, "-e", self.path,
                      given="\n".join(code))
        every, reached, at = set(), set(), 0
        for line in said.splitlines():
            if line.startswith("0x"):
                at = int(line, 16)
            elif line.startswith(SOURCE):
                # The wire's structures are in protocol/.
                place = os.path.normpath(line[len(PROJECT) + 1:].split(" ")[0])
                name, _, number = place.rpartition(":")
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


def print_lines(modules):
    """Prints the lines that were never reached; returns how many there are, and were."""
    every, reached = set(), set()
    for module in modules:
        for all_of, parts in zip((every, reached), module.lines()):
            all_of |= parts
    files = collections.defaultdict(set)
    for name, number in every - reached:
        files[name].add(number)
    print("lines never reached:")
    for name in sorted(files):
        print(f"  {name}: {ranges(files[name])}")
    return len(every), len(reached)


def print_functions(modules):
    """Prints the functions that were never reached; returns how many there are, and were."""
    # The compiler makes other functions for another kernel; those of the same name are the same.
    names = collections.defaultdict(bool)
    for module in modules:
        for f in module.functions:
            names[f.name] |= any(at in module.reached for at in range(f.start, f.end))
    print("functions never reached:")
    for name in sorted(n for n, was in names.items() if not was):
        print(f"  {name}")
    return len(names), sum(names.values())


def main(guests):
    if not guests:
        sys.exit("usage: virtgpu coverage GUEST...")
    modules = {}
    for name in guests:
        kind = logs.read_result(name)["kernel"]
        if kind not in modules:
            modules[kind] = Module(kind)
        modules[kind].add(logs.folder(name))
    lines, functions = print_lines(modules.values()), print_functions(modules.values())
    for what, (every, reached) in (("lines", lines), ("functions", functions)):
        if every or what == "functions":
            print(f"{what}: {reached} of {every} reached ({100 * reached / every:.1f} percent)")
    return 0
