// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What to wait for, and until when.

use std::time::Duration;

use virtgpu_protocol::uapi;

/// Until when to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Only ask.
    Now,
    /// CLOCK_MONOTONIC, in nanoseconds.
    At(i64),
    /// For ever.
    Never,
}

impl Deadline {
    /// So long from now on.
    pub fn after(time: Duration) -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let end = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_add(time);
        Self::At(i64::try_from(end.as_nanos()).unwrap_or(i64::MAX))
    }

    pub(super) fn nanoseconds(self) -> i64 {
        match self {
            Self::Now => 0,
            Self::At(end) => end.max(0),
            Self::Never => -1,
        }
    }
}

/// How [`wait_value`](super::AddressSpace::wait_value) compares, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Comparison {
    /// Equal.
    Equal = uapi::svm_wait::EQ,
    /// Not equal.
    NotEqual = uapi::svm_wait::NE,
    /// Greater.
    Greater = uapi::svm_wait::GT,
    /// Greater or equal.
    GreaterOrEqual = uapi::svm_wait::GE,
    /// Less.
    Less = uapi::svm_wait::LT,
    /// Less or equal.
    LessOrEqual = uapi::svm_wait::LE,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines() {
        assert_eq!(Deadline::Now.nanoseconds(), 0);
        assert!(Deadline::Never.nanoseconds() < 0);
        let soon = Deadline::after(Duration::from_secs(1)).nanoseconds();
        assert!(soon > Deadline::after(Duration::ZERO).nanoseconds());
        assert_eq!(Deadline::after(Duration::MAX).nanoseconds(), i64::MAX);
    }
}
