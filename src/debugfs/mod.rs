// SPDX-License-Identifier: GPL-2.0

//! What the driver shows of a device and its users, and lets be turned, for tests and for whoever
//! looks for a fault.
//!
//! - [`mirror`]: what has happened to mirrored memory, and the knobs that make rare courses happen;
//! - [`device`]: the device and its users;
//! - [`fdinfo`]: what an open file says of its memory, in `/proc`.
//!
//! Without CONFIG_DEBUG_FS there is only the last.

#[cfg(CONFIG_DEBUG_FS)]
mod device;
pub(crate) mod fdinfo;
#[cfg(CONFIG_DEBUG_FS)]
mod mirror;

#[cfg(CONFIG_DEBUG_FS)]
use crate::{
    drm::GpuDriver,
    kapi::drm::debugfs::Folder, //
};

/// Adds the files to the folder of a device.
#[cfg(CONFIG_DEBUG_FS)]
pub(crate) fn add(folder: &Folder<'_, GpuDriver>) {
    mirror::add(folder);
    device::add(folder);
}
