// SPDX-License-Identifier: GPL-2.0

//! Locking the reservations of several objects, to add a fence to all of them.
//!
//! C headers: [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h),
//! [`include/drm/drm_gem.h`](srctree/include/drm/drm_gem.h)

use super::gem::{
    DriverObject,
    Object, //
};
use crate::kapi::{
    bindings,
    dma::Fence, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::aref::ARef,
    types::Opaque, //
};

/// The reservations of some objects, locked, each with room for one more fence.
///
/// # Invariants
///
/// All reservations are locked, as `lock` says, and have room for a fence.
pub(crate) struct Reservation<'a, O: DriverObject> {
    objects: &'a [ARef<Object<O>>],
    lock: Lock,
}

/// How the reservations of a list of objects are locked.
enum Lock {
    /// There is one.
    One,
    /// These are the GEM objects of the list, with which it was begun.
    Many {
        raw: KVVec<*mut bindings::drm_gem_object>,
        context: KBox<Opaque<bindings::ww_acquire_ctx>>,
    },
}

impl<'a, O: DriverObject> Reservation<'a, O> {
    /// Locks the reservations of `objects`, and makes room.
    ///
    /// # Errors
    ///
    /// [`EALREADY`](kernel::error::code) if an object is listed twice, [`EINTR`] or
    /// [`ERESTARTSYS`] on a signal, [`ENOMEM`].
    pub(crate) fn lock(objects: &'a [ARef<Object<O>>]) -> Result<Self> {
        let lock = match objects {
            [object] => {
                // SAFETY: A GEM object has a reservation.
                to_result(unsafe {
                    bindings::kapi_dma_resv_lock_interruptible((*object.as_raw()).resv)
                })?;
                Lock::One
            }
            _ => Self::lock_many(objects)?,
        };
        // INVARIANT: Room is made below; dropping `this` on failure unlocks.
        let this = Self { objects, lock };
        for object in objects {
            // SAFETY: The reservation is locked.
            to_result(unsafe { bindings::dma_resv_reserve_fences((*object.as_raw()).resv, 1) })?;
        }
        Ok(this)
    }

    /// Locks the reservations of several objects, or of none.
    fn lock_many(objects: &[ARef<Object<O>>]) -> Result<Lock> {
        let context = KBox::new(Opaque::uninit(), GFP_KERNEL)?;
        let count = c_int::try_from(objects.len())?;
        let mut raw = KVVec::with_capacity(objects.len(), GFP_KERNEL)?;
        for object in objects {
            raw.push(object.as_raw(), GFP_KERNEL)?;
        }
        // SAFETY: These are valid GEM objects, kept by `objects`. The function initializes the
        // context, which does not move.
        to_result(unsafe {
            bindings::drm_gem_lock_reservations(raw.as_mut_ptr(), count, context.get())
        })?;
        Ok(Lock::Many { raw, context })
    }

    /// Adds `fence` to all objects as one that writes them, and unlocks them. Does not sleep or
    /// allocate.
    ///
    /// There is room for one fence, so it takes the reservation:
    ///
    /// ```compile_fail,E0382
    /// fn add_two<O: DriverObject>(reservation: Reservation<'_, O>, fence: &Fence, other: &Fence) {
    ///     reservation.add_writer(fence);
    ///     reservation.add_writer(other); // error[E0382]: use of moved value: `reservation`
    /// }
    /// ```
    pub(crate) fn add_writer(self, fence: &Fence) {
        for object in self.objects {
            // SAFETY: By the type invariant the reservation is locked, and has room.
            unsafe {
                bindings::dma_resv_add_fence(
                    (*object.as_raw()).resv,
                    fence.as_raw(),
                    bindings::dma_resv_usage_DMA_RESV_USAGE_WRITE,
                )
            }
        }
    }
}

impl<O: DriverObject> Drop for Reservation<'_, O> {
    fn drop(&mut self) {
        match &mut self.lock {
            Lock::One => {
                for object in self.objects {
                    // SAFETY: By the type invariant it is locked, without a context.
                    unsafe { bindings::kapi_dma_resv_unlock((*object.as_raw()).resv) }
                }
            }
            // SAFETY: By the type invariant all are locked with this context.
            Lock::Many { raw, context } => unsafe {
                bindings::drm_gem_unlock_reservations(
                    raw.as_mut_ptr(),
                    raw.len() as c_int,
                    context.get(),
                )
            },
        }
    }
}
