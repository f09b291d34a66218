// SPDX-License-Identifier: GPL-2.0

//! Memory of user processes.

use crate::kapi::bindings;

mod account;
mod end_notifier;
mod exclusive;
mod hmm;
mod notifier;
pub(crate) mod pages;
mod pin;

/// Bytes of memory in the system.
pub(crate) fn total_memory() -> u64 {
    // SAFETY: Reads a counter.
    unsafe { bindings::kapi_total_memory() }
}

/// Whether `len` bytes at `addr` can be user memory at all.
pub(crate) fn is_user_range(addr: usize, len: usize) -> bool {
    // SAFETY: Compares numbers only.
    unsafe { bindings::kapi_access_ok(addr, len) }
}

pub(crate) use self::{
    account::PinnedVm,
    end_notifier::{
        EndHandler,
        EndNotifier, //
    },
    exclusive::{
        ExclusivePage,
        Owner, //
    },
    hmm::{
        fault_in,
        first_hole,
        is_anything_mapped,
        is_current,
        task_size,
        Area,
        FaultWait,
        HmmPage,
        Sequence, //
    },
    notifier::{
        Change,
        ChangeId,
        FinishNode,
        IntervalHandler,
        IntervalNotifier,
        Invalidation,
        Start, //
    },
    pin::{
        Pins,
        Run, //
    },
};
