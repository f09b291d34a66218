// SPDX-License-Identifier: GPL-2.0

//! Pinned memory: the kernel cannot move or free its pages until the registration ends.
//!
//! The pins and what was charged for them go together, the pins first, so that no one is charged
//! less than is pinned for them.

use crate::kapi::{
    dma::map::Mapper,
    mm::{
        PinnedVm,
        Pins,
        Run, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Pinned pages, charged to their owner.
pub(crate) struct Pinned {
    pins: Pins,
    _charge: PinnedVm,
}

impl Pinned {
    /// Pages that were pinned, and what was charged for them before.
    pub(crate) fn new(pins: Pins, charge: PinnedVm) -> Self {
        Self {
            pins,
            _charge: charge,
        }
    }

    /// The memory.
    pub(crate) fn runs(&self) -> &[Run] {
        self.pins.runs()
    }

    /// Maps the memory for a device that does not see physical addresses.
    ///
    /// # Errors
    ///
    /// Those of [`Pins::map_for`].
    pub(crate) fn map_for(&mut self, mapper: &Arc<Mapper>) -> Result {
        self.pins.map_for(mapper)
    }

    /// Passes the memory to `emit`, as addresses that the device sees and bytes.
    ///
    /// # Errors
    ///
    /// Those of `emit`.
    pub(crate) fn for_each_address(&self, mut emit: impl FnMut(u64, u64) -> Result) -> Result {
        match self.pins.dma() {
            Some(dma) => dma.for_each(emit),
            None => self
                .runs()
                .iter()
                .try_for_each(|run| emit(run.phys, run.len)),
        }
    }
}
