// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The commands of the mirror queue, and what makes them well-formed.
//!
//! Whether a command is well-formed depends on its bytes and on what the device offers, not on
//! which spaces there are. What a command does is in `table`.

use virtgpu_protocol::mirror::{self as wire, access, command, resolution, space_kind, Header};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Limits;

/// A command that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub(crate) struct Malformed(pub &'static str);

/// A well-formed command.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Create(wire::SpaceCreate),
    Destroy {
        space: u32,
    },
    Map {
        space: u32,
        start: u64,
        length: u64,
        entries: Vec<wire::MapEntry>,
    },
    Invalidate {
        space: u32,
        start: u64,
        last: u64,
    },
    Resolve {
        space: u32,
        fault: u64,
        status: u32,
    },
}

/// `bytes` as a structure, without a byte more or less.
fn exactly<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<&T, Malformed> {
    T::ref_from_bytes(bytes).map_err(|_| Malformed("length"))
}

/// Whether `mask` is one that a space may allow.
fn is_access(mask: u32) -> bool {
    mask == access::READ || mask == access::READ | access::WRITE
}

/// What a space belongs to fits what is to happen if nothing is mapped there.
fn is_kind(create: &wire::SpaceCreate, limits: &Limits) -> bool {
    match (create.kind.get(), create.flags.get()) {
        (space_kind::RESOURCE, 0) => true,
        (space_kind::CONTEXT, wire::SPACE_FAULTS) => limits.max_faults > 0,
        _ => false,
    }
}

/// Reads a command.
///
/// # Errors
///
/// If it is not well-formed, whatever exists.
pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<Command, Malformed> {
    let (header, _) = Header::ref_from_prefix(bytes).map_err(|_| Malformed("length"))?;
    let space = header.space_id.get();
    if header.flags.get() != 0 || header.padding.get() != 0 {
        return Err(Malformed("reserved bits of the header"));
    }
    if space == 0 {
        return Err(Malformed("space 0"));
    }
    match header.kind.get() {
        command::SPACE_CREATE => {
            let create = *exactly::<wire::SpaceCreate>(bytes)?;
            if !is_access(create.access.get()) {
                return Err(Malformed("access"));
            }
            if !is_kind(&create, limits) {
                return Err(Malformed("kind or flags"));
            }
            Ok(Command::Create(create))
        }
        command::SPACE_DESTROY => {
            exactly::<wire::SpaceDestroy>(bytes)?;
            Ok(Command::Destroy { space })
        }
        command::MAP => map(space, bytes, limits),
        command::INVALIDATE => {
            let invalidate = exactly::<wire::Invalidate>(bytes)?;
            let (start, last) = (invalidate.start.get(), invalidate.last.get());
            if start > last {
                return Err(Malformed("range"));
            }
            Ok(Command::Invalidate { space, start, last })
        }
        command::FAULT_RESOLVE => {
            let resolve = exactly::<wire::FaultResolve>(bytes)?;
            let status = resolve.status.get();
            if status > resolution::RETRY || resolve.padding.get() != 0 {
                return Err(Malformed("status"));
            }
            Ok(Command::Resolve {
                space,
                fault: resolve.fault_id.get(),
                status,
            })
        }
        _ => Err(Malformed("unknown command")),
    }
}

fn map(space: u32, bytes: &[u8], limits: &Limits) -> Result<Command, Malformed> {
    let (map, rest) = wire::Map::ref_from_prefix(bytes).map_err(|_| Malformed("length"))?;
    let entries = <[wire::MapEntry]>::ref_from_bytes(rest).map_err(|_| Malformed("length"))?;
    let count = map.nr_entries.get();
    if entries.len() != count as usize || map.padding.get() != 0 {
        return Err(Malformed("entries"));
    }
    if count == 0 || count > limits.max_entries {
        return Err(Malformed("number of entries"));
    }
    let (start, length) = (map.start.get(), map.length.get());
    let mask = u64::from(limits.granularity) - 1;
    if (start | length) & mask != 0 {
        return Err(Malformed("granularity"));
    }
    let mut sum = 0u64;
    for entry in entries {
        let length = u64::from(entry.length.get());
        if length == 0 || (entry.addr.get() | length) & mask != 0 {
            return Err(Malformed("granularity of an entry"));
        }
        let access = entry.access.get();
        let exclusive = access == access::EXCLUSIVE && limits.max_faults > 0;
        if !is_access(access) && !exclusive {
            return Err(Malformed("access of an entry"));
        }
        // Fewer than 2^32 lengths below 2^32: no overflow.
        sum += length;
    }
    if sum != length {
        return Err(Malformed("sum of lengths"));
    }
    Ok(Command::Map {
        space,
        start,
        length,
        entries: entries.to_vec(),
    })
}

/// The type of a command, 0 of one that is too short; for logs.
pub(crate) fn kind(bytes: &[u8]) -> u32 {
    let header = Header::ref_from_prefix(bytes);
    header.map_or(0, |(header, _)| header.kind.get())
}

/// The space that a command names, 0 of one that is too short; for logs.
pub(crate) fn space(bytes: &[u8]) -> u32 {
    let header = Header::ref_from_prefix(bytes);
    header.map_or(0, |(header, _)| header.space_id.get())
}
