// SPDX-License-Identifier: GPL-2.0

//! The end of a device: how it is lost, reset and stopped.

use super::{
    command::{
        Command,
        ABORTED, //
    },
    Control,
    Inner,
    State, //
};
use crate::{
    kapi::{
        dma::fence::Signalling,
        sync::cancel_delayed_sync,
        virtio::QueueSetup, //
    },
    protocol::mirror::{
        device_state,
        feature,
        MirrorConfig,
        CONFIG_OFFSET, //
    },
};
use core::mem::offset_of;
use kernel::{
    list::List,
    prelude::*,
    sync::{
        atomic::ordering::{
            Full,
            Release, //
        },
        Arc, //
    },
    time::msecs_to_jiffies,
    workqueue::WorkItem, //
};

/// How long a reset may take until fences are signalled nevertheless.
const RESET_TIMEOUT_MS: u32 = 10_000;

/// What is to happen when a device has been reset.
pub(crate) trait OnReset: Send + Sync {
    /// Called once, when the device is known not to access memory any more, and the commands that
    /// it knew have been completed. May sleep.
    fn reset(&self);

    /// Called if the device does not return from its reset. May sleep.
    fn overdue(&self);
}

impl Control {
    /// Marks the device lost, wakes all waiters and has it reset.
    ///
    /// May be called in any context, any number of times.
    pub(crate) fn lose(self: &Arc<Self>, why: &CStr) {
        let mut inner = self.inner.lock();
        if inner.state != State::Running {
            return;
        }
        dev_err!(self.vdev, "device lost: {}\n", why);
        self.lose_locked(&mut inner);
    }

    /// Wakes all who wait for the device, to look again.
    fn wake_all(&self, inner: &Inner) {
        inner.line.wake_all();
        for command in inner.in_flight.iter().flatten() {
            command.shared.wait.wake_all();
        }
        // What is not in the ring, or was answered as it cannot be.
        for command in inner.held.iter() {
            command.shared.wait.wake_all();
        }
        self.mirror.wake();
    }

    pub(super) fn lose_locked(self: &Arc<Self>, inner: &mut Inner) {
        inner.state = State::Lost;
        self.lost.store(true, Release);
        self.hold_unsent(inner);
        self.wake_all(inner);
        let _ = self.reset_workqueue.enqueue::<Arc<Self>, 2>(self.clone());
        let delay = msecs_to_jiffies(RESET_TIMEOUT_MS);
        let _ = self
            .reset_workqueue
            .enqueue_delayed::<Arc<Self>, 3>(self.clone(), delay);
    }

    /// Marks the device lost and wakes all waiters, without a message: it is being removed.
    pub(crate) fn set_lost(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
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

    fn drop_queues(&self) {
        let queues = {
            let mut inner = self.inner.lock();
            (inner.queue.take(), inner.cursor.take())
        };
        drop(queues);
        drop(self.events.take_queue());
        drop(self.mirror.take_queue());
    }

    /// Marks the device lost, and returns when it has been reset: its bus will touch it.
    pub(crate) fn lose_and_reset(self: &Arc<Self>, why: &CStr) {
        self.lose(why);
        self.reset_workqueue.flush();
    }

    /// Resets a device that has neither contexts nor resources, for the time that the machine
    /// sleeps. The caller makes sure that no commands are sent meanwhile.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it has not answered everything.
    #[cfg(CONFIG_PM_SLEEP)]
    pub(crate) fn sleep(self: &Arc<Self>) -> Result {
        cancel_delayed_sync::<Self, 4>(self);
        self.workqueue.flush();
        {
            let mut inner = self.inner.lock();
            inner.watching = false;
            match inner.state {
                State::Running => {}
                // Only the queues are left.
                State::Reset => {
                    drop(inner);
                    self.drop_queues();
                    return Ok(());
                }
                _ => return Err(EBUSY),
            }
            if !inner.backlog.is_empty() || inner.in_flight.iter().any(Option::is_some) {
                self.arm_watchdog(&mut inner);
                return Err(EBUSY);
            }
            inner.state = State::Asleep;
        }
        self.binding.reset();
        self.mirror.reset();
        self.drop_queues();
        Ok(())
    }

    /// Starts the device again that [`Control::sleep`] has reset.
    ///
    /// # Errors
    ///
    /// Those of [`Control::start`], after which the device is lost.
    #[cfg(CONFIG_PM_SLEEP)]
    pub(crate) fn wake_up(
        self: &Arc<Self>,
        queues: QueueSetup<'_>,
        mirror: Option<usize>,
    ) -> Result {
        if self.is_lost() {
            return Ok(());
        }
        self.start(queues, mirror)
            .inspect_err(|_| self.set_lost_asleep())
    }

    /// Marks a device lost that did not wake up.
    #[cfg(CONFIG_PM_SLEEP)]
    fn set_lost_asleep(self: &Arc<Self>) {
        self.lose_locked(&mut self.inner.lock());
    }

    /// Aborts a command that the device never answered, and never will: signals its fence and wakes
    /// its waiters.
    pub(super) fn abort(command: &Command) {
        command.shared.status.store(ABORTED, Release);
        command.shared.signal(Err(ENODEV));
        command.shared.wait.wake_all();
    }
}

impl Control {
    /// The configuration space has changed. May be called in any context.
    pub(crate) fn config_changed(self: &Arc<Self>) {
        self.changed.store(true, Release);
        self.look_later();
    }

