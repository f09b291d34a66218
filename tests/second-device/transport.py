# SPDX-License-Identifier: GPL-2.0
"""A virtio device behind a vhost-user socket: the connection, guest memory, split virtqueues.

From the virtio specification (2.7, split virtqueues) and QEMU's docs/interop/vhost-user.rst.
"""

import bisect
import mmap
import os
import select
import socket
import struct
import threading

# vhost-user, what the front-end sends.
GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG, GET_SHMEM_CONFIG = 21, 24, 25, 44
# What the back-end sends.
BACKEND_SHMEM_MAP, BACKEND_SHMEM_UNMAP = 9, 10

F_PROTOCOL_FEATURES = 1 << 30
PROTOCOL_MQ, PROTOCOL_REPLY_ACK, PROTOCOL_BACKEND_REQ = 1 << 0, 1 << 3, 1 << 5
PROTOCOL_CONFIG, PROTOCOL_BACKEND_SEND_FD, PROTOCOL_SHMEM = 1 << 9, 1 << 10, 1 << 22

VERSION, REPLY, NEED_REPLY = 1, 1 << 2, 1 << 3
NO_FD = 1 << 8
SHMEM_REGIONS = 256

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
F_INDIRECT_DESC = 1 << 28


class Broken(Exception):
    """The guest or the front-end did what it must not do."""


class Region:
    """A piece of guest RAM."""

    def __init__(self, guest, size, user, offset, fd):
        self.guest, self.size, self.user = guest, size, user
        self.bytes = memoryview(mmap.mmap(fd, size, offset=offset))


class GuestMemory:
    """All of the guest's RAM."""

    def __init__(self):
        self.regions, self.starts = [], []

    def set(self, regions):
        self.regions = sorted(regions, key=lambda region: region.guest)
        self.starts = [region.guest for region in self.regions]

    def pieces(self, address, length):
        """Where guest-physical [address, address + length) is, as writable views; None if not all of it is
        guest RAM."""
        found = []
        while length > 0:
            index = bisect.bisect_right(self.starts, address) - 1
            if index < 0:
                return None
            region = self.regions[index]
            start = address - region.guest
            if start >= region.size:
                return None
            part = min(length, region.size - start)
            found.append(region.bytes[start:start + part])
            address += part
            length -= part
        return found

    def read(self, address, length):
        pieces = self.pieces(address, length)
        if pieces is None:
            raise Broken(f"{length} bytes at {address:#x} are not in guest RAM")
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def user(self, address, length):
        """A view of what the front-end has at an address of its own."""
        for region in self.regions:
            if region.user <= address and address + length <= region.user + region.size:
                start = address - region.user
                return region.bytes[start:start + length]
        raise Broken(f"the front-end has no memory of the guest at {address:#x}")


class Chain:
    """A request: what is to be read of it, and where its response goes."""

    def __init__(self, head, readable, writable):
        self.head, self.readable, self.writable = head, readable, writable

    def request(self, memory):
        return b"".join(memory.read(address, length) for address, length in self.readable)

    def room(self):
        return sum(length for _, length in self.writable)

    def write(self, memory, data):
        """Writes the response, or as much of it as there is room for; returns how much."""
        done = 0
        for address, length in self.writable:
            part = data[done:done + length]
            if not part:
                break
            at = 0
            for piece in memory.pieces(address, len(part)):
                piece[:] = part[at:at + len(piece)]
                at += len(piece)
            done += len(part)
        return done


