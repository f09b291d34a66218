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
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Full, //
            },
            Atomic, //
        },
        rcu, //
    },
    workqueue::{
        Queue,
        RawWorkItem, //
    }, //
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

/// The place of a workqueue that a module has from its beginning to its end. Work on it may drop
/// the last reference to all of which it is part, which work on a queue of a device must not if the
/// queue goes with the device. When the module goes, it waits for all work.
///
/// # Invariants
///
/// The pointer is null, or that of a workqueue, which is destroyed only when it has been null for
/// an RCU grace period.
pub(crate) struct ModuleWorkqueue(Atomic<*mut bindings::workqueue_struct>);

impl ModuleWorkqueue {
    /// No workqueue yet.
    pub(crate) const fn new() -> Self {
        // INVARIANT: The pointer is null.
        Self(Atomic::new(ptr::null_mut()))
    }

    /// Creates the workqueue, which is there until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EEXIST`] if there is one already.
    pub(crate) fn create(&'static self, name: &CStr) -> Result<ModuleWorkqueueOwner> {
        let queue = Workqueue::new(name)?;
        // INVARIANT: The owner takes the pointer out again before it drops the queue.
        match self.0.cmpxchg(ptr::null_mut(), queue.0.as_ptr(), Full) {
            Ok(_) => Ok(ModuleWorkqueueOwner {
                place: self,
                _queue: queue,
            }),
            Err(_) => Err(EEXIST),
        }
    }

    /// Puts work on the queue, unless it is there already. Returns whether there is a queue. May be
    /// called in any context.
    #[must_use]
    pub(crate) fn enqueue<W, const ID: u64>(&self, work: W) -> bool
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        let section = rcu::read_lock();
        let Some(raw) = NonNull::new(self.0.load(Acquire)) else {
            drop(section);
            return false;
        };
        // SAFETY: By the type invariant the queue is there as long as the section lasts.
        let queue = unsafe { Queue::from_raw(raw.as_ptr()) };
        let enqueued = queue.enqueue::<W, ID>(work);
        drop(section);
        // If it was there already, this drops a reference, which may sleep.
        drop(enqueued);
        true
    }
}

/// The workqueue in a [`ModuleWorkqueue`].
pub(crate) struct ModuleWorkqueueOwner {
    place: &'static ModuleWorkqueue,
    /// Dropped last, which waits for all work on it.
    _queue: Workqueue,
}

impl Drop for ModuleWorkqueueOwner {
    fn drop(&mut self) {
        let _ = self.place.0.xchg(ptr::null_mut(), Full);
        rcu::synchronize_rcu();
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
