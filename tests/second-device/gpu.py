# SPDX-License-Identifier: GPL-2.0
"""The virtio-gpu device: the control queue, contexts, resources, jobs and fences.

docs/protocol.md, 2 to 4; structures are those of the virtio specification (1.3, 5.7).
"""

import collections
import os
import struct
import sys
import threading
import traceback

import compute
import mirror
from storage import PAGE, Entries, HostMemory, Miss, Mirrored, Turn
from transport import BACKEND_SHMEM_MAP, BACKEND_SHMEM_UNMAP, F_INDIRECT_DESC, GuestMemory, Queue

F_VIRGL, F_RESOURCE_BLOB, F_CONTEXT_INIT, F_MIRROR, F_VERSION_1 = 1 << 0, 1 << 3, 1 << 4, 1 << 22, 1 << 32

CONTROL, CURSOR, MIRROR, EVENT = range(4)

RESOURCE_UNREF, GET_CAPSET_INFO, GET_CAPSET, RESOURCE_CREATE_BLOB = 0x0102, 0x0108, 0x0109, 0x010c
CTX_CREATE, CTX_DESTROY, CTX_ATTACH_RESOURCE, CTX_DETACH_RESOURCE = 0x0200, 0x0201, 0x0202, 0x0203
SUBMIT_3D, RESOURCE_MAP_BLOB, RESOURCE_UNMAP_BLOB = 0x0207, 0x0208, 0x0209
OK_NODATA, OK_CAPSET_INFO, OK_CAPSET, OK_MAP_INFO = 0x1100, 0x1102, 0x1103, 0x1106
(ERR_UNSPEC, ERR_OUT_OF_MEMORY, ERR_INVALID_SCANOUT_ID, ERR_INVALID_RESOURCE_ID, ERR_INVALID_CONTEXT_ID,
 ERR_INVALID_PARAMETER) = range(0x1200, 0x1206)

FLAG_FENCE, FLAG_RING_IDX = 1, 2
BLOB_GUEST, BLOB_HOST3D, BLOB_HOST3D_GUEST = 1, 2, 3
BLOB_MAPPABLE, BLOB_FLAGS = 1, 7
MAP_CACHED = 1
RINGS = 64
# What may have to wait for jobs.
LATER = RESOURCE_UNREF, CTX_DETACH_RESOURCE, CTX_DESTROY, RESOURCE_MAP_BLOB, RESOURCE_UNMAP_BLOB

HEADER = struct.Struct("<IIQIB3x")


class Error(Exception):
    """A request whose response is an error."""

    def __init__(self, code):
        self.code = code


class Header:
    def __init__(self, request):
        self.type, self.flags, self.fence, self.context, self.ring = HEADER.unpack_from(request)

    def response(self, kind, payload=b""):
        if not self.flags & FLAG_FENCE:
            return HEADER.pack(kind, 0, 0, 0, 0) + payload
        ring = self.ring if self.flags & FLAG_RING_IDX else 0
        return HEADER.pack(kind, self.flags & (FLAG_FENCE | FLAG_RING_IDX), self.fence, self.context, ring) + payload


class Resource:
    def __init__(self, identity, storage, flags=0):
        self.id, self.storage, self.flags = identity, storage, flags
        self.shown = None


class Context:
    def __init__(self, identity, capset):
        self.id, self.capset = identity, capset
        self.attached, self.jobs, self.timelines = {}, set(), {}
        self.lost = self.dying = False


class Job:
    """What SUBMIT_3D asks for. `resources` are those attached when it came, and the only ones it can use."""

    def __init__(self, context, ops, respond):
        self.context, self.ops, self.respond = context, ops, respond
        self.resources = dict(context.attached)
        named = {n for op in ops for n in (op.dst, op.src) if n is not None}
        self.named = {r for n, r in self.resources.items() if n in named}
        self.written = {r for n, r in self.resources.items() if n in {op.dst for op in ops}}
        self.end = threading.Event()

    @property
    def ended(self):
        return self.end.is_set()


