// SPDX-License-Identifier: GPL-2.0

//! SVM_WAIT: waiting for jobs, or for what they write.
//!
//! Jobs of a context in fault mode have no fences: what a fence is waited for may be what memory
//! reclaim needs, and a fault may wait for a program. So the program itself waits here,
//! interruptibly. Whoever waits is woken by each end of a job, and looks again.

use super::Svm;
use crate::kapi::sync::monotonic_ns;
use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// How a number is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

/// What to wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// All jobs that were sent on this ring are over.
    Ring(u32),
    /// The `u64` at `addr`, as far as `mask` goes, compares with `value` in this way. It is looked
    /// at whenever a job of the file is over.
    Compares {
        addr: usize,
        value: u64,
        mask: u64,
        how: Comparison,
    },
}

impl Svm {
    /// Waits until something is so, or until `deadline_ns`, by the monotonic clock; 0 only asks,
    /// and a negative one is none.
    ///
    /// # Errors
    ///
    /// - [`ETIME`] if it is not so in time;
    /// - [`EIO`] if the context is lost; for jobs, not before they are over, so that none of them
    ///   touches memory any more;
    /// - [`ERESTARTSYS`] on a signal;
    /// - [`EFAULT`] for an address that cannot be read.
    pub(crate) fn wait(&self, until: Until, deadline_ns: i64) -> Result {
        let last = match until {
            Until::Ring(ring) => self.jobs.last_of_ring(ring),
            Until::Compares { .. } => 0,
        };
        loop {
            let seen = self.jobs.ends();
            let is_lost = self.check().is_err();
            match until {
                Until::Ring(ring) if self.jobs.are_over(ring, last) => return self.check_loss(),
                Until::Ring(_) => {}
                Until::Compares { .. } if is_lost => return self.check_loss(),
                Until::Compares {
                    addr,
                    value,
                    mask,
                    how,
                } => {
                    if how.holds(read(addr)? & mask, value) {
                        return Ok(());
                    }
                }
            }
            let ms = match deadline_ns {
                0 => return Err(ETIME),
                deadline if deadline < 0 => u32::MAX,
                deadline => {
                    let left = deadline.saturating_sub(monotonic_ns());
                    if left <= 0 {
                        return Err(ETIME);
                    }
                    u32::try_from(left.unsigned_abs().div_ceil(1_000_000)).unwrap_or(u32::MAX)
                }
            };
            let changed = || self.jobs.ends() != seen || self.check().is_err() != is_lost;
            match self.jobs.wait.wait_interruptible_timeout(changed, ms) {
                // Whether the time is over is looked at above.
                Ok(()) => {}
                Err(e) if e == EBUSY => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Fails if the context or the device is lost, in the same way for both.
    fn check_loss(&self) -> Result {
        self.check().map_err(|_| EIO)
    }
}

impl Comparison {
    fn holds(self, is: u64, value: u64) -> bool {
        match self {
            Self::Equal => is == value,
            Self::NotEqual => is != value,
            Self::Greater => is > value,
            Self::GreaterOrEqual => is >= value,
            Self::Less => is < value,
            Self::LessOrEqual => is <= value,
        }
    }
}

/// The number at a user address.
fn read(addr: usize) -> Result<u64> {
    let len = size_of::<u64>();
    UserSlice::new(UserPtr::from_addr(addr), len)
        .reader()
        .read::<u64>()
}
