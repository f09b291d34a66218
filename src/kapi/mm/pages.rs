// SPDX-License-Identifier: GPL-2.0

//! Pages of which only the physical address is kept.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use crate::kapi::bindings;
use core::ops::Range;

/// Tells the kernel that a device has written the page at physical address `phys`. Does not sleep.
/// Returns the physical addresses of which this tells it: those of the page's folio.
///
/// # Safety
///
/// The page is one of the kernel's, and something keeps it from being freed: for a page that a
/// process has mapped, a notifier callback that was called for it and has not returned, or a lock
/// that such a callback takes before it can return.
pub(crate) unsafe fn mark_dirty(phys: u64) -> Range<u64> {
    let mut dirty = bindings::kapi_run::default();
    // SAFETY: By the requirements of this function; `dirty` is valid for writes.
    unsafe { bindings::kapi_page_mark_dirty(phys, &mut dirty) };
    dirty.addr..dirty.addr + dirty.length
}

/// Takes a reference on the folio of the page at physical address `phys`, which lasts until
/// [`put`]. Does not sleep.
///
/// # Safety
///
/// As for [`mark_dirty`].
pub(crate) unsafe fn get(phys: u64) {
    // SAFETY: By the requirements of this function.
    unsafe { bindings::kapi_page_get(phys) }
}

/// Undoes one [`get`]. May be called in any context.
///
/// # Safety
///
/// The caller puts a reference of its own.
pub(crate) unsafe fn put(phys: u64) {
    // SAFETY: By the requirements of this function.
    unsafe { bindings::kapi_page_put(phys) }
}
