// SPDX-License-Identifier: GPL-2.0

//! What a file says of itself in `/proc/PID/fdinfo`: its memory, kind by kind.

use crate::{
    drm::File,
    kapi::drm::{
        client::{
            ObjectUsage,
            TableEntry, //
        },
        fdinfo::{
            FdInfo,
            MemoryStats, //
        },
    },
    resource::{
        Kind,
        Resource, //
    },
};
use kernel::prelude::*;

/// Where the memory of an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    /// Pages allocated for the object.
    Shmem,
    /// The host; seen through the host-visible window.
    HostVisible,
    /// Pinned memory of the process.
    UserptrPinned,
    /// Memory of the process, which moves.
    UserptrMirrored,
    /// Another driver.
    Imported,
}

impl Region {
    const ALL: [(Self, &'static CStr); 5] = [
        (Self::Shmem, c"shmem"),
        (Self::HostVisible, c"host-visible"),
        (Self::UserptrPinned, c"userptr-pinned"),
        (Self::UserptrMirrored, c"userptr-mirrored"),
        (Self::Imported, c"imported"),
    ];

    /// Where the memory of `object`, of `size` bytes, is, and how many bytes of it the device can
    /// reach in the guest's memory. Does not sleep.
    pub(super) fn of(object: &Resource, size: u64) -> (Self, u64) {
        // The reset of the device releases what was held for it.
        let held = match &object.mapping {
            Some(mapping) if !mapping.is_live() => 0,
            _ => size,
        };
        match &object.kind {
            Kind::Guest | Kind::NonBlob => (Self::Shmem, size),
            Kind::Host(_) => (Self::HostVisible, 0),
            Kind::Imported(_) => (Self::Imported, held),
            Kind::Userptr(userptr) => match userptr.as_mirrored() {
                Some(mirrored) => (Self::UserptrMirrored, mirrored.range().mapped_bytes()),
                None => (Self::UserptrPinned, held),
            },
        }
    }
}

/// What an object adds to its file.
fn look(object: &TableEntry<'_, Resource>) -> (ObjectUsage, Region, u64) {
    let usage = object.usage();
    let (region, resident) = Region::of(object, usage.size);
    (usage, region, resident)
}

/// Writes what `file` has. An object with two handles counts twice.
pub(crate) fn show(file: &File, out: &FdInfo) {
    let mut all = Region::ALL.map(|_| MemoryStats::default());
    for (usage, region, resident) in file.look_at_objects(look) {
        let place = Region::ALL.iter().position(|(other, _)| *other == region);
        if let Some(stats) = place.and_then(|place| all.get_mut(place)) {
            stats.add(usage, resident);
        }
    }
    for ((_, name), stats) in Region::ALL.iter().zip(&all) {
        out.memory(name, stats);
    }
}
