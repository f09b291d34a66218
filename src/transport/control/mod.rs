// SPDX-License-Identifier: GPL-2.0

//! The control queue: requests, responses and fences.
//!
//! It sends commands as long as the device runs. That the device is lost, reset, or asleep is
//! decided by [`super::Transport`], under the lock of this queue: a command is sent in one state or
//! held in another, never between two.
//!
//! # The path of a command
//!
//! A command is a [`Message`], owned in turn by who makes it, by the virtqueue, by the interrupt
//! handler, and by a worker that runs its [`Completion`] and frees it. Fences are signalled in the
//! interrupt; everything that may sleep or free memory of others is the worker's.
//!
//! # Room in the ring
//!
//! A sender takes a [`Credit`] for the most descriptors that its command can take before it takes
//! any lock, so that adding to the ring cannot fail for lack of room. One file gets a quarter of
//! the ring at most. [`TEARDOWN_RESERVE`] descriptors are kept for teardown; such a command never
//! waits, it is put into a backlog if need be.
//!
//! # Files
//!
//! - [`command`]: what a command is;
//! - [`commands`]: which there are, and what the device responds to each;
//! - [`credit`]: room in the ring;
//! - [`ring`]: what the queue consists of;
//! - here: sending commands;
//! - [`responses`]: what the device says;
//! - [`patience`]: how long who waits for what;
//! - [`end`]: what becomes of commands when the device is lost, or reset.

mod command;
pub(crate) mod commands;
mod credit;
mod end;
mod patience;
mod responses;
mod ring;

pub(crate) use self::{
    command::{
        Command,
        Completion,
        Expect,
        HostFence,
        JobContext,
        JobOf,
        Request,
        Response,
        Sent, //
    },
    credit::{
        Credit,
        RingQuota, //
    },
    ring::Control,
};

pub(super) use self::ring::Inner;
use self::{
    command::{
        Owned,
        Shared, //
    },
    ring::TEARDOWN_RESERVE, //
};
use super::{
    State,
    Transport, //
};
use crate::{
    kapi::{
        dma::{
            Fence,
            UnpublishedFence, //
        },
        virtio::{
            Message,
            Notification,
            Pieces,
            Queue, //
        },
    },
    protocol::virtio_gpu::FLAG_FENCE,
    trace, //
};
use core::ops::Deref;
use kernel::{
    list::ListArc,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::ordering::Relaxed,
        Arc, //
    },
};
use zerocopy::IntoBytes;

/// The control queue of a device, as those use it who send commands.
#[derive(Clone)]
pub(crate) struct ControlQueue {
    transport: Arc<Transport>,
}

impl From<Arc<Transport>> for ControlQueue {
    fn from(transport: Arc<Transport>) -> Self {
        Self { transport }
    }
}

impl Deref for ControlQueue {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.transport.control
    }
}

impl ControlQueue {
    /// The most parts that one command may have, request and response included.
    pub(crate) fn max_descriptors(&self) -> usize {
        self.room.max_descriptors()
    }

    /// How many pieces the variable parts of a command may have that takes `others` descriptors
    /// besides, and how long they may be.
    pub(crate) fn pieces(&self, others: usize) -> Pieces {
        let count = self.max_descriptors().saturating_sub(others);
        Pieces::new(count, self.transport.binding.max_piece())
    }

