// SPDX-License-Identifier: GPL-2.0

//! Looking up, and faulting in, the pages behind addresses, without taking references.
//!
//! C header: [`include/linux/hmm.h`](srctree/include/linux/hmm.h); see `Documentation/mm/hmm.rst`.

use super::notifier::{
    IntervalHandler,
    IntervalNotifier, //
};
use crate::kapi::{
    bindings,
    sync, //
};
use core::ops::Range;
use kernel::{
    error::to_result,
    page::PAGE_SHIFT,
    prelude::*, //
};

/// A page as it was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct HmmPage(c_ulong);

impl HmmPage {
    /// A page that was not looked up, for tests: the one of this number.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(crate) const fn made_up(number: usize) -> Self {
        Self(number)
    }

    /// Physical address.
    pub(crate) fn phys(self) -> u64 {
        ((self.0 & !bindings::kapi_hmm_pfn_KAPI_HMM_PFN_FLAGS) as u64) << PAGE_SHIFT
    }

    /// Whether there is a page, which the process may read.
    pub(crate) fn is_valid(self) -> bool {
        self.0 & bindings::kapi_hmm_pfn_KAPI_HMM_PFN_VALID != 0
    }

    /// Whether the process may write it as it is.
    pub(crate) fn is_writable(self) -> bool {
        self.0 & bindings::kapi_hmm_pfn_KAPI_HMM_PFN_WRITE != 0
    }

    /// Whether what is mapped there is no page that a device may have.
    pub(crate) fn is_error(self) -> bool {
        self.0 & bindings::kapi_hmm_pfn_KAPI_HMM_PFN_ERROR != 0
    }

    /// Whether `next` is the page behind it in memory, and may be used in the same way.
    pub(crate) fn is_followed_by(self, next: Self) -> bool {
        next.0 == self.0.wrapping_add(1)
    }
}

/// The state of the address space in which pages were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence(c_ulong);

impl<H: IntervalHandler> IntervalNotifier<H> {
    /// Faults in `pages.len()` pages, from byte `offset` of the interval on, and says where they
    /// are; for writing if `write`.
    ///
    /// The pages may have gone by the time this returns, and only [`IntervalNotifier::is_stale`]
    /// tells. Must be called by a thread of the process whose addresses these are, without
    /// `mmap_lock` or a lock that a callback takes.
    ///
    /// # Errors
    ///
    /// [`EFAULT`] where nothing is mapped or what is mapped is no ordinary memory, [`EPERM`] if it
    /// must not be written, [`EBUSY`] if the range kept changing for `timeout_ms` milliseconds,
    /// [`EINTR`] on a fatal signal, [`ENOMEM`], [`EINVAL`] if the pages are not in the interval, or
    /// the thread is of another process.
    pub(crate) fn fault(
        &self,
        offset: usize,
        pages: &mut [HmmPage],
        write: bool,
        timeout_ms: u32,
    ) -> Result<Sequence> {
        let (start, end) = self.bounds(offset, pages.len())?;
        let mut sequence = 0;
        // SAFETY: The notifier covers the range, and the process has the address space, so that it
        // is there; the array has a place for each page.
        to_result(unsafe {
            bindings::kapi_hmm_fault(
                self.as_raw(),
                start,
                end,
                pages.as_mut_ptr().cast(),
                write,
                sync::jiffies(timeout_ms),
                &mut sequence,
            )
        })?;
        Ok(Sequence(sequence))
    }

    /// As [`IntervalNotifier::fault`], but says only what is there anyway: faults nothing in, and
    /// leaves pages that are not there invalid.
    ///
    /// # Errors
    ///
    /// [`EBUSY`], [`EINTR`] and [`EINVAL`] as there, [`EFAULT`] if the process is being killed for
    /// want of memory.
    pub(crate) fn look(
        &self,
        offset: usize,
        pages: &mut [HmmPage],
        timeout_ms: u32,
    ) -> Result<Sequence> {
        let (start, end) = self.bounds(offset, pages.len())?;
        let mut sequence = 0;
        // SAFETY: As in `fault`.
        to_result(unsafe {
            bindings::kapi_hmm_look(
                self.as_raw(),
                start,
                end,
                pages.as_mut_ptr().cast(),
                sync::jiffies(timeout_ms),
                &mut sequence,
            )
        })?;
        Ok(Sequence(sequence))
    }

    /// First address, and the one behind the last, of `pages` pages from byte `offset` on.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if they are not in the interval, or the current process has another address
    /// space.
    fn bounds(&self, offset: usize, pages: usize) -> Result<(usize, usize)> {
        let bytes = pages << PAGE_SHIFT;
        let inside = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.len());
        if bytes == 0 || !inside || !self.is_of_current() {
            return Err(EINVAL);
        }
        let start = self.start() + offset;
        Ok((start, start + bytes))
    }

    /// Whether the pages of the interval may have changed since `sequence`.
    ///
    /// While a lock is held that every callback takes for [`super::Invalidation::supersede`], pages
    /// that are not stale stay where they are, mapped as they are.
    pub(crate) fn is_stale(&self, sequence: Sequence) -> bool {
        // SAFETY: The notifier was inserted; this looks at its sequence only.
        unsafe { bindings::kapi_mmu_interval_read_retry(self.as_raw(), sequence.0) }
    }
}

/// What is mapped somewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    /// First address, and the one behind the last.
    pub(crate) start: usize,
    pub(crate) end: usize,
    flags: u32,
}

