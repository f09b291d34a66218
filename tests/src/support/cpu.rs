// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Where a thread runs.

use rustix::thread::{sched_setaffinity, CpuSet};

use crate::ktap::TestResult;

/// Has this thread run on one CPU only.
pub(crate) fn bind(cpu: usize) -> TestResult {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
