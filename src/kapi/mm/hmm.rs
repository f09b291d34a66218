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
        // SAFETY: Calculates only.
        unsafe { bindings::kapi_hmm_pfn_to_phys(self.0) }
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
    /// [`EINTR`] on a fatal signal, [`ENOMEM`], [`EINVAL`] if the pages are not in the interval.
    pub(crate) fn fault(
        &self,
        offset: usize,
        pages: &mut [HmmPage],
        write: bool,
        timeout_ms: u32,
    ) -> Result<Sequence> {
        let bytes = pages.len() << PAGE_SHIFT;
        if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > self.len()) {
            return Err(EINVAL);
        }
        let start = self.start() + offset;
        let mut sequence = 0;
        // SAFETY: The notifier is inserted and covers the range; the array has a place for each
        // page.
        to_result(unsafe {
            bindings::kapi_hmm_fault(
                self.as_raw(),
                start,
                start + bytes,
                pages.as_mut_ptr().cast(),
                write,
                sync::jiffies(timeout_ms),
                &mut sequence,
            )
        })?;
        Ok(Sequence(sequence))
    }

    /// Whether the pages of the interval may have changed since `sequence`.
    ///
    /// While a lock is held that every callback takes for [`super::Invalidation::supersede`], pages
    /// that are not stale stay where they are, mapped as they are.
    pub(crate) fn is_stale(&self, sequence: Sequence) -> bool {
        // SAFETY: The notifier is inserted.
        unsafe { bindings::kapi_mmu_interval_read_retry(self.as_raw(), sequence.0) }
    }
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

/// Whether the current thread's address space is `mm`.
pub(crate) fn is_current(mm: &kernel::mm::Mm) -> bool {
    kernel::current!()
        .mm()
        .is_some_and(|current| core::ptr::eq(current.as_raw(), mm.as_raw()))
}
