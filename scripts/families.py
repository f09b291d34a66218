# SPDX-License-Identifier: GPL-2.0
"""What the guest program offers: the families of tests, as `virtgpu-tests list` prints them.

A line is a family: name, kernel (any or debug), driver (ours, c or both), arguments for the device,
parameters of the module, with tabs between.
"""

import os
import subprocess

TESTS = "/project/build/target/x86_64-unknown-linux-gnu/release/virtgpu-tests"


class Family:
    """A line of the list."""

    def __init__(self, line):
        self.name, self.kernel, self.driver, self.device, self.module = line.split("\t")

    def applies(self, kernel, driver):
        return self.kernel in ("any", kernel) and self.driver in ("both", driver)


def families():
    """All of them, by name."""
    if not os.path.exists(TESTS):
        return {}
    lines = subprocess.check_output([TESTS, "list"], text=True).splitlines()
    offered = [Family(line) for line in lines if line]
    names = [f.name for f in offered]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"several families of virtgpu-tests are called {', '.join(sorted(twice))}")
    return {f.name: f for f in offered}
