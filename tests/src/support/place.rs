// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A range of addresses of this process in which mappings come and go.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use virtgpu_client::{Bytes, Memory};

use crate::ktap::{parts, Outcome, TestResult};
use crate::skip;
use crate::support::{procfs, Random, HUGE, PAGE};

/// Kinds of pages that anonymous memory can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// 4 KiB each.
    Base,
    /// Transparent huge pages, if the kernel gives any.
    Huge,
    /// hugetlb pages of 2 MiB.
    Hugetlb,
}

impl Pages {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Base, Self::Huge, Self::Hugetlb];

    /// What results are called by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Huge => "huge",
            Self::Hugetlb => "hugetlb",
        }
    }

    /// Bytes that mappings of the kind are cut at.
    pub(crate) fn unit(self) -> usize {
        match self {
            Self::Hugetlb => HUGE,
            _ => PAGE,
        }
    }
}

/// Runs `test` for each of the kinds of pages, which each are a result of their own.
pub(crate) fn each_kind(kinds: &[Pages], test: impl FnMut(Pages) -> TestResult) -> TestResult {
    parts(kinds.iter().map(|kind| (kind.name(), *kind)), test)
}

/// Readable.
pub(crate) const READ: i32 = libc::PROT_READ;
/// Readable and writable.
pub(crate) const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// No access.
pub(crate) const NONE: i32 = libc::PROT_NONE;

/// Where the next place is: far below where the kernel puts what it finds an address for, so that
/// nothing else ever gets into a hole of a place.
static NEXT: AtomicUsize = AtomicUsize::new(0x2000_0000_0000);

/// A reserved range of addresses, which starts at a huge page and has unused addresses on both
/// sides. What is mapped in it, the test decides; a test that touches what it has not mapped ends
/// with SIGSEGV, which fails it.
#[derive(Debug)]
pub(crate) struct Place {
    reserved: *mut u8,
    reserved_length: usize,
    start: *mut u8,
    length: usize,
    pages: Pages,
}

// SAFETY: Addresses belong to the process, not to a thread, and are accessed by copying only.
unsafe impl Send for Place {}
// SAFETY: As above.
unsafe impl Sync for Place {}

// SAFETY: Nothing else is placed in the range until `drop`, unless the test unmaps a part of it,
// which it then does not touch before it has mapped something there again.
unsafe impl Memory for Place {
    fn as_ptr(&self) -> *mut u8 {
        self.start
    }
    fn len(&self) -> usize {
        self.length
    }
}

