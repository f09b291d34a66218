# SPDX-License-Identifier: GPL-2.0
"""Shows that the tests notice a broken contract: suites `mutants` and `sample`.

A mutant is a driver or a device that breaks the contract in one place; tests/mutants/mutants.toml
says which tests must notice which. suite.py chooses mutants and says what became of each, module.py builds those of
the driver, guests.py runs them.
"""

from ..environment import BUILD, TESTS

MUTANTS = TESTS + "/mutants"
WORK = BUILD + "/mutants"


class Problem(Exception):
    """The suite cannot say anything."""
