// SPDX-License-Identifier: GPL-2.0

//! Telling lockdep what memory reclaim does.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::kapi::bindings;
use kernel::types::NotThreadSafe;

/// As long as this lives, lockdep takes the thread for one that reclaims memory.
///
/// # Invariants
///
/// `fs_reclaim_acquire()` was called by this thread.
pub(crate) struct Section(NotThreadSafe);

/// Pretends that memory is being reclaimed, to show lockdep a lock that reclaim takes.
#[must_use]
pub(crate) fn enter() -> Section {
    // SAFETY: Tells lockdep only, and is undone by the drop.
    unsafe { bindings::kapi_fs_reclaim_acquire() };
    // INVARIANT: Just called.
    Section(NotThreadSafe)
}

impl Drop for Section {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::kapi_fs_reclaim_release() }
    }
}