    /// Has the worker look at events and at the configuration. May be called in any context.
    pub(in crate::transport) fn look_later(self: &Arc<Self>) {
        let _ = self.workqueue.enqueue::<Arc<Self>, 5>(self.clone());
    }

    /// Looks whether the device says that it is lost. Not to be called for a device that may be
    /// dead: some hosts fail hard then.
    fn look_at_state(self: &Arc<Self>) {
        let field = CONFIG_OFFSET + offset_of!(MirrorConfig, device_state);
        if !self.is_lost() && self.binding.config_read32(field) == Ok(device_state::LOST) {
            self.lose(c"it says so");
        }
    }
}

/// Handles events and changes of the configuration.
impl WorkItem<5> for Control {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if this.changed.xchg(false, Full) && this.vdev.has_feature(feature::MIRROR) {
            this.look_at_state();
        }
        this.events.tell();
    }
}

/// Resets a lost device, and completes the commands that it had.
impl WorkItem<2> for Control {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.knobs.wait_to_reset();
        this.binding.reset();
        this.mirror.reset();

        let mut unanswered = List::new();
        let places = {
            let mut inner = this.inner.lock();
            inner.state = State::Reset;
            while let Some(mut command) =
                inner.queue.as_mut().and_then(|queue| queue.detach_unused())
            {
                this.return_slots(&mut inner, &mut command);
                unanswered.push_back(command);
            }
            unanswered.push_all_back(&mut inner.held);
            inner.in_flight.len()
        };

        // All fences before anything that may wait for others.
        let mut aborted = List::new();
        {
            let _section = Signalling::begin();
            while let Some(command) = unanswered.pop_front() {
                Self::abort(&command);
                aborted.push_back(command);
            }
        }
        for index in 0..places {
            let command = this.inner.lock().in_flight[index].take();
            drop(command);
        }

        // Commands that were answered before come first.
        this.workqueue.flush();
        while let Some(mut command) = aborted.pop_front() {
            Self::complete(&mut command);
        }
        this.on_reset.reset();
        this.wake_all(&this.inner.lock());
    }
}

/// Signals the fences of a device that does not return from its reset, so that others can go on.
impl WorkItem<3> for Control {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let ring_size = {
            let inner = this.inner.lock();
            if inner.state != State::Lost {
                return;
            }
            inner.in_flight.len()
        };
        dev_err!(
            this.vdev,
            "the device does not return from its reset; its memory is not released\n"
        );
        for index in 0..ring_size {
            let command = this.inner.lock().in_flight[index].clone();
            if let Some(command) = command {
                command.shared.signal(Err(ENODEV));
            }
        }
        this.on_reset.overdue();
    }
}