class Timeline:
    """A thread that runs jobs and sends responses in the order in which they came.

    `items` and `closed` change with `device.state` held, which also tells of it.
    """

    def __init__(self, device):
        self.device, self.items, self.closed = device, collections.deque(), False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def add(self, item):
        self.items.append(item)
        self.device.state.notify_all()

    def close(self):
        self.closed = True
        self.device.state.notify_all()

    def run(self):
        try:
            while True:
                with self.device.state:
                    self.device.state.wait_for(lambda: self.items or self.closed)
                    if not self.items:
                        return
                    item = self.items.popleft()
                    if not isinstance(item, Job):
                        item()
                        continue
                self.device.execute(item)
        except Exception as error:
            self.device.fatal(error)


class Deferred:
    """A request that is carried out and responded to when `jobs` are over, and after earlier ones of the same
    `name`. `action` returns the response, if it is more than that it is done."""

    def __init__(self, name, jobs, action, send):
        self.name, self.jobs, self.action, self.send = name, set(jobs), action, send


class Device:
    """Everything.

    `state` is for contexts, resources, jobs and timelines; no one waits with it held but by its own wait().
    `turn` is for what is mapped in spaces and for accesses to memory, and is taken after it.
    """

    FEATURES = F_VIRGL | F_RESOURCE_BLOB | F_CONTEXT_INIT | F_MIRROR | F_INDIRECT_DESC | F_VERSION_1
    WINDOW_ID, WINDOW = 1, 16 << 20

    def __init__(self):
        self.features = 0
        self.memory = GuestMemory()
        self.turn = Turn()
        self.state = threading.Condition()
        self.queues = [Queue(index, self) for index in range(4)]
        self.spaces = mirror.Spaces(self)
        self.connection = None
        self.commands = 0
        self.disagreements = 0
        self.running = True
        self.clear()

    def clear(self):
        self.resources, self.dying, self.contexts, self.old_contexts = {}, set(), {}, {}
        self.jobs, self.deferred = set(), []
        self.shared = None

    # What the transport asks.

    def config(self):
        virtio_gpu = struct.pack("<IIIII", 0, 0, 0, 1, 0)
        return (virtio_gpu.ljust(32, b"\0") + self.spaces.config()).ljust(64, b"\0")

    def serve(self, queue, chain):
        if queue.index == CONTROL:
            self.control(queue, chain)
        elif queue.index == MIRROR:
            self.spaces.serve(queue, chain)
        elif queue.index == EVENT:
            # A buffer for an event, of which there is none: it stays.
            if chain.room() < 32 or chain.readable:
                self.wrong(f"a buffer of {chain.room()} bytes in the event queue")
        else:
            queue.give_back(chain, 0)

    def stopping(self, queue):
        """The queue's thread must not wait for jobs any more."""
        if queue.index == CONTROL:
            with self.state:
                self.running = False
                self.end_jobs(self.jobs)
                self.state.notify_all()

    def stopped(self, queue):
        """Its thread has ended (None: those of all): nothing of the device touches what it was for."""
        if queue is not None and queue.index not in (CONTROL, MIRROR):
            return
        with self.state:
            self.running = False
            for context in self.contexts.values():
                context.lost = True
            self.end_jobs(self.jobs)
            self.state.notify_all()
            self.state.wait_for(lambda: not self.jobs)
            if queue is None or queue.index == CONTROL:
                for timeline in self.timelines():
                    timeline.items.clear()
                    timeline.close()
                for resource in list(self.resources.values()):
                    self.free(resource)
                for command in self.deferred:
                    command.action()
                self.clear()
            with self.turn:
                self.spaces.clear()
            self.running = True

    def timelines(self):
        for context in list(self.contexts.values()) + list(self.old_contexts.values()):
            yield from context.timelines.values()
        if self.shared:
            yield self.shared

    # What is said.

    def wrong(self, what):
        """Something that a driver which keeps to the protocol does not do."""
        self.disagreements += 1
        print(f"disagreement: {what}", file=sys.stderr, flush=True)

    def fatal(self, error):
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)

    # The control queue.

    def control(self, queue, chain):
        request = chain.request(self.memory)
        self.commands += 1
        if len(request) < HEADER.size:
            self.wrong(f"a request of {len(request)} bytes")
            queue.respond(chain, HEADER.pack(ERR_INVALID_PARAMETER, 0, 0, 0, 0))
            return
        header = Header(request)
        send = lambda kind, payload=b"": queue.respond(chain, header.response(kind, payload))
        with self.state:
            timeline = None
            try:
                timeline = self.timeline(header)
                if header.type == SUBMIT_3D:
                    kind = self.submit(header, request, timeline, send)
                elif header.type in LATER:
                    kind = self.later(header, request, send)
                else:
                    kind = self.carry_out(header, request)
            except Error as error:
                self.wrong(f"request {header.type:#x} of context {header.context} is refused with {error.code:#x}: "
                           f"{request[HEADER.size:64].hex()}")
                kind = error.code
            if kind is None:
                return
            kind, payload = kind if isinstance(kind, tuple) else (kind, b"")
            if header.flags & FLAG_FENCE:
                (timeline or self.shared_timeline()).add(lambda: send(kind, payload))
                return
        send(kind, payload)

    def shared_timeline(self):
        if not self.shared:
            self.shared = Timeline(self)
        return self.shared

    def timeline(self, header):
        """The one of a request; that of a context's ring comes into being with its first request."""
        if not header.flags & FLAG_RING_IDX:
            return self.shared_timeline()
        if header.ring >= RINGS:
            raise Error(ERR_INVALID_PARAMETER)
        context = self.context(header)
        if header.ring not in context.timelines:
            context.timelines[header.ring] = Timeline(self)
        return context.timelines[header.ring]

    def context(self, header):
        context = self.contexts.get(header.context)
        if context is None:
            raise Error(ERR_INVALID_CONTEXT_ID)
        return context

    def resource(self, identity):
        resource = self.resources.get(identity)
        if resource is None:
            raise Error(ERR_INVALID_RESOURCE_ID)
        return resource

    @staticmethod
    def fields(layout, request):
        layout = struct.Struct(layout)
        if len(request) < HEADER.size + layout.size:
            raise Error(ERR_INVALID_PARAMETER)
        return layout.unpack_from(request, HEADER.size)

    def carry_out(self, header, request):
        if header.type == GET_CAPSET_INFO:
            index, _ = self.fields("<II", request)
            if index:
                raise Error(ERR_INVALID_PARAMETER)
            return OK_CAPSET_INFO, struct.pack("<IIII", compute.CAPSET, compute.VERSION, len(compute.capset()), 0)
        if header.type == GET_CAPSET:
            identity, version = self.fields("<II", request)
            if identity != compute.CAPSET or version > compute.VERSION:
                raise Error(ERR_INVALID_PARAMETER)
            return OK_CAPSET, compute.capset()
        if header.type == CTX_CREATE:
            return self.create_context(header, request)
        if header.type == CTX_ATTACH_RESOURCE:
            identity, _ = self.fields("<II", request)
            self.context(header).attached[identity] = self.resource(identity)
            return OK_NODATA
        if header.type == RESOURCE_CREATE_BLOB:
            return self.create_blob(header, request)
        raise Error(ERR_UNSPEC)

    def create_context(self, header, request):
        length, init = self.fields("<II64x", request)
        identity, capset = header.context, init & 0xff
        if length > 64 or init & ~0xff or capset not in (0, compute.CAPSET):
            raise Error(ERR_INVALID_PARAMETER)
        if not identity or identity in self.contexts:
            raise Error(ERR_INVALID_CONTEXT_ID)
        # The id may be that of a context whose end has had no response.
        self.state.wait_for(lambda: identity not in self.old_contexts or not self.running)
        self.contexts[identity] = Context(identity, capset)
        return OK_NODATA

    def create_blob(self, header, request):
        identity, kind, flags, count, blob, size = self.fields("<IIIIQQ", request)
        if not identity or identity in self.resources or identity in self.dying:
            raise Error(ERR_INVALID_RESOURCE_ID)
        if header.context:
            self.context(header)
        if not size or flags & ~BLOB_FLAGS or len(request) < 56 + 16 * count:
            raise Error(ERR_INVALID_PARAMETER)
        if kind == BLOB_HOST3D:
            if not header.context:
                raise Error(ERR_INVALID_PARAMETER)
            used = sum(r.storage.size for r in self.resources.values() if isinstance(r.storage, HostMemory))
            if count or size % PAGE:
                raise Error(ERR_INVALID_PARAMETER)
            if used + size > self.WINDOW:
                raise Error(ERR_OUT_OF_MEMORY)
            storage = HostMemory(size)
        elif kind not in (BLOB_GUEST, BLOB_HOST3D_GUEST) or kind == BLOB_GUEST and blob:
            raise Error(ERR_INVALID_PARAMETER)
        elif not count:
            if not self.features & F_MIRROR or size % PAGE:
                raise Error(ERR_INVALID_PARAMETER)
            storage = Mirrored(size)
        else:
            entries = [struct.unpack_from("<QII", request, 56 + 16 * n) for n in range(count)]
            for address, length, zero in entries:
                if not length or zero or self.memory.pieces(address, length) is None:
                    raise Error(ERR_INVALID_PARAMETER)
            if sum(entry[1] for entry in entries) < size:
                raise Error(ERR_INVALID_PARAMETER)
            storage = Entries(self.memory, size, [entry[:2] for entry in entries])
        self.resources[identity] = Resource(identity, storage, flags)
        return OK_NODATA

    def place(self, resource, request):
        """Where RESOURCE_MAP_BLOB wants a blob to be seen, which stays free until it is."""
        _, _, offset = self.fields("<IIQ", request)
        storage = resource.storage
        if (not isinstance(storage, HostMemory) or not resource.flags & BLOB_MAPPABLE or resource.shown is not None
                or offset % PAGE or offset + storage.size > self.WINDOW):
            raise Error(ERR_INVALID_PARAMETER)
        for other in self.resources.values():
            if (other.shown is not None and other.shown < offset + storage.size
                    and offset < other.shown + other.storage.size):
                raise Error(ERR_INVALID_PARAMETER)
        resource.shown = offset
        return offset

    def show(self, resource, offset):
        if not self.connection.shmem(BACKEND_SHMEM_MAP, offset, resource.storage.size, resource.storage.fd):
            resource.shown = None
            return (ERR_UNSPEC,)
        return OK_MAP_INFO, struct.pack("<II", MAP_CACHED, 0)

    def hide(self, resource):
        if resource.shown is not None:
            self.connection.shmem(BACKEND_SHMEM_UNMAP, resource.shown, resource.storage.size)
            resource.shown = None

    # Jobs.

    def submit(self, header, request, timeline, send):
        size, _ = self.fields("<II", request)
        context = self.context(header)
        payload = request[HEADER.size + 8:]
        if len(payload) < size:
            raise Error(ERR_INVALID_PARAMETER)
        try:
            ops = compute.parse(payload[:size])
        except compute.Malformed:
            return ERR_INVALID_PARAMETER
        if ops and context.capset != compute.CAPSET:
            return ERR_INVALID_PARAMETER
        fenced = header.flags & FLAG_FENCE
        job = Job(context, ops, send if fenced else None)
        self.jobs.add(job)
        context.jobs.add(job)
        timeline.add(job)
        return None if fenced else OK_NODATA

    def execute(self, job):
        """Runs a job, and then what waited for its end."""
        try:
            if job.context.lost:
                kind = ERR_UNSPEC
            else:
                compute.Run(self, job).execute()
                kind = OK_NODATA
        except compute.TimedOut:
            kind = ERR_INVALID_PARAMETER
        except (Miss, compute.Ended):
            kind = ERR_UNSPEC
        with self.state:
            if kind == ERR_UNSPEC:
                job.context.lost = True
            # Not what no one waits for any more: the queue may be gone.
            if job.respond and self.running:
                job.respond(kind)
            self.jobs.discard(job)
            job.context.jobs.discard(job)
            self.run_deferred(job)
            self.state.notify_all()

    @staticmethod
    def end_jobs(jobs):
        for job in jobs:
            job.end.set()

    # Giving memory back.

    def later(self, header, request, send):
        if header.type == CTX_DESTROY:
            context = self.context(header)
            del self.contexts[context.id]
            self.old_contexts[context.id] = context
            context.lost = context.dying = True
            self.end_jobs(context.jobs)
            self.deferred.append(Deferred(("context", context), context.jobs,
                                               lambda: self.end_context(context), send))
        else:
            identity, _ = self.fields("<II", request)
            resource = self.resource(identity)
            if header.type == CTX_DETACH_RESOURCE:
                context = self.context(header)
                if context.attached.get(identity) is not resource:
                    raise Error(ERR_INVALID_RESOURCE_ID)
                del context.attached[identity]
                jobs, action = context.jobs, lambda: self.revoke(resource)
            elif header.type == RESOURCE_MAP_BLOB:
                offset = self.place(resource, request)
                jobs = [job for job in self.jobs if resource in job.written]
                action = lambda: self.show(resource, offset)
            elif header.type == RESOURCE_UNMAP_BLOB:
                if resource.shown is None:
                    raise Error(ERR_INVALID_PARAMETER)
                jobs, action = self.naming(resource), lambda: self.hide(resource)
            else:
                if isinstance(resource.storage, Mirrored) and resource.storage.space:
                    self.wrong(f"RESOURCE_UNREF of {identity} before the SPACE_DESTROY of its space")
                del self.resources[identity]
                self.dying.add(identity)
                for context in self.contexts.values():
                    context.attached.pop(identity, None)
                jobs, action = self.naming(resource), lambda: self.free(resource)
            self.deferred.append(Deferred(("resource", resource), jobs, action, send))
        self.run_deferred(None)

    def naming(self, resource):
        return [job for job in self.jobs if resource in job.named]

    def run_deferred(self, job):
        """Carries out what waits for nothing any more, now that `job` is over."""
        waiting, self.deferred, earlier = self.deferred, [], set()
        for command in waiting:
            command.jobs.discard(job)
            if command.jobs or command.name in earlier:
                earlier.add(command.name)
                self.deferred.append(command)
                continue
            response = command.action() or (OK_NODATA,)
            if self.running:
                command.send(*response)

    def revoke(self, resource):
        if isinstance(resource.storage, Mirrored) and resource.storage.space:
            with self.turn:
                self.spaces.lose(resource.storage.space)

    def free(self, resource):
        self.hide(resource)
        self.revoke(resource)
        if isinstance(resource.storage, HostMemory):
            resource.storage.close()
        self.resources.pop(resource.id, None)
        self.dying.discard(resource.id)

    def end_context(self, context):
        del self.old_contexts[context.id]
        for timeline in context.timelines.values():
            timeline.close()
        self.state.notify_all()

    # What STAT tells.

    def stat(self, asked):
        with self.state:
            resource = self.resources.get(asked)
            storages = [resource.storage for resource in self.resources.values()]
            contexts = len(self.contexts)
        entries = [s for s in storages if isinstance(s, Entries)]
        host = sum(s.size for s in storages if isinstance(s, HostMemory))
        mirrored = resource is not None and isinstance(resource.storage, Mirrored)
        with self.turn:
            counts = resource.storage.counts() if mirrored else (0, 0, 0)
            return struct.pack("<17Q", len(storages), contexts, self.commands, sum(s.size for s in entries),
                               sum(len(s.entries) for s in entries), host, 0, 0, len(self.spaces.spaces),
                               self.spaces.maps, self.spaces.invalidates, self.spaces.mapped_pages(), 0, 0, *counts)
