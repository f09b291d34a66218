// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory of this process that operations of jobs name.

use core::marker::PhantomData;
use std::sync::atomic::AtomicU64;

use virtgpu_protocol::compute::Operand;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Memory;

/// Memory that a job reads.
#[derive(Clone, Copy, Debug)]
pub struct Input<'m> {
    address: u64,
    pub(super) length: u64,
    memory: PhantomData<&'m [u8]>,
}

/// Memory that a job reads and writes.
///
/// It can be named by many operations and jobs: the order in which jobs of several rings write is
/// open, but no one else uses the memory for `'m`.
#[derive(Clone, Copy, Debug)]
pub struct Output<'m> {
    address: u64,
    pub(super) length: u64,
    memory: PhantomData<&'m mut [u8]>,
}

impl<'m, T: IntoBytes + Immutable + ?Sized> From<&'m T> for Input<'m> {
    fn from(value: &'m T) -> Self {
        Self {
            address: (&raw const *value).addr() as u64,
            length: size_of_val(value) as u64,
            memory: PhantomData,
        }
    }
}

impl<'m, T: FromBytes + IntoBytes + ?Sized> From<&'m mut T> for Output<'m> {
    fn from(value: &'m mut T) -> Self {
        let length = size_of_val(value) as u64;
        Self {
            // The device writes through it, as a system call would.
            address: (&raw mut *value).expose_provenance() as u64,
            length,
            memory: PhantomData,
        }
    }
}

impl<'m> From<Output<'m>> for Input<'m> {
    fn from(output: Output<'m>) -> Self {
        Self {
            address: output.address,
            length: output.length,
            memory: PhantomData,
        }
    }
}

fn part(length: u64, offset: u64, part: u64) {
    let inside = offset.checked_add(part).is_some_and(|end| end <= length);
    assert!(inside, "{offset}+{part} is outside of {length} bytes");
}

impl<'m> Input<'m> {
    /// All of `memory`.
    pub fn memory<M: Memory + ?Sized>(memory: &'m M) -> Self {
        Output::memory(memory).into()
    }

    /// `length` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// If they are not inside.
    pub fn part(self, offset: u64, length: u64) -> Self {
        part(self.length, offset, length);
        Self {
            address: self.address + offset,
            length,
            ..self
        }
    }

    pub(super) fn operand(self) -> Operand {
        Operand::resource(0, self.address)
    }
}

impl<'m> Output<'m> {
    /// All of `memory`.
    pub fn memory<M: Memory + ?Sized>(memory: &'m M) -> Self {
        Self {
            address: memory.as_ptr().expose_provenance() as u64,
            length: memory.len() as u64,
            memory: PhantomData,
        }
    }

    /// A word that others may use at the same time.
    pub fn word(word: &'m AtomicU64) -> Self {
        Self {
            address: word.as_ptr().expose_provenance() as u64,
            length: size_of::<u64>() as u64,
            memory: PhantomData,
        }
    }

    /// `length` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// If they are not inside.
    pub fn part(self, offset: u64, length: u64) -> Self {
        part(self.length, offset, length);
        Self {
            address: self.address + offset,
            length,
            ..self
        }
    }

    pub(super) fn operand(self) -> Operand {
        Operand::resource(0, self.address)
    }
}

/// `pointer` as an operand of a [`Stream`](crate::compute::Stream), for
/// [`AddressSpace::submit`](super::AddressSpace::submit).
pub fn pointer<T: ?Sized>(pointer: *const T) -> Operand {
    Operand::resource(0, pointer.cast::<u8>().expose_provenance() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "is outside of 8 bytes")]
    fn a_part_is_inside() {
        let _ = Input::from(&1_u64).part(4, 5);
    }
}