impl Area {
    /// The area around address `addr` of the current process, if anything is mapped there.
    ///
    /// It may change, or go, as soon as this returns.
    ///
    /// # Errors
    ///
    /// [`EINTR`] on a fatal signal.
    pub(crate) fn at(addr: usize) -> Result<Option<Self>> {
        let mut area = bindings::kapi_area::default();
        // SAFETY: Looks at the current process only; `area` is valid for writes.
        match unsafe { bindings::kapi_current_area(addr, &mut area) } {
            err if err < 0 => Err(Error::from_errno(err)),
            0 => Ok(None),
            _ => Ok(Some(Self {
                start: area.start,
                end: area.end,
                flags: area.flags,
            })),
        }
    }

    /// Whether all of `addresses` are memory of one kind, with the same rights, in `self` and in
    /// `earlier`. Areas grow and shrink, and are merged and split, by what is done to their
    /// neighbours.
    pub(crate) fn is_as(&self, earlier: &Self, addresses: Range<usize>) -> bool {
        let has = |area: &Self| area.start <= addresses.start && addresses.end <= area.end;
        self.flags == earlier.flags && has(self) && has(earlier)
    }

    fn has(&self, flag: bindings::kapi_area_flag) -> bool {
        self.flags & flag != 0
    }

    /// The process may read it.
    pub(crate) fn may_read(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_READ)
    }

    /// The process may write it by ordinary stores.
    pub(crate) fn may_write(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_WRITE) && !self.is_shadow_stack()
    }

    /// It is no ordinary memory, or memory that a device must not have.
    pub(crate) fn is_special(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_SPECIAL)
    }

    /// It is written by calls and returns only.
    pub(crate) fn is_shadow_stack(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_SHADOW_STACK)
    }

    /// It is memory without file.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_ANONYMOUS)
    }

    /// It is memory without file that the process shares with none.
    pub(crate) fn is_private_anonymous(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_PRIVATE_ANONYMOUS)
    }

    /// It will be read in order, says the process.
    pub(crate) fn is_sequential(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_SEQUENTIAL)
    }

    /// It will be read at random, says the process.
    pub(crate) fn is_random(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_RANDOM)
    }

    /// A userfaultfd is told of accesses to it.
    pub(crate) fn has_userfaultfd(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_USERFAULTFD)
    }

    /// What is written to it others may have, too.
    pub(crate) fn is_shared(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_SHARED)
    }

    /// It is of huge pages of a pool.
    pub(crate) fn is_hugetlb(&self) -> bool {
        self.has(bindings::kapi_area_flag_KAPI_AREA_HUGETLB)
    }
}

/// What ends a wait for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultWait {
    /// A fatal signal.
    Killable,
    /// Any signal.
    Interruptible,
    /// There is no wait for a userfaultfd, for what is read from swap, nor for a page that is
    /// locked, and nothing is read from files. There may be one for memory, which may be what swap
    /// is made of, and for another device to give a page back.
    Not,
}

/// Faults in pages of the current process, `pages` from address `addr` on, for writing with
/// `write`. Returns how many, from the first on. They may go at once; nothing holds them.
///
/// # Errors
///
/// About the first page: [`EFAULT`] if it cannot be had, [`ENOMEM`], [`EINTR`] on a signal,
/// [`EAGAIN`] if it would have to be waited for with [`FaultWait::Not`], or is of a file.
pub(crate) fn fault_in(addr: usize, pages: usize, write: bool, wait: FaultWait) -> Result<usize> {
    let wait = match wait {
        FaultWait::Killable => bindings::kapi_fault_wait_KAPI_FAULT_WAIT_KILLABLE,
        FaultWait::Interruptible => bindings::kapi_fault_wait_KAPI_FAULT_WAIT_INTERRUPTIBLE,
        FaultWait::Not => bindings::kapi_fault_wait_KAPI_FAULT_WAIT_NOT,
    };
    // SAFETY: Changes the current process only as an access would.
    match unsafe { bindings::kapi_current_fault_in(addr, pages, write, wait) } {
        0 => Err(EFAULT),
        done if done < 0 => Err(Error::from_errno(done as i32)),
        done => Ok(done as usize),
    }
}

/// The address behind the highest that the current process can use.
pub(crate) fn task_size() -> usize {
    // SAFETY: Looks at the current process only.
    unsafe { bindings::kapi_current_task_size() }
}

/// Whether anything is mapped in `len` bytes at `addr` of the current process.
///
/// # Errors
///
/// [`EINTR`] on a fatal signal.
pub(crate) fn is_anything_mapped(addr: usize, len: usize) -> Result<bool> {
    // SAFETY: Looks at the current process only.
    match unsafe { bindings::kapi_current_has_vma(addr, addr + len) } {
        err if err < 0 => Err(Error::from_errno(err)),
        found => Ok(found != 0),
    }
}

/// The first part of `len` bytes at `addr` where nothing is mapped in the current process: its
/// offset and length in bytes.
///
/// # Errors
///
/// [`EINTR`] on a fatal signal.
pub(crate) fn first_hole(addr: usize, len: usize) -> Result<Option<(usize, usize)>> {
    let mut hole = bindings::kapi_run::default();
    // SAFETY: Looks at the current process only; `hole` is valid for writes.
    match unsafe { bindings::kapi_current_hole(addr, addr + len, &mut hole) } {
        err if err < 0 => Err(Error::from_errno(err)),
        0 => Ok(None),
        _ => Ok(Some((hole.addr as usize - addr, hole.length as usize))),
    }
}
