// SPDX-License-Identifier: GPL-2.0

//! Who has a device open, and which objects they have.
//!
//! C headers: [`include/drm/drm_file.h`](srctree/include/drm/drm_file.h),
//! [`include/drm/drm_gem.h`](srctree/include/drm/drm_gem.h)

use super::{
    gem::{
        DriverObject,
        Object, //
    },
    Device,
    Driver,
    File, //
};
use crate::kapi::bindings;
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::aref::ARef, //
};

/// Bytes of a task's name, with the 0 at its end.
const COMM_LEN: usize = bindings::TASK_COMM_LEN as usize;

/// The process that uses a file.
pub(crate) struct Owner {
    /// Its id in the initial namespace, 0 if it is gone.
    pub(crate) pid: i32,
    comm: [u8; COMM_LEN],
}

impl Owner {
    /// Its name, as far as it is text.
    pub(crate) fn name(&self) -> &str {
        let end = self.comm.iter().position(|&c| c == 0);
        let name = self.comm.get(..end.unwrap_or(COMM_LEN)).unwrap_or_default();
        core::str::from_utf8(name).unwrap_or("?")
    }
}

impl<T: Driver> File<T> {
    /// The process that opened the file, or that it was handed to.
    pub(crate) fn owner(&self) -> Owner {
        let mut owner = Owner {
            pid: 0,
            comm: [0; COMM_LEN],
        };
        // SAFETY: The file is valid; there is room for a name.
        unsafe {
            bindings::kapi_drm_file_owner(
                self.as_raw(),
                &mut owner.pid,
                owner.comm.as_mut_ptr().cast(),
            )
        };
        owner
    }

    /// The objects with a handle of the file, each handle once, those that are made or closed
    /// meanwhile perhaps. Takes a spinlock between one and the next.
    pub(crate) fn objects(&self) -> impl Iterator<Item = (u32, ARef<Object<T::Object>>)> + '_
    where
        T::Object: DriverObject<Driver = T>,
    {
        let mut next = 0;
        core::iter::from_fn(move || {
            let mut handle = next;
            // SAFETY: The file is valid, and so is the integer.
            let raw = unsafe { bindings::kapi_drm_file_next_object(self.as_raw(), &mut handle) };
            let raw = NonNull::new(raw)?;
            next = handle.saturating_add(1);
            // SAFETY: The function returns a reference to an object of the file's device, all of
            // which are of this type.
            Some((handle as u32, unsafe { ARef::from_raw(raw.cast()) }))
        })
    }
}

impl<T: Driver> Device<T> {
    /// Calls `with` for each open file, none of which is closed meanwhile. May sleep.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn for_each_file(&self, mut with: impl FnMut(&File<T>)) {
        extern "C" fn call<T: Driver, F: FnMut(&File<T>)>(
            file: *mut bindings::drm_file,
            with: *mut c_void,
        ) {
            // SAFETY: `for_each_file` passes its closure, and a file in the device's list is fully
            // opened and not closed before it has left the list.
            unsafe { (*with.cast::<F>())(File::from_raw(file)) }
        }
        fn callback<T: Driver, F: FnMut(&File<T>)>(
            _: &F,
        ) -> unsafe extern "C" fn(*mut bindings::drm_file, *mut c_void) {
            call::<T, F>
        }
        // SAFETY: The device is valid; the callback fits the closure, which outlives the call.
        unsafe {
            bindings::kapi_drm_visit_files(
                self.as_raw(),
                Some(callback::<T, _>(&with)),
                (&raw mut with).cast(),
            )
        }
    }
}
