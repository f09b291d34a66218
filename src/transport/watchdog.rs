// SPDX-License-Identifier: GPL-2.0

//! The watchdog: a timer that runs as long as something is to be noticed that no interrupt tells.
//!
//! What it notices is a matter of the control queue, and described in `control::patience`: a device
//! that responds to nothing, jobs that do not end, and commands that found no descriptors or no
//! memory.

use super::{
    control::{
        ControlQueue,
        Inner, //
    },
    State,
    Transport, //
};
use kernel::{
    sync::Arc,
    time::msecs_to_jiffies,
    workqueue::WorkItem, //
};

/// How often the watchdog looks, at least.
const WATCHDOG_MS: u32 = 1_000;

/// The time that it leaves between two looks at the ring, at least.
const WATCHDOG_MIN_MS: u32 = 10;

impl Transport {
    /// Has the watchdog look, as soon as that makes sense, unless it is to already. `inner` is what
    /// the lock of the control queue protects.
    pub(super) fn arm_watchdog(self: &Arc<Self>, inner: &mut Inner) {
        // Once the device is stopped no one cancels it, and it must not have the last reference.
        if inner.state == State::Running && !inner.watching {
            inner.watching = true;
            // Often enough that the device gets the probe well before the time is over, and that no
            // job has much more than its time.
            let limits = [self.timeouts.response_ms, self.timeouts.job_ms];
            let limits = limits.into_iter().filter(|limit| *limit != 0);
            let delay = limits.fold(WATCHDOG_MS, |delay, limit| delay.min(limit / 4));
            let delay = delay.max(WATCHDOG_MIN_MS);
            let delay = msecs_to_jiffies(delay);
            let _ = self
                .reset_workqueue
                .enqueue_delayed::<Arc<Self>, 4>(self.clone(), delay);
        }
    }
}

/// Notices a device that responds to nothing, and jobs that do not end.
impl WorkItem<4> for Transport {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        ControlQueue::from(this).look();
    }
}
