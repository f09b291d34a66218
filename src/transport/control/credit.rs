// SPDX-License-Identifier: GPL-2.0

//! Room in the ring, taken ahead.
//!
//! A command takes one descriptor of a ring with indirect descriptors, and otherwise as many as it
//! has parts. Where messages have but a part of a pool of bounce buffers, that is dealt out with
//! the descriptors: a command takes as many as are worth its bytes, if that is more. The ring has
//! three parts: one for teardown, an eighth for files that have nothing in the ring, and the rest.
//! A file gets a quarter of the ring at most.
//!
//! As long as there is room a sender takes it without a lock. Who finds none waits in line: the
//! commands of one file in their order, and the files in turns. When it is a file's turn, what it
//! waits for is not given to others, however long it takes to gather; only files with nothing in
//! the ring get their eighth meanwhile. A file that has its quarter loses its turn until it has
//! less.

use super::{
    command::Command,
    Control,
    ControlQueue,
    Inner,
    TEARDOWN_RESERVE, //
};
use crate::kapi::{
    sync::WaitQueue,
    virtio::Message, //
};
use core::cell::Cell;
use kernel::{
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        List,
        ListArc,
        ListLinks,
        TryNewListArc, //
    },
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
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

/// Files without waiters that may be in line besides as many as there are waiters.
const SWEPT_AT: usize = 64;

/// How many descriptors of the ring a file has in use, of the quarter that it may have.
#[pin_data]
pub(crate) struct RingQuota {
    /// Descriptors in use. Grows without a lock, falls under that of the control queue.
    used: Atomic<usize>,
    /// Commands in line; changed under the control queue's lock.
    waiting: Atomic<usize>,
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
    fn take(&self, slots: usize, limit: usize) -> Option<usize> {
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
    fn take_first(&self, slots: usize) -> bool {
        self.used.cmpxchg(0, slots, Relaxed).is_ok()
    }

    fn give(&self, slots: usize) {
        let _ = self.used.fetch_sub(slots, Relaxed);
    }
}

/// The part of the ring that descriptors are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// That of all files.
    Common,
    /// That of files with nothing in the ring.
    First,
}

/// Free descriptors: below zero if more were taken than there were.
struct Pool(Atomic<isize>);

impl Pool {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    fn take(&self, slots: usize) -> bool {
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

    fn overdraw(&self, slots: usize) {
        let _ = self.0.fetch_sub(slots as isize, Relaxed);
    }

    fn give(&self, slots: usize) {
        let _ = self.0.fetch_add(slots as isize, Relaxed);
    }
}

/// [`Waiter::got`] of one in line.
const WAITING: u32 = 0;
const GOT_COMMON: u32 = 1;
const GOT_FIRST: u32 = 2;

/// A command in line for room.
#[pin_data]
struct Waiter {
    slots: usize,
    got: Atomic<u32>,
    #[pin]
    wait: WaitQueue,
}

impl Waiter {
    fn new(slots: usize) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                slots,
                got: Atomic::new(WAITING),
                wait <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )
    }

    fn got(&self) -> Option<Part> {
        match self.got.load(Acquire) {
            WAITING => None,
            GOT_FIRST => Some(Part::First),
            _ => Some(Part::Common),
        }
    }
}

/// The place of a waiter: the address of its quota, and a number that grows.
type Place = (usize, u64);

/// Who waits for room.
///
/// A quota with waiters is in `turns`, unless it has its quarter of the ring. Either list may also have
/// quotas for which that is not so any more.
pub(super) struct Line {
    waiters: RBTree<Place, Arc<Waiter>>,
    /// How many.
    waiting: usize,
    /// Quotas whose last waiter has left, at most, since the lists were swept.
    left: usize,
    next: u64,
    turns: List<RingQuota, 0>,
    /// Quotas that may have nothing in the ring.
    idle: List<RingQuota, 1>,
}

