// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Requests, commands and operations as bytes, and what is in a response.

use virtgpu_protocol::compute::{op, Op, Operand};
use virtgpu_protocol::mirror;
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, Header};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The type of a response.
pub fn kind(response: &[u8]) -> u32 {
    header(response).kind.get()
}

/// The header of a response.
pub fn header(response: &[u8]) -> Header {
    *prefix(response)
}

/// The structure at the start of a response.
pub fn prefix<T: FromBytes + KnownLayout + Immutable + zerocopy::Unaligned>(response: &[u8]) -> &T {
    T::ref_from_prefix(response).unwrap().0
}

/// A request that is only a header.
pub fn plain(command: u32, ctx: u32) -> Vec<u8> {
    Header::new(command, ctx).as_bytes().to_vec()
}

pub fn ctx_create(ctx: u32, capset: u32) -> Vec<u8> {
    let request = wire::CtxCreate {
        hdr: Header::new(command::CTX_CREATE, ctx),
        nlen: U32::ZERO,
        context_init: U32::new(capset),
        debug_name: [0; wire::DEBUG_NAME_LEN],
    };
    request.as_bytes().to_vec()
}

pub fn resource_command(command: u32, ctx: u32, id: u32) -> Vec<u8> {
    let request = wire::ResourceCommand {
        hdr: Header::new(command, ctx),
        resource_id: U32::new(id),
        padding: U32::ZERO,
    };
    request.as_bytes().to_vec()
}

pub fn map_blob(id: u32, offset: u64) -> Vec<u8> {
    let request = wire::ResourceMapBlob {
        hdr: Header::new(command::RESOURCE_MAP_BLOB, 0),
        resource_id: U32::new(id),
        padding: U32::ZERO,
        offset: U64::new(offset),
    };
    request.as_bytes().to_vec()
}

pub fn create_blob(ctx: u32, id: u32, mem: u32, size: u64, pieces: &[(u64, u32)]) -> Vec<u8> {
    let request = wire::ResourceCreateBlob {
        hdr: Header::new(command::RESOURCE_CREATE_BLOB, ctx),
        resource_id: U32::new(id),
        blob_mem: U32::new(mem),
        blob_flags: U32::new(u32::from(mem == blob_mem::HOST3D)),
        nr_entries: U32::new(pieces.len() as u32),
        blob_id: U64::ZERO,
        size: U64::new(size),
    };
    let mut bytes = request.as_bytes().to_vec();
    for (addr, length) in pieces {
        let entry = wire::MemEntry {
            addr: U64::new(*addr),
            length: U32::new(*length),
            padding: U32::ZERO,
        };
        bytes.extend(entry.as_bytes());
    }
    bytes
}

/// SPACE_CREATE for a resource.
pub fn space_create(space: u32, resource: u32, size: u64, access: u32) -> Vec<u8> {
    let create = mirror::SpaceCreate {
        hdr: mirror::Header::new(mirror::command::SPACE_CREATE, space),
        kind: U32::new(mirror::space_kind::RESOURCE),
        id: U32::new(resource),
        size: U64::new(size),
        access: U32::new(access),
        flags: U32::ZERO,
    };
    create.as_bytes().to_vec()
}

/// SPACE_CREATE for the addresses of a context.
pub fn context_space(space: u32, ctx: u32, size: u64) -> Vec<u8> {
    let create = mirror::SpaceCreate {
        hdr: mirror::Header::new(mirror::command::SPACE_CREATE, space),
        kind: U32::new(mirror::space_kind::CONTEXT),
        id: U32::new(ctx),
        size: U64::new(size),
        access: U32::new(3),
        flags: U32::new(mirror::SPACE_FAULTS),
    };
    create.as_bytes().to_vec()
}

/// FAULT_RESOLVE.
pub fn fault_resolve(space: u32, fault: u64, status: u32) -> Vec<u8> {
    let resolve = mirror::FaultResolve {
        hdr: mirror::Header::new(mirror::command::FAULT_RESOLVE, space),
        fault_id: U64::new(fault),
        status: U32::new(status),
        padding: U32::ZERO,
    };
    resolve.as_bytes().to_vec()
}

/// SPACE_DESTROY.
pub fn space_destroy(space: u32) -> Vec<u8> {
    let hdr = mirror::Header::new(mirror::command::SPACE_DESTROY, space);
    hdr.as_bytes().to_vec()
}

/// INVALIDATE.
pub fn invalidate(space: u32, start: u64, last: u64) -> Vec<u8> {
    let invalidate = mirror::Invalidate {
        hdr: mirror::Header::new(mirror::command::INVALIDATE, space),
        start: U64::new(start),
        last: U64::new(last),
    };
    invalidate.as_bytes().to_vec()
}

/// MAP of entries (address, length, access).
pub fn mirror_map(space: u32, start: u64, entries: &[(u64, u32, u32)]) -> Vec<u8> {
    let map = mirror::Map {
        hdr: mirror::Header::new(mirror::command::MAP, space),
        start: U64::new(start),
        length: U64::new(entries.iter().map(|(_, l, _)| u64::from(*l)).sum()),
        nr_entries: U32::new(entries.len() as u32),
        padding: U32::ZERO,
    };
    let mut bytes = map.as_bytes().to_vec();
    for (addr, length, access) in entries {
        let entry = mirror::MapEntry {
            addr: U64::new(*addr),
            length: U32::new(*length),
            access: U32::new(*access),
        };
        bytes.extend(entry.as_bytes());
    }
    bytes
}

/// An operation on places (resource, offset).
pub fn operation(op: u32, dst: (u32, u64), src: [(u32, u64); 2], length: u64, imm: [u64; 2]) -> Op {
    Op {
        op: U32::new(op),
        flags: U32::ZERO,
        dst: Operand::resource(dst.0, dst.1),
        src: src.map(|(id, offset)| Operand::resource(id, offset)),
        length: U64::new(length),
        imm: imm.map(U64::new),
    }
}

/// Waits.
pub fn delay(microseconds: u64) -> Op {
    operation(op::DELAY_US, (0, 0), [(0, 0); 2], 0, [microseconds, 0])
}

/// Fills with a value.
pub fn fill(id: u32, offset: u64, length: u64, value: u64) -> Op {
    operation(op::FILL, (id, offset), [(0, 0); 2], length, [value, 0])
}

/// Waits for a value.
pub fn spin(id: u32, offset: u64, value: u64, limit: u64) -> Op {
    operation(
        op::SPIN_UNTIL,
        (0, 0),
        [(id, offset), (0, 0)],
        0,
        [value, limit],
    )
}

pub fn submit(ctx: u32, ring: Option<u8>, fence: Option<u64>, ops: &[Op]) -> Vec<u8> {
    let mut hdr = Header::new(command::SUBMIT_3D, ctx);
    let mut flags = 0;
    if let Some(fence) = fence {
        flags |= wire::FLAG_FENCE;
        hdr.fence_id = U64::new(fence);
    }
    if let Some(ring) = ring {
        flags |= wire::FLAG_INFO_RING_IDX;
        hdr.ring_idx = ring;
    }
    hdr.flags = U32::new(flags);
    let request = wire::Submit3d {
        hdr,
        size: U32::new(size_of_val(ops) as u32),
        padding: U32::ZERO,
    };
    [request.as_bytes(), ops.as_bytes()].concat()
}
