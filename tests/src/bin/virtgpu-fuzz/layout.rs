// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Where in the address space things are.
//!
//! The kernel writes to where random arguments point. Everything that these are made from is far
//! away from where the kernel puts what it finds an address for, so that a wrong bit does not hit
//! the fuzzer itself; and arguments, whose bytes are compared afterwards, are two bits away from
//! what they point to.

use crate::support::{HUGE, PAGE};
use crate::sys;

/// Memory in which mappings come and go, shared by all threads.
pub(crate) const MEMORY: usize = 0x3000_0000_0000;
/// Bytes of it.
pub(crate) const MEMORY_SIZE: usize = 16 * HUGE;

const DATA: usize = 0x3100_0000_0000;
const ARGUMENTS: usize = 0x3600_0000_0000;
/// From thread to thread.
const STRIDE: usize = 1 << 32;

/// What a thread's arguments may point to: always mapped, written by this thread and, where
/// arguments are wrong, by the kernel.
pub(crate) const DATA_SIZE: usize = 64 * PAGE;
/// Room for the structure of an ioctl; nothing is mapped behind it.
pub(crate) const ARGUMENT_SIZE: usize = 16 * PAGE;

/// A thread's own addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scratch {
    /// Start of [`DATA_SIZE`] bytes.
    pub(crate) data: usize,
    /// Start of [`ARGUMENT_SIZE`] bytes.
    pub(crate) argument: usize,
    /// A page that cannot be written, but while [`Scratch::fill_read_only`] writes it.
    pub(crate) read_only: usize,
}

impl Scratch {
    /// Maps what thread number `thread` uses.
    pub(crate) fn new(thread: usize) -> Result<Self, i32> {
        let scratch = Self {
            data: DATA + thread * STRIDE,
            argument: ARGUMENTS + thread * STRIDE,
            read_only: ARGUMENTS + thread * STRIDE + (1 << 24),
        };
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        sys::map_anonymous(scratch.data, DATA_SIZE, rw)?;
        sys::map_anonymous(scratch.argument, ARGUMENT_SIZE, rw)?;
        sys::map_anonymous(scratch.read_only, PAGE, libc::PROT_READ)?;
        Ok(scratch)
    }

    /// Writes to the page that cannot be written.
    pub(crate) fn fill_read_only(&self, bytes: &[u8]) -> Result<(), i32> {
        sys::protect(self.read_only, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
        let result = sys::write_memory(self.read_only, bytes);
        sys::protect(self.read_only, PAGE, libc::PROT_READ)?;
        result
    }
}
