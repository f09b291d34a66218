// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The memory of a resource: a list of stretches of host memory that appears as one.
//!
//! It is what jobs read and write, at the same time as the guest and other jobs. It keeps what it
//! is made of mapped for as long as it exists: guest RAM, a blob of the host, or the addresses of a
//! space, in which pages come and go.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use virtgpu_protocol::virtio_gpu::MemEntry;

use super::access;
use super::area::Area;
use super::guarded::Fault;
use super::hostmem::HostBlob;
use super::ram::{GuestRam, HostPtr};

/// Why a list of memory entries was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// An entry is not in guest RAM.
    #[error("entry {0} is not in guest RAM")]
    NotRam(usize),
    /// An entry is empty.
    #[error("entry {0} is empty")]
    Empty(usize),
    /// The entries are shorter than the resource.
    #[error("the entries are shorter than the resource")]
    TooShort,
}

/// What keeps the memory mapped.
#[derive(Debug)]
#[allow(dead_code)] // Held for their `Drop`.
enum Owner {
    Guest(Arc<GuestRam>),
    Host(Arc<HostBlob>),
    /// What a space maps; there are no segments then.
    Mirrored(Arc<Area>),
}

/// The memory of a resource.
///
/// # Invariants
///
/// Unless `owner` is an area, `starts` and `hosts` are of the same length. Segment `i` reaches from
/// byte `starts[i]` of the resource to `starts[i + 1]`, the last one to `size`; `starts` begins
/// with 0 and ascends strictly; all are below `size`. `hosts[i]` is valid for reads and writes of
/// that length while `owner` exists.
#[derive(Debug)]
pub struct Segments {
    starts: Vec<u64>,
    hosts: Vec<HostPtr>,
    size: u64,
    owner: Owner,
}

impl Segments {
    /// The memory of `size` bytes that `entries` name; what they name beyond that is not used.
    ///
    /// # Errors
    ///
    /// When an entry is empty or not in guest RAM, or all of them are too short.
    pub fn from_entries(
        ram: &Arc<GuestRam>,
        entries: &[MemEntry],
        size: u64,
    ) -> Result<Self, EntryError> {
        let mut starts = Vec::with_capacity(entries.len());
        let mut hosts = Vec::with_capacity(entries.len());
        let mut translator = ram.translator();
        let mut total = 0u64;
        // Host address right after the last segment; null before the first.
        let mut expected = std::ptr::null_mut();
        for (index, entry) in entries.iter().enumerate() {
            let mut addr = entry.addr.get();
            let mut left = u64::from(entry.length.get());
            if left == 0 {
                return Err(EntryError::Empty(index));
            }
            while left > 0 {
                let (host, length) = translator
                    .translate(addr, left)
                    .ok_or(EntryError::NotRam(index))?;
                if total < size && (host.0 != expected || starts.is_empty()) {
                    starts.push(total);
                    hosts.push(host);
                }
                expected = host.0.wrapping_add(length as usize);
                // Fewer than 2^32 entries of less than 2^32 bytes: no overflow.
                total += length;
                left -= length;
                // A region ends before 2^64, and so does the part of the entry in it.
                addr = addr.wrapping_add(length);
            }
        }
        if total < size {
            return Err(EntryError::TooShort);
        }
        starts.shrink_to_fit();
        hosts.shrink_to_fit();
        Ok(Self {
            starts,
            hosts,
            size,
            owner: Owner::Guest(ram.clone()),
        })
    }

    /// The memory of a host blob.
    #[must_use]
    pub(crate) fn from_host(blob: Arc<HostBlob>) -> Self {
        Self {
            starts: vec![0],
            hosts: vec![blob.ptr()],
            size: blob.size(),
            owner: Owner::Host(blob),
        }
    }

