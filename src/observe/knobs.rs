// SPDX-License-Identifier: GPL-2.0

//! Courses that chance takes seldom, made to happen. All knobs are 0 unless somebody with access to
//! debugfs turns one; to ask one that is off is to load a word that nobody writes.

#[cfg(CONFIG_DEBUG_FS)]
use kernel::{
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// The longest delay, in milliseconds: nobody who waits for it is taken for one that hangs.
#[cfg(CONFIG_DEBUG_FS)]
const MAX_DELAY_MS: u32 = 1000;

/// The longest that a reset is held up, in milliseconds, and how often it is looked whether it still
/// is to be.
#[cfg(CONFIG_DEBUG_FS)]
const MAX_HOLD_MS: i64 = 60_000;
#[cfg(CONFIG_DEBUG_FS)]
const HOLD_STEP_MS: i64 = 10;

/// The knobs of a device.
pub(crate) struct Knobs {
    /// Looks at the tables in submission that are still to be taken for lost races.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(super) force_retries: Atomic<u32>,
    /// Not 0: no INVALIDATE can be sent in the first pass.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(super) exhaust_invalidates: Atomic<u32>,
    /// Not 0: no notification gets a node, so that the first pass has to do everything.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(super) exhaust_nodes: Atomic<u32>,
    /// Milliseconds between the lookup of pages and their MAP.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(super) delay_map_ms: Atomic<u32>,
    /// Not 0: a device that was given up is not reset yet.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(super) hold_reset: Atomic<u32>,
    /// Attempts to put a command into the control ring that are still to find no descriptors.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(super) exhaust_descriptors: Atomic<u32>,
}

/// Counts down. Returns whether there was something left.
#[cfg(CONFIG_DEBUG_FS)]
fn use_one(number: &Atomic<u32>) -> bool {
    let mut left = number.load(Relaxed);
    while left > 0 {
        match number.cmpxchg(left, left - 1, Relaxed) {
            Ok(_) => return true,
            Err(now) => left = now,
        }
    }
    false
}

#[cfg(CONFIG_DEBUG_FS)]
impl Knobs {
    /// All off.
    pub(crate) const fn new() -> Self {
        Self {
            force_retries: Atomic::new(0),
            exhaust_invalidates: Atomic::new(0),
            exhaust_nodes: Atomic::new(0),
            delay_map_ms: Atomic::new(0),
            hold_reset: Atomic::new(0),
            exhaust_descriptors: Atomic::new(0),
        }
    }

    /// Whether this look at the tables is to be taken for a lost race.
    pub(crate) fn loses_race(&self) -> bool {
        use_one(&self.force_retries)
    }

    /// Whether this attempt to put a command into the control ring is to find no descriptors.
    pub(crate) fn lacks_descriptors(&self) -> bool {
        use_one(&self.exhaust_descriptors)
    }

    /// Whether commands for INVALIDATE are to be had in the first pass.
    pub(crate) fn has_invalidates(&self) -> bool {
        self.exhaust_invalidates.load(Relaxed) == 0
    }

    /// Whether nodes are to be had.
    pub(crate) fn has_nodes(&self) -> bool {
        self.exhaust_nodes.load(Relaxed) == 0
    }

    /// Waits between the lookup of pages and their MAP.
    pub(crate) fn delay_map(&self) {
        let ms = self.delay_map_ms.load(Relaxed);
        if ms > 0 {
            fsleep(Delta::from_millis(ms.min(MAX_DELAY_MS).into()));
        }
    }

    /// Waits until the device may be reset.
    pub(crate) fn wait_to_reset(&self) {
        for _ in 0..MAX_HOLD_MS / HOLD_STEP_MS {
            if self.hold_reset.load(Relaxed) == 0 {
                return;
            }
            fsleep(Delta::from_millis(HOLD_STEP_MS));
        }
    }
}

#[cfg(not(CONFIG_DEBUG_FS))]
impl Knobs {
    /// All off.
    pub(crate) const fn new() -> Self {
        Self {}
    }

    /// Whether this look at the tables is to be taken for a lost race.
    pub(crate) fn loses_race(&self) -> bool {
        false
    }

    /// Whether this attempt to put a command into the control ring is to find no descriptors.
    pub(crate) fn lacks_descriptors(&self) -> bool {
        false
    }

    /// Whether commands for INVALIDATE are to be had in the first pass.
    pub(crate) fn has_invalidates(&self) -> bool {
        true
    }

    /// Whether nodes are to be had.
    pub(crate) fn has_nodes(&self) -> bool {
        true
    }

    /// Waits between the lookup of pages and their MAP.
    pub(crate) fn delay_map(&self) {}

    /// Waits until the device may be reset.
    pub(crate) fn wait_to_reset(&self) {}
}
