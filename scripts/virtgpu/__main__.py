# SPDX-License-Identifier: GPL-2.0
"""The entry: `python3 scripts/virtgpu COMMAND …`, or `python3 -m virtgpu` from scripts/.

A command is a module with a function main(), which takes the rest of the words and returns the
exit status; the head of the module says what the words are.
"""

import importlib
import os
import sys

COMMANDS = {
    "vm": "vm",
    "check": "check",
    "mutants": "mutants.suite",
    "kunit": "kunit",
    "coverage": "coverage",
    "layers": "lint.layers",
    "circles": "lint.circles",
    "links": "lint.links",
    "prose": "lint.prose",
    "compile-fail": "lint.compile_fail",
    "test": "tests.ktap_runner",
}
# These read --help themselves.
HAVE_OPTIONS = ("vm",)


def load(command):
    """Imports the module of a command: no other is, as some need more than the host has."""
    return importlib.import_module(f"virtgpu.{COMMANDS[command]}")


def usage():
    """What there is, a line for each command: the first of its module's head."""
    lines = ["usage: virtgpu COMMAND …, virtgpu COMMAND --help", ""]
    lines += [f"  {command:<14}{load(command).__doc__.splitlines()[0]}" for command in COMMANDS]
    return "\n".join(lines)


def main(words):
    if words[:1] in (["--help"], ["-h"]):
        print(usage())
        return 0
    if words[:1] == [] or words[0] not in COMMANDS:
        print(usage(), file=sys.stderr)
        return 2
    command, rest = words[0], words[1:]
    module = load(command)
    if rest[:1] in (["--help"], ["-h"]) and command not in HAVE_OPTIONS:
        print(module.__doc__.strip())
        return 0
    return module.main(rest)


if __name__ == "__main__":
    # Started by the folder's name, Python looks for modules in the package, not beside it.
    if not __package__:
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.exit(main(sys.argv[1:]))
