// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory in pages of a certain size and order.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::mm::{Advice, MapFlags, ProtFlags};
use virtgpu_client::{Bytes, Mapping, Memory};

use crate::setup::{since, Result, HUGE, PAGE};

/// How memory is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Transparent huge pages.
    Thp,
    /// Pages of 4 KiB, no two of which are neighbours.
    Fragmented,
    /// hugetlb pages.
    Hugetlb,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Thp => "thp",
            Self::Fragmented => "4k-fragmented",
            Self::Hugetlb => "hugetlb",
        }
    }
}

/// A part of a mapping.
pub(crate) struct Region {
    mapping: Mapping,
    offset: usize,
    length: usize,
}

impl Region {
    /// Unmaps it. Nothing but [`Region::map`] may be done with it then, or with the rest of it.
    pub(crate) fn unmap(&self) -> Result {
        // SAFETY: The range is ours, and no one has a reference to what is in it.
        unsafe { rustix::mm::munmap(self.as_ptr().cast(), self.length)? };
        Ok(())
    }

    /// Maps new memory in its place, in small pages and apart from its neighbours: where a mapping
    /// is cut, the kernel invalidates 2 MiB around the cut.
    pub(crate) fn map(&self) -> Result {
        // SAFETY: The range is ours.
        unsafe {
            rustix::mm::mmap_anonymous(
                self.as_ptr().cast(),
                self.length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED,
            )?;
            rustix::mm::madvise(self.as_ptr().cast(), self.length, Advice::LinuxNoHugepage)?;
        }
        Ok(())
    }
}

// SAFETY: A part of the mapping, which lives as long.
unsafe impl Memory for Region {
    fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr().wrapping_add(self.offset)
    }
    fn len(&self) -> usize {
        self.length
    }
}

/// `length` bytes of memory of a kind, all of it resident.
pub(crate) fn make(kind: Kind, length: usize) -> Result<Region> {
    match kind {
        Kind::Thp => {
            let region = aligned(length, Advice::LinuxHugepage)?;
            region.fill(1);
            Ok(region)
        }
        Kind::Fragmented => {
            // Touched in turns, the pages of the two alternate; then one of them goes.
            let region = aligned(length, Advice::LinuxNoHugepage)?;
            let other = aligned(length, Advice::LinuxNoHugepage)?;
            for offset in (0..length).step_by(PAGE) {
                region.write_u64(offset, 1);
                other.write_u64(offset, 1);
            }
            Ok(region)
        }
        Kind::Hugetlb => {
            let pages = "/proc/sys/vm/nr_hugepages";
            std::fs::write(pages, (length / HUGE).to_string())?;
            let mapping = Mapping::anonymous_with(
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::HUGETLB,
            )?;
            mapping.fill(1);
            Ok(Region {
                mapping,
                offset: 0,
                length,
            })
        }
    }
}

/// `length` bytes of memory of a kind, none of it resident yet. What becomes of single pages is up
/// to the allocator.
pub(crate) fn untouched(kind: Kind, length: usize) -> Result<Region> {
    match kind {
        Kind::Thp => aligned(length, Advice::LinuxHugepage),
        Kind::Fragmented => aligned(length, Advice::LinuxNoHugepage),
        Kind::Hugetlb => Err("hugetlb pages are not touched one by one".into()),
    }
}

fn aligned(length: usize, advice: Advice) -> Result<Region> {
    let mapping = Mapping::anonymous(length + HUGE)?;
    let offset = mapping.as_ptr().align_offset(HUGE);
    let region = Region {
        mapping,
        offset,
        length,
    };
    // SAFETY: The range is ours, and nothing is in it yet.
    unsafe { rustix::mm::madvise(region.as_ptr().cast(), length, advice)? };
    Ok(region)
}

/// Drops the pages; the time it takes.
pub(crate) fn drop_pages(memory: &impl Memory) -> Result<f64> {
    let start = Instant::now();
    // SAFETY: The range is ours, and what is in it does not matter.
    let result =
        unsafe { libc::madvise(memory.as_ptr().cast(), memory.len(), libc::MADV_DONTNEED) };
    let time = since(start);
    if result != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(time)
}

/// Makes all pages resident.
pub(crate) fn touch(memory: &impl Memory) {
    for offset in (0..memory.len()).step_by(PAGE) {
        // SAFETY: Inside the memory, and aligned.
        unsafe { memory.as_ptr().add(offset).write_volatile(1) };
    }
}

/// The fewest runs of physical memory, shorter than 4 GiB, that the region is in. Written without a
/// look at the code that makes the entries.
pub(crate) fn minimal_runs(region: &Region) -> Result<u64> {
    let file = File::open("/proc/self/pagemap")?;
    let mut bytes = vec![0; region.len() / PAGE * 8];
    file.read_exact_at(&mut bytes, (region.as_ptr() as usize / PAGE * 8) as u64)?;
    let mut count = 0;
    let mut next = None;
    for entry in bytes.chunks_exact(8) {
        let entry = u64::from_le_bytes(entry.try_into()?);
        if entry >> 63 == 0 {
            return Err("a page is not present".into());
        }
        let frame = entry & ((1 << 55) - 1);
        count += u64::from(next != Some(frame));
        next = Some(frame + 1);
    }
    Ok(count)
}
