// SPDX-License-Identifier: GPL-2.0

//! A virtio device.
//!
//! C headers: [`include/linux/virtio.h`](srctree/include/linux/virtio.h),
//! [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

use crate::kapi::{
    bindings,
    dma::map::Mapper, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    device,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};

/// Feature bit: a descriptor may refer to a table of others.
pub(crate) const F_INDIRECT_DESC: u32 = 28;
/// Feature bit: the device is not of the time before virtio 1.0.
pub(crate) const F_VERSION_1: u32 = 32;
/// Feature bit: the device sees memory through the platform's DMA translation.
pub(crate) const F_ACCESS_PLATFORM: u32 = 33;

/// A virtio device.
///
/// # Invariants
///
/// A [`Device`] represents a valid `struct virtio_device` that the C part of the kernel created.
#[repr(transparent)]
pub(crate) struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<bindings::virtio_device>,
    PhantomData<Ctx>,
);

/// A shared memory region of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShmRegion {
    /// Physical address.
    pub(crate) addr: u64,
    /// Bytes.
    pub(crate) len: u64,
}

impl<Ctx: device::DeviceContext> Device<Ctx> {
    pub(super) fn as_raw(&self) -> *mut bindings::virtio_device {
        self.0.get()
    }

    /// Whether feature `bit` was negotiated. The driver must have listed it.
    pub(crate) fn has_feature(&self, bit: u32) -> bool {
        // SAFETY: By the type invariant the device is valid.
        unsafe { bindings::kapi_virtio_has_feature(self.as_raw(), bit) }
    }

    /// The little-endian 32-bit field at byte `offset` of the configuration space.
    ///
    /// # Safety
    ///
    /// A driver must be bound to the device, and must not be unbound meanwhile.
    pub(super) unsafe fn read32(&self, offset: usize) -> u32 {
        // SAFETY: By the type invariant the device is valid, and by the requirements of this
        // function its transport is there.
        unsafe { bindings::kapi_virtio_config_read32(self.as_raw(), offset as c_uint) }
    }
}

impl Device<device::Core<'_>> {
    /// The little-endian 32-bit field at byte `offset` of the configuration space.
    ///
    /// May sleep.
    pub(crate) fn config_read32(&self, offset: usize) -> u32 {
        // SAFETY: The context says that the driver is bound, and stays so meanwhile.
        unsafe { self.read32(offset) }
    }

    /// The shared memory region `id`, if the device has it.
    pub(crate) fn shm_region(&self, id: u8) -> Option<ShmRegion> {
        let mut region = bindings::virtio_shm_region::default();

        // SAFETY: By the type invariant the device is valid; `region` is valid for writes.
        unsafe { bindings::kapi_virtio_get_shm_region(self.as_raw(), &mut region, id) }.then_some(
            ShmRegion {
                addr: region.addr,
                len: region.len,
            },
        )
    }

    /// Maps memory for a device with [`F_ACCESS_PLATFORM`].
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if the device would be shown copies.
    pub(crate) fn dma_mapper(&self) -> Result<Mapper> {
        // SAFETY: The parent is the transport's device, which stays bound to the transport's
        // driver for as long as the virtio device exists, and longer than this driver is bound.
        unsafe { Mapper::new(self.parent()) }
    }

    /// Claims a shared memory region for the driver until it is unbound. Returns whether nobody
    /// else has it.
    pub(crate) fn claim_memory(&self, region: &ShmRegion) -> bool {
        // SAFETY: By the type invariant the device is valid; the context says that the driver is
        // bound.
        unsafe { bindings::kapi_virtio_claim_memory(self.as_raw(), region.addr, region.len) }
    }

    /// Says that the device takes pieces of memory of any length, unless mapping them limits it.
    pub(crate) fn unlimit_segments(&self) {
        // SAFETY: By the type invariant the device is valid; the context says that the driver is
        // bound, so that its parent is bound too.
        unsafe { bindings::kapi_virtio_unlimit_segments(self.as_raw()) }
    }

    /// The parent, which is the device that does DMA: a PCI function, for example.
    pub(crate) fn parent(&self) -> &device::Device<device::Bound> {
        // SAFETY: By the type invariant the device is valid. A virtio device always has a parent,
        // which created it, is valid as long as it exists, and is bound to the transport's driver
        // as long as it is registered.
        unsafe {
            let parent: &device::Device =
                device::Device::from_raw(bindings::kapi_virtio_device_parent(self.as_raw()));
            parent.as_bound()
        }
    }
}

// SAFETY: `Device` is a transparent wrapper of a type that doesn't depend on its generic argument.
kernel::impl_device_context_deref!(unsafe { Device });

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type invariant `self.as_raw()` is a valid `struct virtio_device`, so its
        // `dev` is a valid `struct device`.
        unsafe { device::Device::from_raw(&raw mut (*self.as_raw()).dev) }
    }
}

// SAFETY: `get_device()` and `put_device()` count the references of the embedded device, whose
// release frees the `struct virtio_device`.
unsafe impl AlwaysRefCounted for Device {
    fn inc_ref(&self) {
        // SAFETY: The existence of a reference guarantees that the count is non-zero.
        unsafe { bindings::get_device(&raw mut (*self.as_raw()).dev) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference.
        unsafe { bindings::put_device(&raw mut (*obj.as_ref().as_raw()).dev) }
    }
}

impl From<&Device<device::Core<'_>>> for ARef<Device> {
    fn from(dev: &Device<device::Core<'_>>) -> Self {
        let normal: &Device = dev;
        normal.into()
    }
}

// SAFETY: The functions of a `Device` can be called from any thread, and so can `put_device()`.
unsafe impl Send for Device {}

// SAFETY: All methods through a shared reference are safe to call concurrently.
unsafe impl Sync for Device {}