impl Line {
    pub(super) fn new() -> Self {
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
    fn head(&self, quota: &Arc<RingQuota>) -> Option<(Place, Arc<Waiter>)> {
        let id = Arc::as_ptr(quota) as usize;
        let cursor = self.waiters.cursor_lower_bound(&(id, 0))?;
        let (place, waiter) = cursor.current();
        (place.0 == id).then(|| (*place, waiter.clone()))
    }

    /// A quota has got a waiter, or room for one more command.
    fn line_up(&mut self, quota: &Arc<RingQuota>) {
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

    fn remove(&mut self, quota: &RingQuota, place: Place) {
        if self.waiters.remove(&place).is_some() {
            self.waiting -= 1;
            let _ = quota.waiting.fetch_sub(1, Relaxed);
        }
    }

    /// Takes quotas without waiters out of the lists, if they may be more than the others: whoever
    /// joins the line and leaves it again must not fill memory.
    fn sweep(&mut self) {
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

    fn grant(&mut self, quota: &RingQuota, place: Place, waiter: &Waiter, part: Part) {
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
    pub(super) fn wake_all(&self) {
        for waiter in self.waiters.values() {
            waiter.wait.wake_all();
        }
    }
}

/// The descriptors of a ring. They are taken at any time, and returned under the control queue's
/// lock.
pub(super) struct Room {
    size: Atomic<usize>,
    indirect: AtomicFlag,
    /// Bytes that come with a descriptor.
    slot_bytes: Atomic<usize>,
    common: Pool,
    first: Pool,
    /// There are waiters for room in the common part.
    crowded: AtomicFlag,
}

impl Room {
    pub(super) const fn new() -> Self {
        Self {
            size: Atomic::new(0),
            indirect: AtomicFlag::new(false),
            slot_bytes: Atomic::new(usize::MAX),
            common: Pool::new(),
            first: Pool::new(),
            crowded: AtomicFlag::new(false),
        }
    }

    /// The ring is empty, and has `size` descriptors; `bytes`, if that is limited, are for what is in
    /// it.
    pub(super) fn start(&self, size: usize, indirect: bool, bytes: Option<usize>) {
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
    pub(super) fn size(&self) -> usize {
        self.size.load(Relaxed)
    }

    /// The most that one file may have.
    fn limit(&self) -> usize {
        self.size() / 4
    }

    /// The most parts that one command may have.
    pub(super) fn max_descriptors(&self) -> usize {
        if self.indirect.load(Relaxed) {
            self.size().min(MAX_INDIRECT)
        } else {
            self.limit()
        }
    }

    /// What a command takes.
    pub(super) fn slots(&self, command: &Command) -> usize {
        self.slots_for(command.descriptors(), command.bytes())
    }

    /// What a command of so many parts and bytes takes.
    fn slots_for(&self, parts: usize, bytes: usize) -> usize {
        let descriptors = if self.indirect.load(Relaxed) {
            1
        } else {
            parts
        };
        descriptors.max(self.slots_of_bytes(bytes))
    }

    /// What so many bytes are worth.
    fn slots_of_bytes(&self, bytes: usize) -> usize {
        bytes.div_ceil(self.slot_bytes.load(Relaxed).max(1))
    }

    /// Whether a command is so long that no file gets the bytes for it.
    fn is_too_long(&self, command: &Command) -> bool {
        self.slots_of_bytes(command.bytes()) > self.limit()
    }

    /// Takes room that is there. If there is none, says how many slots of the quota are to be given
    /// back, under the lock.
    fn try_take(&self, quota: &RingQuota, slots: usize) -> Result<Part, usize> {
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
    pub(super) fn take_for_teardown(&self, slots: usize) -> bool {
        let kept = self.size() / 8;
        if self.crowded.load(Relaxed) || !self.common.take(slots + kept) {
            return false;
        }
        self.common.give(kept);
        true
    }

    /// Gives back room that was not a quota's.
    fn give(&self, slots: usize) {
        self.common.give(slots);
    }

    /// Takes room for a command that has its own, but may need more: only what is free.
    /// [`Room::overdraw`] is to follow, under the same lock.
    pub(super) fn take_beyond(&self, slots: usize) -> bool {
        self.common.take(slots)
    }

    /// A command has taken so many slots more than its room, for which `ahead` were taken by
    /// [`Room::take_beyond`]. If these were too few, nothing is given out until they are back.
    pub(super) fn overdraw(&self, quota: Option<&RingQuota>, ahead: usize, slots: usize) {
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
    fn settle_overdraft(&self, quota: Option<&RingQuota>, slots: usize) {
        self.common.give(slots);
        if let Some(quota) = quota {
            quota.give(slots);
        }
    }

    /// Gives back a quota's room. [`Room::serve`] is to follow.
    fn return_to_quota(&self, line: &mut Line, quota: &Arc<RingQuota>, slots: usize, part: Part) {
        match part {
            Part::Common => self.common.give(slots),
            Part::First => self.first.give(slots),
        }
        quota.give(slots);
        line.line_up(quota);
    }

    /// Puts a waiter in line. [`Room::serve`] is to follow.
    fn queue(
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
    fn leave(&self, line: &mut Line, quota: &Arc<RingQuota>, place: Place) {
        line.remove(quota, place);
        // The next one may want less.
        line.line_up(quota);
        if quota.waiting.load(Relaxed) == 0 {
            line.left += 1;
            line.sweep();
        }
    }

    /// Gives the room that there is to those in line.
    pub(super) fn serve(&self, line: &mut Line) {
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

/// The right to add a command to the ring.
pub(crate) struct Credit {
    control: ControlQueue,
    quota: Arc<RingQuota>,
    slots: usize,
    part: Part,
}

impl Credit {
    /// Splits off a credit for `command`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it has not enough.
    pub(crate) fn split(&mut self, command: &Command) -> Result<Self> {
        let slots = self.control.room.slots(command);
        self.slots = self.slots.checked_sub(slots).ok_or(EINVAL)?;
        Ok(Self {
            control: self.control.clone(),
            quota: self.quota.clone(),
            slots,
            part: self.part,
        })
    }

    /// Turns the credit into descriptors in use.
    pub(super) fn spend(mut self) -> (usize, Arc<RingQuota>, Part) {
        let slots = core::mem::take(&mut self.slots);
        (slots, self.quota.clone(), self.part)
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if self.slots > 0 {
            let control = &self.control;
            let mut inner = control.inner.lock();
            control
                .room
                .return_to_quota(&mut inner.line, &self.quota, self.slots, self.part);
            let notification = control.go_on(&mut inner);
            drop(inner);
            drop(notification);
        }
    }
}

/// A place in line. Dropping it leaves the line.
struct InLine<'a> {
    control: &'a ControlQueue,
    quota: &'a Arc<RingQuota>,
    waiter: Arc<Waiter>,
    place: Place,
    /// The credit was given, and taken.
    served: Cell<bool>,
}

impl<'a> InLine<'a> {
    /// Joins the line; `taken` slots of the quota are to be returned.
    fn join(
        control: &'a ControlQueue,
        quota: &'a Arc<RingQuota>,
        slots: usize,
        taken: usize,
    ) -> Result<Self> {
        let new = || -> Result<_> {
            let waiter = Waiter::new(slots)?;
            Ok((waiter, RBTreeNodeReservation::new(GFP_KERNEL)?))
        };
        let new = new();
        let mut inner = control.inner.lock();
        if taken != 0 {
            quota.give(taken);
            inner.line.line_up(quota);
        }
        let joined = new.map(|(waiter, node)| Self {
            control,
            quota,
            place: control
                .room
                .queue(&mut inner.line, quota, waiter.clone(), node),
            waiter,
            served: Cell::new(false),
        });
        let notification = control.go_on(&mut inner);
        drop(inner);
        drop(notification);
        joined
    }

    /// Waits for `ms` milliseconds at most.
    fn wait(&self, ms: u32) -> Result<Credit> {
        let waiter = &self.waiter;
        let ready = || waiter.got().is_some() || self.control.transport.is_lost();
        let waited = waiter.wait.wait_killable_timeout(ready, ms);
        self.take().ok_or_else(|| waited.err().unwrap_or(ENODEV))
    }

    /// The credit, if it was given, once.
    fn take(&self) -> Option<Credit> {
        let part = self.waiter.got()?;
        (!self.served.replace(true)).then(|| Credit {
            control: self.control.clone(),
            quota: self.quota.clone(),
            slots: self.waiter.slots,
            part,
        })
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if self.served.get() {
            return;
        }
        let mut inner = self.control.inner.lock();
        self.control
            .room
            .leave(&mut inner.line, self.quota, self.place);
        let notification = self.control.go_on(&mut inner);
        drop(inner);
        drop(notification);
        // It may have been given after the last look.
        drop(self.take());
    }
}

impl ControlQueue {
    /// Waits for room for `commands`, not longer than for a response.
    ///
    /// Must be called before any lock is taken that the end of a job may need.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`ERESTARTSYS`] on a fatal signal, [`EBUSY`] if jobs kept
    /// the ring full for the time of a whole time-out, [`E2BIG`] if it is more than a file gets,
    /// [`ENOMEM`], also if a command is longer than a file's part of the bounce buffers.
    pub(crate) fn credit<'a>(
        &self,
        quota: &Arc<RingQuota>,
        commands: impl IntoIterator<Item = &'a ListArc<Command>>,
    ) -> Result<Credit> {
        self.credit_within(quota, commands, self.transport.timeouts.answer_ms)
    }

    /// As [`ControlQueue::credit`], but waits for `ms` milliseconds at most.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn credit_within<'a>(
        &self,
        quota: &Arc<RingQuota>,
        commands: impl IntoIterator<Item = &'a ListArc<Command>>,
        ms: u32,
    ) -> Result<Credit> {
        self.credit_while(quota, commands, ms, || false)
    }

    /// As [`ControlQueue::credit_within`]; when the time is over, `goes_on` says whether to wait again.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn credit_while<'a>(
        &self,
        quota: &Arc<RingQuota>,
        commands: impl IntoIterator<Item = &'a ListArc<Command>>,
        ms: u32,
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<Credit> {
        let mut slots = 0;
        for command in commands {
            if command.descriptors() > self.room.max_descriptors() {
                return Err(E2BIG);
            }
            if self.room.is_too_long(command) {
                return Err(ENOMEM);
            }
            slots += self.room.slots(command);
        }
        if slots > self.room.limit() {
            return Err(E2BIG);
        }
        let taken = match self.room.try_take(quota, slots) {
            Ok(part) => {
                return Ok(Credit {
                    control: self.clone(),
                    quota: quota.clone(),
                    slots,
                    part,
                })
            }
            Err(taken) => taken,
        };
        let in_line = InLine::join(self, quota, slots, taken)?;
        loop {
            match in_line.wait(ms) {
                Err(e) if e == EBUSY && goes_on() => continue,
                other => return other,
            }
        }
    }
}

impl Control {
    /// Gives back the descriptors of a command that is not in the ring any more. [`Room::serve`] is
    /// to follow.
    pub(super) fn return_slots(&self, inner: &mut Inner, command: &mut ListArc<Command>) {
        // What it has taken beyond its room was taken from what is for all, whatever part it is of.
        let overdrawn = command.shared.overdrawn.load(Relaxed);
        command.shared.overdrawn.store(0, Relaxed);
        let slots = command.shared.slots.load(Relaxed) - overdrawn;
        let taken_from = Message::owned(command).taken_from.take();
        let quota = taken_from.as_ref().map(|(quota, _)| &**quota);
        self.room.settle_overdraft(quota, overdrawn);
        match taken_from {
            Some((quota, part)) => {
                self.room
                    .return_to_quota(&mut inner.line, &quota, slots, part);
            }
            None => {
                let reserve = (TEARDOWN_RESERVE - inner.reserve).min(slots);
                inner.reserve += reserve;
                self.room.give(slots - reserve);
            }
        }
    }
}

#[kunit_tests(virtgpu_userptr_credit)]
mod tests {
    use super::*;

    /// A ring, and who waits for room in it.
    struct Ring {
        room: Room,
        line: Line,
    }

    /// A waiter in line.
    struct Joined {
        waiter: Arc<Waiter>,
        place: Place,
    }

    impl Joined {
        fn served(&self) -> bool {
            self.waiter.got().is_some()
        }
    }

    impl Ring {
        /// A ring of 256: 208 descriptors for all, 32 for files with nothing in it, 16 are kept. A
        /// file gets 64.
        fn new() -> Self {
            let room = Room::new();
            room.start(256, false, None);
            Self {
                room,
                line: Line::new(),
            }
        }

        fn join(&mut self, quota: &Arc<RingQuota>, slots: usize) -> Result<Joined> {
            let waiter = Waiter::new(slots)?;
            let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
            let place = self.room.queue(&mut self.line, quota, waiter.clone(), node);
            self.room.serve(&mut self.line);
            Ok(Joined { waiter, place })
        }

        fn return_to_quota(&mut self, quota: &Arc<RingQuota>, slots: usize) {
            self.room
                .return_to_quota(&mut self.line, quota, slots, Part::Common);
            self.room.serve(&mut self.line);
        }

        /// Files that fill the common part of the ring.
        fn fill(&self) -> Result<[Arc<RingQuota>; 4]> {
            let files = [
                RingQuota::new()?,
                RingQuota::new()?,
                RingQuota::new()?,
                RingQuota::new()?,
            ];
            for (file, slots) in files.iter().zip([64, 64, 64, 16]) {
                for _ in 0..slots {
                    assert_eq!(self.room.try_take(file, 1), Ok(Part::Common));
                }
            }
            Ok(files)
        }
    }

    #[test]
    fn a_file_has_a_quarter() -> Result {
        let mut ring = Ring::new();
        let file = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&file, 64), Ok(Part::Common));
        assert_eq!(ring.room.try_take(&file, 1), Err(0));
        let waiting = ring.join(&file, 1)?;
        assert!(!waiting.served());
        // Others are not concerned.
        let other = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&other, 3), Ok(Part::Common));
        ring.return_to_quota(&file, 1);
        assert!(waiting.served());
        Ok(())
    }

    /// Where bytes are limited, a long command takes the room of several.
    #[test]
    fn bytes_are_dealt_out_too() -> Result {
        let ring = Ring::new();
        ring.room.start(256, true, Some(256 << 15));
        assert_eq!(ring.room.slots_for(100, 1), 1);
        assert_eq!(ring.room.slots_for(100, 1 << 15), 1);
        assert_eq!(ring.room.slots_for(2, (1 << 15) + 1), 2);
        assert_eq!(ring.room.slots_for(2, 1 << 20), 32);
        ring.room.start(256, false, Some(256 << 15));
        assert_eq!(ring.room.slots_for(3, 1), 3);
        // A pool that is smaller than the ring.
        ring.room.start(256, true, Some(100));
        assert_eq!(ring.room.slots_for(2, 64), ring.room.limit());
        Ok(())
    }

    /// What a large command waits for is not given to small ones that come later.
    #[test]
    fn large_is_not_starved() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let (large, small) = (RingQuota::new()?, RingQuota::new()?);
        assert_eq!(ring.room.try_take(&large, 40), Err(40));
        large.give(40);
        let first = ring.join(&large, 40)?;
        // It may have something in the ring, and so does not get what is kept for others.
        assert_eq!(ring.room.try_take(&small, 1), Ok(Part::First));
        assert_eq!(ring.room.try_take(&small, 1), Err(1));
        small.give(1);
        let second = ring.join(&small, 1)?;
        for _ in 0..39 {
            ring.return_to_quota(&files[0], 1);
            assert!(!first.served() && !second.served());
        }
        ring.return_to_quota(&files[0], 1);
        assert!(first.served() && !second.served());
        ring.return_to_quota(&files[1], 1);
        assert!(second.served());
        Ok(())
    }

    /// The commands of one file in their order, and files in turns.
    #[test]
    fn order() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let (a, b) = (RingQuota::new()?, RingQuota::new()?);
        for file in [&a, &b] {
            assert_eq!(ring.room.try_take(file, 1), Ok(Part::First));
        }
        let joined = [
            ring.join(&a, 2)?,
            ring.join(&a, 1)?,
            ring.join(&a, 1)?,
            ring.join(&b, 1)?,
        ];
        let expected = [
            [false, false, false, false],
            [true, false, false, false],
            [true, false, false, true],
            [true, true, false, true],
            [true, true, true, true],
        ];
        for expected in expected {
            ring.return_to_quota(&files[0], 1);
            assert_eq!(joined.each_ref().map(Joined::served), expected);
        }
        Ok(())
    }

    /// A file at its limit loses its turn, and gets it back.
    #[test]
    fn others_go_first() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let other = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&other, 1), Ok(Part::First));
        let full = ring.join(&files[0], 1)?;
        let waits = ring.join(&other, 1)?;
        assert!(!full.served() && !waits.served());
        ring.return_to_quota(&files[1], 1);
        assert!(!full.served() && waits.served());
        ring.return_to_quota(&files[0], 1);
        assert!(full.served());
        Ok(())
    }

    /// A ring full of jobs that never end still has room for who has nothing in it.
    #[test]
    fn first_of_a_file() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        assert_eq!(ring.room.try_take(&files[3], 1), Err(1));
        files[3].give(1);
        let busy = ring.join(&files[3], 1)?;
        let mut news = KVec::new();
        for _ in 0..32 {
            let file = RingQuota::new()?;
            assert_eq!(ring.room.try_take(&file, 1), Ok(Part::First));
            news.push(file, GFP_KERNEL)?;
        }
        let late = RingQuota::new()?;
        let waits = ring.join(&late, 1)?;
        assert!(!busy.served() && !waits.served());
        let Ring { room, line } = &mut ring;
        room.return_to_quota(line, &news[0], 1, Part::First);
        room.serve(line);
        assert!(!busy.served() && waits.served());
        Ok(())
    }

    #[test]
    fn gives_up() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let (large, small) = (RingQuota::new()?, RingQuota::new()?);
        for file in [&large, &small] {
            assert_eq!(ring.room.try_take(file, 1), Ok(Part::First));
        }
        let first = ring.join(&large, 40)?;
        let next = ring.join(&large, 1)?;
        let second = ring.join(&small, 1)?;
        ring.return_to_quota(&files[0], 2);
        assert!(!first.served() && !next.served() && !second.served());
        ring.room.leave(&mut ring.line, &large, first.place);
        ring.room.serve(&mut ring.line);
        assert!(next.served() && second.served());
        assert!(ring.line.waiters.is_empty());
        Ok(())
    }

    /// Those who have left the line do not stay in memory behind one who waits for long.
    #[test]
    fn left() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let large = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&large, 1), Ok(Part::First));
        let first = ring.join(&large, 40)?;
        for _ in 0..1000 {
            let file = RingQuota::new()?;
            assert_eq!(ring.room.try_take(&file, 33), Err(33));
            file.give(33);
            let joined = ring.join(&file, 33)?;
            ring.room.leave(&mut ring.line, &file, joined.place);
        }
        let (turns, idle) = (
            ring.line.turns.iter().count(),
            ring.line.idle.iter().count(),
        );
        assert!(turns + idle <= 2 * (SWEPT_AT + 2));
        ring.return_to_quota(&files[0], 40);
        assert!(first.served());
        assert_eq!(ring.line.waiting, 0);
        Ok(())
    }

    /// A command that took more than its room takes it from those who come later.
    #[test]
    fn overdrawn() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        ring.room.overdraw(Some(&files[3]), 0, 2);
        let other = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&other, 1), Ok(Part::First));
        let waits = ring.join(&other, 1)?;
        ring.return_to_quota(&files[0], 2);
        assert!(!waits.served());
        ring.room.settle_overdraft(Some(&files[3]), 2);
        ring.return_to_quota(&files[3], 1);
        assert!(waits.served());
        assert_eq!(files[3].used.load(Relaxed), 15);
        Ok(())
    }

    /// What was kept for a file with nothing in the ring does not grow by what its command took from
    /// others.
    #[test]
    fn overdrawn_by_the_first() -> Result {
        let mut ring = Ring::new();
        let _files = ring.fill()?;
        let before = ring.room.first.0.load(Relaxed);
        let other = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&other, 1), Ok(Part::First));
        ring.room.overdraw(Some(&other), 0, 4);
        let common = ring.room.common.0.load(Relaxed);
        ring.room.settle_overdraft(Some(&other), 4);
        ring.room
            .return_to_quota(&mut ring.line, &other, 1, Part::First);
        assert_eq!(ring.room.first.0.load(Relaxed), before);
        assert_eq!(ring.room.common.0.load(Relaxed), common + 4);
        assert_eq!(other.used.load(Relaxed), 0);
        Ok(())
    }

    /// What others have taken, and not used yet, is not there for a command without a table.
    #[test]
    fn beyond() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        assert!(!ring.room.take_beyond(3));
        ring.return_to_quota(&files[0], 4);
        let common = ring.room.common.0.load(Relaxed);
        assert!(ring.room.take_beyond(3));
        assert!(!ring.room.take_beyond(3));
        // It had a table after all.
        ring.room.overdraw(Some(&files[1]), 3, 0);
        assert_eq!(ring.room.common.0.load(Relaxed), common);
        assert!(ring.room.take_beyond(3));
        ring.room.overdraw(Some(&files[1]), 3, 3);
        assert_eq!(ring.room.common.0.load(Relaxed), common - 3);
        ring.room.settle_overdraft(Some(&files[1]), 3);
        assert_eq!(ring.room.common.0.load(Relaxed), common);
        assert_eq!(files[1].used.load(Relaxed), 64);
        Ok(())
    }
}
