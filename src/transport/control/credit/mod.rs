// SPDX-License-Identifier: GPL-2.0

//! Room in the ring, taken ahead.
//!
//! What a command takes, and of what part of the ring, is in [`room`]. A file gets a quarter of the
//! ring at most.
//!
//! As long as there is room a sender takes it without a lock. Who finds none waits in line: the
//! commands of one file in their order, and the files in turns. When it is a file's turn, what it
//! waits for is not given to others, however long it takes to gather; only files with nothing in
//! the ring get their eighth meanwhile. A file that has its quarter loses its turn until it has
//! less.

mod line;
mod quota;
mod room;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;

pub(crate) use self::quota::RingQuota;
pub(super) use self::{
    line::Line,
    quota::Part,
    room::Room, //
};

use self::line::{
    Place,
    Waiter, //
};
use super::{
    command::Command,
    Control,
    ControlQueue,
    Inner,
    TEARDOWN_RESERVE, //
};
use crate::kapi::virtio::Message;
use core::cell::Cell;
use kernel::{
    list::ListArc,
    prelude::*,
    rbtree::RBTreeNodeReservation,
    sync::{
        atomic::ordering::Relaxed,
        Arc, //
    },
};

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
        self.credit_within(quota, commands, self.transport.timeouts.response_ms)
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

    /// As [`ControlQueue::credit_within`]; when the time is over, `goes_on` says whether to wait
    /// again.
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
