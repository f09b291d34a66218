// SPDX-License-Identifier: GPL-2.0

//! Knobs that force rare code paths: what a knob is, and those of the queues.
//!
//! A knob is 0 unless root sets it in debugfs; to read one that is off costs the load of a word
//! that is not written. Without CONFIG_DEBUG_FS a knob takes no room and is 0.

#[cfg(CONFIG_DEBUG_FS)]
use kernel::sync::atomic::{
    ordering::Relaxed,
    Atomic, //
};
use kernel::time::{
    delay::fsleep,
    Delta, //
};

/// The longest that a reset is held up, in milliseconds, and how often it is looked whether it
/// still is to be.
const MAX_HOLD_MS: i64 = 60_000;
const HOLD_STEP_MS: i64 = 10;

/// A knob.
pub(crate) struct Knob {
    #[cfg(CONFIG_DEBUG_FS)]
    value: Atomic<u32>,
}

impl Knob {
    /// Off.
    pub(crate) const fn new() -> Self {
        Self {
            #[cfg(CONFIG_DEBUG_FS)]
            value: Atomic::new(0),
        }
    }

    /// What it is turned to.
    #[inline]
    pub(crate) fn get(&self) -> u32 {
        #[cfg(CONFIG_DEBUG_FS)]
        let value = self.value.load(Relaxed);
        #[cfg(not(CONFIG_DEBUG_FS))]
        let value = 0;
        value
    }

    /// Counts down. Returns whether there was something left.
    #[inline]
    pub(crate) fn use_one(&self) -> bool {
        #[cfg(CONFIG_DEBUG_FS)]
        {
            let mut left = self.value.load(Relaxed);
            while left > 0 {
                match self.value.cmpxchg(left, left - 1, Relaxed) {
                    Ok(_) => return true,
                    Err(now) => left = now,
                }
            }
        }
        false
    }

    /// What turns it.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn number(&self) -> &Atomic<u32> {
        &self.value
    }
}

/// The knobs of the queues of a device.
pub(crate) struct Knobs {
    /// Not 0: a lost device is not reset yet.
    pub(crate) hold_reset: Knob,
    /// Attempts to put a command into the control ring that are still to find no descriptors.
    pub(crate) exhaust_descriptors: Knob,
}

impl Knobs {
    /// All off.
    pub(super) const fn new() -> Self {
        Self {
            hold_reset: Knob::new(),
            exhaust_descriptors: Knob::new(),
        }
    }

    /// Whether this attempt to put a command into the control ring is to find no descriptors.
    pub(super) fn lacks_descriptors(&self) -> bool {
        self.exhaust_descriptors.use_one()
    }

    /// Waits until the device may be reset.
    pub(super) fn wait_to_reset(&self) {
        for _ in 0..MAX_HOLD_MS / HOLD_STEP_MS {
            if self.hold_reset.get() == 0 {
                return;
            }
            fsleep(Delta::from_millis(HOLD_STEP_MS));
        }
    }
}
