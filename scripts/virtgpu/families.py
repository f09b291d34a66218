# SPDX-License-Identifier: GPL-2.0
"""What the guest program offers: the families of tests, as `virtgpu-tests list` prints them.

A line is a family: name, kernel (any or debug), driver (ours, c or both), arguments for the device,
parameters of the module, with tabs between.
"""

import os
import subprocess

from .environment import TARGET

PROGRAM = TARGET + "/virtgpu-tests"


class Family:
    """A line of the list."""

    def __init__(self, line):
        self.name, self.kernel, self.driver, self.device, self.module = line.split("\t")

    def applies(self, kernel, driver):
        """Whether it can run in this kernel, with this driver."""
        return self.kernel in ("any", kernel) and self.driver in ("both", driver)


def offered():
    """All families, by name."""
    if not os.path.exists(PROGRAM):
        return {}
    lines = subprocess.check_output([PROGRAM, "list"], text=True).splitlines()
    listed = [Family(line) for line in lines if line]
    names = [f.name for f in listed]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"several families of virtgpu-tests are called {', '.join(sorted(twice))}")
    return {f.name: f for f in listed}
