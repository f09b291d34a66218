// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The queues of the guest, as the device writes to them.
//!
//! A [`ring::GuestRing`] is what all of them have in common. `control` and `mirror` say what a
//! response is on their queues, `events` which events wait for a buffer.

pub(crate) mod control;
pub(crate) mod events;
pub(crate) mod mirror;
pub(crate) mod ring;

/// The most descriptors of a queue, unless an option says less.
pub const QUEUE_SIZE: usize = 1024;
