// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Merging of pages into runs.
//!
//! A run is a stretch of device-visible (guest-physical or DMA) addresses without a hole. The
//! device pays for every run, so the number of runs is the minimum that the addresses allow.

/// The longest run: a multiple of 64 KiB (the largest page size of any architecture) whose length
/// still fits the 32-bit field of a memory entry.
pub const MAX_RUN: u64 = 0xffff_0000;

/// A stretch of device-visible addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Guest-physical or DMA address.
    pub addr: u64,
    /// Bytes, 1 to [`MAX_RUN`].
    pub length: u32,
}

/// Merges pieces, handed over in the order of the user's addresses, into runs.
///
/// # Invariants
///
/// `pending` is empty or a run not yet emitted; `pending.1 <= MAX_RUN`, and
/// `pending.0 + pending.1` does not wrap.
#[derive(Debug, Default)]
pub struct Merger {
    pending: (u64, u64),
}

impl Merger {
    /// A merger that has seen nothing.
    pub const fn new() -> Self {
        Self { pending: (0, 0) }
    }

    /// Adds the piece of `length` bytes at `addr`, and passes every run that is complete to `emit`.
    ///
    /// A piece that would wrap around the end of the address space is cut there: no memory is.
    ///
    /// # Errors
    ///
    /// Those of `emit`; the merger must not be used after that.
    pub fn push<E>(
        &mut self,
        mut addr: u64,
        length: u64,
        mut emit: impl FnMut(Run) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = length.min(u64::MAX - addr);
        while left > 0 {
            let (start, have) = self.pending;
            let room = MAX_RUN - have;
            if have != 0 && start + have == addr && room > 0 {
                let take = left.min(room);
                self.pending.1 += take;
                addr += take;
                left -= take;
            } else {
                self.flush(&mut emit)?;
                let take = left.min(MAX_RUN);
                self.pending = (addr, take);
                addr += take;
                left -= take;
            }
        }
        Ok(())
    }

    /// Passes the last run to `emit`, if there is one.
    ///
    /// # Errors
    ///
    /// Those of `emit`.
    pub fn flush<E>(&mut self, mut emit: impl FnMut(Run) -> Result<(), E>) -> Result<(), E> {
        let (addr, length) = core::mem::take(&mut self.pending);
        if length == 0 {
            return Ok(());
        }
        // By the invariant the length is at most `MAX_RUN`, which fits.
        emit(Run {
            addr,
            length: length as u32,
        })
    }
}