    /// The highest fence that the device has responded to, and the highest that it was sent.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn fences(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.responded_fence, inner.next_fence - 1)
    }

    /// Puts a command into the ring; the device is told when what is returned is dropped, which
    /// must be after all locks. Does not sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`ENOMEM`] if its memory cannot be mapped for the device.
    /// The command then is dropped unseen by the device.
    pub(crate) fn send(
        &self,
        command: ListArc<Command>,
        credit: Credit,
    ) -> Result<Option<Notification>> {
        let sent = self.add_and(command, credit, |_, _| (), |queue| queue.kick_prepare());
        sent.map(|((), notification)| notification)
    }

    /// As [`ControlQueue::send`] for one of several commands; [`ControlQueue::kick`] tells the
    /// device of all.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn add(&self, command: ListArc<Command>, credit: Credit) -> Result {
        self.add_and(command, credit, |_, _| (), |_| None).map(drop)
    }

    /// As [`ControlQueue::send`], but not before the teardown that waits for descriptors: this one
    /// restores what such a command ends. Returns when the command is in the ring, so that nothing
    /// that needs it comes before it.
    ///
    /// # Errors
    ///
    /// As there; after [`EBUSY`], if that takes longer than a response may, and [`ERESTARTSYS`], on
    /// a fatal signal, the command is sent nevertheless.
    pub(crate) fn add_behind_teardown(&self, command: ListArc<Command>, credit: Credit) -> Result {
        let mut inner = self.inner.lock();
        if inner.backlog.is_empty() || inner.state != State::Running {
            drop(inner);
            return self.send(command, credit).map(drop);
        }
        let reference = command.clone_arc();
        let mut command = command;
        let (slots, quota, part) = credit.spend();
        command.shared.slots.store(slots, Relaxed);
        Message::owned(&mut command).taken_from = Some((quota, part));
        self.note_waiting(&mut inner);
        inner.backlog.push_back(command);
        drop(inner);
        self.wait_sent(&reference)
    }

    /// As [`ControlQueue::send`]; `fence` is signalled when the response comes. It gets its number
    /// here, so that numbers ascend in each timeline, and only then others can have it.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn send_fenced(
        &self,
        command: ListArc<Command>,
        fence: UnpublishedFence,
        credit: Credit,
    ) -> Result<(ARef<Fence>, Option<Notification>)> {
        let publish = |shared: &Shared, number| {
            let (promise, published) = fence.publish(number);
            shared.set_fence(promise);
            published
        };
        self.add_and(command, credit, publish, |queue| queue.kick_prepare())
    }

    /// As [`ControlQueue::send`], for a job of a context in fault mode, which the device responds
    /// to when it has accepted it. `publish` gets the fence id by which the device will tell of the
    /// job's end; it is called with the queue's lock held, also if the job is not sent after all.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn send_accepted(
        &self,
        command: ListArc<Command>,
        credit: Credit,
        publish: impl FnOnce(u64),
    ) -> Result<Option<Notification>> {
        let publish = |_: &Shared, number| publish(number);
        let sent = self.add_and(command, credit, publish, |queue| queue.kick_prepare());
        sent.map(|((), notification)| notification)
    }

    /// Has the context that `jobs` are of take only jobs for fault mode, or only others.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it ever had any.
    pub(crate) fn set_fault_mode(&self, jobs: &JobContext, fault_mode: bool) -> Result {
        let inner = self.inner.lock();
        let possible = jobs.set_fault_mode(fault_mode);
        drop(inner);
        if possible {
            Ok(())
        } else {
            Err(EBUSY)
        }
    }

    /// Puts a command into the ring, and does `then` before others can add to it. `publish` gets
    /// the command's number; what it returns is dropped if the command is.
    fn add_and<R>(
        &self,
        command: ListArc<Command>,
        credit: Credit,
        publish: impl FnOnce(&Shared, u64) -> R,
        then: impl FnOnce(&mut Queue<Shared, Owned>) -> Option<Notification>,
    ) -> Result<(R, Option<Notification>)> {
        let mut command = command;
        let (slots, quota, part) = credit.spend();
        command.shared.slots.store(slots, Relaxed);
        Message::owned(&mut command).taken_from = Some((quota, part));

        let mut inner = self.inner.lock();
        match self.accept(&mut inner, command, publish) {
            Ok(published) => {
                let notification = inner.queue.as_mut().and_then(then);
                Ok((published, notification))
            }
            Err((mut command, e)) => {
                self.return_slots(&mut inner, &mut command);
                // Others may have the room. What waits for descriptors is the watchdog's: the
                // caller may hold locks, under which the device must not be notified.
                self.room.serve(&mut inner.line);
                if !inner.pending.is_empty() || !inner.backlog.is_empty() {
                    self.transport.arm_watchdog(&mut inner);
                }
                drop(inner);
                // Dropping the command may free memory of others, hence not under the lock.
                drop(command);
                Err(e)
            }
        }
    }

    /// Gives a command its numbers and puts it into the ring, or behind those that wait for it.
    /// Either way it is sent.
    fn accept<R>(
        &self,
        inner: &mut Inner,
        mut command: ListArc<Command>,
        publish: impl FnOnce(&Shared, u64) -> R,
    ) -> Result<R, (ListArc<Command>, Error)> {
        if inner.state != State::Running || inner.queue.is_none() {
            return Err((command, ENODEV));
        }
        // Under the lock, by which `cancel_jobs` finds those that are accepted.
        let job = command.shared.job.as_ref();
        if job.is_some_and(|job| job.of.is_lost()) {
            return Err((command, EIO));
        }
        if job.is_some_and(|job| !job.of.takes_job(job.fault_mode)) {
            return Err((command, EOPNOTSUPP));
        }
        // Each has taken a descriptor, so there are enough places.
        let Some(index) = inner.places.pop() else {
            return Err((command, ENOSPC));
        };

        let number = inner.next_fence;
        let owned = Message::owned(&mut command);
        owned.index = index;
        let fenced = owned.header.flags.get() & FLAG_FENCE != 0;
        if fenced {
            owned.header.fence_id = number.into();
        }
        let header = owned.header;
        Message::patch_request(&mut command, 0, header.as_bytes());
        command.shared.order.store(number, Relaxed);
        let published = publish(&command.shared, number);

        let reference = command.clone_arc();
        let added = if inner.pending.is_empty() {
            self.put(inner, command)
        } else {
            Err((command, ENOSPC))
        };
        match added {
            Ok(()) => {}
            // There was no memory for a table of descriptors, here or for one before, and there are
            // not enough others. It goes in turn, as soon as there are.
            Err((command, e)) if e == ENOSPC => {
                inner.pending.push_back(command);
                self.transport.arm_watchdog(inner);
            }
            Err(refused) => {
                // There is room: it was just taken from there.
                let _ = inner.places.push_within_capacity(index);
                return Err(refused);
            }
        }
        if fenced {
            inner.next_fence += 1;
        }
        self.note_sent(inner, &reference);
        inner.in_flight[index] = Some(reference);
        Ok(published)
    }

    /// Puts a command that has its numbers into the ring.
    ///
    /// Without memory for a table it takes a descriptor for each part: those beyond what was taken
    /// for it must be free, or for teardown, what is kept for that.
    fn put(
        &self,
        inner: &mut Inner,
        command: ListArc<Command>,
    ) -> Result<(), (ListArc<Command>, Error)> {
        let Some(queue) = inner.queue.as_mut() else {
            return Err((command, ENODEV));
        };
        if self.transport.knobs.lacks_descriptors() {
            return Err((command, ENOSPC));
        }
        let reference = command.clone_arc();
        let mut command = command;
        let owned = Message::owned(&mut command);
        let (header, quota) = (owned.header, owned.taken_from.as_ref());
        let quota = quota.map(|(quota, _)| quota.clone());
        let slots = reference.shared.slots.load(Relaxed);
        let beyond = reference.descriptors().saturating_sub(slots);
        let (mut common, mut kept) = (0, 0);
        if self.room.take_beyond(beyond) {
            common = beyond;
        } else if quota.is_none() && inner.reserve >= beyond {
            kept = beyond;
        }
        let added = queue.add(command, slots + common + kept);
        let taken = added.as_ref().map_or(0, |taken| *taken);
        let more = taken.saturating_sub(slots);
        kept = kept.min(more);
        inner.reserve -= kept;
        let overdrawn = more - kept;
        self.room.overdraw(quota.as_deref(), common, overdrawn);
        match added {
            Ok(_) => {
                if more != 0 {
                    reference.shared.slots.store(taken, Relaxed);
                    reference.shared.overdrawn.store(overdrawn, Relaxed);
                }
                trace::command(self.transport.name(), &header, reference.descriptors());
                Ok(())
            }
            Err((command, e)) if e == ENOMEM || e == ENOSPC => Err((command, e)),
            Err((command, _)) => {
                dev_err!(self.transport.vdev, "device lost: its ring is broken\n");
                self.transport.lose_locked(inner);
                Err((command, ENODEV))
            }
        }
    }

    /// Tells the device that there are new commands.
    pub(crate) fn kick(&self) {
        let mut inner = self.inner.lock();
        let queue = inner.queue.as_mut();
        let notification = queue.and_then(|queue| queue.kick_prepare());
        drop(inner);
        drop(notification);
    }

    /// Sends a teardown command. Cannot fail, and does not sleep unless the
    /// device has been reset; then the command is completed on the spot.
    pub(crate) fn teardown(&self, command: ListArc<Command>) {
        let mut inner = self.inner.lock();
        let mut command = command;
        let state = inner.state;
        match state {
            State::Running if Self::follows_early(&mut inner, &mut command) => {
                inner.early.push_back(command);
            }
            State::Running => {
                self.note_waiting(&mut inner);
                inner.backlog.push_back(command);
                let notification = self.go_on(&mut inner);
                drop(inner);
                drop(notification);
            }
            State::Lost => inner.held.push_back(command),
            #[cfg(CONFIG_PM_SLEEP)]
            State::Asleep => inner.held.push_back(command),
            State::Reset => {
                drop(inner);
                let mut command = command;
                Control::abort(&command);
                Control::complete(&mut command);
            }
        }
    }

    /// Sends what waits for descriptors, as far as there are any, and gives others room. Returns
    /// what is left to do when the lock is dropped.
    fn go_on(&self, inner: &mut Inner) -> Option<Notification> {
        if inner.state != State::Running {
            return None;
        }
        let mut added = self.send_pending(inner);
        if inner.pending.is_empty() {
            added |= self.send_backlog(inner);
        }
        self.room.serve(&mut inner.line);
        let queue = inner.queue.as_mut().filter(|_| added);
        queue.and_then(|queue| queue.kick_prepare())
    }

    /// Sends what has its numbers. Returns whether it has sent anything.
    fn send_pending(&self, inner: &mut Inner) -> bool {
        let mut added = false;
        while let Some(command) = inner.pending.pop_front() {
            let Err((command, _)) = self.put(inner, command) else {
                added = true;
                continue;
            };
            inner.pending.push_front(command);
            // The next response, or the watchdog, tries again.
            if inner.state == State::Running {
                self.transport.arm_watchdog(inner);
            } else {
                self.hold_unsent(inner);
            }
            break;
        }
        added
    }

    /// Sends teardown that waits, and what must not come before it. Returns whether it has
    /// sent anything.
    fn send_backlog(&self, inner: &mut Inner) -> bool {
        let mut added = false;
        while let Some(mut command) = inner.backlog.pop_front() {
            let has_room = Message::owned(&mut command).taken_from.is_some();
            if !has_room {
                // One that counts for more, by its bytes, would never find them in the reserve.
                let slots = self.room.slots(&command).min(TEARDOWN_RESERVE);
                if inner.reserve >= slots {
                    inner.reserve -= slots;
                } else if !self.room.take_for_teardown(slots) {
                    inner.backlog.push_front(command);
                    break;
                }
                command.shared.slots.store(slots, Relaxed);
            }
            let reference = has_room.then(|| command.clone_arc());
            match self.accept(inner, command, |_, _| ()) {
                Ok(()) => {
                    added = true;
                    if let Some(sent) = reference {
                        sent.shared.wait.wake_all();
                    }
                }
                Err((mut command, _)) => {
                    // No memory to map it for the device: the next response, or the watchdog, tries
                    // again.
                    if !has_room || inner.state != State::Running {
                        self.return_slots(inner, &mut command);
                    }
                    if inner.state == State::Running {
                        inner.backlog.push_front(command);
                        self.transport.arm_watchdog(inner);
                    } else {
                        command.shared.wait.wake_all();
                        inner.held.push_back(command);
                    }
                    break;
                }
            }
            if !inner.pending.is_empty() {
                break;
            }
        }
        added
    }
}
