# SPDX-License-Identifier: GPL-2.0
"""Starts and ends the processes behind a guest's GPU, and knows what is wrong with how they ended.

A device is a vhost-user process with a log of its own events, which virtgpu-device check-log
validates afterwards. A guest can have several, one after the other.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

from . import trees
from .environment import RENDER, TARGET, TESTS

# How long a device may take to end when QEMU is gone.
END_SECONDS = 90


class Device:
    """A vhost-user process behind the guest's GPU."""

    def __init__(self, run, number, arguments, kind, case):
        """Starts the process and waits for its socket."""
        self.run, self.number, self.arguments, self.case = run, number, arguments, case
        self.socket = tempfile.mktemp(prefix="vgpu-", suffix=".sock")
        # The second device validates the driver by itself, and has no event log.
        self.events = None
        if kind != "second":
            self.events = "events.jsonl" if number == 1 else f"events-{number}.jsonl"
        self.status = None  # its exit status, None if it had to be ended
        self.killed = self.stopped = False  # at the job's wish
        self.requests = self.mistreated = 0  # as its event log has it
        with open(f"{run}/device.log", "ab") as log:
            log.write(f"# device {number}: {arguments}\n".encode())
            log.flush()
            self.process = subprocess.Popen(self.command(kind), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        for _ in range(200):
            if os.path.exists(self.socket):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        sys.exit(f"virtgpu: the device did not come up, see {run}/device.log")

    def command(self, kind):
        """How it is started."""
        if kind == "second":
            start = ["python3", "-B", f"{TESTS}/second-device", "--socket", self.socket]
            return start + shlex.split(self.arguments)
        # The renderer is a library of the tree.
        folder = RENDER if kind == "renderer" else TARGET
        command = [f"{folder}/virtgpu-device", "--socket", self.socket,
                   "--event-log", f"{self.run}/{self.events}", *shlex.split(self.arguments)]
        return trees.in_mesa([*command, "--virgl-renderer"]) if kind == "renderer" else command

    def stop(self):
        """Ends it, unless it ends by itself, as it does when QEMU has let go of it."""
        self.process.send_signal(signal.SIGCONT)
        try:
            self.status = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def misbehaves(self):
        """Whether it may be lost."""
        return "--adversary" in self.arguments or "--mutant" in self.arguments

    def is_adversary(self):
        """Whether it was told to misbehave, which it then has to."""
        return bool(re.search("--adversary[ =]", self.arguments))

    def problems(self):
        """What is wrong with how it ended, and what its own checker says of the driver."""
        problems = []
        if self.events:
            problems, self.requests, self.mistreated = check_events(
                self.run, self.events, self.killed)
        # One of the ways to misbehave is to exit.
        exits = re.search(r"--adversary[ =]exit(?::(\d+))?", self.arguments)
        expected = -signal.SIGKILL if self.killed else int(exits[1] or 1) if exits else 0
        if self.status is None:
            problems.append(f"the device did not end within {END_SECONDS} s")
        elif self.status != expected:
            problems.append(f"the device ended with status {self.status}, not {expected}, "
                            "see device.log")
        return problems


class Gpus:
    """The devices that a guest has had; the last one is there."""

    def __init__(self, args, run):
        self.run = run
        self.kind = "renderer" if args.host_gpu == "reference-virgl" else args.device
        self.arguments, self.case, self.all = args.device_args, None, []

    def start(self):
        """Starts the next one, for the case that is the current one."""
        number = len(self.all) + 1
        self.all.append(Device(self.run, number, self.arguments, self.kind, self.case))

    def stop(self):
        """Ends the last one, if there is one."""
        if self.all:
            self.last.stop()

    @property
    def last(self):
        return self.all[-1]


def gpu_options(arguments):
    """What QEMU has to know of a device with these arguments."""
    gpu = {"virtio-id": 16, "num_vqs": 4, "vq_size": 256, "config_size": 64}
    options = shlex.split(arguments)
    # The device offers the feature, but QEMU has to agree.
    if "--access-platform" in options:
        gpu["iommu_platform"] = True
    if "--queue-size" in options:
        gpu["vq_size"] = int(options[options.index("--queue-size") + 1])
    return gpu


def check_events(run, log, unfinished=False):
    """Lets the device's own checker validate what the driver did.

    Returns the problems, and how many requests there were and how many of them, and of the mirror
    queue's commands, the device has mistreated.
    """
    command = [f"{TARGET}/virtgpu-device", "check-log", *(["--unfinished"] if unfinished else [])]
    p = subprocess.run([*command, f"{run}/{log}"], stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, text=True)
    counts = re.search(r"(\d+) requests, .* (\d+) mistreated", p.stdout)
    requests, mistreated = (int(counts[1]), int(counts[2])) if counts else (0, 0)
    said = (p.stdout.splitlines() or [f"status {p.returncode}"])[:20] if p.returncode else []
    return [f"check-log {log}: {line}" for line in said], requests, mistreated
