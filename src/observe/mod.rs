// SPDX-License-Identifier: GPL-2.0

//! What can be seen and disturbed from outside, for tests and for whoever looks for a fault.
//!
//! - [`counters`]: what has happened on a device;
//! - [`knobs`]: rare courses, made to happen;
//! - [`debugfs`]: both as files;
//! - [`device_files`]: the device and its users, as files in debugfs;
//! - [`fdinfo`]: what an open file says of its memory;
//! - [`trace`]: what happens, as it happens.
//!
//! Counters, knobs and traces are used by all of the driver; the others look at all of it.
//!
//! Without CONFIG_DEBUG_FS counters and knobs take no room, and counting and asking compile to
//! nothing.

mod counters;
#[cfg(CONFIG_DEBUG_FS)]
pub(crate) mod debugfs;
#[cfg(CONFIG_DEBUG_FS)]
pub(crate) mod device_files;
pub(crate) mod fdinfo;
mod knobs;
pub(crate) mod trace;

pub(crate) use self::{
    counters::Counters,
    knobs::Knobs, //
};
