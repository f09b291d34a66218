# SPDX-License-Identifier: GPL-2.0
"""Starts QEMU for a guest and stays with it until it ends, or has to be ended.

Meanwhile it repeats what the job prints, serves what the job asks for, and keeps the time limits.
"""

import shlex
import subprocess
import threading
import time

from . import environment, logs, monitor, trees
from .device import gpu_options

# Where the kernel puts modules; those that are loaded anew are where they were if nothing is
# random.
MODULES = "0xffffffffa0000000+0x5f000000"
# Without the instructions that copy and clear bytes fast, which an emulator does byte by byte: the
# kernel and the C library then use words.
EMULATED_CPU = "max,erms=off,fsrm=off,fsrs=off,fsrc=off,fzrm=off"
# A guest whose first process is not heard before it has loaded the driver has hung in booting, or
# has no interrupts of its serial ports, as happens when the machine stands still while the kernel
# finds them. It tells nothing of what is tested, and is started once more, which is said. The
# job's time limit begins only where the guest has started.
START_SECONDS = 300
NEVER_STARTED = "the guest's first process was not heard"
# A thread that sleeps and wakes up later than this has stood still with the whole machine.
STALL_SECONDS = 2


def kernel_line(args):
    """The kernel's command line."""
    words = ["console=ttyS0", "panic=-1", "mitigations=off", "nmi_watchdog=0",
             "sysrq_always_enabled"]
    # An emulated processor does in a second what a real one does in 20 ms, and shares a core.
    words += ["watchdog_thresh=30", "rcupdate.rcu_cpu_stall_timeout=60",
              "workqueue.watchdog_thresh=60"]
    if args.kernel == "debug":
        words += ["page_poison=1", "kmemleak=on"]
        # The suites run each time that the module is loaded, which takes as long as the boot: only
        # where the guest has what prints their results.
        prints_kunit = environment.KUNIT in args.files.split(",")
        words += ["kunit.enable=1", "kunit.autorun=1"] if prints_kunit else ["kunit.enable=0"]
    if args.iommu:
        words += ["intel_iommu=on", "iommu.strict=1", "iommu.passthrough=0"]
    if environment.coverage():
        words += ["nokaslr"]
    return " ".join(filter(None, [*words, args.append]))


def processor(args):
    """QEMU's options for what executes the guest."""
    accel = environment.accelerator()
    if accel != "tcg":
        return ["-accel", accel, "-cpu", "host"]
    # Five-level paging under TCG gives false KASAN reports early in boot.
    cpu = EMULATED_CPU + (",la57=off" if args.kernel == "debug" else "")
    return ["-accel", "tcg,thread=multi", "-cpu", cpu]


def command_line(args, run, gpus, qmp):
    """How QEMU is started, with the tree in which it has OpenGL where it needs that."""
    with_opengl = args.host_gpu in ("virgl", "venus")
    command = [
        "qemu-system-x86_64", "-M", "q35,memory-backend=mem",
        "-object", f"memory-backend-memfd,id=mem,size={args.mem},share=on",
        "-m", args.mem, "-smp", str(args.cpus), *processor(args),
        # The renderer wants a display that has OpenGL; SDL has one that shows nothing.
        "-nodefaults", "-vga", "none", "-net", "none",
        "-display", "sdl,gl=on" if with_opengl else "none", "-no-reboot",
        "-kernel", f"{environment.kernel_folder(args.kernel)}/vmlinuz",
        "-initrd", f"{run}/initramfs.cpio", "-append", kernel_line(args),
        "-serial", f"file:{run}/console.log",
        *(["-plugin", f"{environment.BUILD}/count.so"] if args.count else []),
        *(["-device", "intel-iommu,intremap=off"] if args.iommu else []),
        # With room for the host-visible memory of a device that is plugged in later; below 4 GiB,
        # as an emulated processor's other room is at the end of its 40 bits, which are called
        # reserved.
        "-device", "pcie-root-port,id=port0,chassis=1,pref32-reserve=512M",
    ]
    if args.interactive:
        command += ["-chardev", "stdio,id=tty,signal=off,mux=on", "-serial", "chardev:tty"]
    else:
        command += ["-serial", f"file:{run}/job.log"]
    command += ["-chardev", f"socket,id=qmp,path={qmp},server=on,wait=off",
                "-object", "monitor-qmp,id=qmp0,chardev=qmp"]
    if environment.coverage():
        command += ["-d", "in_asm", "-dfilter", MODULES, "-D", f"{run}/coverage.log"]
    for name in filter(None, args.trees.split(",")):
        path = environment.tree_folder(name)
        command += ["-fsdev", f"local,id=tree-{name},path={path},security_model=none,readonly=on",
                    "-device", f"virtio-9p-pci,fsdev=tree-{name},mount_tag={name}"]
    if with_opengl:
        command = trees.in_mesa(command + ["-device", own_gpu(args)])
    if args.display:
        command += ["-device", "virtio-gpu-pci"]
    if gpus and gpus.all:
        command += vhost_user_gpu(gpus)
    return command


