// SPDX-License-Identifier: GPL-2.0

//! Workqueues of one's own, with a rescuer thread, and the system's.
//!
//! The queues of the system may need memory to make progress; work that memory reclaim may wait for
//! must not be on them.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::kapi::bindings;
use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    workqueue::Queue, //
};

/// An unbound workqueue with `WQ_MEM_RECLAIM`.
///
/// Dropping it waits for all work on it, so it must not be dropped by work on it.
///
/// # Invariants
///
/// The pointer is that of a workqueue, which this owns.
pub(crate) struct Workqueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A workqueue may be used and destroyed from any thread.
unsafe impl Send for Workqueue {}

// SAFETY: A workqueue may be used concurrently.
unsafe impl Sync for Workqueue {}

impl Workqueue {
    /// Creates a workqueue.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        // SAFETY: The name is NUL-terminated and copied.
        let raw = unsafe { bindings::kapi_alloc_reclaim_workqueue(name.as_char_ptr()) };
        // INVARIANT: The workqueue was just made.
        NonNull::new(raw).map(Self).ok_or(ENOMEM)
    }

    /// Waits for the work that was enqueued before.
    pub(crate) fn flush(&self) {
        // SAFETY: By the type invariant the workqueue is valid.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) }
    }
}

/// The system's queue for work that may run on any CPU (`system_dfl_wq`).
///
/// `kernel::workqueue` has only the one that was there before it, whose use the kernel warns of.
pub(crate) fn system_workqueue() -> &'static Queue {
    // SAFETY: The queue is there from boot on, and stays.
    unsafe { Queue::from_raw(bindings::system_dfl_wq) }
}

impl Deref for Workqueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant the workqueue is valid as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for Workqueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the workqueue is valid, and this was its owner.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}
