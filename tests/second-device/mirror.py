# SPDX-License-Identifier: GPL-2.0
"""The mirror queue and its spaces (docs/protocol.md, 6; uapi/linux/virtio_gpu_mirror.h)."""

import struct

from storage import PAGE, READ, WRITE, Mirrored, Space

SPACE_CREATE, SPACE_DESTROY, MAP, INVALIDATE, FAULT_RESOLVE = range(0x0400, 0x0405)
OK, INVALID, NO_SUCH_SPACE, NO_MEMORY, LIMIT = range(5)
KIND_RESOURCE = 1

VERSION = 1
MAX_ENTRIES = 200
MAX_SPACES = 4096
EVENT_SLOTS = 8

HEADER = struct.Struct("<IIII")
CREATE = struct.Struct("<16xIIQII")
MAPPING = struct.Struct("<16xQQII")
ENTRY = struct.Struct("<QII")
RANGE = struct.Struct("<16xQQ")


class Spaces:
    """All spaces. `device.turn` is held where they change, and where pages do."""

    def __init__(self, device):
        self.device = device
        self.spaces = {}
        # Ids of spaces that went with their owners: in use until their SPACE_DESTROY.
        self.gone = set()
        # All that there ever were. Pages are watched for longer than the device has them.
        self.known = set()
        self.maps = self.invalidates = 0

    def config(self):
        return struct.pack("<IIIIII", VERSION, MAX_ENTRIES, MAX_SPACES, EVENT_SLOTS, PAGE, 0)

    def mapped_pages(self):
        return sum(len(space.pages) for space in self.spaces.values())

    def serve(self, queue, chain):
        """Carries one command out and responds to it."""
        request = chain.request(self.device.memory)
        kind = HEADER.unpack_from(request)[0] if len(request) >= HEADER.size else None
        if kind in (SPACE_CREATE, MAP):
            if chain.room() != 4:
                self.device.wrong(f"room for {chain.room()} bytes of status")
            status = self.create(request) if kind == SPACE_CREATE else self.map(request)
            queue.respond(chain, struct.pack("<I", status))
            return
        if chain.room():
            self.device.wrong(f"{chain.room()} bytes to be written by command {kind}")
        if kind == INVALIDATE:
            self.invalidate(request)
        elif kind == SPACE_DESTROY:
            self.destroy(request)
        else:
            self.device.wrong(f"command {kind} in the mirror queue, of {len(request)} bytes")
        queue.give_back(chain, 0)

    def header(self, request, size):
        """The space that a command names; None if the command is not well-formed."""
        _, flags, identity, padding = HEADER.unpack_from(request)
        if len(request) != size or flags or padding or not identity:
            self.device.wrong(f"a command of {len(request)} bytes: {request[:64].hex()}")
            return None
        return identity

    def invalid(self, what):
        self.device.wrong(what)
        return INVALID

    def create(self, request):
        identity = self.header(request, CREATE.size)
        if identity is None:
            return INVALID
        kind, owner, size, access, flags = CREATE.unpack(request)
        if kind != KIND_RESOURCE or flags or access not in (READ, READ | WRITE):
            return self.invalid(f"SPACE_CREATE of kind {kind}, flags {flags}, access {access}")
        with self.device.state:
            resource = self.device.resources.get(owner)
            if resource is None or not isinstance(resource.storage, Mirrored):
                return self.invalid(f"SPACE_CREATE for resource {owner}, which has entries or does not exist")
            if (resource.storage.space or resource.storage.size != size or identity in self.spaces
                    or identity in self.gone):
                return self.invalid(f"SPACE_CREATE {identity} of {size:#x} bytes for resource {owner}")
            if len(self.spaces) >= MAX_SPACES:
                return LIMIT
            with self.device.turn:
                space = Space(self.device.memory, identity, resource, size, access)
                self.spaces[identity] = resource.storage.space = space
                self.known.add(identity)
        return OK

    def map(self, request):
        if len(request) < MAPPING.size:
            return self.invalid(f"a MAP of {len(request)} bytes")
        start, length, count, padding = MAPPING.unpack_from(request)
        identity = self.header(request, MAPPING.size + ENTRY.size * count)
        if identity is None or padding:
            return INVALID
        entries = [ENTRY.unpack_from(request, MAPPING.size + ENTRY.size * n) for n in range(count)]
        self.device.turn.acquire(urgent=True)
        try:
            space = self.spaces.get(identity)
            if space is None:
                if identity not in self.gone:
                    self.device.wrong(f"MAP in space {identity}, which does not exist")
                return NO_SUCH_SPACE
            if (not 1 <= count <= MAX_ENTRIES or start % PAGE or start + length > space.size
                    or sum(entry[1] for entry in entries) != length):
                return self.invalid(f"MAP of {length:#x} bytes at {start:#x} of {space.size:#x}, {count} entries")
            for address, part, access in entries:
                if (address % PAGE or part % PAGE or not part or access not in (READ, READ | WRITE)
                        or access & ~space.access or self.device.memory.pieces(address, part) is None):
                    return self.invalid(f"MAP of {part:#x} bytes at {address:#x}, access {access} of {space.access}")
            changed = space.map(start, entries)
            if changed is not None:
                self.device.wrong(f"page {changed} of space {identity} is replaced, and was not invalidated")
            self.maps += 1
            return OK
        finally:
            self.device.turn.release()

    def invalidate(self, request):
        identity = self.header(request, RANGE.size)
        if identity is None:
            return
        start, last = RANGE.unpack(request)
        if start % PAGE or (last + 1) % PAGE or last < start:
            self.device.wrong(f"INVALIDATE from {start:#x} to {last:#x}")
            return
        self.device.turn.acquire(urgent=True)
        try:
            if space := self.spaces.get(identity):
                space.invalidate(start, last)
            elif identity not in self.known:
                self.device.wrong(f"INVALIDATE in space {identity}, which never was")
            self.invalidates += 1
        finally:
            self.device.turn.release()

    def destroy(self, request):
        identity = self.header(request, HEADER.size)
        if identity is None:
            return
        self.device.turn.acquire(urgent=True)
        try:
            if space := self.spaces.get(identity):
                self.remove(space)
            elif identity in self.gone:
                self.gone.remove(identity)
            else:
                self.device.wrong(f"SPACE_DESTROY of {identity}, which does not exist")
        finally:
            self.device.turn.release()

    def lose(self, space):
        """A space goes with its owner; `device.turn` is held."""
        self.remove(space)
        self.gone.add(space.id)

    def clear(self):
        """No space outlives a reset; `device.turn` is held."""
        for space in list(self.spaces.values()):
            self.remove(space)
        self.gone.clear()
        self.known.clear()

    def remove(self, space):
        """Revokes all of a space; `device.turn` is held."""
        del self.spaces[space.id]
        space.pages.clear()
        space.resource.storage.space = None
