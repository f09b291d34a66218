// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory of particular kinds.

use std::ffi::c_void;

use rustix::mm::{Advice, MapFlags, ProtFlags};
use virtgpu_client::{Bytes, Mapping, Memory};

use crate::ktap::{Outcome, TestResult};
use crate::support::{procfs, HUGE, PAGE};

/// Memory from malloc: `length` bytes that start at a page, as a program would get them.
pub(crate) struct Malloc {
    start: *mut c_void,
    offset: usize,
    length: usize,
}

impl Malloc {
    pub(crate) fn new(length: usize) -> Self {
        // SAFETY: Any size may be asked for.
        let start = unsafe { libc::malloc(length + PAGE) };
        assert!(!start.is_null());
        // SAFETY: The block has this size.
        unsafe { libc::memset(start, 0, length + PAGE) };
        let offset = start.align_offset(PAGE);
        Self {
            start,
            offset,
            length,
        }
    }
}

// SAFETY: The block lives until `drop`.
unsafe impl Memory for Malloc {
    fn as_ptr(&self) -> *mut u8 {
        self.start.cast::<u8>().wrapping_add(self.offset)
    }
    fn len(&self) -> usize {
        self.length
    }
}

impl Drop for Malloc {
    fn drop(&mut self) {
        // SAFETY: From malloc, and freed once.
        unsafe { libc::free(self.start) }
    }
}

/// Memory that starts at a huge page, in transparent huge pages if the kernel gives any.
pub(crate) struct Thp {
    mapping: Mapping,
    offset: usize,
    length: usize,
}

impl Thp {
    pub(crate) fn new(length: usize) -> TestResult<Self> {
        let mapping = Mapping::anonymous(length + HUGE)?;
        let offset = mapping.as_ptr().align_offset(HUGE);
        let memory = Self {
            mapping,
            offset,
            length,
        };
        // SAFETY: The range is ours.
        unsafe { rustix::mm::madvise(memory.as_ptr().cast(), length, Advice::LinuxHugepage)? };
        memory.fill(0);
        Ok(memory)
    }

    /// Whether every huge page of it is physically one.
    pub(crate) fn is_huge(&self) -> TestResult<bool> {
        for start in (0..self.length).step_by(HUGE) {
            let frames = procfs::frames(self.as_ptr() as usize + start, HUGE / PAGE)?;
            let Some(first) = frames[0] else {
                return Ok(false);
            };
            let contiguous = frames
                .iter()
                .enumerate()
                .all(|(index, frame)| *frame == Some(first + index as u64));
            if first % (HUGE / PAGE) as u64 != 0 || !contiguous {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

// SAFETY: A part of the mapping, which lives as long.
unsafe impl Memory for Thp {
    fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr().wrapping_add(self.offset)
    }
    fn len(&self) -> usize {
        self.length
    }
}

/// Memory in pages of 4 KiB each.
pub(crate) fn small_pages(length: usize) -> TestResult<Mapping> {
    let mapping = Mapping::anonymous(length)?;
    // SAFETY: The range is ours. A kernel without huge pages refuses, which is as good.
    let _ =
        unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), length, Advice::LinuxNoHugepage) };
    mapping.fill(0);
    Ok(mapping)
}

/// Memory in hugetlb pages of 2 MiB.
pub(crate) fn hugetlb(length: usize, flags: MapFlags) -> TestResult<Mapping> {
    if !procfs::reserve_hugepages((length / HUGE) as u64)? {
        return Err(Outcome::Skip("no room for hugetlb pages".into()));
    }
    Ok(Mapping::anonymous_with(
        length,
        ProtFlags::READ | ProtFlags::WRITE,
        flags | MapFlags::HUGETLB,
    )?)
}
