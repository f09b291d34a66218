# SPDX-License-Identifier: GPL-2.0
"""Builds the module with the mutants of the driver, which are all in one.

It is made of a copy of the tree to which tests/mutants/driver.patch was applied; its parameter
`mutant` says which it is. Where a mutant is right most of the time, the parameter `window` names a
place where the driver waits a little, so that others can come in between.
"""

import os
import re
import subprocess

from . import MUTANTS, WORK, Problem
from .. import environment, logs
from ..environment import PROJECT

TREE = WORK + "/tree"
# What the module is made of.
PARTS = ["Kbuild", "src", "protocol", "uapi"]


def copy_tree():
    """Makes the tree with the mutants; returns the numbers of mutants and windows."""
    # Times are kept, so that only what changes is built again.
    os.makedirs(TREE, exist_ok=True)
    parts = [f"{PROJECT}/{p}" for p in PARTS]
    subprocess.run(["rsync", "-a", "--delete", *parts, TREE + "/"], check=True)
    patch = subprocess.run(["busybox", "patch", "-p1", "-i", MUTANTS + "/driver.patch"], cwd=TREE,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if patch.returncode:
        said = [line for line in patch.stdout.splitlines() if re.search("FAILED|can't", line)]
        raise Problem("tests/mutants/driver.patch does not apply any more: " + " / ".join(said))
    with open(TREE + "/src/mutant.rs") as f:
        text = f.read()
    return numbers("Mutant", text), numbers("Window", text)


def numbers(enum, text):
    """The values of a Rust enum, by names as in mutants.toml."""
    body = re.search(r"enum " + enum + r" \{(.*?)\}", text, re.S)
    if not body:
        raise Problem(f"driver.patch has no enum {enum}")
    kebab = lambda name: re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower()
    return {kebab(n): int(v) for n, v in re.findall(r"(\w+) = (\d+),", body[1])}


def path(kind):
    """Where the module for a kind of kernel is."""
    return f"{WORK}/module-{kind}/virtgpu_userptr.ko"


def build(kind):
    """Builds the module with the mutants for a kernel."""
    kernel, module = environment.kernel_folder(kind), path(kind)
    with open(kernel + "/make-args") as f:
        args = f.read().split()
    os.makedirs(os.path.dirname(module), exist_ok=True)
    if os.path.exists(module):
        os.unlink(module)
    log = logs.folder(f"mutants-module-{kind}.log")
    command = ["make", "-C", kernel + "/build", *args, f"M={TREE}",
               f"MO={os.path.dirname(module)}", f"-j{os.cpu_count()}", "modules"]
    with open(log, "w") as out:
        status = subprocess.run(command, stdout=out, stderr=out).returncode
    if status or not os.path.exists(module):
        raise Problem(f"the module with driver.patch could not be built, log: {logs.shown(log)}")
