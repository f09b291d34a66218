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

A job can ask for things that only the host can do, by printing a line
`VIRTGPU-HOST: WORD` on its output:
  device_del    hot-unplug the GPU (as the monitor's device_del)
  device_add    plug a new GPU, served by a new device process
  kill          kill the device process (SIGKILL)
  stop, cont    stop the device process, let it continue
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PROJECT = "/project"
BUILD = PROJECT + "/build"
TARGET = BUILD + "/target/x86_64-unknown-linux-gnu/release"
GUEST_BINARIES = ["virtgpu-tests", "virtgpu-bench", "virtgpu-demo", "virtgpu-fuzz", "virtgpu-compare"]
# Linked dynamically, with the libraries of the tree with Mesa, where the guest's are in /job.
RENDER = BUILD + "/target-dynamic/x86_64-unknown-linux-gnu/release"
RENDER_BINARIES = ["virtgpu-gles", "virtgpu-vulkan"]
MARKER = "VIRTGPU-GUEST-"
HOST_REQUEST = "VIRTGPU-HOST: "
# A guest whose first process is not heard before it has loaded the driver has hung in booting, or
# has no interrupts of its serial ports, as happens when the machine stands still while the kernel
# finds them. It tells nothing of what is tested, and is started once more, which is said.
START_SECONDS = 240
ATTEMPTS = 2
NEVER_STARTED = "the guest's first process was not heard"


def arguments():
    p = argparse.ArgumentParser(prog="vm.sh", description="Run a job in a guest.")
    p.add_argument("--kernel", choices=["stock", "debug", "release"], default="stock")
    p.add_argument("--driver", choices=["ours", "c", "both", "none"], default="ours",
                   help="this project's module, Linux's own virtio-gpu, both but none loaded, or nothing")
    p.add_argument("--mem", default="1536M", help="guest memory (default %(default)s)")
    p.add_argument("--cpus", type=int, default=2)
    p.add_argument("--device-args", default="", help="more arguments of virtgpu-device")
    p.add_argument("--no-device", action="store_true", help="no GPU in the guest")
    p.add_argument("--host-gpu", choices=["reference", "reference-virgl", "virgl", "venus"], default="reference",
                   help="this project's device, without or with OpenGL, or QEMU's virtio-gpu-gl-pci, which renders in software: "
                        "with OpenGL only, or with blobs and Vulkan too")
    p.add_argument("--display", action="store_true",
                   help="a device with displays as well, QEMU's virtio-gpu-pci")
    p.add_argument("--trees", default="", help="trees that the guest gets as /NAME, read-only: mesa,igt")
    p.add_argument("--module", help="the .ko to load instead of build/module/KERNEL's")
    p.add_argument("--module-args", default="", help="parameters of the module")
    p.add_argument("--append", default="", help="more kernel command line")
    p.add_argument("--name", default=None, help="folder of the run in build/logs")
    p.add_argument("--timeout", type=int, default=None,
                   help="seconds until the guest is killed (default 400, debug kernel 900)")
    p.add_argument("--files", default="", help="files to put into the guest's /root, a,b,…")
    p.add_argument("--interactive", action="store_true", help="a shell instead of a job")
    p.add_argument("--monitor", action="store_true", help="QMP socket build/logs/RUN/qmp.sock")
    p.add_argument("--quiet", action="store_true", help="do not repeat the job's output")
    p.add_argument("job", nargs="*", help="command line for the guest's shell")
    args = p.parse_args()
    args.job = " ".join(args.job)
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
    tmp = f"{out}.{os.getpid()}"
    with open(tmp, "wb") as f:
        subprocess.run(["sh", "-c", "find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet"],
                       cwd=folder, stdout=f, check=True)
    os.rename(tmp, out)


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
            f.write(f"MODULE_ARGS={shlex.quote(args.module_args)}\n")
        with open(f"{tmp}/job/run", "w") as f:
            f.write(f"export VIRTGPU_KERNEL={args.kernel} VIRTGPU_DRIVER={args.driver}\n{args.job}\n")
        cpio(tmp, f"{run}/job.cpio")


class Device:
    """The vhost-user process behind the guest's GPU."""

    def __init__(self, args, run):
        self.args, self.run, self.count, self.process = args, run, 0, None
        self.folder = tempfile.mkdtemp(prefix="vgpu-")

    def start(self):
        self.count += 1
        self.socket = f"{self.folder}/gpu{self.count}.sock"
        events = f"{self.run}/events.jsonl" if self.count == 1 else f"{self.run}/events-{self.count}.jsonl"
        command = [f"{TARGET}/virtgpu-device", "--socket", self.socket, "--event-log", events]
        command += shlex.split(self.args.device_args)
        if self.args.host_gpu == "reference-virgl":
            # The renderer is a library of the tree.
            command[0] = f"{RENDER}/virtgpu-device"
            command = in_tree(tree("mesa"), command + ["--virgl-renderer"])
        with open(f"{self.run}/device.log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(200):
            if os.path.exists(self.socket):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        sys.exit(f"vm.py: the device did not come up, see {self.run}/device.log")

    def stop(self):
        """Ends it and says how: None if it had to be ended, else its status."""
        if not self.process:
            return None
        try:
            return self.process.wait(1)  # it ends by itself when QEMU goes
        except subprocess.TimeoutExpired:
            pass
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return None


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
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            line = self.file.readline()
            if not line:
                return {"error": "QEMU is gone"}
            answer = json.loads(line)
            if "event" in answer:
                continue
            return answer


GPU = ["virtio-id=16", "num_vqs=4", "vq_size=256", "config_size=64"]


def qemu_command(args, run, device, qmp):
    kernel = kernel_dir(args.kernel)
    accel = os.environ.get("VIRTGPU_ACCEL", "tcg")
    cpu = "max"
    append = ["console=ttyS0", "panic=-1", "mitigations=off", "nmi_watchdog=0", "sysrq_always_enabled"]
    if accel == "tcg":
        accel = "tcg,thread=multi"
    else:
        cpu = "host"
    if args.kernel == "debug":
        # Five-level paging under TCG gives false KASAN reports early in boot.
        if cpu == "max":
            cpu = "max,la57=off"
        append += ["page_poison=1", "kmemleak=on", "kunit.enable=1", "kunit.autorun=1"]
    append += [args.append]
    command = [
        "qemu-system-x86_64", "-M", "q35,memory-backend=mem",
        "-object", f"memory-backend-memfd,id=mem,size={args.mem},share=on",
        "-m", args.mem, "-smp", str(args.cpus), "-accel", accel, "-cpu", cpu,
        "-nodefaults", "-vga", "none", "-net", "none", "-display", "none", "-no-reboot",
        "-kernel", f"{kernel}/vmlinuz", "-initrd", f"{run}/initramfs.cpio",
        "-append", " ".join(filter(None, append)),
        "-serial", f"file:{run}/console.log",
        "-device", "pcie-root-port,id=port0,chassis=1",
    ]
    if args.interactive:
        command += ["-chardev", "stdio,id=tty,signal=off,mux=on", "-serial", "chardev:tty"]
    else:
        command += ["-serial", f"file:{run}/job.log"]
    command += ["-chardev", f"socket,id=qmp,path={qmp},server=on,wait=off",
                "-object", "monitor-qmp,id=qmp0,chardev=qmp"]
    for name in filter(None, args.trees.split(",")):
        command += ["-fsdev", f"local,id=tree-{name},path={tree(name)},security_model=none,readonly=on",
                    "-device", f"virtio-9p-pci,fsdev=tree-{name},mount_tag={name}"]
    if args.host_gpu in ("virgl", "venus"):
        gpu = ["virtio-gpu-gl-pci,id=vgpu0,bus=port0"]
        if args.host_gpu == "venus":
            gpu += ["venus=on", "blob=on", "hostmem=256M"]
        command += ["-device", ",".join(gpu)]
        # The renderer wants a display that has OpenGL; SDL has one that shows nothing.
        command[command.index("-display") + 1] = "sdl,gl=on"
        command = in_tree(tree("mesa"), command)
    if args.display:
        command += ["-device", "virtio-gpu-pci"]
    if device:
        gpu = ["vhost-user-test-device-pci,id=vgpu0,bus=port0,chardev=gpu1"] + GPU
        # The device offers the feature, but QEMU has to agree.
        options = shlex.split(args.device_args)
        if "--access-platform" in options:
            gpu += ["iommu_platform=on"]
        if "--queue-size" in options:
            gpu += [f"vq_size={options[options.index('--queue-size') + 1]}"]
        command += ["-chardev", f"socket,id=gpu1,path={device.socket}",
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


def serve(word, device, qmp_path):
    """Does what the job asked for."""
    if word == "kill":
        device.process.kill()
    elif word == "stop":
        device.process.send_signal(signal.SIGSTOP)
    elif word == "cont":
        device.process.send_signal(signal.SIGCONT)
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
        device.stop()
        device.start()
        name = f"gpu{device.count}"
        qmp.call("chardev-add", id=name, backend={"type": "socket", "data": {
            "addr": {"type": "unix", "data": {"path": device.socket}}, "server": False}})
        options = dict(o.split("=") for o in GPU)
        options = {k: int(v) for k, v in options.items()}
        return qmp.call("device_add", driver="vhost-user-test-device-pci", id="vgpu0", bus="port0",
                        chardev=name, **options)
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


def check_events(run):
    """Lets the device's own checker judge what the driver did."""
    errors = []
    for log in sorted(f for f in os.listdir(run) if f.startswith("events")):
        p = subprocess.run([f"{TARGET}/virtgpu-device", "check-log", f"{run}/{log}"],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if p.returncode:
            lines = p.stdout.splitlines() or [f"status {p.returncode}"]
            errors += [f"check-log {log}: {line}" for line in lines[:20]]
    return errors


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


def has_started(run):
    """Whether a guest's first process was heard."""
    try:
        with open(f"{run}/console.log", errors="replace") as f:
            return f"{MARKER}START" in f.read()
    except OSError:
        return False


def run_qemu(args, run, device, qmp):
    """Runs a guest until it ends, or has to be ended. Returns the process, and for the latter what
    the guest was doing."""
    timeout = args.timeout or (900 if args.kernel == "debug" else 400)
    command = qemu_command(args, run, device, qmp)
    with open(f"{run}/command", "w") as f:
        f.write(shlex.join(command) + "\n")
    start = time.monotonic()
    with open(f"{run}/qemu.log", "wb") as log:
        qemu = subprocess.Popen(command, stderr=None if args.interactive else log,
                                stdin=None if args.interactive else subprocess.DEVNULL)
    follower, hang, started = Follower(f"{run}/job.log"), None, args.interactive
    while True:
        running = qemu.poll() is None
        for line in follower.lines():
            if line.startswith(HOST_REQUEST) and device:
                answer = serve(line[len(HOST_REQUEST):].strip(), device, qmp)
                with open(f"{run}/host.log", "a") as f:
                    f.write(f"{time.monotonic() - start:.1f} {line}: {answer}\n")
            elif not args.quiet:
                print(line, flush=True)
        if not running:
            if not args.interactive and not hang and not has_started(run):
                hang = NEVER_STARTED
            return qemu, hang
        elapsed = time.monotonic() - start
        if not started and elapsed > START_SECONDS:
            started = has_started(run)
            if not started:
                where_it_hangs(run, qmp)
                hang = NEVER_STARTED
        if not args.interactive and elapsed > timeout:
            hang = f"killed after {timeout} s ({where_it_hangs(run, qmp)})"
        if hang:
            qemu.terminate()
            try:
                qemu.wait(3)
            except subprocess.TimeoutExpired:
                qemu.kill()
        before = time.monotonic()
        time.sleep(0.1)
        # While the machine stood still, so did the guest.
        still = time.monotonic() - before
        if still > 5:
            start += still


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
    start = time.monotonic()
    for starts in range(1, ATTEMPTS + 1):
        if starts > 1:
            keep_failed_start(run, starts - 1)
        device = None if args.no_device or args.host_gpu in ("virgl", "venus") else Device(args, run)
        if device:
            device.start()
        qemu, hang = run_qemu(args, run, device, qmp)
        device_status = device.stop() if device else None
        if hang != NEVER_STARTED:
            break
    timed_out = hang is not None
    os.unlink(f"{run}/initramfs.cpio")

    result = {"name": name, "kernel": args.kernel, "driver": args.driver, "seconds": round(time.monotonic() - start, 1),
              "starts": starts, "timed_out": timed_out, "qemu": qemu.returncode, "device": device_status,
              "marker": False, "rc": None, "rmmod": None, "tainted": None, "errors": []}
    for line in open(f"{run}/console.log", errors="replace"):
        at = line.find(MARKER)
        if at < 0:
            continue
        word, _, rest = line[at + len(MARKER):].strip().partition(" ")
        if word == "DONE":
            result["marker"], result["rc"] = True, int(rest.removeprefix("rc="))
        elif word == "RMMOD":
            result["rmmod"] = rest
        elif word == "TAINTED":
            result["tainted"] = int(rest)
        elif word == "ERROR":
            result["errors"].append(rest)
    scan = subprocess.run([PROJECT + "/scripts/scan-log.sh", f"{run}/console.log"],
                          stdout=subprocess.PIPE, text=True)
    result["scan"] = scan.stdout.splitlines()
    if scan.returncode and not result["scan"]:
        result["errors"].append("the kernel log could not be scanned")
    if device:
        result["errors"] += check_events(run)
    # One of the ways to misbehave is to exit.
    exits = "--adversary exit" in args.device_args
    if device_status and device_status > 0 and not exits:
        result["errors"].append(f"the device ended with status {device_status}, see device.log")
    # Guest and unload problems, apart from what the job itself returned.
    if timed_out:
        result["errors"].append(hang)
    elif not result["marker"]:
        result["errors"].append("the guest did not print its completion marker")
    elif qemu.returncode:
        result["errors"].append(f"QEMU ended with status {qemu.returncode}, see qemu.log")
    if result["rmmod"] == "failed":
        result["errors"].append("the module could not be unloaded")
    result["ok"] = bool(result["marker"] and result["rc"] == 0 and not result["errors"] and not result["scan"])
    with open(f"{run}/result", "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    if not args.quiet:
        for problem in result["errors"] + result["scan"]:
            print(f"vm: {problem}")
        print(f"vm: {'ok' if result['ok'] else 'FAILED'}, job status {result['rc']}, "
              f"{result['seconds']} s, logs in {run.replace(PROJECT + '/', '')}")
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
