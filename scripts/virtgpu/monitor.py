# SPDX-License-Identifier: GPL-2.0
"""Talks to a running guest's QEMU: what a job asks of the host, and where a guest hangs.

A job asks by printing a line `VIRTGPU-HOST: WORD` on its output:
  device_del    hot-unplug the GPU (as the monitor's device_del)
  device_add    plug a new GPU, served by a new device process with the same arguments
  device_add A  the same, with the arguments A of virtgpu-device ("none" for none)
  kill          kill the device process (SIGKILL)
  pause S       stop the device process for S seconds
  case NAME     what follows is about NAME; the guest's time limit starts anew
"""

import json
import os
import re
import signal
import socket
import threading
import time

from .device import gpu_options

REQUEST = "VIRTGPU-HOST: "
# How long the guest may take to let go of a device.
REMOVAL_SECONDS = 60


class Qmp:
    """The little of QEMU's monitor protocol that tests need."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.file = self.socket.makefile("r")
        self.file.readline()
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        """What QEMU replies to a command."""
        message = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return {"error": "QEMU is gone"}
        while True:
            line = self.file.readline()
            if not line:
                return {"error": "QEMU is gone"}
            reply = json.loads(line)
            if "event" in reply:
                continue
            return reply


def serve(request, gpus, qmp_path):
    """Does what the job asked for; returns what came of it."""
    word, _, rest = request.partition(" ")
    if word == "kill":
        gpus.last.killed = True
        gpus.last.process.kill()
    elif word == "pause":
        # The guest could not end it: QEMU waits for the device when the driver resets it.
        process = gpus.last.process
        gpus.last.stopped = True
        process.send_signal(signal.SIGSTOP)
        threading.Timer(float(rest), process.send_signal, [signal.SIGCONT]).start()
    elif word == "case":
        gpus.case = rest
    elif word == "device_del":
        return Qmp(qmp_path).call("device_del", id="vgpu0")
    elif word == "device_add":
        return plug(rest, gpus, Qmp(qmp_path))
    else:
        return {"error": f"unknown request {word}"}
    return "done"


def plug(arguments, gpus, qmp):
    """Plugs a new GPU in, when the old one is gone."""
    # First the guest has to let go of the old device: QEMU 11.1 does not survive the end of a
    # device's process in the middle of its removal.
    deadline = time.monotonic() + REMOVAL_SECONDS
    while "vgpu0" in str(qmp.call("qom-list", path="/machine/peripheral")):
        if time.monotonic() > deadline:
            return {"error": "the old device does not go away"}
        time.sleep(0.1)
    if gpus.all:
        # Its end of the connection, which is the end of the process. Somebody may still have a
        # reference to the old device, and it one to the connection.
        while "busy" in str(reply := qmp.call("chardev-remove", id=f"gpu{gpus.last.number}")):
            if time.monotonic() > deadline:
                return reply
            time.sleep(0.1)
        gpus.stop()
    if arguments:
        gpus.arguments = "" if arguments == "none" else arguments
    gpus.start()
    name = f"gpu{gpus.last.number}"
    qmp.call("chardev-add", id=name, backend={"type": "socket", "data": {
        "addr": {"type": "unix", "data": {"path": gpus.last.socket}}, "server": False}})
    return qmp.call("device_add", driver="vhost-user-test-device-pci", id="vgpu0", bus="port0",
                    chardev=name, **gpu_options(gpus.arguments))


def where_it_hangs(run, qmp_path):
    """Asks the kernel of a guest that does not end for the stacks of its blocked tasks and of its
    CPUs, which go to its log, and says in one line what it is about."""
    console = f"{run}/console.log"
    silent_since = text(console)
    try:
        qmp = Qmp(qmp_path)
        for key in ("w", "l"):
            before = os.path.getsize(console)
            keys = [{"type": "qcode", "data": d} for d in ("alt", "sysrq", key)]
            qmp.call("send-key", keys=keys)
            # Until the guest has nothing more to say, or says nothing at all.
            for _ in range(10):
                time.sleep(1)
                size = os.path.getsize(console)
                if size == before:
                    break
                before = size
        registers = qmp.call("human-monitor-command", **{"command-line": "info registers -a"})
        with open(f"{run}/registers", "w") as f:
            f.write(registers.get("return", str(registers)))
    except OSError as error:
        return f"QEMU does not respond: {error}"
    return in_short(silent_since, text(console)[len(silent_since):])


def text(path):
    with open(path, errors="replace") as f:
        return f.read()


def in_short(before, asked):
    """One line of what a guest had said before it was asked, and what it said then."""
    last = (before.rstrip().splitlines() or ["nothing"])[-1]
    parts = [f"last said: {last[:100]}"]
    parts += [f"CPU in {f}" for f in re.findall(r"RIP: 0010:(\S+)", asked)[:4]]
    for task in re.split(r"(?=task:)", asked)[1:4]:
        frames = re.findall(r"\] +([a-z_]\w+)\+0x", task)
        frames = [f for f in frames if not f.startswith(("__schedule", "schedule"))]
        parts.append(f"blocked {task[5:].split()[0]} in {' < '.join(frames[:6])}")
    return "; ".join(parts)
