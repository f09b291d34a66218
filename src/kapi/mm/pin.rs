// SPDX-License-Identifier: GPL-2.0

//! Long-term pins on the pages of user memory.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/linux/memfd.h`](srctree/include/linux/memfd.h); see
//! `Documentation/core-api/pin_user_pages.rst`.

use crate::kapi::{
    bindings,
    dma::map::{
        DmaMap,
        Mapper, //
    },
};
use core::ptr;
use kernel::{
    fs::LocalFile,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc, //
};

/// Pages pinned by one call: what fits a page of pointers.
const BATCH: usize = PAGE_SIZE / size_of::<*mut bindings::page>();

/// A stretch of physical memory; the layout is that of `struct kapi_run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Run {
    /// Physical address, a multiple of the page size.
    pub(crate) phys: u64,
    /// Bytes, a multiple of the page size, not 0.
    pub(crate) len: u64,
}

/// Pages that stay where they are until this is dropped.
///
/// Dropping it sleeps if the pages were pinned for writing: they are marked dirty.
///
/// # Invariants
///
/// Every page of every run carries a pin of this (`FOLL_PIN`), once for each time it appears.
pub(crate) struct Pins {
    runs: KVVec<Run>,
    write: bool,
    /// The pages as a device sees them, if they were mapped for one.
    dma: Option<DmaMap>,
}

/// Memory for one batch.
struct Scratch {
    pages: KVec<*mut bindings::page>,
    runs: KVec<Run>,
}

impl Scratch {
    fn new() -> Result<Self> {
        Ok(Self {
            pages: KVec::from_elem(ptr::null_mut(), BATCH, GFP_KERNEL)?,
            runs: KVec::from_elem(Run { phys: 0, len: 0 }, BATCH, GFP_KERNEL)?,
        })
    }
}

impl Pins {
    fn empty(write: bool) -> Self {
        // INVARIANT: There are no runs.
        Self {
            runs: KVVec::new(),
            write,
            dma: None,
        }
    }

    /// Pins `len` bytes at `addr` of the current process's memory, for writing if `write`.
    ///
    /// Both are multiples of the page size, and do not wrap. Faults the pages in, and migrates
    /// those that must not be pinned for long (`FOLL_LONGTERM`). Memory that the process could not
    /// make writable is taken only with `enforced`, that is if nothing can write it through the
    /// pins.
    ///
    /// # Errors
    ///
    /// [`EFAULT`] where nothing is mapped, permission is missing or the memory cannot be pinned,
    /// [`EPERM`] for memory that is never writable, [`ENOMEM`], [`EBUSY`] if the pages
    /// cannot be migrated now, [`EINTR`] on a fatal signal, [`EOPNOTSUPP`] for file systems that
    /// do not take part.
    pub(crate) fn of_user_range(
        addr: usize,
        len: usize,
        write: bool,
        enforced: bool,
    ) -> Result<Self> {
        let mut scratch = Scratch::new()?;
        let mut this = Self::empty(write);
        let end = addr.checked_add(len).ok_or(EINVAL)?;
        let mut at = addr;
        while at < end {
            let want = ((end - at) >> PAGE_SHIFT).min(BATCH);
            let got = if write {
                // SAFETY: The array has room for `want` pages.
                unsafe {
                    bindings::pin_user_pages_fast(
                        at,
                        want as c_int,
                        bindings::FOLL_WRITE | bindings::FOLL_LONGTERM,
                        scratch.pages.as_mut_ptr(),
                    ) as isize
                }
            } else {
                // SAFETY: Only processes have user memory; the array has room for `want` pages.
                unsafe {
                    bindings::kapi_current_pin_readable(
                        at,
                        want,
                        enforced,
                        scratch.pages.as_mut_ptr(),
                    ) as isize
                }
            };
            if got <= 0 {
                return Err(Self::pin_error(got));
            }
            let got = got as usize;
            // SAFETY: The first `got` pages are valid and pinned; there is room for as many runs.
            let runs = unsafe {
                bindings::kapi_pages_to_runs(
                    scratch.pages.as_mut_ptr(),
                    got,
                    scratch.runs.as_mut_ptr().cast(),
                )
            };
            this.take(&scratch.runs[..runs])?;
            at += got << PAGE_SHIFT;
            // SAFETY: May sleep here.
            unsafe { bindings::kapi_cond_resched() };
        }
        Ok(this)
    }

