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
use core::ops::Deref;
use kernel::prelude::*;

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

/// An object in the table of a file, whose spinlock is held. It gives no reference to the object,
/// since that may become the last one, and whoever drops the last one waits for the device.
pub(crate) struct TableEntry<'a, O: DriverObject> {
    handle: u32,
    object: &'a Object<O>,
}

/// What an object counts for in the statistics of memory.
#[derive(Clone, Copy)]
pub(crate) struct ObjectUsage {
    /// Bytes.
    pub(crate) size: u64,
    /// It has several handles, or is exported or imported.
    pub(super) shared: bool,
    /// A job uses it.
    pub(super) active: bool,
}

impl<O: DriverObject> TableEntry<'_, O> {
    /// The handle.
    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    /// What it counts for.
    pub(crate) fn usage(&self) -> ObjectUsage {
        let raw = self.object.as_raw();
        // SAFETY: The object is valid. Both functions only look, also under a spinlock: the core of
        // DRM calls them under this one.
        let (shared, active) = unsafe {
            (
                bindings::kapi_drm_gem_object_is_shared(raw),
                bindings::kapi_drm_gem_object_is_active(raw),
            )
        };
        ObjectUsage {
            size: self.object.size() as u64,
            shared,
            active,
        }
    }
}

impl<O: DriverObject> Deref for TableEntry<'_, O> {
    type Target = O;

    fn deref(&self) -> &O {
        self.object
    }
}

/// A look at one object.
struct Visit<O: DriverObject, R> {
    look: fn(&TableEntry<'_, O>) -> R,
    found: Option<R>,
}

extern "C" fn visit_callback<O: DriverObject, R>(
    raw: *mut bindings::drm_gem_object,
    handle: c_int,
    data: *mut c_void,
) {
    // SAFETY: `look_at_objects` passes a `Visit` of these types, which it does not use meanwhile.
    let visit = unsafe { &mut *data.cast::<Visit<O, R>>() };
    // SAFETY: The object is in the table of a file of a device of the driver of `O`, whose objects
    // are all of this type. It has the reference of its handle until it is taken out of the table,
    // for which the lock is needed that the caller holds.
    let object = unsafe { Object::<O>::from_raw(raw) };
    visit.found = Some((visit.look)(&TableEntry {
        handle: handle as u32,
        object,
    }));
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

    /// What `look` finds in the objects with a handle of the file, each handle once, those that are
    /// made or closed meanwhile perhaps.
    ///
    /// `look` is called with a spinlock held: it must not sleep. It has nothing but the object, and
    /// what it returns is a copy, which neither keeps the object nor is dropped under the lock. The
    /// lock is free again when the iterator returns.
    pub(crate) fn look_at_objects<R: Copy + 'static>(
        &self,
        look: fn(&TableEntry<'_, T::Object>) -> R,
    ) -> impl Iterator<Item = R> + '_
    where
        T::Object: DriverObject<Driver = T>,
    {
        let mut next = 0;
        core::iter::from_fn(move || {
            let mut handle = next;
            let mut visit = Visit { look, found: None };
            // SAFETY: The file is valid, and so is the integer. The callback fits the data, which
            // is borrowed for the call.
            let has_one = unsafe {
                bindings::kapi_drm_file_look_at_next(
                    self.as_raw(),
                    &mut handle,
                    Some(visit_callback::<T::Object, R>),
                    (&raw mut visit).cast(),
                )
            };
            next = handle.saturating_add(1);
            visit.found.filter(|_| has_one)
        })
    }
}

impl<T: Driver> Device<T> {
    /// Calls `with` for each open file, none of which is closed meanwhile. No one opens or closes
    /// the device before `with` is done, so it must not wait for anything.
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
