// SPDX-License-Identifier: GPL-2.0

//! How much of the ring a file has.
//!
//! The count grows without a lock when a sender takes room, and falls under the lock of the queue
//! when the device has responded. A file that has its quarter waits for its own commands, and not
//! for those of others.

use kernel::{
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        ListLinks,
        TryNewListArc, //
    },
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc, //
    },
};

/// How many descriptors of the ring a file has in use, of the quarter that it may have.
#[pin_data]
pub(crate) struct RingQuota {
    /// Descriptors in use. Grows without a lock, falls under that of the control queue.
    pub(super) used: Atomic<usize>,
    /// Commands in line; changed under the control queue's lock.
    pub(super) waiting: Atomic<usize>,
    #[pin]
    in_turns: AtomicTracker<0>,
    #[pin]
    in_idle: AtomicTracker<1>,
    #[pin]
    turns: ListLinks<0>,
    #[pin]
    idle: ListLinks<1>,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for RingQuota { tracked_by in_turns: AtomicTracker<0>; }
    impl ListArcSafe<1> for RingQuota { tracked_by in_idle: AtomicTracker<1>; }
}
impl_list_item! {
    impl ListItem<0> for RingQuota { using ListLinks { self.turns }; }
    impl ListItem<1> for RingQuota { using ListLinks { self.idle }; }
}

impl RingQuota {
    /// An unused quota.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                used: Atomic::new(0),
                waiting: Atomic::new(0),
                in_turns <- AtomicTracker::new(),
                in_idle <- AtomicTracker::new(),
                turns <- ListLinks::new(),
                idle <- ListLinks::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes `slots`, if that makes no more than `limit`. Returns what was taken before.
    pub(super) fn take(&self, slots: usize, limit: usize) -> Option<usize> {
        let mut used = self.used.load(Relaxed);
        loop {
            if used + slots > limit {
                return None;
            }
            match self.used.cmpxchg(used, used + slots, Relaxed) {
                Ok(before) => return Some(before),
                Err(now) => used = now,
            }
        }
    }

    /// Takes `slots` if nothing was taken.
    pub(super) fn take_first(&self, slots: usize) -> bool {
        self.used.cmpxchg(0, slots, Relaxed).is_ok()
    }

    pub(super) fn give(&self, slots: usize) {
        let _ = self.used.fetch_sub(slots, Relaxed);
    }
}

/// The part of the ring that descriptors are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transport::control) enum Part {
    /// That of all files.
    Common,
    /// That of files with nothing in the ring.
    First,
}
