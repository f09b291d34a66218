# SPDX-License-Identifier: GPL-2.0
"""A second virtio-gpu device with the mirror extension, for tests.

    python3 tests/second-device --socket PATH

The driver, the reference device, its checker and the tests take wire structures and numbers from one
crate, so an error there is the same on all sides and no one sees it. This device shares nothing with them: it is
Python with nothing but the standard library, and was written from docs/protocol.md, uapi/linux/virtio_gpu_mirror.h,
the virtio specification and QEMU's description of vhost-user. Whoever changes it keeps to that: what it has
to know and those texts do not say is a gap in docs/protocol.md, to be filled there first.

It has what mirrored memory needs, and the default run has a guest with it (tests/suites/second.toml):

  transport.py  the vhost-user connection, guest memory, split virtqueues
  gpu.py        the control queue: contexts, resources, jobs, fences, giving back
  mirror.py     the mirror queue: spaces, MAP, INVALIDATE
  storage.py    where the bytes of a resource are
  compute.py    the operations FILL, COPY, CRC32C, ADD_U32, DELAY_US, SPIN_UNTIL and STAT
  crc32c.py     CRC32C of megabytes

It does not look for speed, has no images, UUIDs, events or faults, and no IOMMU. Its numbers differ from the
reference device's where they may: fewer entries in a MAP, fewer event buffers, a smaller window, no RING_EVENT_IDX.

A driver that does what the protocol forbids gets the response that the text says, and a line `disagreement: …` on
stderr says so; then the exit status is 1, which fails the guest's test. Jobs do not count: they are the programs'.
"""

import argparse
import sys

import crc32c
from gpu import Device
from transport import Connection


def main():
    parser = argparse.ArgumentParser(prog="second-device", description=__doc__.splitlines()[0])
    parser.add_argument("--socket", required=True, help="where QEMU connects to")
    args = parser.parse_args()
    crc32c.self_test()
    device = Device()
    try:
        Connection(args.socket, device).run()
    except Exception as error:
        device.fatal(error)
    print(f"{device.commands} requests, {device.spaces.maps} MAPs, {device.spaces.invalidates} INVALIDATEs, "
          f"{device.disagreements} disagreements", file=sys.stderr)
    sys.exit(1 if device.disagreements else 0)


if __name__ == "__main__":
    main()
