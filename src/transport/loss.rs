// SPDX-License-Identifier: GPL-2.0

//! The end of a device: how it is lost, reset and stopped.
//!
//! A device that breaks a ring, responds to a command that releases memory with something that
//! cannot be, responds to nothing at all, or is removed is *lost*: waiters return, no more commands
//! are sent, and a worker resets it. One command that is not responded to, or not properly, fails
//! for its sender alone (`control::patience`). Only when the reset has returned is the device known
//! not to write, and only then are the fences signalled with an error, the commands completed as
//! aborted, and what they hold released. A device that does not return from its reset for
//! [`RESET_TIMEOUT_MS`] gets its fences signalled nevertheless, so that others can go on; its
//! memory then stays, and so does the module: removal waits for the reset.

use super::{
    control::{
        Control,
        Inner, //
    },
    State,
    Transport, //
};
use crate::kapi::sync::cancel_delayed_sync;
use kernel::{
    prelude::*,
    sync::{
        atomic::ordering::Release,
        Arc, //
    },
    time::msecs_to_jiffies,
    workqueue::WorkItem, //
};

/// How long a reset may take until fences are signalled nevertheless.
const RESET_TIMEOUT_MS: u32 = 10_000;

impl Transport {
    /// Marks the device lost, wakes all waiters and has it reset.
    ///
    /// May be called in any context, any number of times.
    pub(crate) fn lose(self: &Arc<Self>, why: &CStr) {
        let mut inner = self.control.inner.lock();
        if inner.state != State::Running {
            return;
        }
        dev_err!(self.vdev, "device lost: {}\n", why);
        self.lose_locked(&mut inner);
    }

    /// The same, without a message. `inner` is what the lock of the control queue protects.
    pub(super) fn lose_locked(self: &Arc<Self>, inner: &mut Inner) {
        inner.state = State::Lost;
        self.lost.store(true, Release);
        self.control.hold_unsent(inner);
        self.wake_all(inner);
        let _ = self.reset_workqueue.enqueue::<Arc<Self>, 2>(self.clone());
        let delay = msecs_to_jiffies(RESET_TIMEOUT_MS);
        let _ = self
            .reset_workqueue
            .enqueue_delayed::<Arc<Self>, 3>(self.clone(), delay);
    }

    /// Wakes all who wait for the device, to look again.
    fn wake_all(&self, inner: &Inner) {
        self.control.wake_all(inner);
        self.mirror.wake();
    }

    /// Marks the device lost and wakes all waiters, without a message: it is being removed.
    pub(crate) fn set_lost(self: &Arc<Self>) {
        let mut inner = self.control.inner.lock();
        if inner.state == State::Running {
            self.lose_locked(&mut inner);
        }
    }

    /// Stops the device: on return it has been reset, all commands are completed, the queues are
    /// gone, and no work runs.
    pub(crate) fn stop(self: &Arc<Self>) {
        self.set_lost();
        self.reset_workqueue.flush();
        cancel_delayed_sync::<Self, 3>(self);
        cancel_delayed_sync::<Self, 4>(self);
        self.workqueue.flush();
        self.drop_queues();
    }

    pub(super) fn drop_queues(&self) {
        drop(self.control.take_queues());
        drop(self.events.take_queue());
        drop(self.mirror.take_queue());
    }

    /// Marks the device lost, and returns when it has been reset: its bus will touch it.
    pub(crate) fn lose_and_reset(self: &Arc<Self>, why: &CStr) {
        self.lose(why);
        self.reset_workqueue.flush();
    }
}

/// Resets a lost device, and completes the commands that it had.
impl WorkItem<2> for Transport {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.knobs.wait_to_reset();
        this.binding.reset();
        this.mirror.reset();

        let outstanding = {
            let mut inner = this.control.inner.lock();
            inner.state = State::Reset;
            this.control.take_outstanding(&mut inner)
        };
        let aborted = this.control.abort_all(outstanding);

        // Commands that were responded to before come first.
        this.workqueue.flush();
        Control::complete_all(aborted);
        this.on_reset.reset();
        this.wake_all(&this.control.inner.lock());
    }
}

/// Signals the fences of a device that does not return from its reset, so that others can go on.
impl WorkItem<3> for Transport {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if this.control.inner.lock().state != State::Lost {
            return;
        }
        dev_err!(
            this.vdev,
            "the device does not return from its reset; its memory is not released\n"
        );
        this.control.fail_fences();
        this.on_reset.overdue();
    }
}
