// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The operands of an operation, and why an operation on them ends early.
//!
//! An operand names a resource and an offset, or an address of its context. While an operation
//! runs, a [`Place`] keeps the memory of a resource mapped, unless it is only [`Lent`]. The guest
//! may write that memory, and may unmap what a space has there, at the same time: a read can return
//! different bytes each time, and any access can fault.

use std::sync::Arc;

use virtgpu_protocol::compute::Operand;

use super::Environment;
use crate::memory::guarded::Fault;
use crate::memory::lent::Lent;
use crate::memory::segments::Segments;

/// Why one operation ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It touched what it may not.
    Fault,
    /// An access to this address of its context was not possible.
    Address(u64),
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

/// The addresses of a context. An access to what is not there waits until it is.
pub trait Addresses {
    /// Whether there are `length` bytes at `address`; it says nothing about what is mapped.
    ///
    /// # Errors
    ///
    /// [`Stop::Address`] if one of them is outside.
    fn check(&self, address: u64, length: u64) -> Result<(), Stop>;

    /// Reads `buffer.len()` bytes.
    ///
    /// # Errors
    ///
    /// If one of them cannot be read, or the job is to end.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Stop>;

    /// Writes `buffer`.
    ///
    /// # Errors
    ///
    /// If one of the bytes cannot be written, or the job is to end. Those before it are written.
    fn write(&self, address: u64, buffer: &[u8]) -> Result<(), Stop>;

    /// Adds `value` to the u64 at `address`, a multiple of 8.
    ///
    /// # Errors
    ///
    /// If it cannot be written, or the job is to end.
    fn add(&self, address: u64, value: u64) -> Result<(), Stop>;
}

/// What the offset of an operand is in.
#[derive(Clone)]
pub enum Memory<'a> {
    /// A resource that stays until the job is over.
    Resource(Arc<Segments>),
    /// A resource that no one keeps for the job.
    Lent(Arc<Lent>),
    /// The addresses of the context.
    Space(&'a dyn Addresses),
}

impl Memory<'_> {
    /// Whether `length` bytes at `offset` are inside.
    pub(super) fn check(&self, offset: u64, length: u64) -> Result<(), Stop> {
        match self {
            Self::Resource(memory) => Ok(memory.check(offset, length)?),
            Self::Lent(lent) => Ok(lent.with(|memory| memory.check(offset, length))?),
            Self::Space(space) => space.check(offset, length),
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        match self {
            Self::Resource(memory) => Ok(memory.read(offset, buffer)?),
            Self::Lent(lent) => Ok(lent.with(|memory| memory.read(offset, buffer))?),
            Self::Space(space) => space.read(offset, buffer),
        }
    }
}

/// An operand with its memory.
pub(super) struct Place<'a> {
    memory: Memory<'a>,
    pub(super) offset: u64,
}

impl<'a> Place<'a> {
    /// The memory that `operand` names in the context of the job.
    ///
    /// # Errors
    ///
    /// [`Stop::Fault`], if the context has no such resource.
    pub(super) fn new(operand: &Operand, environment: &Environment<'a>) -> Result<Self, Stop> {
        let memory = (environment.memory)(operand.resource_id.get()).ok_or(Stop::Fault)?;
        Ok(Self {
            memory,
            offset: operand.offset.get(),
        })
    }

    /// Reads at `offset` bytes after the place. Offsets beyond the end of the address space fault.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        let offset = self.offset.checked_add(offset).ok_or(Stop::Fault)?;
        self.memory.read(offset, buffer)
    }

    /// Writes at `offset` bytes after the place.
    pub(super) fn write(&self, offset: u64, buffer: &[u8]) -> Result<(), Stop> {
        let offset = self.offset.checked_add(offset).ok_or(Stop::Fault)?;
        match &self.memory {
            Memory::Resource(memory) => Ok(memory.write(offset, buffer)?),
            Memory::Lent(lent) => Ok(lent.with(|memory| memory.write(offset, buffer))?),
            Memory::Space(space) => space.write(offset, buffer),
        }
    }

    /// Reads the u64 at `offset`, whatever the place.
    pub(super) fn read_u64(&self, offset: u64) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        self.memory.read(offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Adds `value` to the u64 at the place, atomically.
    pub(super) fn add(&self, value: u64) -> Result<(), Stop> {
        match &self.memory {
            Memory::Resource(memory) => memory.fetch_add(self.offset, value).map(drop)?,
            Memory::Lent(lent) => {
                lent.with(|memory| memory.fetch_add(self.offset, value).map(drop))?;
            }
            Memory::Space(space) => space.add(self.offset, value)?,
        }
        Ok(())
    }
}
