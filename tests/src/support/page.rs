// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! How large pages are, for all programs of this package.

/// A page.
pub(crate) const PAGE: usize = 4096;
/// The same for ioctls and jobs, whose addresses and lengths have 64 bits.
pub(crate) const P: u64 = PAGE as u64;
/// A huge page.
pub(crate) const HUGE: usize = 2 << 20;
