// SPDX-License-Identifier: GPL-2.0

//! The folder of a DRM device in debugfs.
//!
//! It is there from the allocation of the device to its unregistration, which waits for those who
//! are in a callback of a file, or to its release. No file refers to this module's code or data
//! from then on: what C code opens and closes them with is part of the kernel or of DRM.
//!
//! `kernel::debugfs` has files of its own instead, whose operations name no owner: closing one that
//! was open when the module was unloaded would look for them in memory that is gone.
//!
//! C headers: [`include/drm/drm_debugfs.h`](srctree/include/drm/drm_debugfs.h),
//! [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h)

use super::{
    Device,
    Driver, //
};
use crate::kapi::bindings;
use core::ptr;
use kernel::{
    prelude::*,
    seq_file::SeqFile,
    str::CStrExt,
    sync::atomic::Atomic, //
};

/// The text of a file that can only be read.
pub(crate) trait Show<T: Driver> {
    /// Writes the text. May sleep, but must not wait for the end of the device.
    fn show(dev: &Device<T>, out: &SeqFile);
}

/// The folder of a device whose files are being made.
pub(crate) struct Folder<'a, T: Driver>(&'a Device<T>);

impl<T: Driver> Folder<'_, T> {
    /// Adds a file with a text, which may be read by all who get there. As ever with debugfs, it is
    /// missing if there is no memory.
    pub(crate) fn show<S: Show<T>>(&self, name: &'static CStr) {
        // SAFETY: The device is valid, and has its folder. The name is static. The callback fits
        // the device, and is not called after the end of its registration.
        unsafe {
            bindings::drm_debugfs_add_file(
                self.0.as_raw(),
                name.as_char_ptr(),
                Some(show_callback::<T, S>),
                ptr::null_mut(),
            )
        }
    }

    /// Adds a file with a number, which root may read and write.
    pub(crate) fn number(&self, name: &CStr, which: fn(&T::Data) -> &Atomic<u32>) {
        let number = which(self.0);
        // SAFETY: The folder is the device's, valid or an error. The number is borrowed of the
        // device's data, which is not moved or borrowed mutably before the release of the device,
        // by when there is no such file any more. C writes aligned words at once.
        unsafe {
            bindings::debugfs_create_u32(
                name.as_char_ptr(),
                0o600,
                (*self.0.as_raw()).debugfs_root,
                number.as_ptr(),
            )
        }
    }
}

/// `drm_driver::debugfs_init`.
pub(super) extern "C" fn init_callback<T: Driver>(minor: *mut bindings::drm_minor) {
    // SAFETY: The core calls with a minor of a device of this driver, which is being registered.
    let dev = unsafe { Device::<T>::from_raw((*minor).dev) };
    T::debugfs(&Folder(dev));
}

extern "C" fn show_callback<T: Driver, S: Show<T>>(
    seq: *mut bindings::seq_file,
    _: *mut c_void,
) -> c_int {
    // SAFETY: The core calls with a file of `Folder::show`, whose private data is the entry, of a
    // device that is registered. Only this call uses the `seq_file` meanwhile.
    let (dev, out) = unsafe {
        let entry: *mut bindings::drm_debugfs_entry = (*seq).private.cast();
        (
            Device::<T>::from_raw((*entry).dev),
            SeqFile::from_raw(seq.cast()),
        )
    };
    S::show(dev, out);
    0
}
