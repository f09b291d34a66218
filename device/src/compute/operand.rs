// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The operands of an operation, and why an operation on them ends early.
//!
//! An operand names a resource and an offset. While an operation runs, a [`Place`] keeps the memory
//! of that resource mapped. The guest may write that memory, and may unmap what a space has there,
//! at the same time: a read can return different bytes each time, and any access can fault.

use std::sync::Arc;

use virtgpu_protocol::compute::Operand;

use super::Environment;
use crate::memory::guarded::Fault;
use crate::memory::segments::Segments;

/// Why one operation ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It touched what it may not.
    Fault,
    /// It did not see in time what it waited for.
    TimedOut,
    /// The context or the device was torn down.
    Cancelled,
}

impl From<Fault> for Stop {
    fn from(_: Fault) -> Self {
        Self::Fault
    }
}

/// An operand with its memory.
pub(super) struct Place {
    pub(super) memory: Arc<Segments>,
    pub(super) offset: u64,
}

impl Place {
    /// The memory that `operand` names in the context of the job.
    ///
    /// # Errors
    ///
    /// [`Stop::Fault`], if the context has no such resource.
    pub(super) fn new(operand: &Operand, environment: &Environment<'_>) -> Result<Self, Stop> {
        let memory = (environment.memory)(operand.resource_id.get()).ok_or(Stop::Fault)?;
        Ok(Self {
            memory,
            offset: operand.offset.get(),
        })
    }

    /// Reads at `offset` bytes after the place. Offsets beyond the end of the address space fault.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        let offset = self.offset.checked_add(offset).ok_or(Stop::Fault)?;
        Ok(self.memory.read(offset, buffer)?)
    }

    /// Writes at `offset` bytes after the place.
    pub(super) fn write(&self, offset: u64, buffer: &[u8]) -> Result<(), Stop> {
        let offset = self.offset.checked_add(offset).ok_or(Stop::Fault)?;
        Ok(self.memory.write(offset, buffer)?)
    }
}
