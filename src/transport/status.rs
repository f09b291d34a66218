// SPDX-License-Identifier: GPL-2.0

//! What is in the place of a command's response, on both queues, if there is none. No response of
//! the device that is accepted has these numbers.

/// The command is on its way.
pub(super) const PENDING: u32 = u32::MAX;
/// The device has not responded to the command, and will not.
pub(super) const ABORTED: u32 = u32::MAX - 1;
