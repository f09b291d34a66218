// SPDX-License-Identifier: GPL-2.0

//! Waiting with a bound, locks whose waiters can be killed, and work that memory reclaim may depend
//! on.

use crate::kapi::bindings;

mod delayed;
mod killable;
pub(crate) mod reclaim;
mod wait_queue;
mod workqueue;

pub(crate) use self::{
    delayed::cancel_delayed_sync,
    killable::KillableMutex,
    wait_queue::WaitQueue,
    workqueue::{
        system_workqueue,
        ModuleWorkqueue,
        ModuleWorkqueueOwner,
        Workqueue, //
    },
};

/// Nanoseconds of the monotonic clock, as userspace sees it.
pub(crate) fn monotonic_ns() -> i64 {
    // SAFETY: Reads a clock.
    unsafe { bindings::ktime_get() }
}

/// Jiffies for `ms` milliseconds, rounded up.
pub(crate) fn jiffies(ms: u32) -> kernel::ffi::c_ulong {
    kernel::time::msecs_to_jiffies(ms)
}
