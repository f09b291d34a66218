# SPDX-License-Identifier: GPL-2.0
"""Remembers which guests have passed, and with what: with VIRTGPU_CHANGED=1 they are skipped.

What goes into a guest is its kernel, module, device, programs, trees, the scripts that run and
validate it, and what its suite says. A file in build/passed, named by a hash of all that, says
that such a guest has passed.
"""

import glob
import hashlib
import json
import os
import re

from . import environment
from .environment import RENDER, SCRIPTS, TARGET, TESTS

# Modules of this package that no guest depends on: commands of their own, and what looks at skips
# when all guests are over.
OTHERS = {"coverage", "kunit", "skips"}


def key(guest, job, wanted):
    """A hash of what decides how a guest ends."""
    options = guest.vm_options()
    digest = hashlib.sha256(json.dumps([options, job, wanted], sort_keys=True).encode())
    for variable in sorted(variables(guest)):
        digest.update(f"{variable}={os.environ.get(variable)};".encode())
    for path in sorted(files(guest, job)):
        digest.update(path.encode())
        if os.path.exists(path):
            with open(path, "rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()[:24]


def variables(guest):
    """The variables that matter."""
    names = [f"VIRTGPU_KERNEL_{guest.kernel.upper()}", "VIRTGPU_ACCEL", "VIRTGPU_ROOT"]
    names += [v for v in os.environ if v.startswith("VIRTGPU_TREE_")]
    # Every commit has another seed, which changes nothing.
    return names + [v for v in guest.option("host_env", []) if v != "VIRTGPU_TESTS_SEED"]


def files(guest, job):
    """The files that matter."""
    paths = [f"{SCRIPTS}/guest/init", f"{SCRIPTS}/scan-log.sh", *own_modules()]
    paths += filter(None, (guest.option("files") or "").split(","))
    if guest.option("device") == "second":
        paths += glob.glob(f"{TESTS}/second-device/*.py")
    # Of the programs, those that the job names; families need one only.
    programs = {"virtgpu-device"} | set(re.findall(r"virtgpu-[a-z]+", job))
    paths += [f"{TARGET}/{p}" for p in programs if os.path.exists(f"{TARGET}/{p}")]
    if "virtgpu-compare" in programs:
        paths += [f"{RENDER}/{p}" for p in ("virtgpu-gles", "virtgpu-vulkan", "virtgpu-device")]
    if guest.driver != "c":
        paths += [environment.module(guest.kernel), environment.exporter(guest.kernel)]
    return paths


def own_modules():
    """The modules of this package that run and validate guests; a new one counts as such."""
    for path in glob.glob(f"{SCRIPTS}/virtgpu/*.py"):
        if os.path.basename(path).removesuffix(".py") not in OTHERS:
            yield path


def has_passed(name):
    """Whether a guest with this hash has passed."""
    return os.path.exists(f"{environment.BUILD}/passed/{name}")


def remember(name, guest):
    """Writes down that a guest with this hash has passed."""
    os.makedirs(f"{environment.BUILD}/passed", exist_ok=True)
    with open(f"{environment.BUILD}/passed/{name}", "w") as f:
        f.write(guest.name + "\n")
