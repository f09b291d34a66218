// SPDX-License-Identifier: GPL-2.0

//! Registration of user memory.
//!
//! - [`params`]: what userspace asks for, judged;
//! - [`pinned`]: memory that stays where it is, and the registration of it.
//!
//! The place for memory that moves under a notifier is here, too.

pub(crate) mod params;
pub(crate) mod pinned;
