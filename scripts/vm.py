#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Runs one guest inside the build root: initramfs, device, QEMU, result.

Started by scripts/vm.sh (or by check.py, which is inside the root already).
Everything about a run ends up in build/logs/RUN:
  console.log  the kernel's messages and those of the guest's init
  job.log      what the job printed
  device.log   what the device printed, events.jsonl its event log
  qemu.log     what QEMU printed, and the renderer in it with --host-gpu
  result       JSON: how it ended
  coverage.log with VIRTGPU_COVERAGE=1, what code of modules was reached, for scripts/virtgpu/coverage.py

A job can ask for things that only the host can do, by printing a line
`VIRTGPU-HOST: WORD` on its output:
  device_del    hot-unplug the GPU (as the monitor's device_del)
  device_add    plug a new GPU, served by a new device process with the same arguments
  device_add A  the same, with the arguments A of virtgpu-device ("none" for none)
  kill          kill the device process (SIGKILL)
  pause S       stop the device process for S seconds
  case NAME     what follows is about NAME; the guest's time limit starts anew

With --families the guest has no GPU to begin with. It asks for one for each family, with the
arguments that this family wants, loads the module with its parameters, runs it, unloads, and takes
the GPU out again. Each device has an event log of its own, events-N.jsonl. A family after which
the guest is not as before is the last one that it runs; the result says which those were.
"""

import argparse
import collections
import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from families import families

PROJECT = "/project"
BUILD = PROJECT + "/build"
TARGET = BUILD + "/target/x86_64-unknown-linux-gnu/release"
GUEST_BINARIES = ["virtgpu-tests", "virtgpu-bench", "virtgpu-demo", "virtgpu-fuzz", "virtgpu-compare"]
# Where the kernel puts modules; those that are loaded anew are where they were if nothing is random.
MODULES = "0xffffffffa0000000+0x5f000000"
# Linked dynamically, with the libraries of the tree with Mesa, where the guest's are in /job.
RENDER = BUILD + "/target-dynamic/x86_64-unknown-linux-gnu/release"
RENDER_BINARIES = ["virtgpu-gles", "virtgpu-vulkan"]
KUNIT = PROJECT + "/scripts/guest/kunit"
MARKER = "VIRTGPU-GUEST-"
HOST_REQUEST = "VIRTGPU-HOST: "
# What the driver says when it has lost a device, and when the guest's user wants it so.
LOST = "device lost: "
BUS_RESET = LOST + "its bus resets it"
# A guest whose first process is not heard before it has loaded the driver has hung in booting, or
# has no interrupts of its serial ports, as happens when the machine stands still while the kernel
# finds them. It tells nothing of what is tested, and is started once more, which is said. The job's time
# limit begins only where the guest has started.
START_SECONDS = 300
# How long a device may take to end when QEMU is gone.
END_SECONDS = 90
# A thread that sleeps and wakes up later than this has stood still with the whole machine.
STALL_SECONDS = 2
ATTEMPTS = 2
NEVER_STARTED = "the guest's first process was not heard"


# What is done with a device of its own; families of virtgpu-tests are such cases, too.
Case = collections.namedtuple("Case", "name module device")


def arguments():
    p = argparse.ArgumentParser(prog="vm.sh", description="Run a job in a guest.")
    p.add_argument("--kernel", choices=["stock", "debug", "release"], default="stock")
    p.add_argument("--driver", choices=["ours", "c", "both", "none"], default="ours",
                   help="this project's module, Linux's own virtio-gpu, both but none loaded, or nothing")
    p.add_argument("--mem", default="1536M", help="guest memory (default %(default)s)")
    p.add_argument("--cpus", type=int, default=2)
    p.add_argument("--device-args", default="", help="more arguments of virtgpu-device")
    p.add_argument("--device", choices=["reference", "second"], default="reference",
                   help="this project's device in Rust, or the second one, tests/second-device")
    p.add_argument("--no-device", action="store_true", help="no GPU in the guest")
    p.add_argument("--host-gpu", choices=["reference", "reference-virgl", "virgl", "venus"], default="reference",
                   help="this project's device, without or with OpenGL, or QEMU's virtio-gpu-gl-pci, which renders in software: "
                        "with OpenGL only, or with blobs and Vulkan too")
    p.add_argument("--display", action="store_true",
                   help="a device with displays as well, QEMU's virtio-gpu-pci")
    p.add_argument("--iommu", action="store_true",
                   help="an IOMMU (Intel's, strict) between guest and devices, with QEMU's virtio-gpu only")
    p.add_argument("--trees", default="", help="trees that the guest gets as /NAME, read-only: mesa,igt")
    p.add_argument("--module", help="the .ko to load instead of build/module/KERNEL's")
    p.add_argument("--module-args", default="", help="parameters of the module")
    p.add_argument("--append", default="", help="more kernel command line")
    p.add_argument("--name", default=None, help="folder of the run in build/logs")
    p.add_argument("--timeout", type=int, default=None,
                   help="seconds until the guest is killed (default 400, debug kernel 900)")
    p.add_argument("--files", default="", help="files to put into the guest's /root, a,b,…")
    p.add_argument("--families", default="",
                   help="families of virtgpu-tests, a,b,…: one after the other, each with a device of its own")
    p.add_argument("--case", action="append", default=[], metavar="NAME|PARAMETERS|DEVICE",
                   help="likewise, what the job does with VIRTGPU_CASE=NAME: with these parameters of the module, "
                        "on a device with these arguments; may be repeated")
    p.add_argument("--interactive", action="store_true", help="a shell instead of a job")
    p.add_argument("--monitor", action="store_true", help="QMP socket build/logs/RUN/qmp.sock")
    p.add_argument("--quiet", action="store_true", help="do not repeat the job's output")
    p.add_argument("job", nargs="*", help="command line for the guest's shell")
    args = p.parse_args()
    args.job = " ".join(args.job)
    args.cases = []
    for name in dict.fromkeys(filter(None, args.families.split(","))):
        if name not in families():
            p.error(f"virtgpu-tests knows no family {name}")
        args.cases.append(families()[name])
    args.cases += [Case(*case.split("|")) for case in args.case]
    if args.cases:
        if args.driver != "ours" or args.host_gpu != "reference" or args.device_args:
            p.error("--families and --case are for this project's module and device")
        args.no_device = True
        args.job = args.job or 'virtgpu-tests run "$VIRTGPU_CASE"'
    if args.iommu and args.host_gpu not in ("virgl", "venus"):
        # QEMU gives a vhost-user device the addresses of its rings as the IOMMU's and the translations in
        # IOTLB messages; the crate vhost 0.18 knows neither ("Missing memory mapping").
        p.error("--iommu is for QEMU's virtio-gpu: the reference device cannot follow an IOMMU")
    if not args.job and not args.interactive:
        p.error("no job given")
    return args


def tree(name):
    """Folder of a tree in the cache; vm.sh and check.sh made it and say where."""
    path = os.environ.get(f"VIRTGPU_TREE_{name.upper()}")
    if not path:
        sys.exit(f"vm.py: VIRTGPU_TREE_{name.upper()} is not set; use scripts/vm.sh")
    return path


def kernel_dir(kind):
    """Folder of a kernel in the cache; vm.sh and check.sh made it and say where."""
    path = os.environ.get(f"VIRTGPU_KERNEL_{kind.upper()}")
    if not path:
        sys.exit(f"vm.py: VIRTGPU_KERNEL_{kind.upper()} is not set; use scripts/vm.sh")
    return path


def cpio(folder, out):
    """Packs a folder as an initramfs, complete or not at all."""
    # Not by the process's number: each vm.sh has a PID namespace of its own.
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(out), delete=False) as f:
        subprocess.run(["sh", "-c", "find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet"],
                       cwd=folder, stdout=f, check=True)
    os.rename(f.name, out)


def base_image(kind):
    """The part of the initramfs that changes rarely: busybox, modules, init."""
    kernel = kernel_dir(kind)
    init = PROJECT + "/scripts/guest/init"
    with open(init, "rb") as f:
        key = hashlib.sha256(f.read() + kernel.encode() + open(__file__, "rb").read()).hexdigest()[:12]
    folder = BUILD + "/guest"
    image = f"{folder}/base-{kind}-{key}.cpio"
    if os.path.exists(image):
        return image
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        for d in ("bin", "sbin", "etc", "root", "job", "usr/bin", "usr/sbin", "usr/local/bin", "lib"):
            os.makedirs(f"{tmp}/{d}")
        shutil.copy("/bin/busybox", f"{tmp}/bin/busybox")
        for applet in subprocess.check_output(["/bin/busybox", "--list"], text=True).split():
            if applet != "busybox":
                os.symlink("busybox", f"{tmp}/bin/{applet}")
        # busybox has no mkfs.ext4; the dynamically linked one comes along with
        # what it needs, for tests on a real file system.
        copy_with_libraries("/usr/sbin/mke2fs", tmp)
        os.symlink("mke2fs", f"{tmp}/usr/sbin/mkfs.ext4")
        shutil.copy("/etc/mke2fs.conf", f"{tmp}/etc/mke2fs.conf")
        shutil.copytree(kernel + "/guest/lib/modules", f"{tmp}/lib/modules")
        for path, _, files in os.walk(f"{tmp}/lib/modules"):
            for f in files:
                if f.endswith(".ko"):
                    subprocess.run(["strip", "--strip-debug", f"{path}/{f}"], check=True)
        with open(f"{tmp}/etc/passwd", "w") as f:
            f.write("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        with open(f"{tmp}/etc/group", "w") as f:
            f.write("root:x:0:\nnogroup:x:65534:\n")
        shutil.copy(init, f"{tmp}/init")
        cpio(tmp, image)
    for old in os.listdir(folder):
        if old.startswith(f"base-{kind}-") and f"{folder}/{old}" != image and old.endswith(".cpio"):
            os.unlink(f"{folder}/{old}")
    return image


def copy_with_libraries(binary, tree):
    paths = [binary]
    for word in subprocess.check_output(["ldd", binary], text=True).split():
        if word.startswith("/"):
            paths.append(word)
    for path in paths:
        target = tree + path
        if path.startswith("/lib64/"):
            target = tree + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(path, target)


def run_image(args, run):
    """The part that changes with every run: our module, binaries, the job."""
    with tempfile.TemporaryDirectory() as tmp:
        os.makedirs(f"{tmp}/job")
        os.makedirs(f"{tmp}/root")
        os.makedirs(f"{tmp}/usr/local/bin")
        if args.driver in ("ours", "both"):
            module = args.module or f"{BUILD}/module/{args.kernel}/virtgpu_userptr.ko"
            if not os.path.exists(module):
                sys.exit(f"vm.py: {module} is missing; run scripts/module.sh {args.kernel}")
            # Debug information would only cost guest memory and boot time.
            subprocess.run(["strip", "--strip-debug", "-o", f"{tmp}/job/virtgpu_userptr.ko", module],
                           check=True)
            # For tests only.
            exporter = f"{BUILD}/test-module/{args.kernel}/virtgpu_test_exporter.ko"
            if os.path.exists(exporter):
                shutil.copy(exporter, f"{tmp}/job/")
        for b in GUEST_BINARIES:
            if os.path.exists(f"{TARGET}/{b}"):
                subprocess.run(["strip", "--strip-debug", "-o", f"{tmp}/usr/local/bin/{b}",
                                f"{TARGET}/{b}"], check=True)
        for b in RENDER_BINARIES if "mesa" in args.trees.split(",") else []:
            if os.path.exists(f"{RENDER}/{b}"):
                shutil.copy(f"{RENDER}/{b}", f"{tmp}/job/")
        for f in filter(None, args.files.split(",")):
            shutil.copy(f, f"{tmp}/root/")
        with open(f"{tmp}/job/config", "w") as f:
            f.write(f"DRIVER={args.driver}\nINTERACTIVE={int(args.interactive)}\n")
            f.write("MODULES='virtio_pci pciehp udmabuf sw_sync ext4 loop 9pnet_virtio 9p'\n")
            f.write(f"TREES={shlex.quote(args.trees.replace(',', ' '))}\n")
            f.write(f"MODULE_ARGS={shlex.quote(args.module_args)}\nCASES={int(bool(args.cases))}\n")
            f.write(f"COVERAGE={int(bool(os.environ.get('VIRTGPU_COVERAGE')))}\n")
        with open(f"{tmp}/job/cases", "w") as f:
            for case in args.cases:
                f.write(f"{case.name}|{case.module}|{case.device or 'none'}\n")
        with open(f"{tmp}/job/run", "w") as f:
            f.write(f"export VIRTGPU_KERNEL={args.kernel} VIRTGPU_DRIVER={args.driver}\n")
            if os.environ.get("VIRTGPU_COVERAGE"):
                f.write("export VIRTGPU_COVERAGE=1\n")
            f.write(f"{args.job}\n")
        cpio(tmp, f"{run}/job.cpio")


class Device:
    """A vhost-user process behind the guest's GPU."""

    def __init__(self, run, number, arguments, kind, case):
        self.run, self.number, self.arguments, self.case = run, number, arguments, case
        self.socket = tempfile.mktemp(prefix="vgpu-", suffix=".sock")
        self.events = "events.jsonl" if number == 1 else f"events-{number}.jsonl"
        self.status = None  # its exit status, None if it had to be ended
        self.killed = self.stopped = False  # at the job's wish
        self.requests = self.mistreated = 0  # as its event log has it
        command = [f"{TARGET}/virtgpu-device", "--socket", self.socket, "--event-log", f"{run}/{self.events}"]
        if kind == "second":
            # It validates the driver by itself, and has no event log.
            self.events = None
            command = ["python3", "-B", f"{PROJECT}/tests/second-device", "--socket", self.socket]
        command += shlex.split(arguments)
        if kind == "renderer":
            # It is a library of the tree.
            command[0] = f"{RENDER}/virtgpu-device"
            command = in_tree(tree("mesa"), command + ["--virgl-renderer"])
        with open(f"{run}/device.log", "ab") as log:
            log.write(f"# device {number}: {arguments}\n".encode())
            log.flush()
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(200):
            if os.path.exists(self.socket):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        sys.exit(f"vm.py: the device did not come up, see {run}/device.log")

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

    def problems(self):
        """What is wrong with how it ended, and what its own checker says of the driver."""
        problems = []
        if self.events:
            problems, self.requests, self.mistreated = check_events(self.run, self.events, self.killed)
        # One of the ways to misbehave is to exit.
        exits = re.search(r"--adversary[ =]exit(?::(\d+))?", self.arguments)
        expected = -signal.SIGKILL if self.killed else int(exits[1] or 1) if exits else 0
        if self.status is None:
            problems.append(f"the device did not end within {END_SECONDS} s")
        elif self.status != expected:
            problems.append(f"the device ended with status {self.status}, not {expected}, see device.log")
        return problems


class Gpus:
    """The devices that a guest has had; the last one is there."""

    def __init__(self, args, run):
        self.run, self.kind = run, "renderer" if args.host_gpu == "reference-virgl" else args.device
        self.arguments, self.case, self.all = args.device_args, None, []

    def start(self):
        self.all.append(Device(self.run, len(self.all) + 1, self.arguments, self.kind, self.case))

    def stop(self):
        if self.all:
            self.last.stop()

    @property
    def last(self):
        return self.all[-1]


class Qmp:
    """The little of QEMU's monitor protocol that tests need."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.file = self.socket.makefile("r")
        self.file.readline()
        self.call("qmp_capabilities")
        self.events = []

    def call(self, command, **arguments):
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


def qemu_command(args, run, gpus, qmp):
    kernel = kernel_dir(args.kernel)
    accel = os.environ.get("VIRTGPU_ACCEL", "tcg")
    # Without the instructions that copy and clear bytes fast, which an emulator does byte by byte: the
    # kernel and the C library then use words.
    cpu = "max,erms=off,fsrm=off,fsrs=off,fsrc=off,fzrm=off"
    append = ["console=ttyS0", "panic=-1", "mitigations=off", "nmi_watchdog=0", "sysrq_always_enabled"]
    # An emulated processor does in a second what a real one does in 20 ms, and shares a core.
    append += ["watchdog_thresh=30", "rcupdate.rcu_cpu_stall_timeout=60", "workqueue.watchdog_thresh=60"]
    if accel == "tcg":
        accel = "tcg,thread=multi"
    else:
        cpu = "host"
    if args.kernel == "debug":
        # Five-level paging under TCG gives false KASAN reports early in boot.
        if cpu != "host":
            cpu += ",la57=off"
        append += ["page_poison=1", "kmemleak=on"]
        # The suites run each time that the module is loaded, which takes as long as the boot: only where
        # the guest has what prints their results.
        append += ["kunit.enable=1", "kunit.autorun=1"] if KUNIT in args.files.split(",") else ["kunit.enable=0"]
    if args.iommu:
        append += ["intel_iommu=on", "iommu.strict=1", "iommu.passthrough=0"]
    if os.environ.get("VIRTGPU_COVERAGE"):
        append += ["nokaslr"]
    append += [args.append]
    command = [
        "qemu-system-x86_64", "-M", "q35,memory-backend=mem",
        "-object", f"memory-backend-memfd,id=mem,size={args.mem},share=on",
        "-m", args.mem, "-smp", str(args.cpus), "-accel", accel, "-cpu", cpu,
        "-nodefaults", "-vga", "none", "-net", "none", "-display", "none", "-no-reboot",
        "-kernel", f"{kernel}/vmlinuz", "-initrd", f"{run}/initramfs.cpio",
        "-append", " ".join(filter(None, append)),
        "-serial", f"file:{run}/console.log",
        *(["-device", "intel-iommu,intremap=off"] if args.iommu else []),
        # With room for the host-visible memory of a device that is plugged in later; below 4 GiB, as an
        # emulated processor's other room is at the end of its 40 bits, which are called reserved.
        "-device", "pcie-root-port,id=port0,chassis=1,pref32-reserve=512M",
    ]
    if args.interactive:
        command += ["-chardev", "stdio,id=tty,signal=off,mux=on", "-serial", "chardev:tty"]
    else:
        command += ["-serial", f"file:{run}/job.log"]
    command += ["-chardev", f"socket,id=qmp,path={qmp},server=on,wait=off",
                "-object", "monitor-qmp,id=qmp0,chardev=qmp"]
    if os.environ.get("VIRTGPU_COVERAGE"):
        command += ["-d", "in_asm", "-dfilter", MODULES, "-D", f"{run}/coverage.log"]
    for name in filter(None, args.trees.split(",")):
        command += ["-fsdev", f"local,id=tree-{name},path={tree(name)},security_model=none,readonly=on",
                    "-device", f"virtio-9p-pci,fsdev=tree-{name},mount_tag={name}"]
    if args.host_gpu in ("virgl", "venus"):
        gpu = ["virtio-gpu-gl-pci,id=vgpu0,bus=port0"]
        if args.host_gpu == "venus":
            gpu += ["venus=on", "blob=on", "hostmem=256M"]
        if args.iommu:
            gpu += ["iommu_platform=on"]
        command += ["-device", ",".join(gpu)]
        # The renderer wants a display that has OpenGL; SDL has one that shows nothing.
        command[command.index("-display") + 1] = "sdl,gl=on"
        command = in_tree(tree("mesa"), command)
    if args.display:
        command += ["-device", "virtio-gpu-pci"]
    if gpus and gpus.all:
        gpu = ["vhost-user-test-device-pci,id=vgpu0,bus=port0,chardev=gpu1"]
        gpu += [f"{key}={'on' if value is True else value}" for key, value in gpu_options(gpus.arguments).items()]
        command += ["-chardev", f"socket,id=gpu1,path={gpus.last.socket}",
                    "-device", ",".join(gpu)]
    return command


def in_tree(folder, command):
    """The command, to be run with another tree as its root; it sees the same folders of this run."""
    mounts = "; ".join(f"busybox mount -o {how} /{d} {folder}/{d}" for how, d in (
        ("rbind", "dev"), ("rbind", "proc"), ("rbind", "sys"), ("bind", "tmp"), ("bind", "project"), ("bind", "cache")))
    environment = ["SDL_VIDEODRIVER=offscreen", "SDL_AUDIODRIVER=dummy", "XDG_RUNTIME_DIR=/tmp",
                   "VK_DRIVER_FILES=/usr/share/vulkan/icd.d/lvp_icd.json"]
    # Replaced and not left waiting, so that signals reach QEMU.
    return ["unshare", "--mount", "sh", "-ec", f'{mounts}; exec chroot {folder} "$@"', "in-tree",
            "/usr/bin/env", *environment, *command]


def serve(word, gpus, qmp_path):
    """Does what the job asked for."""
    word, _, rest = word.partition(" ")
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
        # First the guest has to let go of the old device: QEMU 11.1 does not survive the end of a
        # device's process in the middle of its removal.
        qmp = Qmp(qmp_path)
        deadline = time.monotonic() + 60
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
        if rest:
            gpus.arguments = "" if rest == "none" else rest
        gpus.start()
        name = f"gpu{gpus.last.number}"
        qmp.call("chardev-add", id=name, backend={"type": "socket", "data": {
            "addr": {"type": "unix", "data": {"path": gpus.last.socket}}, "server": False}})
        return qmp.call("device_add", driver="vhost-user-test-device-pci", id="vgpu0", bus="port0",
                        chardev=name, **gpu_options(gpus.arguments))
    else:
        return {"error": f"unknown request {word}"}
    return "done"


def where_it_hangs(run, qmp_path):
    """Asks the kernel of a guest that does not end for the stacks of its blocked tasks and of its
    CPUs, which go to its log, and says in one line what it is about."""
    console = f"{run}/console.log"
    read = lambda: open(console, errors="replace").read()
    silent_since = read()
    try:
        qmp = Qmp(qmp_path)
        for key in ("w", "l"):
            before = os.path.getsize(console)
            qmp.call("send-key", keys=[{"type": "qcode", "data": d} for d in ("alt", "sysrq", key)])
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
        return f"QEMU does not answer: {error}"
    asked = read()[len(silent_since):]
    last = (silent_since.rstrip().splitlines() or ["nothing"])[-1]
    parts = [f"last said: {last[:100]}"]
    parts += [f"CPU in {f}" for f in re.findall(r"RIP: 0010:(\S+)", asked)[:4]]
    for task in re.split(r"(?=task:)", asked)[1:4]:
        frames = re.findall(r"\] +([a-z_]\w+)\+0x", task)
        frames = [f for f in frames if not f.startswith(("__schedule", "schedule"))]
        parts.append(f"blocked {task[5:].split()[0]} in {' < '.join(frames[:6])}")
    return "; ".join(parts)


def check_events(run, log, unfinished=False):
    """Lets the device's own checker validate what the driver did. Returns the problems, and how many requests
    there were and how many of them, and of the mirror queue's commands, the device has mistreated."""
    p = subprocess.run([f"{TARGET}/virtgpu-device", "check-log", *(["--unfinished"] if unfinished else []),
                        f"{run}/{log}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    counts = re.search(r"(\d+) requests, .* (\d+) mistreated", p.stdout)
    requests, mistreated = (int(counts[1]), int(counts[2])) if counts else (0, 0)
    lines = (p.stdout.splitlines() or [f"status {p.returncode}"])[:20] if p.returncode else []
    return [f"check-log {log}: {line}" for line in lines], requests, mistreated


class Follower:
    """Reads a growing file line by line."""

    def __init__(self, path):
        self.path, self.file, self.rest = path, None, ""

    def lines(self):
        if self.file is None:
            if not os.path.exists(self.path):
                return
            self.file = open(self.path, errors="replace", newline="")
        self.rest += self.file.read()
        *lines, self.rest = self.rest.split("\n")
        for line in lines:
            yield line.rstrip("\r")


def keep_failed_start(run, attempt):
    """Before a guest is started again: says so, and puts its logs aside."""
    print(f"# vm: {NEVER_STARTED}; again", flush=True)
    for f in os.listdir(run):
        if f not in ("initramfs.cpio", "command"):
            os.rename(f"{run}/{f}", f"{run}/failed-start-{attempt}-{f}")


class Clock(threading.Thread):
    """Sums up how long the machine stood still: nothing else delays a thread that only sleeps."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stood_still = 0.0
        self.start()

    def run(self):
        while True:
            before = time.monotonic()
            time.sleep(0.5)
            late = time.monotonic() - before - 0.5
            if late > STALL_SECONDS:
                self.stood_still += late


class Phases:
    """When a guest has said what: how long it took to boot, to work, and to end."""

    def __init__(self, run):
        self.follower, self.start, self.at = Follower(f"{run}/console.log"), time.monotonic(), {}

    def look(self):
        for line in self.follower.lines():
            at = line.find(MARKER)
            if at >= 0:
                word = line[at + len(MARKER):].split(" ")[0]
                self.at.setdefault(word, time.monotonic())

    def seconds(self):
        self.look()
        end = time.monotonic()
        job = self.at.get("JOB", end)
        unload = max(self.at.get("END", end), job)
        return {"boot": round(job - self.start, 1), "work": round(unload - job, 1),
                "unload": round(end - unload, 1)}


def run_qemu(args, run, gpus, qmp, clock):
    """Runs a guest until it ends, or has to be ended. Returns the process, for the latter what
    the guest was doing, and what its parts took."""
    timeout = args.timeout or (900 if args.kernel == "debug" else 400)
    command = qemu_command(args, run, gpus, qmp)
    with open(f"{run}/command", "w") as f:
        f.write(shlex.join(command) + "\n")
    # While the machine stands still, so does the guest.
    now = lambda: time.monotonic() - clock.stood_still
    start, limit_from = now(), None
    with open(f"{run}/qemu.log", "wb") as log:
        qemu = subprocess.Popen(command, stderr=None if args.interactive else log,
                                stdin=None if args.interactive else subprocess.DEVNULL)
    follower, hang, phases = Follower(f"{run}/job.log"), None, Phases(run)
    while True:
        running = qemu.poll() is None
        for line in follower.lines():
            if line.startswith(HOST_REQUEST) and gpus:
                request = line[len(HOST_REQUEST):].strip()
                outcome = serve(request, gpus, qmp)
                if request.startswith("case "):
                    limit_from = now()
                with open(f"{run}/host.log", "a") as f:
                    f.write(f"{now() - start:.1f} {line}: {outcome}\n")
            elif not args.quiet:
                print(line, flush=True)
        phases.look()
        started = args.interactive or phases.at
        if started and limit_from is None:
            limit_from = now()
        if not running:
            if not hang and not started:
                hang = NEVER_STARTED
            return qemu, hang, phases.seconds()
        if not started and now() - start > START_SECONDS:
            where_it_hangs(run, qmp)
            hang = NEVER_STARTED
        if started and not args.interactive and now() - limit_from > timeout:
            hang = f"killed after {timeout} s ({where_it_hangs(run, qmp)})"
        if hang:
            qemu.terminate()
            try:
                qemu.wait(3)
            except subprocess.TimeoutExpired:
                qemu.kill()
        time.sleep(0.1)


class Cases:
    """What the guest's log says about each case, and to which case a line of it belongs."""

    def __init__(self, names):
        self.all = {name: {"name": name, "begun": False, "rc": None, "errors": []} for name in names}
        self.current = self.last = None
        self.since = []  # from when which is the current one, in jiffies

    def marker(self, word, rest):
        name = rest.split(" ")[0]
        if word == "CASE":
            self.current = self.last = name
            self.all[name]["begun"] = True
            if at := re.search(r"jiffies=(\d+)", rest):
                self.since.append((int(at[1]), name))
        elif word == "CASE-END":
            self.all[name]["rc"] = int(rest.partition("rc=")[2])
        elif word == "END":
            self.current = None

    def of_object(self, text):
        """The case in which an object was allocated that kmemleak describes, if it was in one."""
        at = re.search(r"jiffies (\d+)", text)
        begun = [name for since, name in self.since if at and since <= int(at[1])]
        return begun[-1] if begun else None

    def add(self, case, error, others):
        (self.all[case]["errors"] if case in self.all else others).append(error)


def validate(args, run, qemu, hang, gpus):
    """What the guest, its log, and its devices say."""
    result = {"timed_out": hang is not None, "qemu": qemu.returncode, "marker": False, "rc": None,
              "rmmod": None, "tainted": None, "errors": [], "scan": []}
    cases = Cases(case.name for case in args.cases)
    scan = subprocess.run([PROJECT + "/scripts/scan-log.sh", f"{run}/console.log"],
                          stdout=subprocess.PIPE, text=True)
    findings = scan.stdout.splitlines()
    if scan.returncode and not findings:
        result["errors"].append("the kernel log could not be scanned")
    checked = False
    left, lost = set(findings), {}
    with open(f"{run}/console.log", errors="replace", newline="\n") as f:
        lines = [line.rstrip("\r\n") for line in f]
    for number, line in enumerate(lines):
        at = line.find(MARKER)
        if at >= 0:
            word, _, rest = line[at + len(MARKER):].strip().partition(" ")
            cases.marker(word, rest)
            if word == "DONE":
                result["marker"], result["rc"] = True, int(rest.removeprefix("rc="))
            elif word == "RMMOD":
                if result["rmmod"] != "failed":
                    result["rmmod"] = rest
                if rest == "failed":
                    cases.add(cases.current, "the module could not be unloaded", result["errors"])
            elif word == "TAINTED":
                result["tainted"] = int(rest)
            elif word == "LOCKDEP":
                checked = True
            elif word == "ERROR":
                cases.add(cases.current, rest, result["errors"])
        if LOST in line and BUS_RESET not in line:
            lost.setdefault(cases.current, []).append(line)
        if line in findings:
            case = cases.current
            if line.startswith("unreferenced object") and number + 1 < len(lines):
                case = cases.of_object(lines[number + 1])
            cases.add(case, line, result["scan"])
            left.discard(line)
    # What is said of the log as a whole, as of a taint, comes from the last case: after it nothing ran.
    for line in findings:
        if line in left:
            cases.add(cases.last, line, result["scan"])
    # A driver loses a device that misbehaves, or that a test kills or stops. It must get along
    # with the others.
    for case, lines in lost.items():
        devices = [d for d in gpus.all if d.case == case] if gpus else []
        if not any(device.misbehaves() for device in devices):
            allowed = sum(device.killed or device.stopped for device in devices)
            for line in lines[allowed:]:
                cases.add(case, f"a good device was lost: {line}", result["errors"])
    if args.kernel == "debug" and result["marker"] and not checked:
        result["errors"].append("the guest did not say whether lockdep was still on")
    for device in gpus.all if gpus else []:
        for problem in device.problems():
            cases.add(device.case, problem, result["errors"])
    # A device that only behaves shows nothing of how the driver takes it that one does not. But the driver may
    # refuse it before it has asked anything.
    devices = [d for d in gpus.all if re.search("--adversary[ =]", d.arguments)] if gpus else []
    for case in {d.case for d in devices if d.requests} - {d.case for d in devices if d.mistreated}:
        cases.add(case, "the device was told to misbehave, and never did", result["errors"])
    # Guest and unload problems, apart from what the job itself returned.
    if hang:
        cases.add(cases.current, hang, result["errors"])
    elif not result["marker"]:
        cases.add(cases.current, "the guest did not print its completion marker", result["errors"])
    elif qemu.returncode:
        result["errors"].append(f"QEMU ended with status {qemu.returncode}, see qemu.log")
    result["cases"] = [case for case in cases.all.values() if case["begun"]]
    bad = result["errors"] + result["scan"] + [e for case in cases.all.values() for e in case["errors"]]
    result["ok"] = bool(result["marker"] and result["rc"] == 0 and not bad
                        and len(result["cases"]) == len(args.cases))
    return result


def main():
    args = arguments()
    name = args.name or f"vm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    run = f"{BUILD}/logs/{name}"
    shutil.rmtree(run, ignore_errors=True)
    os.makedirs(run)

    base = base_image(args.kernel)
    run_image(args, run)
    with open(f"{run}/initramfs.cpio", "wb") as out:
        for part in (base, f"{run}/job.cpio"):
            with open(part, "rb") as f:
                shutil.copyfileobj(f, out)
    os.unlink(f"{run}/job.cpio")

    qmp = f"{run}/qmp.sock" if args.monitor else tempfile.mktemp(prefix="qmp-")
    start, clock = time.monotonic(), Clock()
    for starts in range(1, ATTEMPTS + 1):
        if starts > 1:
            keep_failed_start(run, starts - 1)
        gpus = None if args.host_gpu in ("virgl", "venus") else Gpus(args, run)
        if gpus and not args.no_device:
            gpus.start()
        qemu, hang, phases = run_qemu(args, run, gpus, qmp, clock)
        if gpus:
            gpus.stop()
        if hang != NEVER_STARTED:
            break
    os.unlink(f"{run}/initramfs.cpio")

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {"name": name, "kernel": args.kernel, "driver": args.driver,
              "seconds": round(time.monotonic() - start, 1), "cpu": round(usage.ru_utime + usage.ru_stime, 1),
              "stood_still": round(clock.stood_still, 1), "starts": starts, **phases,
              "devices": [device.status for device in gpus.all] if gpus else [],
              **validate(args, run, qemu, hang, gpus)}
    with open(f"{run}/result", "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    if not args.quiet:
        for case in result["cases"]:
            for problem in case["errors"]:
                print(f"vm: {case['name']}: {problem}")
        for problem in result["errors"] + result["scan"]:
            print(f"vm: {problem}")
        ran = f"{len(result['cases'])} of {len(args.cases)} cases, " if args.cases else ""
        print(f"vm: {'ok' if result['ok'] else 'FAILED'}, job status {result['rc']}, {ran}"
              f"{result['seconds']} s (boot {result['boot']}, work {result['work']}, unload {result['unload']}; "
              f"CPU {result['cpu']}), logs in {run.replace(PROJECT + '/', '')}")
        if result["stood_still"]:
            print(f"vm: the machine stood still for {result['stood_still']} s")
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
