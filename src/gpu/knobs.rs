// SPDX-License-Identifier: GPL-2.0

//! Knobs that force rare code paths of mirrored memory. The queues have
//! [knobs of their own](crate::transport::knobs), where it is said what a knob is.

use crate::transport::knobs::Knob;
use kernel::time::{
    delay::fsleep,
    Delta, //
};

/// The longest delay, in milliseconds: below the time after which the kernel takes a task for hung.
const MAX_DELAY_MS: u32 = 1000;

/// The knobs of a device.
pub(crate) struct Knobs {
    /// Looks at the tables in submission that are still to be taken for lost races.
    pub(crate) force_retries: Knob,
    /// Not 0: no INVALIDATE can be sent in the first pass.
    pub(crate) exhaust_invalidates: Knob,
    /// Not 0: no notification gets a node, so that the first pass has to do everything.
    pub(crate) exhaust_nodes: Knob,
    /// Milliseconds between the lookup of pages and their MAP.
    pub(crate) delay_map_ms: Knob,
}

impl Knobs {
    /// All off.
    pub(super) const fn new() -> Self {
        Self {
            force_retries: Knob::new(),
            exhaust_invalidates: Knob::new(),
            exhaust_nodes: Knob::new(),
            delay_map_ms: Knob::new(),
        }
    }

    /// Whether this look at the tables is to be taken for a lost race.
    pub(crate) fn loses_race(&self) -> bool {
        self.force_retries.use_one()
    }

    /// Whether commands for INVALIDATE are to be had in the first pass.
    pub(crate) fn has_invalidates(&self) -> bool {
        self.exhaust_invalidates.get() == 0
    }

    /// Whether nodes are to be had.
    pub(crate) fn has_nodes(&self) -> bool {
        self.exhaust_nodes.get() == 0
    }

    /// Waits between the lookup of pages and their MAP.
    pub(crate) fn delay_map(&self) {
        let ms = self.delay_map_ms.get();
        if ms > 0 {
            fsleep(Delta::from_millis(ms.min(MAX_DELAY_MS).into()));
        }
    }
}
