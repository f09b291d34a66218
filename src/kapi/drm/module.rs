// SPDX-License-Identifier: GPL-2.0

//! Loading of DRM drivers.
//!
//! C header: [`include/drm/drm_module.h`](srctree/include/drm/drm_module.h)

use crate::kapi::bindings;
use kernel::prelude::*;

/// Whether a driver with the module parameter `modeset` may register: 0 forbids it, and -1, the
/// parameter's default, where the kernel's command line says `nomodeset`. As with
/// `drm_module_pci_driver_if_modeset()`.
///
/// # Errors
///
/// - `ENODEV`: it may not.
pub(crate) fn check_modeset(modeset: i32) -> Result {
    // SAFETY: Looks at a flag of the command line, which is set before modules are loaded.
    let firmware_only = unsafe { bindings::kapi_drm_firmware_drivers_only() };
    match modeset {
        0 => Err(ENODEV),
        -1 if firmware_only => Err(ENODEV),
        _ => Ok(()),
    }
}
