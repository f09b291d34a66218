// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What all resources have in common: the list of them and its limits, their memory entries, their
//! UUIDs, and their end.

use std::collections::BTreeMap;

use virtgpu_protocol::virtio_gpu::{self as wire, response};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::{parse, with_body, Failed, Outcome};
use crate::device::state::{Action, Resource, State, Storage};
use crate::device::{release, Device};
use crate::memory::segments::{EntryError, Segments};

/// The most resources.
const MAX_RESOURCES: usize = 1 << 20;

/// The most memory entries of all resources.
pub(super) const MAX_ENTRIES: u64 = 1 << 26;

impl Device {
    /// The memory that a list of `count` entries names.
    pub(super) fn segments(&self, rest: &[u8], count: u32, size: u64) -> Result<Segments, Failed> {
        let entries = entries(rest, count)?;
        Segments::from_entries(&self.ram(), entries, size).map_err(|error: EntryError| {
            log::info!("memory entries: {error}");
            response::ERR_INVALID_PARAMETER
        })
    }

    /// Adds a resource to those that exist.
    ///
    /// # Errors
    ///
    /// The response, if there are too many of them or of their memory entries.
    pub(super) fn insert(
        &self,
        state: &mut State,
        id: u32,
        storage: Storage,
        size: u64,
        mappable: bool,
    ) -> Result<(), Failed> {
        let resource = Resource {
            storage,
            size,
            mappable,
            uuid: None,
            dying: false,
            lent: BTreeMap::new(),
        };
        state.entries += resource.guest().1;
        if state.resources.len() >= MAX_RESOURCES || state.entries > MAX_ENTRIES {
            release(state, &resource);
            return Err(response::ERR_OUT_OF_MEMORY);
        }
        state.resources.insert(id, resource);
        Ok(())
    }

    pub(super) fn unref(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let id = request.resource_id.get();
        let mut state = self.lock();
        let resource = state
            .resource(id)
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        resource.dying = true;
        // From jobs in fault mode.
        resource.revoke(None);
        Ok(Outcome::Later(Action::Unref(id)))
    }

    pub(super) fn assign_uuid(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::ResourceCommand>(bytes)?;
        let mut state = self.lock();
        let next = state.uuids + 1;
        let resource = state
            .resource(request.resource_id.get())
            .ok_or(response::ERR_INVALID_RESOURCE_ID)?;
        let uuid = *resource.uuid.get_or_insert_with(|| uuid(next));
        state.uuids = next;
        Ok(with_body(
            response::OK_RESOURCE_UUID,
            &wire::ResponseResourceUuid {
                uuid,
                ..Default::default()
            },
        ))
    }
}

/// The bytes of `count` memory entries.
pub(super) fn total(rest: &[u8], count: u32) -> Result<u64, Failed> {
    let entries = entries(rest, count)?;
    // Fewer than 2^32 of less than 2^32 bytes.
    Ok(entries.iter().map(|e| u64::from(e.length.get())).sum())
}

/// The list of `count` memory entries at the start of `rest`.
fn entries(rest: &[u8], count: u32) -> Result<&[wire::MemEntry], Failed> {
    let length = (count as usize)
        .checked_mul(size_of::<wire::MemEntry>())
        .ok_or(response::ERR_INVALID_PARAMETER)?;
    rest.get(..length)
        .and_then(|bytes| <[wire::MemEntry]>::ref_from_bytes(bytes).ok())
        .ok_or(response::ERR_INVALID_PARAMETER)
}

/// The lowest and the highest address of memory entries.
pub(super) fn bounds(entries: &[u8]) -> (u64, u64) {
    let entries = <[wire::MemEntry]>::ref_from_bytes(entries).unwrap_or_default();
    entries.iter().fold((u64::MAX, 0), |(low, high), entry| {
        let start = entry.addr.get();
        let end = start.saturating_add(u64::from(entry.length.get()));
        (low.min(start), high.max(end))
    })
}

/// The UUID of number `count`: version 4, but the same in every run.
fn uuid(count: u64) -> [u8; 16] {
    let mix = |seed: u64| {
        let mut value = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value ^ (value >> 31)
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(U64::new(mix(2 * count)).as_bytes());
    bytes[8..].copy_from_slice(U64::new(mix(2 * count + 1)).as_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}
