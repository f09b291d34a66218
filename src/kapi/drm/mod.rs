// SPDX-License-Identifier: GPL-2.0

//! The Direct Rendering Manager.
//!
//! `kernel::drm` is compiled out where DRM is a module, as it is on distribution kernels, and does
//! not yet know syncobjs, PRIME, or several kinds of GEM object in a driver. Names and shapes here
//! are those of `kernel::drm`, so that moving over to it is mechanical once it catches up.
//!
//! - [`client`]: who has a device open, and which objects they have;
//! - [`debugfs`]: what a device shows those who look for faults;
//! - [`device`]: devices and their registration;
//! - [`file`]: what userspace has opened;
//! - [`event`]: what userspace reads from a file;
//! - [`fdinfo`]: what a file tells of itself in `/proc`;
//! - [`ioctl`]: tables of ioctls;
//! - [`gem`]: buffer objects, with memory of their own or without;
//! - [`module`]: whether a driver may be loaded;
//! - [`peer`]: memory of a device that other devices have mapped;
//! - [`prime`]: sharing them with other drivers;
//! - [`reservation`]: locking several objects to add a fence to them;
//! - [`syncobj`]: fences under handles.

pub(crate) mod client;
#[cfg(CONFIG_DEBUG_FS)]
pub(crate) mod debugfs;
pub(crate) mod device;
pub(crate) mod event;
pub(crate) mod fdinfo;
pub(crate) mod file;
pub(crate) mod gem;
pub(crate) mod ioctl;
pub(crate) mod module;
mod peer;
pub(crate) mod prime;
pub(crate) mod range;
pub(crate) mod reservation;
pub(crate) mod syncobj;

pub(crate) use self::{
    device::{
        Device,
        Driver,
        DriverInfo,
        Registration, //
    },
    file::File, //
};
