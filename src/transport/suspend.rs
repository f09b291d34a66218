// SPDX-License-Identifier: GPL-2.0

//! A device that sleeps with the machine.
//!
//! It is reset for that time, and started again. Nothing that a program has of the host could be
//! restored, so the caller lets only a device sleep that has neither contexts nor resources; the
//! commands that may still be on their way are the driver's own.

use super::{
    State,
    Transport, //
};
use crate::kapi::{
    sync::cancel_delayed_sync,
    virtio::QueueSetup, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

impl Transport {
    /// Resets a device that has neither contexts nor resources, for the time that the machine
    /// sleeps. The caller makes sure that no commands are sent meanwhile.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it has not responded to everything.
    pub(crate) fn sleep(self: &Arc<Self>) -> Result {
        cancel_delayed_sync::<Self, 4>(self);
        self.workqueue.flush();
        {
            let mut inner = self.control.inner.lock();
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
            if !inner.is_idle() {
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

    /// Starts the device again that [`Transport::sleep`] has reset.
    ///
    /// # Errors
    ///
    /// Those of [`Transport::start`], after which the device is lost.
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
    fn set_lost_asleep(self: &Arc<Self>) {
        self.lose_locked(&mut self.control.inner.lock());
    }
}
