# SPDX-License-Identifier: GPL-2.0
"""Prints the names of the module's KUnit cases, SUITE/CASE, as its source has them."""

import pathlib
import re
import sys

from .environment import PROJECT

SRC = pathlib.Path(PROJECT) / "src"
# What is inside of a module that the attribute is on ends where a line begins with a brace.
SUITE = re.compile(r"^#\[kunit_tests\((\w+)\)\]\n(.*?)^\}", re.M | re.S)
CASE = re.compile(r"^ +#\[test\]\n(?: +#\[.*\]\n)*? +fn (\w+)\(", re.M)


def main(_):
    names, attributes, tests = [], 0, 0
    for path in sorted(SRC.rglob("*.rs")):
        text = path.read_text()
        attributes += text.count("#[kunit_tests(")
        tests += text.count("#[test]")
        for suite, body in SUITE.findall(text):
            names += [(suite, case) for case in CASE.findall(body)]
    # A way of writing them that this does not know must not make them unexpected.
    if len(names) != tests or len({suite for suite, _ in names}) != attributes:
        sys.exit(f"kunit: read {len(names)} of {tests} cases in src/, of {attributes} suites")
    for suite, case in names:
        print(f"{suite}/{case}")
    return 0
