# SPDX-License-Identifier: GPL-2.0
"""Runs one guest: makes its image, starts its device and QEMU, and says how it ended.

The words are those of scripts/vm.sh, which starts this; --help lists them. Everything about a run
ends up in build/logs/RUN:
  console.log  the kernel's messages and those of the guest's init
  job.log      what the job printed
  device.log   what the device printed, events.jsonl its event log
  qemu.log     what QEMU printed, and the renderer in it with --host-gpu
  host.log     what the job asked of the host (see monitor.py), and what came of it
  result       JSON: how it ended
  coverage.log with VIRTGPU_COVERAGE=1, what code of modules was reached, for coverage.py

With --families the guest has no GPU to begin with. It asks for one for each family, with the
arguments that this family wants, loads the module with its parameters, runs it, unloads, and takes
the GPU out again. Each device has an event log of its own, events-N.jsonl. A family after which
the guest is not as before is the last one that it runs; the result says which those were.
"""

import os
import shutil
import tempfile
import time

from . import image, logs, options, processes, qemu, outcome
from .device import Gpus

ATTEMPTS = 2


def keep_failed_start(run, attempt):
    """Says that a guest is started again, and puts its logs aside."""
    print(f"# vm: {qemu.NEVER_STARTED}; again", flush=True)
    for f in os.listdir(run):
        if f not in ("initramfs.cpio", "command"):
            os.rename(f"{run}/{f}", f"{run}/failed-start-{attempt}-{f}")


def run_guest(args, name, run):
    """Runs a guest, again if it was not heard; returns its result."""
    monitor = f"{run}/qmp.sock" if args.monitor else tempfile.mktemp(prefix="qmp-")
    start, clock = time.monotonic(), qemu.Clock()
    for starts in range(1, ATTEMPTS + 1):
        if starts > 1:
            keep_failed_start(run, starts - 1)
        gpus = None if args.host_gpu in ("virgl", "venus") else Gpus(args, run)
        if gpus and not args.no_device:
            gpus.start()
        process, hang, phases = qemu.run_until_it_ends(args, run, gpus, monitor, clock)
        if gpus:
            gpus.stop()
        if hang != qemu.NEVER_STARTED:
            break
    os.unlink(f"{run}/initramfs.cpio")
    return {"name": name, "kernel": args.kernel, "driver": args.driver,
            "seconds": round(time.monotonic() - start, 1),
            "cpu": round(processes.children_seconds(), 1),
            "stood_still": round(clock.stood_still, 1), "starts": starts, **phases,
            "devices": [device.status for device in gpus.all] if gpus else [],
            **outcome.validate(args, run, process, hang, gpus)}


def print_result(args, run, result):
    """Says what is wrong, and in one line how the guest ended."""
    for case in result["cases"]:
        for problem in case["errors"]:
            print(f"vm: {case['name']}: {problem}")
    for problem in result["errors"] + result["scan"]:
        print(f"vm: {problem}")
    ran = f"{len(result['cases'])} of {len(args.cases)} cases, " if args.cases else ""
    print(f"vm: {'ok' if result['ok'] else 'FAILED'}, job status {result['rc']}, {ran}"
          f"{result['seconds']} s (boot {result['boot']}, work {result['work']}, "
          f"unload {result['unload']}; CPU {result['cpu']}), logs in {logs.shown(run)}")
    if result["stood_still"]:
        print(f"vm: the machine stood still for {result['stood_still']} s")


def main(words):
    args = options.read(words)
    name = args.name or f"vm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    run = logs.folder(name)
    shutil.rmtree(run, ignore_errors=True)
    os.makedirs(run)
    image.initramfs(args, run)
    result = run_guest(args, name, run)
    logs.write_result(run, result)
    if not args.quiet:
        print_result(args, run, result)
    return 0 if result["ok"] else 1
