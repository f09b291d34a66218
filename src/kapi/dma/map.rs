// SPDX-License-Identifier: GPL-2.0

//! Long-lived DMA mappings of physical memory.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use crate::kapi::bindings;
use kernel::{
    device,
    prelude::*,
    sync::aref::ARef, //
};

/// A device on whose behalf memory is mapped.
///
/// # Invariants
///
/// The device is bound to a driver as long as mappings are made or undone; see [`Mapper::new`].
#[derive(Clone)]
pub(crate) struct Mapper(ARef<device::Device>);

impl Mapper {
    /// A mapper for `dev`.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if mappings go through bounce buffers: the device would work on a copy.
    ///
    /// # Safety
    ///
    /// `dev` stays bound to its driver until the mapper and all its clones are gone.
    pub(in crate::kapi) unsafe fn new(dev: &device::Device<device::Bound>) -> Result<Self> {
        let dev: &device::Device = dev;
        // SAFETY: The device is valid; it is transparent.
        if !unsafe { bindings::kapi_dma_is_direct(core::ptr::from_ref(dev).cast_mut().cast()) } {
            return Err(EOPNOTSUPP);
        }
        // INVARIANT: By the requirements of this function.
        Ok(Self(dev.into()))
    }

    fn as_raw(&self) -> *mut bindings::device {
        core::ptr::from_ref::<device::Device>(&self.0)
            .cast_mut()
            .cast()
    }

    /// Maps `len` bytes of memory at `phys`; the device may write only with `write`.
    ///
    /// Returns the address for the device.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn map(&self, phys: u64, len: usize, write: bool) -> Result<u64> {
        let mut ok = false;
        // SAFETY: By the type invariant the device is valid and bound.
        let addr = unsafe { bindings::kapi_dma_map_phys(self.as_raw(), phys, len, write, &mut ok) };
        if ok {
            Ok(addr)
        } else {
            Err(ENOMEM)
        }
    }

    /// Whether CPU and device see the same memory only after it was synchronized.
    pub(crate) fn needs_sync(&self) -> bool {
        // SAFETY: By the type invariant the device is valid.
        unsafe { bindings::kapi_dma_needs_sync(self.as_raw()) }
    }

    /// Lets the device see what the CPU has written to mapped memory. Does not sleep.
    pub(crate) fn sync_for_device(&self, addr: u64, len: usize) {
        // SAFETY: By the type invariant the device is valid and bound.
        unsafe { bindings::kapi_dma_sync_for_device(self.as_raw(), addr, len) }
    }

    /// Lets the CPU see what the device has written to mapped memory. Does not sleep.
    pub(crate) fn sync_for_cpu(&self, addr: u64, len: usize) {
        // SAFETY: By the type invariant the device is valid and bound.
        unsafe { bindings::kapi_dma_sync_for_cpu(self.as_raw(), addr, len) }
    }

    /// Undoes a `map` of the same length and kind.
    pub(crate) fn unmap(&self, addr: u64, len: usize, write: bool) {
        // SAFETY: By the type invariant the device is valid and bound.
        unsafe { bindings::kapi_dma_unmap_phys(self.as_raw(), addr, len, write) }
    }
}
