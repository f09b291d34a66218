// SPDX-License-Identifier: GPL-2.0

//! The types of the DRM core, as this driver has them.
//!
//! This names the driver and nothing of what it does, so that all layers above can use the names.
//! What the core calls, and with which data, is implemented above all of them, in `driver.rs`.

use crate::kapi::drm::{
    self,
    gem,
    Driver, //
};

/// The DRM driver.
pub(crate) struct GpuDriver;

/// A device.
pub(crate) type Device = drm::Device<GpuDriver>;
/// An open file.
pub(crate) type File = drm::File<GpuDriver>;
/// A buffer.
pub(crate) type Object = gem::Object<<GpuDriver as Driver>::Object>;