class Queue:
    """A split virtqueue, served by a thread of its own.

    `lock` is for the used ring, which several threads write to.
    """

    def __init__(self, index, device):
        self.index, self.device = index, device
        self.lock = threading.Lock()
        self.size, self.next, self.addresses = 0, 0, None
        self.kick = self.call = None
        self.enabled, self.thread, self.end = False, None, None

    def set_fd(self, name, fd):
        old = getattr(self, name)
        with self.lock:
            setattr(self, name, fd)
        if old is not None:
            os.close(old)

    def update(self):
        """Starts the thread once the front-end has said all that is needed."""
        if self.thread or not (self.enabled and self.kick is not None and self.addresses and self.size):
            return
        desc, used, avail = self.addresses
        memory = self.device.memory
        self.desc = memory.user(desc, 16 * self.size)
        self.avail = memory.user(avail, 4 + 2 * self.size)
        self.used = memory.user(used, 4 + 8 * self.size)
        self.used_index = struct.unpack_from("<H", self.used, 2)[0]
        self.end = os.eventfd(0)
        self.thread = threading.Thread(target=self.run, name=f"queue {self.index}", daemon=True)
        self.thread.start()

    def stop(self):
        """Afterwards no request is taken; responses are up to the device."""
        if self.thread:
            os.eventfd_write(self.end, 1)
            self.thread.join()
            os.close(self.end)
            self.thread = None

    def run(self):
        try:
            poll = select.poll()
            poll.register(self.kick, select.POLLIN)
            poll.register(self.end, select.POLLIN)
            while True:
                # What was made available before the first kick is served as well.
                while not self.ended() and (chain := self.take()):
                    self.device.serve(self, chain)
                ready = [fd for fd, _ in poll.poll()]
                if self.ended():
                    return
                if self.kick in ready:
                    try:
                        os.read(self.kick, 8)
                    except BlockingIOError:
                        pass
        except Exception as error:
            self.device.fatal(error)

    def ended(self):
        poll = select.poll()
        poll.register(self.end, select.POLLIN)
        return bool(poll.poll(0))

    def take(self):
        if struct.unpack_from("<H", self.avail, 2)[0] == self.next:
            return None
        head = struct.unpack_from("<H", self.avail, 4 + 2 * (self.next % self.size))[0]
        self.next = (self.next + 1) & 0xffff
        return self.chain(head)

    def chain(self, head):
        readable, writable = [], []
        table, count, index, seen = self.desc, self.size, head, 0
        while True:
            if index >= count or seen >= count:
                raise Broken(f"queue {self.index}: descriptor {index} of {count}, the {seen}th of a chain")
            address, length, flags, following = struct.unpack_from("<QIHH", table, 16 * index)
            seen += 1
            if flags & DESC_INDIRECT:
                if (table is not self.desc or flags & (DESC_NEXT | DESC_WRITE) or length % 16 or not length
                        or not self.device.features & F_INDIRECT_DESC):
                    raise Broken(f"queue {self.index}: an indirect descriptor that must not be there")
                table, count, index, seen = self.device.memory.read(address, length), length // 16, 0, 0
                continue
            if self.device.memory.pieces(address, length) is None:
                raise Broken(f"queue {self.index}: a buffer at {address:#x} that is not in guest RAM")
            if flags & DESC_WRITE:
                writable.append((address, length))
            elif writable:
                raise Broken(f"queue {self.index}: what is readable comes first")
            else:
                readable.append((address, length))
            if not flags & DESC_NEXT:
                return Chain(head, readable, writable)
            index = following

    def give_back(self, chain, length):
        with self.lock:
            struct.pack_into("<II", self.used, 4 + 8 * (self.used_index % self.size), chain.head, length)
            self.used_index = (self.used_index + 1) & 0xffff
            # Stores of this machine are seen in order (x86), and there is more than one instruction
            # between two statements.
            struct.pack_into("<H", self.used, 2, self.used_index)
            if self.call is not None:
                os.eventfd_write(self.call, 1)

    def respond(self, chain, data):
        self.give_back(chain, chain.write(self.device.memory, data))


