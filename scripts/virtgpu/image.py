# SPDX-License-Identifier: GPL-2.0
"""Makes the initramfs of a guest, in two parts that the kernel unpacks one over the other.

The base has busybox, the kernel's modules and guest/init; it is kept in build/guest, by what has
gone into it. The other part is made for each run: the module, programs, and the job.
"""

import glob
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile

from . import environment
from .environment import BUILD, RENDER, SCRIPTS, TARGET

INIT = SCRIPTS + "/guest/init"
BINARIES = ["virtgpu-tests", "virtgpu-bench", "virtgpu-demo", "virtgpu-fuzz", "virtgpu-compare"]
RENDER_BINARIES = ["virtgpu-gles", "virtgpu-vulkan"]
FOLDERS = ("bin", "sbin", "etc", "root", "job", "usr/bin", "usr/sbin", "usr/local/bin", "lib")
# Modules of the kernel that the guest loads before ours.
MODULES = "virtio_pci pciehp udmabuf sw_sync ext4 loop 9pnet_virtio 9p"


def initramfs(args, run):
    """Puts the whole image of a guest into the folder of its run."""
    base = base_image(args.kernel)
    with tempfile.TemporaryDirectory() as tmp:
        fill_job(args, tmp)
        cpio(tmp, f"{run}/job.cpio")
    with open(f"{run}/initramfs.cpio", "wb") as out:
        for part in (base, f"{run}/job.cpio"):
            with open(part, "rb") as f:
                shutil.copyfileobj(f, out)
    os.unlink(f"{run}/job.cpio")


def cpio(folder, out):
    """Packs a folder as an initramfs, complete or not at all."""
    pack = "find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet"
    # Not by the process's number: each vm.sh has a PID namespace of its own.
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(out), delete=False) as f:
        subprocess.run(["sh", "-c", pack], cwd=folder, stdout=f, check=True)
    os.rename(f.name, out)


def base_image(kind):
    """The part that changes rarely, as it is kept, or made anew; older ones go then."""
    kernel, key = environment.kernel_folder(kind), hashlib.sha256()
    for part in (contents(INIT), kernel.encode(), contents(__file__)):
        key.update(part)
    folder = f"{BUILD}/guest"
    image = f"{folder}/base-{kind}-{key.hexdigest()[:12]}.cpio"
    if os.path.exists(image):
        return image
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        fill_base(kernel, tmp)
        cpio(tmp, image)
    for old in glob.glob(f"{folder}/base-{kind}-*.cpio"):
        if old != image:
            os.unlink(old)
    return image


def contents(path):
    with open(path, "rb") as f:
        return f.read()


def fill_base(kernel, tmp):
    """Puts together what all guests with a kernel have."""
    for d in FOLDERS:
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
                strip(f"{path}/{f}")
    with open(f"{tmp}/etc/passwd", "w") as f:
        f.write("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    with open(f"{tmp}/etc/group", "w") as f:
        f.write("root:x:0:\nnogroup:x:65534:\n")
    shutil.copy(INIT, f"{tmp}/init")


def copy_with_libraries(binary, tmp):
    """Copies a program, and the libraries that it is linked with, to where they are here."""
    linked = subprocess.check_output(["ldd", binary], text=True).split()
    for path in [binary] + [word for word in linked if word.startswith("/")]:
        os.makedirs(os.path.dirname(tmp + path), exist_ok=True)
        shutil.copy(path, tmp + path)


def strip(binary, out=None):
    """Takes out debug information, which would only cost guest memory and boot time."""
    subprocess.run(["strip", "--strip-debug", "-o", out or binary, binary], check=True)


def fill_job(args, tmp):
    """Puts together what a guest has of its own."""
    for d in ("job", "root", "usr/local/bin"):
        os.makedirs(f"{tmp}/{d}")
    if args.driver in ("ours", "both"):
        module = args.module or environment.module(args.kernel)
        if not os.path.exists(module):
            sys.exit(f"virtgpu: {module} is missing; run scripts/module.sh {args.kernel}")
        strip(module, f"{tmp}/job/virtgpu_userptr.ko")
        exporter = environment.exporter(args.kernel)
        if os.path.exists(exporter):
            shutil.copy(exporter, f"{tmp}/job/")
    for b in BINARIES:
        if os.path.exists(f"{TARGET}/{b}"):
            strip(f"{TARGET}/{b}", f"{tmp}/usr/local/bin/{b}")
    for b in RENDER_BINARIES if "mesa" in args.trees.split(",") else []:
        if os.path.exists(f"{RENDER}/{b}"):
            shutil.copy(f"{RENDER}/{b}", f"{tmp}/job/")
    for f in filter(None, args.files.split(",")):
        shutil.copy(f, f"{tmp}/root/")
    write_job(args, f"{tmp}/job")


def write_job(args, folder):
    """Writes what guest/init reads: the guest's configuration, its cases, and the job."""
    with open(f"{folder}/config", "w") as f:
        f.write(f"DRIVER={args.driver}\nINTERACTIVE={int(args.interactive)}\n")
        f.write(f"MODULES='{MODULES}'\n")
        f.write(f"TREES={shlex.quote(args.trees.replace(',', ' '))}\n")
        f.write(f"MODULE_ARGS={shlex.quote(args.module_args)}\nCASES={int(bool(args.cases))}\n")
        f.write(f"COVERAGE={int(environment.coverage())}\n")
    with open(f"{folder}/cases", "w") as f:
        for case in args.cases:
            f.write(f"{case.name}|{case.module}|{case.device or 'none'}\n")
    with open(f"{folder}/run", "w") as f:
        f.write(f"export VIRTGPU_KERNEL={args.kernel} VIRTGPU_DRIVER={args.driver}\n")
        if environment.coverage():
            f.write("export VIRTGPU_COVERAGE=1\n")
        f.write(f"{args.job}\n")
