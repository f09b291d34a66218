// SPDX-License-Identifier: GPL-2.0

//! Accounting of pinned memory against RLIMIT_MEMLOCK.
//!
//! `mm->pinned_vm` is an atomic counter, so that pages can be uncharged in any context, even after
//! the process has gone. This is the practice of `drivers/infiniband/core/umem.c`.

use crate::kapi::bindings;
use kernel::{
    current,
    mm::Mm,
    page::PAGE_SHIFT,
    prelude::*,
    sync::aref::ARef, //
};

/// Pages charged to a process, and uncharged when this is dropped.
///
/// # Invariants
///
/// `pages` are part of the process's `pinned_vm`.
pub(crate) struct PinnedVm {
    mm: ARef<Mm>,
    pages: u64,
}

impl PinnedVm {
    /// Charges `pages` to the current process.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if that exceeds its RLIMIT_MEMLOCK and it lacks CAP_IPC_LOCK, [`EFAULT`] if it
    /// has no memory.
    pub(crate) fn charge(pages: usize) -> Result<Self> {
        let mm: ARef<Mm> = {
            let task = current!();
            let mm: &Mm = task.mm().ok_or(EFAULT)?;
            mm.into()
        };
        let pages = pages as u64;
        const MOST: u64 = i64::MAX as u64;
        // SAFETY: The counter is valid as long as the `Mm`.
        let charge = |limit| unsafe { bindings::kapi_mm_charge_pinned(mm.as_raw(), pages, limit) };
        // SAFETY: Looks at the current task only.
        let limit = unsafe { bindings::kapi_rlimit_memlock() } >> PAGE_SHIFT;
        // Who asks for a privilege is taken for one who needs it, by audit and accounting.
        // SAFETY: As above.
        let exempt = || unsafe { bindings::capable(bindings::CAP_IPC_LOCK as c_int) };
        let charged = charge((limit as u64).min(MOST)) || exempt() && charge(MOST);
        if !charged {
            return Err(ENOMEM);
        }
        // INVARIANT: Just added.
        Ok(Self { mm, pages })
    }
}

impl Drop for PinnedVm {
    fn drop(&mut self) {
        // SAFETY: The counter is valid as long as the `Mm`; by the type invariant the pages are
        // part of it.
        unsafe { bindings::kapi_mm_uncharge_pinned(self.mm.as_raw(), self.pages) };
    }
}
