# SPDX-License-Identifier: GPL-2.0
"""Runs unit tests of this package and prints KTAP.

The words say which: NAME for virtgpu/tests/test_NAME.py. The tests run in the order in which they
are written, and their names are those of the functions, without `test_`. `python3 -m unittest`
runs them as well.
"""

import importlib
import inspect
import unittest


def tests_of(name):
    """The tests of a module, in their order."""
    module = importlib.import_module(f"{__package__}.test_{name}")
    for kind in vars(module).values():
        if inspect.isclass(kind) and issubclass(kind, unittest.TestCase):
            yield from (kind(function) for function in vars(kind) if function.startswith("test_"))


def main(names):
    tests = [test for name in names for test in tests_of(name)]
    print("KTAP version 1")
    print(f"1..{len(tests)}")
    failed = 0
    for number, test in enumerate(tests, 1):
        result = unittest.TestResult()
        test(result)
        for _, why in result.errors + result.failures:
            print("\n".join(f"# {line}" for line in why.splitlines()))
        failed += not result.wasSuccessful()
        name = test.id().rpartition(".")[2].removeprefix("test_")
        print(f"{'ok' if result.wasSuccessful() else 'not ok'} {number} {name}")
    return 1 if failed or not tests else 0