fn done(result: i32) -> TestResult {
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

impl Place {
    /// Addresses without memory.
    pub(crate) fn reserve(pages: Pages, length: usize) -> TestResult<Self> {
        Self::reserve_at(pages, length, HUGE)
    }

    /// The same, from a multiple of `alignment` on, which is a power of two and at least a huge
    /// page.
    pub(crate) fn reserve_at(pages: Pages, length: usize, alignment: usize) -> TestResult<Self> {
        let reserved_length = length.next_multiple_of(HUGE) + HUGE + alignment;
        let at = NEXT.fetch_add(reserved_length, Ordering::Relaxed);
        // SAFETY: A new mapping, where nothing is.
        let reserved = unsafe {
            libc::mmap(
                at as *mut _,
                reserved_length,
                NONE,
                libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_NORESERVE
                    | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if reserved == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let reserved = reserved.cast::<u8>();
        let start = (reserved as usize + HUGE).next_multiple_of(alignment);
        Ok(Self {
            reserved,
            reserved_length,
            start: reserved.wrapping_add(start - reserved as usize),
            length,
            pages,
        })
    }

    /// Anonymous memory that no one has touched.
    pub(crate) fn new(pages: Pages, length: usize) -> TestResult<Self> {
        let place = Self::reserve(pages, length)?;
        place.map(0, length)?;
        Ok(place)
    }

    /// Memory of small pages, as much on either side of an address at which a huge page may start:
    /// little memory, and yet in two page tables.
    pub(crate) fn across(half: usize) -> TestResult<Self> {
        let mut place = Self::reserve(Pages::Base, 2 * half)?;
        // There is a huge page's room before the start.
        assert!(half < HUGE);
        place.start = place.start.wrapping_sub(half);
        place.map(0, place.length)?;
        Ok(place)
    }

    /// Anonymous memory of small pages, that no one has touched.
    pub(crate) fn base(length: usize) -> TestResult<Self> {
        Self::new(Pages::Base, length)
    }

    /// A page that child processes have, too.
    pub(crate) fn shared_page() -> TestResult<Self> {
        let place = Self::reserve(Pages::Base, PAGE)?;
        place.map_with(0, PAGE, RW, libc::MAP_SHARED)?;
        Ok(place)
    }

    /// Memory in which hardly any page is beside its neighbour.
    pub(crate) fn scattered(pages: usize) -> TestResult<Self> {
        let place = Self::base(pages * PAGE)?;
        let mut order: Vec<usize> = (0..pages).collect();
        let mut random = Random(7);
        for at in (1..pages).rev() {
            order.swap(at, random.below(at as u64 + 1) as usize);
        }
        for page in order {
            place.write_u64(page * PAGE, 1);
        }
        Ok(place)
    }

    /// Memory where only calls and returns may write.
    pub(crate) fn shadow_stack(length: usize) -> TestResult<Self> {
        /// `map_shadow_stack`, which libc does not have.
        const MAP_SHADOW_STACK: libc::c_long = 453;
        let place = Self::reserve(Pages::Base, length)?;
        place.unmap(0, length)?;
        // SAFETY: New memory, where nothing is.
        let result = unsafe { libc::syscall(MAP_SHADOW_STACK, place.address(0), length, 0) };
        if result < 0 {
            let error = std::io::Error::last_os_error();
            skip!("no shadow stacks for programs on this processor: map_shadow_stack: {error}");
        }
        Ok(place)
    }

    /// The kind of pages.
    pub(crate) fn pages(&self) -> Pages {
        self.pages
    }

    /// Bytes that mappings here are cut at.
    pub(crate) fn unit(&self) -> usize {
        self.pages.unit()
    }

    /// The address of byte `offset`.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.start as u64 + offset as u64
    }

    /// Maps new private memory of this place's kind over whatever is there.
    pub(crate) fn map(&self, offset: usize, length: usize) -> TestResult {
        self.map_with(offset, length, RW, libc::MAP_PRIVATE)
    }

    /// The same with this protection and these flags.
    pub(crate) fn map_with(
        &self,
        offset: usize,
        length: usize,
        prot: i32,
        flags: i32,
    ) -> TestResult {
        let mut flags = flags | libc::MAP_ANONYMOUS;
        if self.pages == Pages::Hugetlb {
            // Room for the copies that fork makes, too.
            if !procfs::reserve_hugepages(2 * (length / HUGE) as u64)? {
                return Err(Outcome::Skip("no room for hugetlb pages".into()));
            }
            flags |= libc::MAP_HUGETLB;
        }
        self.fixed(offset, length, prot, flags, -1, 0)?;
        match self.pages {
            // A kernel without huge pages refuses, which is as good.
            Pages::Base => drop(self.advise(offset, length, libc::MADV_NOHUGEPAGE)),
            Pages::Huge => self.advise(offset, length, libc::MADV_HUGEPAGE)?,
            Pages::Hugetlb => {}
        }
        Ok(())
    }

    /// Maps a part of a file over whatever is there.
    pub(crate) fn map_file(
        &self,
        offset: usize,
        length: usize,
        fd: impl AsFd,
        file_offset: u64,
        [prot, flags]: [i32; 2],
    ) -> TestResult {
        let fd = fd.as_fd().as_raw_fd();
        self.fixed(offset, length, prot, flags, fd, file_offset as i64)
    }

    fn fixed(
        &self,
        offset: usize,
        length: usize,
        prot: i32,
        flags: i32,
        fd: i32,
        file_offset: i64,
    ) -> TestResult {
        let at = self.at(offset, length).cast();
        // SAFETY: Replaces what is in our own range.
        let mapped =
            unsafe { libc::mmap(at, length, prot, flags | libc::MAP_FIXED, fd, file_offset) };
        if mapped == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
    }

    /// munmap(2).
    pub(crate) fn unmap(&self, offset: usize, length: usize) -> TestResult {
        // SAFETY: Our own range, which the test does not touch until it maps something there.
        done(unsafe { libc::munmap(self.at(offset, length).cast(), length) })
    }

    /// mprotect(2).
    pub(crate) fn protect(&self, offset: usize, length: usize, prot: i32) -> TestResult {
        // SAFETY: Our own range, which the test accesses accordingly.
        done(unsafe { libc::mprotect(self.at(offset, length).cast(), length, prot) })
    }

    /// madvise(2).
    pub(crate) fn advise(&self, offset: usize, length: usize, advice: i32) -> TestResult {
        // SAFETY: Our own range, whose content the test expects to go.
        done(unsafe { libc::madvise(self.at(offset, length).cast(), length, advice) })
    }

    /// The same, as a skip if the kernel does not know the advice.
    pub(crate) fn try_advise(
        &self,
        offset: usize,
        length: usize,
        advice: i32,
        name: &str,
    ) -> TestResult {
        // SAFETY: As in `advise`.
        let result = unsafe { libc::madvise(self.at(offset, length).cast(), length, advice) };
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            _ if result == 0 => Ok(()),
            Some(libc::EINVAL | libc::EPERM | libc::EOPNOTSUPP) => {
                Err(Outcome::Skip(format!("{name}: {error}")))
            }
            _ => Err(error.into()),
        }
    }

    /// mremap(2) of a part of this place to a part of another one, of which the old mapping goes.
    pub(crate) fn move_to(
        &self,
        offset: usize,
        length: usize,
        other: &Self,
        to: usize,
        flags: i32,
    ) -> TestResult {
        // SAFETY: Both ranges are ours.
        let moved = unsafe {
            libc::mremap(
                self.at(offset, length).cast(),
                length,
                length,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | flags,
                other.at(to, length),
            )
        };
        if moved == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
    }

    /// Which pages are in memory; None for those that are not.
    pub(crate) fn frames(&self) -> TestResult<Vec<Option<u64>>> {
        procfs::frames(self.start as usize, self.length / PAGE)
    }

    /// Bytes of the place that are in memory.
    pub(crate) fn resident(&self) -> TestResult<usize> {
        let present = self.frames()?;
        Ok(present.iter().flatten().count() * PAGE)
    }

    /// Whether the huge page at `offset` is physically one.
    pub(crate) fn is_huge(&self, offset: usize) -> TestResult<bool> {
        let frames = procfs::frames(self.start as usize + offset, HUGE / PAGE)?;
        Ok(frames[0].is_some_and(|first| {
            first % (HUGE / PAGE) as u64 == 0
                && frames
                    .iter()
                    .enumerate()
                    .all(|(index, frame)| *frame == Some(first + index as u64))
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // SAFETY: The range is this value's own.
        unsafe { libc::munmap(self.reserved.cast(), self.reserved_length) };
    }
}
