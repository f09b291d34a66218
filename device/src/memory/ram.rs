// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Guest RAM as this process sees it.
//!
//! The frontend can change it at any time. A [`GuestRam`] is a snapshot, which stays mapped while
//! anybody has it: a resource keeps the memory that it was created with.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::host;

/// Guest memory as the vhost-user frontend described it.
pub type Memory = GuestMemoryMmap<()>;

/// An address in a mapping of memory shared with the guest.
///
/// What it points to may change at any time; see [`crate::memory::access`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostPtr(pub(crate) *mut u8);

// SAFETY: It is an address; what may be done with it is up to the unsafe code that uses it, and all
// of that is fit for concurrent use.
unsafe impl Send for HostPtr {}
// SAFETY: As above.
unsafe impl Sync for HostPtr {}

#[derive(Debug)]
struct Region {
    start: u64,
    /// First address after the region.
    end: u64,
    host: HostPtr,
    /// What it is a mapping of, from which byte on.
    file: Option<FileOffset>,
}

/// A stretch of a file that is guest RAM.
#[derive(Clone, Debug)]
pub(crate) struct FileRange {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A snapshot of guest RAM, which stays mapped while the snapshot exists.
#[derive(Debug)]
pub struct GuestRam {
    regions: Vec<Region>,
    /// Keeps the regions mapped.
    _memory: Arc<Memory>,
}

impl GuestRam {
    /// Takes a snapshot of `memory`, without what is a mapping of `not_ram`: the frontend
    /// reports the host-visible window like memory, but it is none that a guest may lend to us.
    #[must_use]
    pub fn new(memory: Arc<Memory>, not_ram: Option<&File>) -> Self {
        let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
        let not_ram = not_ram.and_then(identity);
        let mut regions: Vec<Region> = memory
            .iter()
            .filter(|region| {
                let file = region.file_offset().and_then(|f| identity(f.file()));
                not_ram.is_none() || file != not_ram
            })
            .filter_map(|region| {
                let start = region.start_addr().0;
                Some(Region {
                    start,
                    end: start.checked_add(region.len())?,
                    host: HostPtr(region.as_ptr()),
                    file: region.file_offset().cloned(),
                })
            })
            .collect();
        regions.sort_by_key(|region| region.start);
        Self {
            regions,
            _memory: memory,
        }
    }

    /// Bytes of the largest pieces that a part of it is made of; 0 if all of it is of pages.
    pub(crate) fn block_size(&self) -> u32 {
        let files = self.regions.iter().filter_map(|r| r.file.as_ref());
        let sizes = files.filter_map(|file| host::block_size(file.file()));
        sizes.max().unwrap_or(0)
    }

    /// Index of the region that holds `addr`.
    fn find(&self, addr: u64) -> Option<usize> {
        let index = self.regions.partition_point(|r| r.end <= addr);
        (self.regions.get(index)?.start <= addr).then_some(index)
    }

    /// The part of a file that `addr` and as many of the `length` bytes there are as lie in one
    /// region; `None` outside guest RAM, and for memory without a file.
    pub(crate) fn file_range(&self, addr: u64, length: u64) -> Option<FileRange> {
        let region = &self.regions[self.find(addr)?];
        let file = region.file.as_ref()?;
        let offset = addr - region.start;
        Some(FileRange {
            file: file.arc().clone(),
            offset: file.start().checked_add(offset)?,
            length: length.min(region.end - addr),
        })
    }

    /// A translator of addresses that remembers where it found the last one.
    pub(crate) fn translator(&self) -> Translator<'_> {
        Translator { ram: self, last: 0 }
    }
}

/// Finds the host addresses of guest addresses.
pub(crate) struct Translator<'a> {
    ram: &'a GuestRam,
    last: usize,
}

impl Translator<'_> {
    /// The host address of `addr`, and how many of the `length` bytes there lie in one region;
    /// `None` outside guest RAM.
    ///
    /// The address is valid for accesses of that length while the snapshot exists.
    #[inline]
    pub(crate) fn translate(&mut self, addr: u64, length: u64) -> Option<(HostPtr, u64)> {
        let hit = |r: &Region| r.start <= addr && addr < r.end;
        if !self.ram.regions.get(self.last).is_some_and(hit) {
            self.last = self.ram.find(addr)?;
        }
        let region = self.ram.regions.get(self.last)?;
        let offset = addr - region.start;
        let host = region.host.0.wrapping_add(offset as usize);
        Some((HostPtr(host), length.min(region.end - addr)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn translates_inside_regions_only() {
        let ranges = [
            (GuestAddress(0), 0x1000),
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x10_0000), 0x1000),
        ];
        let memory = Arc::new(Memory::from_ranges(&ranges).unwrap());
        let ram = GuestRam::new(memory, None);
        let mut t = ram.translator();
        assert_eq!(t.translate(0, 16).unwrap().1, 16);
        assert_eq!(t.translate(0xff0, 0x20).unwrap().1, 0x10);
        assert_eq!(t.translate(0x10_0fff, 5).unwrap().1, 1);
        assert_eq!(t.translate(0x1fff, 5).unwrap().1, 1);
        assert!(t.translate(0x2000, 1).is_none());
        assert!(t.translate(0xf_ffff, 1).is_none());
        assert!(t.translate(0x10_1000, 1).is_none());
        assert!(t.translate(u64::MAX, 1).is_none());
    }
}
