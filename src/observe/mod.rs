// SPDX-License-Identifier: GPL-2.0

//! What can be seen and disturbed from outside, for tests and for whoever looks for a fault.
//!
//! - [`counters`]: what has happened on a device;
//! - [`knobs`]: rare courses, made to happen;
//! - [`debugfs`]: both as files.
//!
//! Without CONFIG_DEBUG_FS counters and knobs take no room, and counting and asking compile to
//! nothing.

mod counters;
#[cfg(CONFIG_DEBUG_FS)]
pub(crate) mod debugfs;
mod knobs;

pub(crate) use self::{
    counters::Counters,
    knobs::Knobs, //
};
