// SPDX-License-Identifier: GPL-2.0

//! Open files of a DRM device.
//!
//! C header: [`include/drm/drm_file.h`](srctree/include/drm/drm_file.h)

use super::device::{
    Device,
    Driver, //
};
use crate::kapi::bindings;
use core::{
    marker::PhantomData,
    ops::Deref, //
};
use kernel::{
    error::from_result,
    prelude::*,
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
};

/// An open file, which dereferences to the driver's data of it.
///
/// # Invariants
///
/// A valid `struct drm_file` of a device of driver `T`, whose `driver_priv` is a
/// `Pin<KBox<T::File>>`.
#[repr(transparent)]
pub(crate) struct File<T: Driver>(Opaque<bindings::drm_file>, PhantomData<T>);

impl<T: Driver> File<T> {
    /// The file around a `struct drm_file`.
    ///
    /// # Safety
    ///
    /// `raw` is a valid file of a device of driver `T` for `'a`, and fully opened.
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::drm_file) -> &'a Self {
        // SAFETY: By the requirements of this function; the wrapper is transparent.
        unsafe { &*raw.cast() }
    }

    pub(super) fn as_raw(&self) -> *mut bindings::drm_file {
        self.0.get()
    }

    pub(super) extern "C" fn open_callback(
        dev: *mut bindings::drm_device,
        file: *mut bindings::drm_file,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The core calls with a device of this driver.
            let data = T::open(unsafe { Device::<T>::from_raw(dev) })?;
            // SAFETY: The core calls with a new file, which nobody else uses yet.
            unsafe { (*file).driver_priv = data.into_foreign().cast() };
            Ok(0)
        })
    }

    pub(super) extern "C" fn release_callback(
        inode: *mut bindings::inode,
        filp: *mut bindings::file,
    ) -> c_int {
        // SAFETY: The VFS calls with a file that `drm_open()` has opened, whose private data is
        // its `struct drm_file`, for the last time.
        unsafe {
            T::close(Self::from_raw((*filp).private_data.cast()));
            bindings::drm_release(inode, filp)
        }
    }

    pub(super) extern "C" fn postclose_callback(
        _dev: *mut bindings::drm_device,
        file: *mut bindings::drm_file,
    ) {
        // SAFETY: The file was opened, so that its data is there; nobody uses it after this.
        drop(unsafe { Pin::<KBox<T::File>>::from_foreign((*file).driver_priv.cast()) });
    }
}

impl<T: Driver> Deref for File<T> {
    type Target = T::File;

    fn deref(&self) -> &T::File {
        // SAFETY: By the type invariant.
        unsafe { &*(*self.as_raw()).driver_priv.cast::<T::File>() }
    }
}
