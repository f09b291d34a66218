// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Where and when a thread runs.

use rustix::thread::{sched_setaffinity, CpuSet};

use crate::ktap::TestResult;

/// Has this thread run on one CPU only.
pub(crate) fn bind(cpu: usize) -> TestResult {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Has this thread, but none that it starts, take its CPU from others at once when it wakes up,
/// wherever they are in the kernel. Needs privileges.
pub(crate) fn go_first() -> TestResult {
    // SAFETY: An all-zero `sched_param` is valid.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 1;
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: A valid structure.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const param) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
