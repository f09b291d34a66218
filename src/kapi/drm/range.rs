// SPDX-License-Identifier: GPL-2.0

//! Allocation of ranges of an interval, of addresses for example. A range is free again when it is
//! dropped, by any thread.
//!
//! C header: [`include/drm/drm_mm.h`](srctree/include/drm/drm_mm.h)

use crate::kapi::bindings;
use kernel::{
    error::to_result,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    types::Opaque, //
};

/// Hands out ranges of an interval that starts at 0.
#[pin_data(PinnedDrop)]
pub(crate) struct RangeAllocator {
    size: u64,
    /// Protects `mm`.
    #[pin]
    lock: Mutex<()>,
    #[pin]
    mm: Opaque<bindings::drm_mm>,
}

// SAFETY: The allocator is used under its lock.
unsafe impl Send for RangeAllocator {}

// SAFETY: As above.
unsafe impl Sync for RangeAllocator {}

impl RangeAllocator {
    /// An allocator for `size` units.
    pub(crate) fn new(size: u64) -> impl PinInit<Self> {
        pin_init!(Self {
            size,
            lock <- new_mutex!((), "RangeAllocator::lock"),
            mm <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writes and pinned.
                unsafe { bindings::drm_mm_init(slot, 0, *size) }
            }),
        })
    }

    /// A free range of `len` units, its start a multiple of `align`.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if there is none, [`ENOMEM`].
    pub(crate) fn allocate(self: &Arc<Self>, len: u64, align: u64) -> Result<Range> {
        let node = KBox::new(Opaque::new(bindings::drm_mm_node::default()), GFP_KERNEL)?;
        let _guard = self.lock.lock();
        // SAFETY: The allocator was initialized, and is locked. The node is zeroed, and does not
        // move.
        to_result(unsafe {
            bindings::drm_mm_insert_node_in_range(
                self.mm.get(),
                node.get(),
                len,
                align,
                0,
                0,
                self.size,
                bindings::drm_mm_insert_mode_DRM_MM_INSERT_BEST,
            )
        })?;
        // INVARIANT: The node was just inserted.
        Ok(Range {
            allocator: self.clone(),
            node,
        })
    }

    /// Units in all.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Writes what is free and what is not.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn show(&self, out: &kernel::seq_file::SeqFile) {
        let _guard = self.lock.lock();
        // SAFETY: The allocator was initialized, and is locked. A `SeqFile` is transparent, and
        // whoever has a reference may write to it.
        unsafe {
            bindings::kapi_drm_mm_show(self.mm.get(), core::ptr::from_ref(out).cast_mut().cast())
        }
    }
}

#[pinned_drop]
impl PinnedDrop for RangeAllocator {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The allocator was initialized. Every range holds a reference to it, so that
        // there are none.
        unsafe { bindings::drm_mm_takedown(self.mm.get()) }
    }
}

/// A range that is free again when this is dropped.
///
/// # Invariants
///
/// The node is in the allocator.
pub(crate) struct Range {
    allocator: Arc<RangeAllocator>,
    node: KBox<Opaque<bindings::drm_mm_node>>,
}

// SAFETY: The node is changed under the allocator's lock.
unsafe impl Send for Range {}

// SAFETY: As above.
unsafe impl Sync for Range {}

impl Range {
    /// The first unit.
    pub(crate) fn start(&self) -> u64 {
        // SAFETY: By the type invariant the node is in use, and its start does not change.
        unsafe { (*self.node.get()).start }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        let _guard = self.allocator.lock.lock();
        // SAFETY: By the type invariant the node is in the allocator, which is locked.
        unsafe { bindings::drm_mm_remove_node(self.node.get()) }
    }
}
