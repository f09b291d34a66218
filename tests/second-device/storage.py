# SPDX-License-Identifier: GPL-2.0
"""What the bytes of a resource are: memory entries, pages mapped in a space, or the device's own memory.

All have `pieces(offset, length, write)`, views of bytes that exist and may be used, and raise `Miss` otherwise.
It is called, and its result is used, with `Turn` held: an INVALIDATE takes it, too, so that it finds no
access running, and none that has looked a page up and not yet used it.
"""

import bisect
import mmap
import os
import threading

PAGE = 4096
READ, WRITE = 1, 2


class Miss(Exception):
    """There is nothing at an address, or it must not be used in this way."""


class Turn:
    """A lock that the mirror queue gets before any job does, however many there are."""

    def __init__(self):
        self.condition = threading.Condition()
        self.held, self.urgent = False, 0

    def acquire(self, urgent=False):
        with self.condition:
            self.urgent += urgent
            while self.held or (self.urgent and not urgent):
                self.condition.wait()
            self.urgent -= urgent
            self.held = True

    def release(self):
        with self.condition:
            self.held = False
            self.condition.notify_all()

    def __enter__(self):
        self.acquire()

    def __exit__(self, *_):
        self.release()


class Entries:
    """Guest memory that stays where it is (docs/protocol.md, 3)."""

    def __init__(self, memory, size, entries):
        self.memory, self.size, self.entries = memory, size, entries
        self.starts, total = [], 0
        for _, length in entries:
            self.starts.append(total)
            total += length

    def pieces(self, offset, length, _write):
        found, index = [], bisect.bisect_right(self.starts, offset) - 1
        while length:
            address, size = self.entries[index]
            skip = offset - self.starts[index]
            part = min(length, size - skip)
            here = self.memory.pieces(address + skip, part)
            if here is None:
                raise Miss
            found += here
            offset, length, index = offset + part, length - part, index + 1
        return found


class HostMemory:
    """Memory of the device's own, which the host-visible window can show."""

    def __init__(self, size):
        self.size = size
        self.fd = os.memfd_create("host blob")
        os.ftruncate(self.fd, size)
        self.bytes = memoryview(mmap.mmap(self.fd, size))

    def pieces(self, offset, length, _write):
        return [self.bytes[offset:offset + length]]

    def close(self):
        os.close(self.fd)


class Space:
    """Guest memory that comes and goes (docs/protocol.md, 6).

    `pages` has the guest-physical address and the access of each page that is mapped, by its number in the space.
    """

    def __init__(self, memory, identity, resource, size, access):
        self.memory, self.id, self.resource, self.size, self.access = memory, identity, resource, size, access
        self.pages = {}
        self.maps = self.invalidates = 0

    def map(self, start, entries):
        """Maps checked entries; returns the number of the first page that was mapped to another one, if any."""
        page, changed = start // PAGE, None
        self.maps += 1
        for address, length, access in entries:
            for part in range(address, address + length, PAGE):
                old = self.pages.get(page)
                if old is not None and old[0] != part and changed is None:
                    changed = page
                self.pages[page] = part, access
                page += 1
        return changed

    def invalidate(self, start, last):
        first, last = start // PAGE, last // PAGE
        self.invalidates += 1
        if last - first < len(self.pages):
            for page in range(first, last + 1):
                self.pages.pop(page, None)
        else:
            for page in [page for page in self.pages if first <= page <= last]:
                del self.pages[page]


class Mirrored:
    """The bytes of a resource that has no entries: those of its space, when it has one."""

    def __init__(self, size):
        self.size, self.space = size, None

    def counts(self):
        """Pages mapped, MAPs and INVALIDATEs, as STAT tells them (5, rule 8); `Turn` is held."""
        space = self.space
        return (len(space.pages), space.maps, space.invalidates) if space else (0, 0, 0)

    def pieces(self, offset, length, write):
        if self.space is None:
            raise Miss
        found, pages, wanted = [], self.space.pages, WRITE if write else READ
        while length:
            page, skip = divmod(offset, PAGE)
            address, access = pages.get(page, (0, 0))
            if not access & wanted:
                raise Miss
            part = min(length, PAGE - skip)
            here = self.space.memory.pieces(address + skip, part)
            if here is None:
                raise Miss
            found += here
            offset, length = offset + part, length - part
        return found