    /// The memory of a mirrored resource.
    pub(crate) fn mirrored(area: Arc<Area>) -> Self {
        Self {
            starts: Vec::new(),
            hosts: Vec::new(),
            size: area.size(),
            owner: Owner::Mirrored(area),
        }
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Stretches of host memory it consists of.
    #[must_use]
    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// Whether it is guest memory.
    #[must_use]
    pub fn is_guest(&self) -> bool {
        matches!(self.owner, Owner::Guest(_))
    }

    /// Whether `length` bytes at `offset` are inside.
    ///
    /// # Errors
    ///
    /// If they are not.
    pub fn check(&self, offset: u64, length: u64) -> Result<(), Fault> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Fault),
        }
    }

    /// Calls `f` with the address and length of each contiguous stretch of `length` bytes at
    /// `offset`. Each address is valid for reads and writes of that length during the call.
    fn each_chunk(
        &self,
        mut offset: u64,
        length: u64,
        mut f: impl FnMut(*mut u8, usize),
    ) -> Result<(), Fault> {
        self.check(offset, length)?;
        let mut left = length;
        // The last segment that starts at or before `offset`.
        let mut index = self
            .starts
            .partition_point(|s| *s <= offset)
            .saturating_sub(1);
        while left > 0 {
            let (Some(start), Some(host)) = (self.starts.get(index), self.hosts.get(index)) else {
                return Err(Fault);
            };
            let end = self.starts.get(index + 1).copied().unwrap_or(self.size);
            let take = left.min(end - offset);
            f(
                host.0.wrapping_add((offset - start) as usize),
                take as usize,
            );
            offset += take;
            left -= take;
            index += 1;
        }
        Ok(())
    }

    /// Calls `f` with the address and length of each contiguous stretch of guest memory, which are
    /// valid for reads and writes while this exists.
    ///
    /// # Errors
    ///
    /// If it is not guest memory.
    pub(crate) fn each_guest_chunk(&self, f: impl FnMut(*mut u8, usize)) -> Result<(), Fault> {
        match self.owner {
            Owner::Guest(_) => self.each_chunk(0, self.size, f),
            _ => Err(Fault),
        }
    }

    /// Reads `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// If they are not all inside; `buffer` is unchanged then. If one of them is not mapped in the
    /// space; a part may have been read then.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        if let Owner::Mirrored(area) = &self.owner {
            return area.read(offset, buffer);
        }
        let mut done = 0;
        self.each_chunk(offset, buffer.len() as u64, |host, length| {
            // SAFETY: `each_chunk` promises that `host` is valid for `length` bytes.
            unsafe { access::read(host, &mut buffer[done..done + length]) };
            done += length;
        })
    }

    /// Writes `buffer` to `offset`.
    ///
    /// # Errors
    ///
    /// If that is not all inside; nothing is written then. If a part is not mapped in the space for
    /// writing; another part may have been written then.
    pub fn write(&self, offset: u64, buffer: &[u8]) -> Result<(), Fault> {
        if let Owner::Mirrored(area) = &self.owner {
            return area.write(offset, buffer);
        }
        let mut done = 0;
        self.each_chunk(offset, buffer.len() as u64, |host, length| {
            // SAFETY: `each_chunk` promises that `host` is valid for `length` bytes.
            unsafe { access::write(host, &buffer[done..done + length]) };
            done += length;
        })
    }

    /// Reads the little-endian u64 at `offset`.
    ///
    /// # Errors
    ///
    /// If it is not inside.
    pub fn read_u64(&self, offset: u64) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Adds `value` to the u64 at `offset` atomically, in the byte order of the CPU; returns what
    /// was there.
    ///
    /// # Errors
    ///
    /// If it is not inside, not aligned in host memory, not in one piece, or not mapped in the
    /// space for writing.
    pub fn fetch_add(&self, offset: u64, value: u64) -> Result<u64, Fault> {
        if let Owner::Mirrored(area) = &self.owner {
            return area.fetch_add(offset, value);
        }
        let mut first = None;
        self.each_chunk(offset, 8, |host, length| {
            first.get_or_insert((host, length));
        })?;
        let (host, length) = first.ok_or(Fault)?;
        let host = host.cast::<u64>();
        if length != 8 || !host.is_aligned() {
            return Err(Fault);
        }
        // SAFETY: `each_chunk` promises that `host` is valid for eight bytes, and what keeps it so
        // is owned by `self`; it is aligned. Others access it only through volatile accesses and
        // from outside this process.
        let atomic = unsafe { AtomicU64::from_ptr(host) };
        Ok(atomic.fetch_add(value, Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};
    use zerocopy::little_endian::{U32, U64};

    use crate::memory::hostmem::HostMemory;
    use crate::memory::ram::Memory;
    use crate::memory::PAGE;

    const RAM: usize = 0x1_0000;

    fn ram() -> (Arc<Memory>, Arc<GuestRam>) {
        let half = RAM / 2;
        let ranges = [
            (GuestAddress(0), half),
            // Adjacent in the guest, not in this process.
            (GuestAddress(half as u64), half),
        ];
        let memory = Arc::new(Memory::from_ranges(&ranges).unwrap());
        let bytes: Vec<u8> = (0..RAM).map(|i| (i * 7 + i / 256) as u8).collect();
        memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        let ram = Arc::new(GuestRam::new(memory.clone(), None));
        (memory, ram)
    }

    fn entry(addr: u64, length: u32) -> MemEntry {
        MemEntry {
            addr: U64::new(addr),
            length: U32::new(length),
            padding: U32::ZERO,
        }
    }

    #[test]
    fn contents_follow_the_blob() {
        let mut memory = HostMemory::new(16 * PAGE).unwrap();
        let blob = memory.allocate(2 * PAGE).unwrap();
        let view = Segments::from_host(blob.clone());
        view.write(5000, b"before").unwrap();
        memory.show(&blob, PAGE, true).unwrap();
        let mut seen = [0; 6];
        memory
            .memfd()
            .read_exact_at(&mut seen, PAGE + 5000)
            .unwrap();
        assert_eq!(&seen, b"before");
        memory.memfd().write_all_at(b"guest!", PAGE + 8).unwrap();
        view.read(8, &mut seen).unwrap();
        assert_eq!(&seen, b"guest!");
        memory.hide(&blob, PAGE, true).unwrap();
        view.read(8, &mut seen).unwrap();
        assert_eq!(&seen, b"guest!");
        memory.memfd().read_exact_at(&mut seen, PAGE + 8).unwrap();
        assert_eq!(seen, [0; 6]);
        assert_eq!(memory.bytes_shown(), 0);
    }

    #[test]
    fn refuses_what_is_not_ram() {
        let (_, ram) = ram();
        let end = RAM as u64;
        let error = |entries: &[MemEntry], size| {
            Segments::from_entries(&ram, entries, size)
                .map(|_| ())
                .unwrap_err()
        };
        assert_eq!(error(&[], 1), EntryError::TooShort);
        assert_eq!(error(&[entry(0, 0)], 0), EntryError::Empty(0));
        assert_eq!(
            error(&[entry(0, 8), entry(end, 1)], 8),
            EntryError::NotRam(1)
        );
        assert_eq!(error(&[entry(end - 1, 2)], 1), EntryError::NotRam(0));
        assert_eq!(error(&[entry(u64::MAX, 2)], 1), EntryError::NotRam(0));
        assert_eq!(error(&[entry(0, 7)], 8), EntryError::TooShort);
    }

    #[test]
    fn neighbours_become_one_segment() {
        let (_, ram) = ram();
        let pages: Vec<_> = (0..8).map(|i| entry(i * 0x1000, 0x1000)).collect();
        let segments = Segments::from_entries(&ram, &pages, 0x8000).unwrap();
        assert_eq!(segments.count(), 1);
        let across = Segments::from_entries(&ram, &[entry(0, RAM as u32)], RAM as u64).unwrap();
        assert!(across.count() <= 2);
    }

    #[test]
    fn atomics_need_alignment_and_one_piece() {
        let (memory, ram) = ram();
        let entries = [entry(0x100, 12), entry(0x200, 20)];
        let segments = Segments::from_entries(&ram, &entries, 32).unwrap();
        memory.write_obj(5u64, GuestAddress(0x100)).unwrap();
        assert_eq!(segments.fetch_add(0, 2), Ok(5));
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x100)).unwrap(), 7);
        assert_eq!(segments.fetch_add(4, 0), Err(Fault));
        assert_eq!(segments.fetch_add(8, 0), Err(Fault));
        assert_eq!(segments.fetch_add(16, 0), Err(Fault));
        assert!(segments.fetch_add(20, 0).is_ok());
        assert_eq!(segments.fetch_add(28, 0), Err(Fault));
    }

    proptest! {
        /// Reading and writing through segments is reading and writing a plain vector.
        #[test]
        fn like_a_vector(
            pieces in prop::collection::vec((0..RAM as u64 - 300, 1..300u32), 1..40),
            cut in 0..50u64,
            accesses in prop::collection::vec((0..12000u64, 0..3000usize, any::<u8>()), 1..20),
        ) {
            let (memory, ram) = ram();
            // Pieces may overlap: then a write shows at several places. Make them disjoint.
            let mut used = vec![false; RAM];
            let mut entries = Vec::new();
            let mut places = Vec::new();
            for (addr, length) in pieces {
                let range = addr as usize..addr as usize + length as usize;
                if used[range.clone()].iter().any(|u| *u) {
                    continue;
                }
                used[range.clone()].fill(true);
                entries.push(entry(addr, length));
                places.extend(range);
            }
            let size = (places.len() as u64).saturating_sub(cut).max(1);
            places.truncate(size as usize);
            let segments = Segments::from_entries(&ram, &entries, size).unwrap();
            prop_assert!(segments.count() <= entries.len() + 1);
            let mut plain = vec![0; RAM];
            memory.read_slice(&mut plain, GuestAddress(0)).unwrap();
            for (offset, length, value) in accesses {
                let mut got = vec![0; length];
                let inside = offset + length as u64 <= size;
                prop_assert_eq!(segments.read(offset, &mut got).is_ok(), inside);
                let new = vec![value; length];
                prop_assert_eq!(segments.write(offset, &new).is_ok(), inside);
                if inside {
                    let places = &places[offset as usize..offset as usize + length];
                    let want: Vec<u8> = places.iter().map(|p| plain[*p]).collect();
                    prop_assert_eq!(got, want);
                    for place in places {
                        plain[*place] = value;
                    }
                }
            }
            let mut now = vec![0; RAM];
            memory.read_slice(&mut now, GuestAddress(0)).unwrap();
            prop_assert!(now == plain);
        }
    }
}
