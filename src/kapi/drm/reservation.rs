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
/// All reservations are locked with `context`, and have room for a fence.
pub(crate) struct Reservation<'a, O: DriverObject> {
    objects: &'a [ARef<Object<O>>],
    context: KBox<Opaque<bindings::ww_acquire_ctx>>,
}

impl<'a, O: DriverObject> Reservation<'a, O> {
    /// Locks the reservations of `objects`, and makes room.
    ///
    /// # Errors
    ///
    /// [`EALREADY`](kernel::error::code) if an object is listed twice, [`EINTR`] or
    /// [`ERESTARTSYS`] on a signal, [`ENOMEM`].
    pub(crate) fn lock(objects: &'a [ARef<Object<O>>]) -> Result<Self> {
        let context = KBox::new(Opaque::uninit(), GFP_KERNEL)?;
        let count = c_int::try_from(objects.len())?;
        // SAFETY: `ARef<Object>` is a pointer to an object that begins with its GEM object. The
        // function does not change the array, and initializes the context, which does not move.
        to_result(unsafe {
            bindings::drm_gem_lock_reservations(
                objects.as_ptr().cast_mut().cast(),
                count,
                context.get(),
            )
        })?;
        // INVARIANT: Room is made below; dropping `this` on failure unlocks.
        let this = Self { objects, context };
        for object in objects {
            // SAFETY: The reservation is locked.
            to_result(unsafe { bindings::dma_resv_reserve_fences((*object.as_raw()).resv, 1) })?;
        }
        Ok(this)
    }

    /// Adds `fence` to all objects as one that writes them. Does not sleep or allocate.
    pub(crate) fn add_writer(&self, fence: &Fence) {
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
        // SAFETY: By the type invariant all are locked with this context.
        unsafe {
            bindings::drm_gem_unlock_reservations(
                self.objects.as_ptr().cast_mut().cast(),
                self.objects.len() as c_int,
                self.context.get(),
            )
        }
    }
}
