// SPDX-License-Identifier: GPL-2.0

//! Open files of a DRM device, and the driver's data of each.
//!
//! A file may be used by several threads and processes at once. The data is made when it is opened
//! and dropped when the last descriptor is closed, after which the core calls nothing for it.
//!
//! C header: [`include/drm/drm_file.h`](srctree/include/drm/drm_file.h)

use super::{
    device::{
        Device,
        Driver, //
    },
    event::EventQueue,
};
use crate::kapi::bindings;
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    error::from_result,
    prelude::*,
    sync::Arc,
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
};

/// What `driver_priv` points to.
struct Private<T: Driver> {
    data: Pin<KBox<T::File>>,
    events: Arc<EventQueue>,
}

impl<T: Driver> Drop for Private<T> {
    fn drop(&mut self) {
        // The file goes, also if it was never opened to the end.
        self.events.close();
    }
}

/// An open file, which dereferences to the driver's data of it.
///
/// # Invariants
///
/// A valid `struct drm_file` of a device of driver `T`, whose `driver_priv` is a
/// `KBox<Private<T>>`.
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
            // SAFETY: The core calls with a new file. It is valid until `postclose_callback` drops
            // what is made here; and nothing is sent before the file can be used, from when on it
            // ends by `release_callback`.
            let events = unsafe { EventQueue::new(NonNull::new(file).ok_or(EINVAL)?)? };
            let private = KBox::new(Private::<T> { data, events }, GFP_KERNEL)?;
            // SAFETY: The file is not in use yet.
            unsafe { (*file).driver_priv = private.into_foreign().cast() };
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
            let file = Self::from_raw((*filp).private_data.cast());
            T::close(file);
            file.events().close();
            bindings::drm_release(inode, filp)
        }
    }

    pub(super) extern "C" fn read_callback(
        filp: *mut bindings::file,
        buffer: *mut c_char,
        count: usize,
        offset: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The arguments are those of the VFS.
        let read = unsafe { bindings::drm_read(filp, buffer, count, offset) };
        if read > 0 {
            // SAFETY: The private data of an open file is its `struct drm_file`.
            T::events_read(unsafe { Self::from_raw((*filp).private_data.cast()) });
        }
        read
    }

    pub(super) extern "C" fn postclose_callback(
        _dev: *mut bindings::drm_device,
        file: *mut bindings::drm_file,
    ) {
        // SAFETY: The file was opened, so that its data is there; this is its last use.
        drop(unsafe { KBox::<Private<T>>::from_foreign((*file).driver_priv.cast()) });
    }

    fn private(&self) -> &Private<T> {
        // SAFETY: By the type invariant.
        unsafe { &*(*self.as_raw()).driver_priv.cast::<Private<T>>() }
    }

    /// Where events for its reader go.
    pub(crate) fn events(&self) -> &Arc<EventQueue> {
        &self.private().events
    }
}

impl<T: Driver> Deref for File<T> {
    type Target = T::File;

    fn deref(&self) -> &T::File {
        &self.private().data
    }
}
