// SPDX-License-Identifier: GPL-2.0

//! The descriptors of the ring, and how they are dealt out.
//!
//! A command takes one descriptor of a ring with indirect descriptors, and otherwise as many as it
//! has parts. Where messages have but a part of a pool of bounce buffers, that is dealt out with
//! the descriptors: a command takes as many as are worth its bytes, if that is more. The ring has
//! three parts: one for teardown, an eighth for files that have nothing in the ring, and the rest.

use super::{
    line::{
        Line,
        Place,
        Waiter, //
    },
    quota::{
        Part,
        RingQuota, //
    },
};
use crate::transport::control::{
    command::Command,
    TEARDOWN_RESERVE, //
};
use kernel::{
    prelude::*,
    rbtree::RBTreeNodeReservation,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic,
            AtomicFlag, //
        },
        Arc, //
    },
};

/// Most descriptors that a command may take where it takes one as a rule. A table for so many is a
/// page, which is to be had in any context but for a short time; without it the command takes them
/// from the ring.
const MAX_INDIRECT: usize = 128;

/// Free descriptors: below zero if more were taken than there were.
pub(super) struct Pool(pub(super) Atomic<isize>);

impl Pool {
    pub(super) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    pub(super) fn take(&self, slots: usize) -> bool {
        let slots = slots as isize;
        let mut free = self.0.load(Relaxed);
        while free >= slots {
            match self.0.cmpxchg(free, free - slots, Relaxed) {
                Ok(_) => return true,
                Err(now) => free = now,
            }
        }
        false
    }

    pub(super) fn overdraw(&self, slots: usize) {
        let _ = self.0.fetch_sub(slots as isize, Relaxed);
    }

    pub(super) fn give(&self, slots: usize) {
        let _ = self.0.fetch_add(slots as isize, Relaxed);
    }
}

/// The descriptors of a ring. They are taken at any time, and returned under the control queue's
/// lock.
pub(in crate::transport::control) struct Room {
    size: Atomic<usize>,
    indirect: AtomicFlag,
    /// Bytes that come with a descriptor.
    slot_bytes: Atomic<usize>,
    pub(super) common: Pool,
    pub(super) first: Pool,
    /// There are waiters for room in the common part.
    crowded: AtomicFlag,
}

impl Room {
    pub(in crate::transport::control) const fn new() -> Self {
        Self {
            size: Atomic::new(0),
            indirect: AtomicFlag::new(false),
            slot_bytes: Atomic::new(usize::MAX),
            common: Pool::new(),
            first: Pool::new(),
            crowded: AtomicFlag::new(false),
        }
    }

    /// The ring is empty, and has `size` descriptors; `bytes`, if that is limited, are for what is
    /// in it.
    pub(in crate::transport::control) fn start(
        &self,
        size: usize,
        indirect: bool,
        bytes: Option<usize>,
    ) {
        let first = size / 8;
        let slot_bytes = bytes.map_or(usize::MAX, |bytes| (bytes / size.max(1)).max(1));
        self.size.store(size, Relaxed);
        self.indirect.store(indirect, Relaxed);
        self.slot_bytes.store(slot_bytes, Relaxed);
        self.first.0.store(first as isize, Relaxed);
        let common = size - first - TEARDOWN_RESERVE;
        self.common.0.store(common as isize, Relaxed);
    }

    /// Descriptors in the ring.
    pub(in crate::transport::control) fn size(&self) -> usize {
        self.size.load(Relaxed)
    }

    /// The most that one file may have.
    pub(super) fn limit(&self) -> usize {
        self.size() / 4
    }

    /// The most parts that one command may have.
    pub(in crate::transport::control) fn max_descriptors(&self) -> usize {
        if self.indirect.load(Relaxed) {
            self.size().min(MAX_INDIRECT)
        } else {
            self.limit()
        }
    }

    /// What a command takes.
    pub(in crate::transport::control) fn slots(&self, command: &Command) -> usize {
        self.slots_for(command.descriptors(), command.bytes())
    }

    /// What a command of so many parts and bytes takes.
    pub(super) fn slots_for(&self, parts: usize, bytes: usize) -> usize {
        let descriptors = if self.indirect.load(Relaxed) {
            1
        } else {
            parts
        };
        descriptors.max(self.slots_of_bytes(bytes))
    }

