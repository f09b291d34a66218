// SPDX-License-Identifier: GPL-2.0

//! Reservation objects that live on their own: the fences of all work that uses some memory.
//!
//! C header: [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h)

use crate::kapi::{
    bindings,
    sync, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// The fences of some memory, apart from the object that stands for it, so that a notifier can
/// wait for them without a reference to the object.
#[pin_data(PinnedDrop)]
pub(crate) struct Resv {
    #[pin]
    raw: Opaque<bindings::dma_resv>,
}

// SAFETY: The functions of a reservation may be called from any thread.
unsafe impl Send for Resv {}

// SAFETY: The functions of a reservation may be called concurrently.
unsafe impl Sync for Resv {}

impl Resv {
    /// No fences.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                raw <- Opaque::ffi_init(|slot| {
                    // SAFETY: The slot is valid for writes and pinned.
                    unsafe { bindings::dma_resv_init(slot) }
                }),
            }),
            GFP_KERNEL,
        )
    }

    pub(in crate::kapi) fn as_raw(&self) -> *mut bindings::dma_resv {
        self.raw.get()
    }

    /// Whether all work is over. Does not sleep.
    pub(crate) fn is_idle(&self) -> bool {
        // SAFETY: The reservation was initialized.
        unsafe {
            bindings::dma_resv_test_signaled(
                self.raw.get(),
                bindings::dma_resv_usage_DMA_RESV_USAGE_BOOKKEEP,
            )
        }
    }

    /// Waits until all work is over, for `ms` milliseconds at most, uninterruptibly. Returns
    /// whether it is.
    pub(crate) fn wait(&self, ms: u32) -> bool {
        // SAFETY: The reservation was initialized.
        let left = unsafe {
            bindings::dma_resv_wait_timeout(
                self.raw.get(),
                bindings::dma_resv_usage_DMA_RESV_USAGE_BOOKKEEP,
                false,
                sync::jiffies(ms),
            )
        };
        left > 0
    }
}

#[pinned_drop]
impl PinnedDrop for Resv {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The reservation was initialized, and the last user is gone.
        unsafe { bindings::dma_resv_fini(self.raw.get()) }
    }
}
