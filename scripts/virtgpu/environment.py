# SPDX-License-Identifier: GPL-2.0
"""Where things are, and what the shell scripts say in variables.

Inside the build root the clone is /project and the cache /cache. The shell scripts make what is
needed there, and say where it is: VIRTGPU_KERNEL_STOCK, VIRTGPU_TREE_MESA and so on. What is read
from variables is read here, and nowhere else.
"""

import os
import sys

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPTS = PROJECT + "/scripts"
BUILD = PROJECT + "/build"
TESTS = PROJECT + "/tests"
TARGET = BUILD + "/target/x86_64-unknown-linux-gnu/release"
# Linked dynamically, with the libraries of the tree with Mesa, where the guest's are in /job.
RENDER = BUILD + "/target-dynamic/x86_64-unknown-linux-gnu/release"
# Prints what KUnit has found, in the guest.
KUNIT = SCRIPTS + "/guest/kunit"
# To be followed by the name of a command.
ENTRY = [sys.executable, SCRIPTS + "/virtgpu"]


def module(kind):
    """The module for a kind of kernel, as scripts/module.sh has built it."""
    return f"{BUILD}/module/{kind}/virtgpu_userptr.ko"


def exporter(kind):
    """The module for tests, as scripts/test-module.sh has built it."""
    return f"{BUILD}/test-module/{kind}/virtgpu_test_exporter.ko"


def kernel_folder(kind):
    """The folder of a kernel in the cache."""
    return made(f"VIRTGPU_KERNEL_{kind.upper()}")


def tree_folder(name):
    """The folder of a tree in the cache."""
    return made(f"VIRTGPU_TREE_{name.upper()}")


def made(variable):
    """What vm.sh or check.sh has made, and said in a variable where."""
    path = os.environ.get(variable)
    if not path:
        sys.exit(f"virtgpu: {variable} is not set; use scripts/vm.sh")
    return path


def accelerator():
    """QEMU's, which emulates if nothing else is said."""
    return os.environ.get("VIRTGPU_ACCEL", "tcg")


def coverage():
    """Whether guests write down what of the module they reach."""
    return bool(os.environ.get("VIRTGPU_COVERAGE"))


def changed_only():
    """Whether guests are skipped that have passed with the same inputs."""
    return bool(os.environ.get("VIRTGPU_CHANGED"))


def shares():
    """Whether guests run the part of their families whose turn it is."""
    return bool(os.environ.get("VIRTGPU_SHARE"))


def commit():
    """The hash of the commit, empty if there is none."""
    return os.environ.get("VIRTGPU_COMMIT", "")


def wanted_mutants():
    """The names of the only mutants that are wanted, if it is not all."""
    return list(filter(None, os.environ.get("VIRTGPU_MUTANTS", "").split(",")))


def jobs():
    """How many guests run at a time."""
    return int(os.environ.get("JOBS") or os.cpu_count())
