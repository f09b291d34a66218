// SPDX-License-Identifier: GPL-2.0

//! The current task, and threads that are added to its process.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

mod user_worker;

pub(crate) use self::user_worker::{
    UserWork,
    UserWorker,
    HAS_USER_WORKERS, //
};

use crate::kapi::bindings;
use kernel::prelude::*;

/// Bytes of a task's name, with the NUL (`TASK_COMM_LEN`).
const COMM_LEN: usize = 16;

/// The name of the current task, padded with zeros.
pub(crate) fn current_comm() -> [u8; COMM_LEN] {
    let mut name = [0; COMM_LEN];
    // SAFETY: The array has room for `TASK_COMM_LEN` bytes.
    unsafe { bindings::kapi_current_comm(name.as_mut_ptr().cast()) };
    name
}

/// Whether the current task is the worker of some workqueue.
pub(crate) fn current_is_worker() -> bool {
    // SAFETY: Looks at the current task only.
    unsafe { bindings::kapi_current_is_worker() }
}

/// Fails if the current task is being killed.
///
/// For whoever takes long without waiting for anything: a signal ends nothing else.
///
/// C function: `fatal_signal_pending`.
///
/// # Errors
///
/// [`EINTR`] on a fatal signal.
pub(crate) fn check_not_killed() -> Result {
    // SAFETY: Looks at the current task only.
    if unsafe { bindings::kapi_current_is_killed() } {
        return Err(EINTR);
    }
    Ok(())
}