    /// What so many bytes are worth.
    pub(super) fn slots_of_bytes(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.slot_bytes.load(Relaxed).max(1))
    }

    /// Whether a command is so long that no file gets the bytes for it.
    pub(super) fn is_too_long(&self, command: &Command) -> bool {
        self.slots_of_bytes(command.bytes()) > self.limit()
    }

    /// Takes room that is there. If there is none, says how many slots of the quota are to be given
    /// back, under the lock.
    pub(super) fn try_take(&self, quota: &RingQuota, slots: usize) -> Result<Part, usize> {
        if quota.waiting.load(Relaxed) != 0 {
            return Err(0);
        }
        let before = quota.take(slots, self.limit()).ok_or(0usize)?;
        if !self.crowded.load(Relaxed) && self.common.take(slots) {
            Ok(Part::Common)
        } else if before == 0 && self.first.take(slots) {
            Ok(Part::First)
        } else {
            Err(slots)
        }
    }

    /// Takes room for teardown, beyond what is kept for it: not all of it,
    /// and not what others wait for.
    pub(in crate::transport::control) fn take_for_teardown(&self, slots: usize) -> bool {
        let kept = self.size() / 8;
        if self.crowded.load(Relaxed) || !self.common.take(slots + kept) {
            return false;
        }
        self.common.give(kept);
        true
    }

    /// Gives back room that was not a quota's.
    pub(super) fn give(&self, slots: usize) {
        self.common.give(slots);
    }

    /// Takes room for a command that has its own, but may need more: only what is free.
    /// [`Room::overdraw`] is to follow, under the same lock.
    pub(in crate::transport::control) fn take_beyond(&self, slots: usize) -> bool {
        self.common.take(slots)
    }

    /// A command has taken so many slots more than its room, for which `ahead` were taken by
    /// [`Room::take_beyond`]. If these were too few, nothing is given out until they are back.
    pub(in crate::transport::control) fn overdraw(
        &self,
        quota: Option<&RingQuota>,
        ahead: usize,
        slots: usize,
    ) {
        if slots > ahead {
            self.common.overdraw(slots - ahead);
        } else {
            self.common.give(ahead - slots);
        }
        if let Some(quota) = quota {
            let _ = quota.used.fetch_add(slots, Relaxed);
        }
    }

    /// Such a command is over. [`Room::return_to_quota`] returns its own room.
    pub(super) fn settle_overdraft(&self, quota: Option<&RingQuota>, slots: usize) {
        self.common.give(slots);
        if let Some(quota) = quota {
            quota.give(slots);
        }
    }

    /// Gives back a quota's room. [`Room::serve`] is to follow.
    pub(super) fn return_to_quota(
        &self,
        line: &mut Line,
        quota: &Arc<RingQuota>,
        slots: usize,
        part: Part,
    ) {
        match part {
            Part::Common => self.common.give(slots),
            Part::First => self.first.give(slots),
        }
        quota.give(slots);
        line.line_up(quota);
    }

    /// Puts a waiter in line. [`Room::serve`] is to follow.
    pub(super) fn queue(
        &self,
        line: &mut Line,
        quota: &Arc<RingQuota>,
        waiter: Arc<Waiter>,
        node: RBTreeNodeReservation<Place, Arc<Waiter>>,
    ) -> Place {
        let place = (Arc::as_ptr(quota) as usize, line.next);
        line.next += 1;
        let _ = line.waiters.insert(node.into_node(place, waiter));
        line.waiting += 1;
        let _ = quota.waiting.fetch_add(1, Relaxed);
        line.line_up(quota);
        place
    }

    /// Takes a waiter that has got nothing out of the line. [`Room::serve`] is to follow.
    pub(super) fn leave(&self, line: &mut Line, quota: &Arc<RingQuota>, place: Place) {
        line.remove(quota, place);
        // The next one may want less.
        line.line_up(quota);
        if quota.waiting.load(Relaxed) == 0 {
            line.left += 1;
            line.sweep();
        }
    }

    /// Gives the room that there is to those in line.
    pub(in crate::transport::control) fn serve(&self, line: &mut Line) {
        while let Some(idle) = line.idle.pop_front() {
            let quota = idle.as_arc().clone();
            let Some((place, waiter)) = line.head(&quota) else {
                continue;
            };
            // So large a command waits for its turn.
            if waiter.slots > self.size() / 8 || !quota.take_first(waiter.slots) {
                continue;
            }
            if !self.first.take(waiter.slots) {
                quota.give(waiter.slots);
                line.idle.push_front(idle);
                break;
            }
            line.grant(&quota, place, &waiter, Part::First);
        }

        let mut crowded = false;
        while let Some(next) = line.turns.pop_front() {
            let quota = next.as_arc().clone();
            let Some((place, waiter)) = line.head(&quota) else {
                continue;
            };
            if quota.take(waiter.slots, self.limit()).is_none() {
                // Until it has less in the ring.
                continue;
            }
            if !self.common.take(waiter.slots) {
                quota.give(waiter.slots);
                line.turns.push_front(next);
                crowded = true;
                break;
            }
            line.grant(&quota, place, &waiter, Part::Common);
            if quota.waiting.load(Relaxed) != 0 {
                line.turns.push_back(next);
            }
        }
        self.crowded.store(crowded, Relaxed);
        line.sweep();
    }
}