def own_gpu(args):
    """QEMU's own virtio-gpu."""
    gpu = ["virtio-gpu-gl-pci,id=vgpu0,bus=port0"]
    if args.host_gpu == "venus":
        gpu += ["venus=on", "blob=on", "hostmem=256M"]
    if args.iommu:
        gpu += ["iommu_platform=on"]
    return ",".join(gpu)


def vhost_user_gpu(gpus):
    """QEMU's options for a device that is another process."""
    gpu = ["vhost-user-test-device-pci,id=vgpu0,bus=port0,chardev=gpu1"]
    for key, value in gpu_options(gpus.arguments).items():
        gpu.append(f"{key}={'on' if value is True else value}")
    return ["-chardev", f"socket,id=gpu1,path={gpus.last.socket}", "-device", ",".join(gpu)]


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


class Running:
    """A guest whose QEMU has been started."""

    def __init__(self, args, run, gpus, qmp, clock):
        self.args, self.run, self.gpus, self.qmp, self.clock = args, run, gpus, qmp, clock
        self.timeout = args.timeout or (900 if args.kernel == "debug" else 400)
        command = command_line(args, run, gpus, qmp)
        with open(f"{run}/command", "w") as f:
            f.write(shlex.join(command) + "\n")
        self.start, self.limit_from = self.now(), None
        with open(f"{run}/qemu.log", "wb") as log:
            self.process = subprocess.Popen(
                command, stderr=None if args.interactive else log,
                stdin=None if args.interactive else subprocess.DEVNULL)
        self.follower, self.phases = logs.Follower(f"{run}/job.log"), logs.Phases(run)

    def now(self):
        """The time; while the machine stands still, so does the guest."""
        return time.monotonic() - self.clock.stood_still

    def listen(self):
        """Repeats what the job has printed since the last time, or serves it."""
        for line in self.follower.lines():
            if line.startswith(monitor.REQUEST) and self.gpus:
                request = line[len(monitor.REQUEST):].strip()
                outcome = monitor.serve(request, self.gpus, self.qmp)
                if request.startswith("case "):
                    self.limit_from = self.now()
                with open(f"{self.run}/host.log", "a") as f:
                    f.write(f"{self.now() - self.start:.1f} {line}: {outcome}\n")
            elif not self.args.quiet:
                print(line, flush=True)
        self.phases.look()

    def overdue(self, started):
        """Why a guest has to be ended; None as long as it has time."""
        if not started and self.now() - self.start > START_SECONDS:
            monitor.where_it_hangs(self.run, self.qmp)
            return NEVER_STARTED
        if (started and not self.args.interactive
                and self.now() - self.limit_from > self.timeout):
            hangs = monitor.where_it_hangs(self.run, self.qmp)
            return f"killed after {self.timeout} s ({hangs})"
        return None

    def end(self):
        """Ends QEMU."""
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()


def run_until_it_ends(args, run, gpus, qmp, clock):
    """Runs a guest until it ends, or has to be ended. Returns the process, for the latter what
    the guest was doing, and what its parts took."""
    guest, hang = Running(args, run, gpus, qmp, clock), None
    while True:
        # Asked first: what has been printed until then is read, whatever happens.
        running = guest.process.poll() is None
        guest.listen()
        started = args.interactive or guest.phases.at
        if started and guest.limit_from is None:
            guest.limit_from = guest.now()
        if not running:
            if not hang and not started:
                hang = NEVER_STARTED
            return guest.process, hang, guest.phases.seconds()
        if overdue := guest.overdue(started):
            hang = overdue
        if hang:
            guest.end()
        time.sleep(0.1)