    /// What to tell the caller when nothing could be pinned.
    fn pin_error(got: isize) -> Error {
        match Error::from_errno(if got == 0 {
            EFAULT.to_errno()
        } else {
            got as c_int
        }) {
            // The page would not migrate. DRM users repeat EAGAIN for ever.
            e if e == EAGAIN => EBUSY,
            e => e,
        }
    }

    /// Pins bytes [`start`, `start + len`) of memfd `file`, for writing if `write`.
    ///
    /// Both are multiples of the page size. Holes are filled. The file's seals hold while the
    /// pages are looked up; see `kapi_memfd_pin_range`. A file that is sealed against writing is
    /// taken only with `enforced`, that is if nothing can write it through the pins. Whether `file`
    /// was opened for writing is for the caller to check.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is no memfd or the range ends beyond it, [`EPERM`] if it is sealed against
    /// writing, [`ENOMEM`], [`EBUSY`].
    pub(crate) fn of_file_range(
        file: &LocalFile,
        start: u64,
        len: usize,
        write: bool,
        enforced: bool,
    ) -> Result<Self> {
        let mut folios: KVec<*mut bindings::folio> =
            KVec::from_elem(ptr::null_mut(), BATCH, GFP_KERNEL)?;
        let mut scratch = Scratch::new()?;
        let mut this = Self::empty(write);
        let mut at = i64::try_from(start)?;
        let end = at.checked_add(i64::try_from(len)?).ok_or(EINVAL)?;
        while at < end {
            let mut done = 0;
            // SAFETY: The file is valid, and both arrays have room for `BATCH` entries.
            let runs = unsafe {
                bindings::kapi_memfd_pin_range(
                    file.as_ptr(),
                    at,
                    end,
                    folios.as_mut_ptr(),
                    BATCH as c_uint,
                    enforced,
                    scratch.runs.as_mut_ptr().cast(),
                    &mut done,
                )
            };
            if runs <= 0 || done <= 0 {
                return Err(Self::pin_error(runs.min(0)));
            }
            this.take(&scratch.runs[..runs as usize])?;
            at += done;
            // SAFETY: May sleep here.
            unsafe { bindings::kapi_cond_resched() };
        }
        Ok(this)
    }

    /// Adds runs whose pages are pinned; unpins them if they cannot be remembered. Only the first
    /// may become one with the last of before; the pieces of one call are merged as its source
    /// does.
    fn take(&mut self, runs: &[Run]) -> Result {
        // INVARIANT: The pages of the new runs are pinned.
        let rest = match (self.runs.last_mut(), runs.split_first()) {
            (Some(last), Some((first, rest))) if last.phys + last.len == first.phys => {
                last.len += first.len;
                rest
            }
            _ => runs,
        };
        if let Err(e) = self.runs.extend_from_slice(rest, GFP_KERNEL_ACCOUNT) {
            // SAFETY: The caller passes the pins of these pages on, where one may sleep.
            unsafe { bindings::kapi_unpin_runs(rest.as_ptr().cast(), rest.len(), false) };
            return Err(e.into());
        }
        Ok(())
    }

    /// The memory, in the order of the addresses; neighbours that touch are one run.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Maps the memory for a device, until this is dropped or its driver is unbound. The device may
    /// write what was pinned for writing.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if the device would be shown copies; those of [`DmaMap::new`].
    pub(crate) fn map_for(&mut self, mapper: &Arc<Mapper>) -> Result {
        if mapper.bounces() {
            return Err(EOPNOTSUPP);
        }
        let runs = |emit: &mut dyn FnMut(u64, u64) -> Result| {
            self.runs.iter().try_for_each(|run| emit(run.phys, run.len))
        };
        // SAFETY: The pages stay as long as they are pinned, and the mapping is dropped before.
        let dma = unsafe { DmaMap::new(mapper, self.write, runs) }?;
        self.dma = Some(dma);
        Ok(())
    }

    /// The memory as a device sees it, if it was mapped for one.
    pub(crate) fn dma(&self) -> Option<&DmaMap> {
        self.dma.as_ref()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        drop(self.dma.take());
        // SAFETY: By the type invariant the pages are pinned; pins are dropped where one may sleep.
        // All pages are dirty, as the device does not say which of them it wrote.
        unsafe { bindings::kapi_unpin_runs(self.runs.as_ptr().cast(), self.runs.len(), self.write) }
    }
}
