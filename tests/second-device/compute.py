# SPDX-License-Identifier: GPL-2.0
"""Jobs of the compute context (docs/protocol.md, 5)."""

import struct
import time

import crc32c
from storage import Miss

CAPSET, VERSION = 29, 1
MAX_RINGS, MAX_OPS = 64, 4096
FILL, COPY, CRC32C, ADD_U32, DELAY_US, SPIN_UNTIL, STAT = 1, 2, 3, 4, 10, 11, 12
OPERATIONS = FILL, COPY, CRC32C, ADD_U32, DELAY_US, SPIN_UNTIL, STAT
LONGEST = 120_000_000

OP = struct.Struct("<IIIIQIIQIIQQQQ")
# How much is accessed without letting others in between.
CHUNK = 1 << 16


class Malformed(Exception):
    """Nothing of the job is executed."""


class TimedOut(Exception):
    """A wait of the job was too long; its context is none the worse."""


class Ended(Exception):
    """The job's context is being destroyed, or the device stopped."""


def capset():
    return struct.pack("<IIIIQ", VERSION, MAX_RINGS, MAX_OPS, 0, sum(1 << op for op in OPERATIONS))


class Op:
    def __init__(self, data, offset):
        (self.op, flags, dst, pad0, self.dst_offset, src, pad1, self.src_offset, src2, pad2, _,
         self.length, self.imm, self.imm2) = OP.unpack_from(data, offset)
        if flags or pad0 or pad1 or pad2 or self.op not in OPERATIONS:
            raise Malformed
        self.dst = dst if self.op in (FILL, COPY, CRC32C, ADD_U32, STAT) else None
        self.src = src if self.op in (COPY, CRC32C, SPIN_UNTIL) else None
        # The resource that STAT tells of, which it does not access.
        self.asked = src
        if self.op == FILL and self.length % 8 or self.op == ADD_U32 and self.length % 4:
            raise Malformed
        if self.op == ADD_U32 and self.imm >> 32:
            raise Malformed
        if self.op == COPY and dst == src and abs(self.dst_offset - self.src_offset) < self.length:
            raise Malformed
        if self.op == DELAY_US and self.imm > LONGEST or self.op == SPIN_UNTIL and self.imm2 > LONGEST:
            raise Malformed


def parse(payload):
    """The operations of a job, all of them checked."""
    if len(payload) % OP.size or len(payload) > OP.size * MAX_OPS:
        raise Malformed
    return [Op(payload, offset) for offset in range(0, len(payload), OP.size)]


class Run:
    """The execution of a job by the thread of its timeline."""

    def __init__(self, device, job):
        self.device, self.job = device, job

    def execute(self):
        for op in self.job.ops:
            self.alive()
            self.step(op)

    def alive(self):
        if self.job.ended:
            raise Ended

    def pieces(self, offset, length):
        while length:
            part = min(length, CHUNK)
            yield offset, part
            offset, length = offset + part, length - part

    def check(self, resource, offset, length):
        """The storage of a resource, if `length` bytes at `offset` are inside of it."""
        found = self.job.resources.get(resource)
        if found is None or offset + length > found.storage.size:
            raise Miss
        return found.storage

    def read(self, storage, offset, length):
        self.alive()
        with self.device.turn:
            return b"".join(storage.pieces(offset, length, False))

    def write(self, storage, offset, data):
        self.alive()
        with self.device.turn:
            done, here = 0, storage.pieces(offset, len(data), True)
            for piece in here:
                piece[:] = data[done:done + len(piece)]
                done += len(piece)

    def step(self, op):
        if op.op == FILL:
            dst = self.check(op.dst, op.dst_offset, op.length)
            pattern = struct.pack("<Q", op.imm)
            for at, part in self.pieces(op.dst_offset, op.length):
                self.write(dst, at, pattern * (part // 8))
        elif op.op == COPY:
            dst = self.check(op.dst, op.dst_offset, op.length)
            src = self.check(op.src, op.src_offset, op.length)
            for at, part in self.pieces(0, op.length):
                self.write(dst, op.dst_offset + at, self.read(src, op.src_offset + at, part))
        elif op.op == CRC32C:
            dst = self.check(op.dst, op.dst_offset, 4)
            src = self.check(op.src, op.src_offset, op.length)
            state = 0xffffffff
            for at, part in self.pieces(op.src_offset, op.length):
                state = crc32c.update(state, self.read(src, at, part))
            self.write(dst, op.dst_offset, struct.pack("<I", state ^ 0xffffffff))
        elif op.op == ADD_U32:
            dst = self.check(op.dst, op.dst_offset, op.length)
            for at, part in self.pieces(op.dst_offset, op.length):
                self.write(dst, at, add_u32(self.read(dst, at, part), op.imm))
        elif op.op == DELAY_US:
            self.job.end.wait(op.imm / 1e6)
        elif op.op == SPIN_UNTIL:
            src = self.check(op.src, op.src_offset, 8)
            limit = time.monotonic() + op.imm2 / 1e6
            while struct.unpack("<Q", self.read(src, op.src_offset, 8))[0] != op.imm:
                if time.monotonic() > limit:
                    raise TimedOut
                self.job.end.wait(0.0002)
        elif op.op == STAT:
            dst = self.check(op.dst, op.dst_offset, op.length)
            self.write(dst, op.dst_offset, self.device.stat(op.asked)[:op.length])


def add_u32(data, value):
    """Adds to every word: even and odd ones each as one large number, with room for the carries."""
    pad = -len(data) % 8
    words = (len(data) + pad) // 8
    low = int.from_bytes(b"\xff\xff\xff\xff\0\0\0\0" * words, "little")
    value = int.from_bytes(struct.pack("<Q", value) * words, "little")
    number = int.from_bytes(data, "little")
    even = (number & low) + value & low
    odd = (number >> 32 & low) + value & low
    return (even | odd << 32).to_bytes(len(data) + pad, "little")[:len(data)]