class Connection:
    """The back-end's side of a vhost-user connection."""

    def __init__(self, path, device):
        self.device = device
        device.connection = self
        self.protocol_features = 0
        self.backend = None
        self.queues = device.queues
        listener = socket.socket(socket.AF_UNIX)
        # A socket that is there can be connected to.
        listener.bind(path + ".new")
        listener.listen(1)
        os.rename(path + ".new", path)
        self.socket, _ = listener.accept()
        listener.close()

    @staticmethod
    def receive(sock, length):
        data, fds = b"", []
        while len(data) < length:
            part, more, _, _ = socket.recv_fds(sock, length - len(data), 16)
            if not part:
                raise EOFError
            data += part
            fds += more
        return data, fds

    def run(self):
        """Serves the front-end until it is gone."""
        try:
            while True:
                header, fds = self.receive(self.socket, 12)
                request, flags, size = struct.unpack("<III", header)
                if flags & 3 != VERSION:
                    raise Broken(f"vhost-user version {flags & 3}")
                payload, more = self.receive(self.socket, size) if size else (b"", [])
                reply = self.handle(request, payload, fds + more)
                if reply is None and flags & NEED_REPLY and self.protocol_features & PROTOCOL_REPLY_ACK:
                    reply = struct.pack("<Q", 0)
                if reply is not None:
                    self.socket.sendall(struct.pack("<III", request, VERSION | REPLY, len(reply)) + reply)
        except (EOFError, ConnectionResetError):
            pass
        for queue in self.queues:
            queue.stop()
        self.device.stopped(None)

    def handle(self, request, payload, fds):
        if request == GET_FEATURES:
            return struct.pack("<Q", self.device.FEATURES | F_PROTOCOL_FEATURES)
        if request == SET_FEATURES:
            features, = struct.unpack("<Q", payload)
            if features & ~(self.device.FEATURES | F_PROTOCOL_FEATURES):
                raise Broken(f"features {features:#x}, which were not offered")
            self.device.features = features
        elif request == GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", PROTOCOL_MQ | PROTOCOL_REPLY_ACK | PROTOCOL_BACKEND_REQ | PROTOCOL_CONFIG
                               | PROTOCOL_BACKEND_SEND_FD | PROTOCOL_SHMEM)
        elif request == SET_PROTOCOL_FEATURES:
            self.protocol_features, = struct.unpack("<Q", payload)
        elif request == GET_QUEUE_NUM:
            return struct.pack("<Q", len(self.queues))
        elif request in (SET_OWNER, RESET_OWNER):
            pass
        elif request == SET_MEM_TABLE:
            self.set_memory(payload, fds)
        elif request in (SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE, GET_VRING_BASE):
            return self.vring(request, *struct.unpack("<II", payload))
        elif request == SET_VRING_ADDR:
            index, _, desc, used, avail, _ = struct.unpack("<IIQQQQ", payload)
            self.queues[index].addresses = desc, used, avail
            self.queues[index].update()
        elif request in (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR):
            value, = struct.unpack("<Q", payload)
            queue, fd = self.queues[value & 0xff], None if value & NO_FD else fds[0]
            if request == SET_VRING_ERR:
                if fd is not None:
                    os.close(fd)
                return None
            queue.set_fd("kick" if request == SET_VRING_KICK else "call", fd)
            if request == SET_VRING_KICK and not self.device.features & F_PROTOCOL_FEATURES:
                queue.enabled = True
            queue.update()
        elif request == SET_BACKEND_REQ_FD:
            self.backend = socket.socket(fileno=fds[0])
        elif request == GET_CONFIG:
            offset, size, flags = struct.unpack_from("<III", payload)
            data = self.device.config()[offset:offset + size]
            # A length of 0 says that this failed.
            return struct.pack("<III", offset, size, flags) + data if len(data) == size else b""
        elif request == SET_CONFIG:
            # `events_clear` is all that can be written, and no event is ever there.
            pass
        elif request == GET_SHMEM_CONFIG:
            sizes = [0] * SHMEM_REGIONS
            sizes[self.device.WINDOW_ID] = self.device.WINDOW
            return struct.pack(f"<II{SHMEM_REGIONS}Q", 1, 0, *sizes)
        else:
            raise Broken(f"vhost-user request {request}")
        return None

    def set_memory(self, payload, fds):
        count, _ = struct.unpack_from("<II", payload)
        if count != len(fds):
            raise Broken(f"{count} regions of memory, {len(fds)} files")
        regions = []
        for index, fd in enumerate(fds):
            guest, size, user, offset = struct.unpack_from("<QQQQ", payload, 8 + 32 * index)
            regions.append(Region(guest, size, user, offset, fd))
            os.close(fd)
        self.device.memory.set(regions)

    def vring(self, request, index, value):
        queue = self.queues[index]
        if request == SET_VRING_NUM:
            queue.size = value
        elif request == SET_VRING_BASE:
            queue.next = value
        elif request == SET_VRING_ENABLE:
            if value:
                queue.enabled = True
            else:
                queue.stop()
                self.device.stopped(queue)
                queue.enabled = False
        else:
            self.device.stopping(queue)
            queue.stop()
            self.device.stopped(queue)
            queue.set_fd("kick", None)
            return struct.pack("<II", index, queue.next)
        queue.update()
        return None

    def shmem(self, request, offset, length, fd=None):
        """Has the front-end map a file into the host-visible window, or unmap it; whether it did."""
        if not self.backend:
            return False
        payload = struct.pack("<B7xQQQQ", self.device.WINDOW_ID, 0, offset, length, 1)
        header = struct.pack("<III", request, VERSION | NEED_REPLY, len(payload))
        socket.send_fds(self.backend, [header + payload], [] if fd is None else [fd])
        self.receive(self.backend, 12)
        status, _ = self.receive(self.backend, 8)
        return struct.unpack("<Q", status)[0] == 0
