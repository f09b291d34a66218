// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The queues of the guest: chains are read from them, and given back.
//!
//! `vring` is a queue as the vhost-user library has it, and `chain` reads what the driver put into
//! it. A `ring` is what the queues have in common on the writing side: when the device may write to
//! a queue, and how. `control` and `mirror` say what a response is on theirs, `events` which events
//! wait for a buffer.

pub(crate) mod chain;
pub(crate) mod control;
pub(crate) mod events;
pub(crate) mod mirror;
pub(crate) mod ring;
pub(crate) mod vring;

/// The most descriptors of a queue, unless an option says less.
pub const QUEUE_SIZE: usize = 1024;
