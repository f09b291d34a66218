// SPDX-License-Identifier: GPL-2.0

//! What a file tells of itself in `/proc/PID/fdinfo`.
//!
//! C header: [`include/drm/drm_file.h`](srctree/include/drm/drm_file.h); the keys are those of
//! `Documentation/gpu/drm-usage-stats.rst`.

use super::{
    client::ObjectUsage,
    Driver,
    File, //
};
use crate::kapi::bindings;
use kernel::{
    prelude::*,
    str::CStrExt, //
};

/// Bytes of memory of one kind.
#[derive(Default)]
pub(crate) struct MemoryStats(bindings::drm_memory_stats);

impl MemoryStats {
    /// Adds an object, of which so many bytes are in memory.
    pub(crate) fn add(&mut self, usage: ObjectUsage, resident: u64) {
        if usage.shared {
            self.0.shared += usage.size;
        } else {
            self.0.private += usage.size;
        }
        self.0.resident += resident;
        if usage.active {
            self.0.active += usage.size;
        }
    }
}

/// Where the text goes.
pub(crate) struct FdInfo(*mut bindings::drm_printer);

impl FdInfo {
    /// Writes the memory of kind `region`.
    pub(crate) fn memory(&self, region: &CStr, stats: &MemoryStats) {
        let known = bindings::drm_gem_object_status_DRM_GEM_OBJECT_RESIDENT
            | bindings::drm_gem_object_status_DRM_GEM_OBJECT_ACTIVE;
        // SAFETY: The printer is valid as long as this is.
        unsafe { bindings::drm_print_memory_stats(self.0, &stats.0, known, region.as_char_ptr()) }
    }
}

/// `drm_driver::show_fdinfo`.
pub(super) extern "C" fn show_callback<T: Driver>(
    printer: *mut bindings::drm_printer,
    file: *mut bindings::drm_file,
) {
    // SAFETY: The core calls with an open file of a device of this driver.
    T::fdinfo(unsafe { File::<T>::from_raw(file) }, &FdInfo(printer));
}
