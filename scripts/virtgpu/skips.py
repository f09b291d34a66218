# SPDX-License-Identifier: GPL-2.0
"""The skips that are expected, with reasons: tests/skips.toml says what is in it."""

import fnmatch
import re
import tomllib


class Expected:
    """A line of the list, for one suite."""

    def __init__(self, suite, rest, entry):
        self.suite, self.test, self.reason = suite, f"{suite}/{rest}", entry["reason"]
        self.maybe, self.met = entry.get("maybe", False), False

    def covers(self, name, reason):
        """Whether a skip is one that the line expects."""
        return fnmatch.fnmatchcase(name, self.test) and fnmatch.fnmatchcase(reason, self.reason)


def parse(text):
    """The list; ValueError says what is wrong with it."""
    expected = []
    for entry in tomllib.loads(text)["skips"]:
        unknown = set(entry) - {"test", "reason", "why", "maybe"}
        if unknown or not all(entry.get(key) for key in ("test", "reason", "why")):
            raise ValueError(f"{entry}: it needs test, reason and why, and can have maybe")
        suites, _, rest = entry["test"].partition("/")
        if not rest or "*" in suites:
            raise ValueError(f"{entry['test']}: it must begin with SUITE/ or {{SUITE,SUITE}}/")
        expected += [Expected(suite, rest, entry) for suite in suites.strip("{}").split(",")]
    return expected


def line(name, reason):
    """The line that says that this is expected."""
    quote = lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    escaped = lambda text: re.sub(r"([*?[])", r"[\1]", text)
    return f"{{ test = {quote(escaped(name))}, reason = {quote(escaped(reason))}, why = \"…\" }},"


def problems(expected, results, whole):
    """What is wrong with the skips among `results`: names, reasons, and the lines to add or to take
    out.

    `whole` are the suites that have run to their end with everything in them.
    """
    wrong = []
    for result in results:
        if result.status != "skip":
            continue
        mine = [e for e in expected if e.covers(result.name, result.reason)]
        for entry in mine:
            entry.met = True
        if not mine:
            wrong.append((result.name, "skipped, which tests/skips.toml does not expect",
                          ["if that is right, add to tests/skips.toml, with the reason for it:",
                           line(result.name, result.reason)]))
    for entry in expected:
        if not entry.met and not entry.maybe and entry.suite in whole:
            wrong.append((entry.test, "not skipped any more, but tests/skips.toml expects it",
                          ["take it out of tests/skips.toml; or, if it depends on the machine, "
                           "say maybe = true:",
                           f"test = {entry.test}, reason = {entry.reason}"]))
    return wrong
