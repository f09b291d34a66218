// SPDX-License-Identifier: GPL-2.0

//! Wait queues, for conditions that interrupt handlers make true.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use crate::kapi::bindings;
use kernel::{
    prelude::*,
    types::Opaque, //
};

/// Threads that wait for a condition.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: All functions of a wait queue may be called from any thread.
unsafe impl Send for WaitQueue {}

// SAFETY: All functions of a wait queue may be called concurrently.
unsafe impl Sync for WaitQueue {}

extern "C" fn evaluate<F: FnMut() -> bool>(data: *mut c_void) -> bool {
    // SAFETY: The waiting functions pass a pointer to an `F` that outlives the call, and
    // nothing else uses it meanwhile.
    unsafe { (*data.cast::<F>())() }
}

impl WaitQueue {
    /// A queue without waiters.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            head <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writes and pinned.
                unsafe { bindings::kapi_init_waitqueue_head(slot) }
            }),
        })
    }

    /// Makes all waiters look at their condition again. May be called in any context.
    pub(crate) fn wake_all(&self) {
        // SAFETY: The queue was initialized.
        unsafe { bindings::kapi_wake_up_all(self.head.get()) }
    }

    /// Waits until `condition` is true, for `ms` milliseconds at most, uninterruptibly. Returns
    /// whether it is.
    ///
    /// `condition` must not sleep.
    pub(crate) fn wait_timeout<F: FnMut() -> bool>(&self, mut condition: F, ms: u32) -> bool {
        // SAFETY: The queue was initialized, and `condition` outlives the call.
        unsafe {
            bindings::kapi_wait_event_timeout(
                self.head.get(),
                Some(evaluate::<F>),
                (&raw mut condition).cast(),
                super::jiffies(ms),
            ) > 0
        }
    }

    /// Waits until `condition` is true, for `ms` milliseconds at most; a fatal signal ends the
    /// wait.
    ///
    /// `condition` must not sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] when the time is over, [`ERESTARTSYS`] on a signal.
    pub(crate) fn wait_killable_timeout<F: FnMut() -> bool>(
        &self,
        mut condition: F,
        ms: u32,
    ) -> Result {
        // SAFETY: The queue was initialized, and `condition` outlives the call.
        let left = unsafe {
            bindings::kapi_wait_event_killable_timeout(
                self.head.get(),
                Some(evaluate::<F>),
                (&raw mut condition).cast(),
                super::jiffies(ms),
            )
        };
        Self::outcome(left)
    }

    /// As [`WaitQueue::wait_killable_timeout`], but any signal ends the wait.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn wait_interruptible_timeout<F: FnMut() -> bool>(
        &self,
        mut condition: F,
        ms: u32,
    ) -> Result {
        // SAFETY: The queue was initialized, and `condition` outlives the call.
        let left = unsafe {
            bindings::kapi_wait_event_interruptible_timeout(
                self.head.get(),
                Some(evaluate::<F>),
                (&raw mut condition).cast(),
                super::jiffies(ms),
            )
        };
        Self::outcome(left)
    }

    /// What the number of jiffies that are left says of a wait.
    fn outcome(left: c_long) -> Result {
        match left {
            0 => Err(EBUSY),
            left if left < 0 => Err(ERESTARTSYS),
            _ => Ok(()),
        }
    }
}
