// SPDX-License-Identifier: GPL-2.0

//! Memory of user processes.

use crate::kapi::bindings;
use kernel::mm::Mm;

mod account;
mod end_notifier;
mod exclusive;
mod hmm;
mod notifier;
mod pin;
mod tracked;

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

/// Whether the current thread's address space is `mm`.
pub(crate) fn is_current(mm: &Mm) -> bool {
    kernel::current!()
        .mm()
        .is_some_and(|current| core::ptr::eq(current.as_raw(), mm.as_raw()))
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
    tracked::{
        Dirtied,
        TrackedPage, //
    },
};
