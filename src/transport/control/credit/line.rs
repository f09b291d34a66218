// SPDX-License-Identifier: GPL-2.0

//! Who waits for room in the ring: the commands of one file in their order, and the files in turns.
//!
//! The line says who is next; [`Room::serve`](super::room::Room::serve) gives out what there is.

use super::quota::{
    Part,
    RingQuota, //
};
use crate::kapi::sync::WaitQueue;
use kernel::{
    list::{
        List,
        ListArc, //
    },
    prelude::*,
    rbtree::RBTree,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic, //
        },
        Arc, //
    },
};

/// Files without waiters that may be in line besides as many as there are waiters.
pub(super) const SWEPT_AT: usize = 64;

/// [`Waiter::got`] of one in line.
const WAITING: u32 = 0;
const GOT_COMMON: u32 = 1;
const GOT_FIRST: u32 = 2;

/// A command in line for room.
#[pin_data]
pub(super) struct Waiter {
    pub(super) slots: usize,
    got: Atomic<u32>,
    #[pin]
    pub(super) wait: WaitQueue,
}

impl Waiter {
    pub(super) fn new(slots: usize) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                slots,
                got: Atomic::new(WAITING),
                wait <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )
    }

    pub(super) fn got(&self) -> Option<Part> {
        match self.got.load(Acquire) {
            WAITING => None,
            GOT_FIRST => Some(Part::First),
            _ => Some(Part::Common),
        }
    }
}

/// The place of a waiter: the address of its quota, and a number that grows.
pub(super) type Place = (usize, u64);

/// Who waits for room.
///
/// A quota with waiters is in `turns`, unless it has its quarter of the ring. Either list may also
/// have quotas for which that is not so any more.
pub(in crate::transport::control) struct Line {
    pub(super) waiters: RBTree<Place, Arc<Waiter>>,
    /// How many.
    pub(super) waiting: usize,
    /// Quotas whose last waiter has left, at most, since the lists were swept.
    pub(super) left: usize,
    pub(super) next: u64,
    pub(super) turns: List<RingQuota, 0>,
    /// Quotas that may have nothing in the ring.
    pub(super) idle: List<RingQuota, 1>,
}

impl Line {
    pub(in crate::transport::control) fn new() -> Self {
        Self {
            waiters: RBTree::new(),
            waiting: 0,
            left: 0,
            next: 0,
            turns: List::new(),
            idle: List::new(),
        }
    }

    /// The first waiter of a quota.
    pub(super) fn head(&self, quota: &Arc<RingQuota>) -> Option<(Place, Arc<Waiter>)> {
        let id = Arc::as_ptr(quota) as usize;
        let cursor = self.waiters.cursor_lower_bound(&(id, 0))?;
        let (place, waiter) = cursor.current();
        (place.0 == id).then(|| (*place, waiter.clone()))
    }

    /// A quota has got a waiter, or room for one more command.
    pub(super) fn line_up(&mut self, quota: &Arc<RingQuota>) {
        if quota.waiting.load(Relaxed) == 0 {
            return;
        }
        if let Some(quota) = ListArc::try_from_arc_or_drop(quota.clone()) {
            self.turns.push_back(quota);
        }
        if quota.used.load(Relaxed) == 0 {
            if let Some(quota) = ListArc::try_from_arc_or_drop(quota.clone()) {
                self.idle.push_back(quota);
            }
        }
    }

    pub(super) fn remove(&mut self, quota: &RingQuota, place: Place) {
        if self.waiters.remove(&place).is_some() {
            self.waiting -= 1;
            let _ = quota.waiting.fetch_sub(1, Relaxed);
        }
    }

    /// Takes quotas without waiters out of the lists, if they may be more than the others: whoever
    /// joins the line and leaves it again must not fill memory.
    pub(super) fn sweep(&mut self) {
        if self.left <= self.waiting + SWEPT_AT {
            return;
        }
        self.left = 0;
        let mut turns = List::new();
        while let Some(quota) = self.turns.pop_front() {
            if quota.waiting.load(Relaxed) != 0 {
                turns.push_back(quota);
            }
        }
        self.turns.push_all_back(&mut turns);
        let mut idle = List::new();
        while let Some(quota) = self.idle.pop_front() {
            if quota.waiting.load(Relaxed) != 0 {
                idle.push_back(quota);
            }
        }
        self.idle.push_all_back(&mut idle);
    }

    pub(super) fn grant(&mut self, quota: &RingQuota, place: Place, waiter: &Waiter, part: Part) {
        self.remove(quota, place);
        // It may be in the other list still.
        self.left += usize::from(quota.waiting.load(Relaxed) == 0);
        let got = match part {
            Part::Common => GOT_COMMON,
            Part::First => GOT_FIRST,
        };
        waiter.got.store(got, Release);
        waiter.wait.wake_all();
    }

    /// Has all waiters look again.
    pub(in crate::transport::control) fn wake_all(&self) {
        for waiter in self.waiters.values() {
            waiter.wait.wake_all();
        }
    }
}
