# SPDX-License-Identifier: GPL-2.0
"""The options of a guest, as vm.sh has them."""

import argparse
import collections

from . import families

# What is done with a device of its own; families of virtgpu-tests are such cases, too.
Case = collections.namedtuple("Case", "name module device")


def parser():
    """What there is to say of a guest."""
    p = argparse.ArgumentParser(prog="vm.sh", description="Run a job in a guest.")
    add = p.add_argument
    add("--kernel", choices=["stock", "debug", "release"], default="stock")
    add("--driver", choices=["ours", "c", "both", "none"], default="ours",
        help="this project's module, Linux's own virtio-gpu, both but none loaded, or nothing")
    add("--mem", default="1536M", help="guest memory (default %(default)s)")
    add("--cpus", type=int, default=2)
    add("--count", action="store_true",
        help="one processor, whose instructions QEMU's plugin counts (bench/plugin/count.c), for "
             "virtgpu-bench P10")
    add("--device-args", default="", help="more arguments of virtgpu-device")
    add("--device", choices=["reference", "second"], default="reference",
        help="this project's device in Rust, or the second one, tests/second-device")
    add("--no-device", action="store_true", help="no GPU in the guest")
    add("--host-gpu", choices=["reference", "reference-virgl", "virgl", "venus"],
        default="reference",
        help="this project's device, without or with OpenGL, or QEMU's virtio-gpu-gl-pci, which "
             "renders in software: with OpenGL only, or with blobs and Vulkan too")
    add("--display", action="store_true",
        help="a device with displays as well, QEMU's virtio-gpu-pci")
    add("--iommu", action="store_true",
        help="an IOMMU (Intel's, strict) between guest and devices, with QEMU's virtio-gpu only")
    add("--trees", default="", help="trees that the guest gets as /NAME, read-only: mesa,igt")
    add("--module", help="the .ko to load instead of build/module/KERNEL's")
    add("--module-args", default="", help="parameters of the module")
    add("--append", default="", help="more kernel command line")
    add("--name", default=None, help="folder of the run in build/logs")
    add("--timeout", type=int, default=None,
        help="seconds until the guest is killed (default 400, debug kernel 900)")
    add("--files", default="", help="files to put into the guest's /root, a,b,…")
    add("--families", default="",
        help="families of virtgpu-tests, a,b,…: one after the other, each with a device of its own")
    add("--case", action="append", default=[], metavar="NAME|PARAMETERS|DEVICE",
        help="likewise, what the job does with VIRTGPU_CASE=NAME: with these parameters of the "
             "module, on a device with these arguments; may be repeated")
    add("--interactive", action="store_true", help="a shell instead of a job")
    add("--monitor", action="store_true", help="QMP socket build/logs/RUN/qmp.sock")
    add("--quiet", action="store_true", help="do not repeat the job's output")
    add("job", nargs="*", help="command line for the guest's shell")
    return p


def read(words):
    """The options that these words are, with the cases that they ask for."""
    p = parser()
    args = p.parse_args(words)
    args.job = " ".join(args.job)
    args.cases, offered = [], families.offered() if args.families else {}
    for name in dict.fromkeys(filter(None, args.families.split(","))):
        if name not in offered:
            p.error(f"virtgpu-tests knows no family {name}")
        args.cases.append(offered[name])
    args.cases += [Case(*case.split("|")) for case in args.case]
    if args.cases:
        if args.driver != "ours" or args.host_gpu != "reference" or args.device_args:
            p.error("--families and --case are for this project's module and device")
        args.no_device = True
        args.job = args.job or 'virtgpu-tests run "$VIRTGPU_CASE"'
    if args.iommu and args.host_gpu not in ("virgl", "venus"):
        # QEMU gives a vhost-user device the addresses of its rings as the IOMMU's and the
        # translations in IOTLB messages; the crate vhost 0.18 knows neither ("Missing memory
        # mapping").
        p.error("--iommu is for QEMU's virtio-gpu: the reference device cannot follow an IOMMU")
    if args.count:
        args.cpus = 1
    if not args.job and not args.interactive:
        p.error("no job given")
    return args
