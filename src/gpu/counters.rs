// SPDX-License-Identifier: GPL-2.0

//! What has happened to mirrored memory since the device was bound.
//!
//! Without CONFIG_DEBUG_FS counters take no room, and counting compiles to nothing.

use crate::kapi::mm::Change;
#[cfg(CONFIG_DEBUG_FS)]
use kernel::sync::atomic::{
    ordering::Relaxed,
    Atomic, //
};

/// A number that only grows.
pub(crate) struct Counter {
    #[cfg(CONFIG_DEBUG_FS)]
    value: Atomic<u64>,
}

impl Counter {
    const fn new() -> Self {
        Self {
            #[cfg(CONFIG_DEBUG_FS)]
            value: Atomic::new(0),
        }
    }

    /// Adds to it. Notifier callbacks may.
    #[cfg_attr(
        not(CONFIG_DEBUG_FS),
        allow(unused_variables, reason = "only debugfs shows it")
    )]
    pub(crate) fn add(&self, by: u64) {
        #[cfg(CONFIG_DEBUG_FS)]
        self.value.add(by, Relaxed);
    }

    /// Makes it `to` if it is less. Notifier callbacks may.
    #[cfg_attr(
        not(CONFIG_DEBUG_FS),
        allow(unused_variables, reason = "only debugfs shows it")
    )]
    pub(crate) fn raise(&self, to: u64) {
        #[cfg(CONFIG_DEBUG_FS)]
        {
            let mut now = self.value.load(Relaxed);
            while now < to {
                match self.value.cmpxchg(now, to, Relaxed) {
                    Ok(_) => break,
                    Err(other) => now = other,
                }
            }
        }
    }

    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

/// The counters of a device. What there is now is the difference of two.
pub(crate) struct Counters {
    /// MAP commands.
    pub(crate) maps: Counter,
    /// Notifications that hit pages which the device could reach, by [`Change`].
    invalidations: [Counter; Change::COUNT],
    /// INVALIDATE commands sent in the first pass over the notifiers.
    pub(crate) sent_in_first_pass: Counter,
    /// Notifications that were brought to an end in the first pass, for want of a node.
    pub(crate) ended_in_first_pass: Counter,
    /// INVALIDATE commands that the device has acknowledged.
    pub(crate) acknowledgements: Counter,
    /// Lookups repeated because pages moved.
    pub(crate) lookup_retries: Counter,
    /// Looks at the tables in submission after which memory had to be made ready again.
    pub(crate) lost_races: Counter,
    /// Pages that were marked dirty when they were invalidated.
    pub(crate) dirtied_pages: Counter,
    /// Pages evicted because the device had no room.
    pub(crate) evicted_pages: Counter,
    /// Pages put into quarantine because the device was lost, and those of them that were released.
    pub(crate) quarantined_pages: Counter,
    pub(crate) released_pages: Counter,
    /// Most words and granules of a table that were looked at while the lock of the tables was
    /// held.
    pub(crate) longest_look: Counter,
    /// Spaces that the device was told of, and those of them that were ended. After a reset more
    /// may have ended than there were.
    pub(crate) spaces: Counter,
    pub(crate) ended_spaces: Counter,
    /// Address spaces of processes, and those of them of which nothing is left.
    pub(crate) address_spaces: Counter,
    pub(crate) gone_address_spaces: Counter,
}

impl Counters {
    /// Nothing has happened.
    pub(super) const fn new() -> Self {
        Self {
            maps: Counter::new(),
            invalidations: [const { Counter::new() }; Change::COUNT],
            sent_in_first_pass: Counter::new(),
            ended_in_first_pass: Counter::new(),
            acknowledgements: Counter::new(),
            lookup_retries: Counter::new(),
            lost_races: Counter::new(),
            dirtied_pages: Counter::new(),
            evicted_pages: Counter::new(),
            quarantined_pages: Counter::new(),
            released_pages: Counter::new(),
            longest_look: Counter::new(),
            spaces: Counter::new(),
            ended_spaces: Counter::new(),
            address_spaces: Counter::new(),
            gone_address_spaces: Counter::new(),
        }
    }

    /// A notification has hit pages which the device could reach.
    pub(crate) fn invalidated(&self, change: Change) {
        self.invalidations[change as usize].add(1);
    }

    /// The device has been reset, and has no spaces; there will be none any more.
    pub(crate) fn forget_spaces(&self) {
        #[cfg(CONFIG_DEBUG_FS)]
        self.ended_spaces.raise(self.spaces.get());
    }

    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn invalidations(&self, change: Change) -> u64 {
        self.invalidations[change as usize].get()
    }
}
