# SPDX-License-Identifier: GPL-2.0
"""Reads KTAP (nested test results) and the output of `cargo test`, line by line.

Both readers are fed lines and hand back finished tests as Result; `finish()`
gives what is wrong at the end (a plan that was not fulfilled, for example).
"""

import re
import time
from dataclasses import dataclass, field


@dataclass
class Result:
    """A finished test."""
    name: str  # family/test
    status: str  # ok, not ok, skip
    reason: str = ""
    notes: list = field(default_factory=list)  # diagnostics that came before it
    seconds: float = None  # since the result or the beginning before it, as the lines arrived


@dataclass
class Level:
    """One nesting level of a KTAP document."""
    name: str = ""  # from "# Subtest: "
    plan: int = -1
    seen: int = 0
    failed: int = 0
    leaves: list = field(default_factory=list)  # results whose parent has no name yet


class Ktap:
    """Nested test results, as the kernel and this project's programs print them."""
    LINE = re.compile(r"^( *)(ok|not ok) (\d+) ?(?:- )?(.*)$")
    PLAN = re.compile(r"^( *)1\.\.(\d+)(?: *# *SKIP *(.*))?$", re.I)
    SUBTEST = re.compile(r"^( *)# Subtest: (.+)$")

    def __init__(self):
        self.levels = [Level()]
        self.notes = []
        self.total = 0
        self.last = time.monotonic()

    def feed(self, line):
        """Returns the results that this line completes."""
        line = line.rstrip().replace("\t", "    ")
        if m := self.LINE.match(line):
            return self.result(self.depth(m[1]), m[2], m[4])
        if m := self.PLAN.match(line):
            level = self.level(self.depth(m[1]))
            # Several documents can follow one another.
            before = level.plan if level.plan >= 0 and level is self.levels[0] else 0
            level.plan = before + int(m[2])
            return []
        if m := self.SUBTEST.match(line):
            self.level(self.depth(m[1])).name = m[2].strip()
            return []
        if line.startswith("KTAP version"):
            self.last = time.monotonic()  # not the boot of the guest
        elif line.strip() and not line.strip().startswith("KTAP version"):
            self.notes = (self.notes + [line.strip().removeprefix("# ")])[-40:]
        return []

    def depth(self, indent):
        # Two and four columns a level are both in use; levels open one by one.
        n = len(indent)
        return n // 4 if n % 4 == 0 else (n + 3) // 4

    def level(self, depth):
        while len(self.levels) <= depth:
            self.levels.append(Level())
        return self.levels[depth]

    def result(self, depth, status, text):
        level = self.level(depth)
        level.seen += 1
        name, _, directive = text.partition(" # ") if " # " in text else text.partition("#")
        name, directive = name.strip(), directive.strip()
        reason = ""
        if directive.upper().startswith("SKIP"):
            status, reason = "skip", directive[4:].strip(" :")
        elif directive:
            reason = directive
        if status == "not ok":
            level.failed += 1
        done = []
        child = self.levels[depth + 1] if len(self.levels) > depth + 1 else None
        if child and (child.seen or child.plan > 0):
            # The end of a group: its own line counts only for what its tests
            # do not show.
            problems = self.missing(child)
            for leaf in child.leaves:
                leaf.name = f"{name}/{leaf.name}"
                done.append(leaf)
            if problems:
                done.append(Result(f"{name}/plan", "not ok", problems))
            elif status == "not ok" and not child.failed:
                reason = reason or "the group failed, none of its tests did"
                done.append(Result(name, "not ok", reason, self.notes))
            self.levels = self.levels[:depth + 1]
        else:
            now = time.monotonic()
            done.append(Result(name, status, reason, self.notes, now - self.last))
            self.last = now
            self.levels = self.levels[:depth + 1]
        self.notes = []
        prefix = [l.name for l in self.levels[1:depth + 1]]
        if depth == 0 or all(prefix):
            for r in done:
                r.name = "/".join(prefix + [r.name])
            self.total += len(done)
            return done
        level.leaves += done
        return []

    @staticmethod
    def missing(level):
        if level.plan >= 0 and level.plan != level.seen:
            return f"{level.plan} tests planned, {level.seen} reported"
        return ""

    def finish(self):
        """Results for what never came."""
        done = []
        for i, level in enumerate(self.levels):
            names = "/".join(l.name for l in self.levels[1:i + 1] if l.name) or "plan"
            for leaf in level.leaves:
                done.append(leaf)
            if problem := self.missing(level):
                done.append(Result(names, "not ok", problem, self.notes))
            elif i and level.seen and not level.plan >= 0:
                done.append(Result(names, "not ok", "the group did not end", self.notes))
        self.total += len(done)
        if not self.total:
            done.append(Result("results", "not ok", "no test result was printed", self.notes))
        return done


class Cargo:
    """`cargo test` in its default format."""
    CRATE = re.compile(r"^ +(?:Running|Doc-tests) "
                       r"(?:.*/(?:deps|examples)/([A-Za-z0-9_]+)-[0-9a-f]+\)|(\S+))")
    TEST = re.compile(r"^test (.+?)(?: - (?:should panic|compile|compile fail))? \.\.\. "
                      r"(ok|FAILED|ignored)(?:, (.*))?$")

    def __init__(self):
        self.crate, self.total, self.last = "", 0, time.monotonic()

    def feed(self, line):
        if m := self.CRATE.match(line):
            self.crate = m[1] or m[2] + "/doc"
            self.last = time.monotonic()  # not the build of it
        elif m := self.TEST.match(line.strip()):
            self.total += 1
            now, last = time.monotonic(), self.last
            self.last = now
            status = {"ok": "ok", "FAILED": "not ok", "ignored": "skip"}[m[2]]
            name = re.sub(r" - .*\(line (\d+)\)", r":\1", m[1]).replace(" ", "_")
            reason = m[3] or ("ignored" if status == "skip" else "")
            return [Result(f"{self.crate}/{name}", status, reason, [], now - last)]
        return []

    def finish(self):
        return [] if self.total else [Result("results", "not ok", "no test result was printed")]
