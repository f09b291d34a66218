// SPDX-License-Identifier: GPL-2.0

//! What becomes of commands when the device is lost, reset or gone.
//!
//! Commands that the device does not have yet are held when it is lost, so that what they hold
//! stays until the reset; then they and those in the ring are aborted.
//! [`Transport`](super::Transport) decides when, and calls this under the lock of the queue or
//! after the reset, when no interrupt adds to the lists any more.

use super::{
    command::{
        Command,
        Owned,
        Shared, //
    },
    Control,
    Inner, //
};
use crate::{
    kapi::{
        dma::fence::Signalling,
        virtio::{
            Message,
            Queue, //
        },
    },
    transport::status::ABORTED,
};
use kernel::{
    list::List,
    prelude::*,
    sync::atomic::ordering::Release, //
};

impl Inner {
    /// Whether the device has nothing to respond to, and no teardown waits.
    #[cfg(CONFIG_PM_SLEEP)]
    pub(in crate::transport) fn is_idle(&self) -> bool {
        self.backlog.is_empty() && self.in_flight.iter().all(Option::is_none)
    }
}

impl Control {
    /// The device is lost: what it does not have is held until the reset.
    pub(in crate::transport) fn hold_unsent(&self, inner: &mut Inner) {
        while let Some(mut command) = inner.pending.pop_front() {
            self.return_slots(inner, &mut command);
            inner.held.push_back(command);
        }
        while let Some(mut command) = inner.backlog.pop_front() {
            if Message::owned(&mut command).taken_from.is_some() {
                self.return_slots(inner, &mut command);
            }
            inner.held.push_back(command);
        }
        let mut early = List::new();
        core::mem::swap(&mut early, &mut inner.early);
        inner.held.push_all_back(&mut early);
    }

    /// Wakes all who wait for a response, or for room in the ring, to look again.
    pub(in crate::transport) fn wake_all(&self, inner: &Inner) {
        inner.line.wake_all();
        for command in inner.in_flight.iter().flatten() {
            command.shared.wait.wake_all();
        }
        // What is not in the ring, or has a response as there cannot be.
        for command in inner.held.iter() {
            command.shared.wait.wake_all();
        }
    }

    /// The device has been reset: takes the commands that it never responded to.
    pub(in crate::transport) fn take_outstanding(&self, inner: &mut Inner) -> List<Command> {
        let mut outstanding = List::new();
        while let Some(mut command) = inner.queue.as_mut().and_then(|queue| queue.detach_unused()) {
            self.return_slots(inner, &mut command);
            outstanding.push_back(command);
        }
        outstanding.push_all_back(&mut inner.held);
        outstanding
    }

    /// Aborts commands that the device never responded to, and never will: signals their fences and
    /// wakes their waiters. All fences before anything that may wait for others.
    pub(in crate::transport) fn abort_all(&self, mut outstanding: List<Command>) -> List<Command> {
        let mut aborted = List::new();
        {
            let _section = Signalling::begin();
            while let Some(command) = outstanding.pop_front() {
                Self::abort(&command);
                aborted.push_back(command);
            }
        }
        let places = self.inner.lock().in_flight.len();
        for index in 0..places {
            let command = self.inner.lock().in_flight[index].take();
            drop(command);
        }
        aborted
    }

    /// Aborts a command that the device never responded to, and never will: signals its fence and
    /// wakes its waiters.
    pub(super) fn abort(command: &Command) {
        command.shared.status.store(ABORTED, Release);
        command.shared.signal(Err(ENODEV));
        command.shared.wait.wake_all();
    }

    /// Completes commands that were aborted.
    pub(in crate::transport) fn complete_all(mut aborted: List<Command>) {
        while let Some(mut command) = aborted.pop_front() {
            Self::complete(&mut command);
        }
    }

    /// Signals the fences of the commands that the device has, with an error. It may still have
    /// them.
    pub(in crate::transport) fn fail_fences(&self) {
        let places = self.inner.lock().in_flight.len();
        for index in 0..places {
            let command = self.inner.lock().in_flight[index].clone();
            if let Some(command) = command {
                command.shared.signal(Err(ENODEV));
            }
        }
    }

    /// Removes the queues: the device is gone. They are control and cursor queue.
    pub(in crate::transport) fn take_queues(&self) -> [Option<Queue<Shared, Owned>>; 2] {
        let mut inner = self.inner.lock();
        [inner.queue.take(), inner.cursor.take()]
    }
}
