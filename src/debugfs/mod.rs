// SPDX-License-Identifier: GPL-2.0

//! debugfs and fdinfo: what the driver shows of a device and its users, and the knobs by which
//! tests force rare code paths.
//!
//! - [`mirror`]: the counters of mirrored memory, and the knobs;
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
