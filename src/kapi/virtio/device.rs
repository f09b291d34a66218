// SPDX-License-Identifier: GPL-2.0

//! A virtio device: its features, its configuration space and its regions of shared memory.
//!
//! There is a reference as long as one likes, but the transport behind it, by which it is spoken
//! to, is there only while a driver is bound: what needs it is in [`super::binding`], or asks for a
//! device in that state.
//!
//! C headers: [`include/linux/virtio.h`](srctree/include/linux/virtio.h),
//! [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

use crate::kapi::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    device,
    page::PAGE_SIZE,
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
}

/// The configuration space of a device that is being probed.
///
/// A transport takes the driver's word for how long it is: virtio-pci stops the machine when a
/// driver reads beyond what the device has. So all reads of the probe go through this.
///
/// # Invariants
///
/// The driver is bound to the device during `'a`.
pub(crate) struct ConfigSpace<'a> {
    vdev: &'a Device,
    len: usize,
}

impl ConfigSpace<'_> {
    /// Fails if the device has less than `end` bytes.
    ///
    /// # Errors
    ///
    /// [`EINVAL`].
    pub(crate) fn check(&self, end: usize) -> Result {
        if end > self.len {
            dev_err!(
                self.vdev,
                "the configuration space has {} bytes, not {end}\n",
                self.len
            );
            return Err(EINVAL);
        }
        Ok(())
    }

    /// The little-endian 32-bit field at byte `offset`. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the device does not have it.
    pub(crate) fn read32(&self, offset: usize) -> Result<u32> {
        self.check(offset.checked_add(size_of::<u32>()).ok_or(EINVAL)?)?;
        // SAFETY: By the type invariant the driver is bound.
        Ok(unsafe { self.vdev.read32(offset) })
    }
}

/// Bytes of PCI configuration where capabilities can be.
const PCI_CONFIG_LEN: usize = 256;

/// Bytes of the device-specific configuration, as the capabilities in a function's PCI
/// configuration say; 0 if there is none. The virtio core maps a page at most.
fn pci_config_len(space: &[u8; PCI_CONFIG_LEN]) -> usize {
    const STATUS: usize = 0x06;
    const STATUS_CAP_LIST: u8 = 0x10;
    const CAPABILITY_LIST: usize = 0x34;
    const CAP_ID_VNDR: u8 = 0x09;
    const CFG_TYPE: usize = 3;
    const BAR: usize = 4;
    const LENGTH: usize = 12;
    const TYPE_DEVICE_CFG: u8 = 4;
    const BARS: u8 = 6;

    if space[STATUS] & STATUS_CAP_LIST == 0 {
        return 0;
    }
    let mut shortest = None;
    let mut at = usize::from(space[CAPABILITY_LIST] & !3);
    // The list may be a circle.
    for _ in 0..PCI_CONFIG_LEN / 4 {
        // Others may be shorter, and lie at the very end.
        let Some(head) = space.get(at..at + 2).filter(|_| at >= 0x40) else {
            break;
        };
        let cap = space
            .get(at..at + LENGTH + 4)
            .filter(|cap| cap[0] == CAP_ID_VNDR && cap[CFG_TYPE] == TYPE_DEVICE_CFG);
        if let Some(cap) = cap.filter(|cap| cap[BAR] < BARS) {
            let length = [
                cap[LENGTH],
                cap[LENGTH + 1],
                cap[LENGTH + 2],
                cap[LENGTH + 3],
            ];
            let length = u32::from_le_bytes(length) as usize;
            // Which one the core has chosen depends on the BARs.
            shortest = Some(shortest.unwrap_or(PAGE_SIZE).min(length));
        }
        at = usize::from(head[1] & !3);
    }
    shortest.unwrap_or(0)
}

impl Device<device::Core<'_>> {
    /// The configuration space.
    pub(crate) fn config(&self) -> ConfigSpace<'_> {
        let vdev: &Device = self;
        let mut space = [0; PCI_CONFIG_LEN];
        // SAFETY: By the type invariant the device is valid; the array is as long as the function
        // says.
        let len = unsafe {
            if !bindings::kapi_virtio_has_config(self.as_raw()) {
                0
            } else if bindings::kapi_virtio_pci_config(self.as_raw(), space.as_mut_ptr()) {
                pci_config_len(&space)
            } else {
                // Other transports do not tell, and bear it.
                usize::MAX
            }
        };
        // INVARIANT: The context says that the driver is bound, and stays so meanwhile.
        ConfigSpace { vdev, len }
    }

    /// Claims a shared memory region for the driver until it is unbound. Returns whether it was
    /// free.
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
        // SAFETY: The caller passes a reference on.
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

#[kunit_tests(virtgpu_userptr_config)]
mod tests {
    use super::*;

    /// A function whose capabilities are `caps`: where, cfg_type, BAR and length.
    fn function(caps: &[(usize, u8, u8, u32)]) -> [u8; PCI_CONFIG_LEN] {
        let mut space = [0; PCI_CONFIG_LEN];
        space[0x06] = 0x10;
        let mut link = 0x34;
        for &(at, kind, bar, length) in caps {
            space[link] = at as u8;
            space[at] = 0x09;
            space[at + 3] = kind;
            space[at + 4] = bar;
            space[at + 12..at + 16].copy_from_slice(&length.to_le_bytes());
            link = at + 1;
        }
        space
    }

    #[test]
    fn length_of_the_configuration() {
        let common = (0x40, 1, 4, 0x1000);
        assert_eq!(pci_config_len(&function(&[])), 0);
        assert_eq!(pci_config_len(&function(&[common])), 0);
        assert_eq!(pci_config_len(&function(&[common, (0x50, 4, 4, 17)])), 17);
        assert_eq!(
            pci_config_len(&function(&[common, (0x50, 4, 4, u32::MAX)])),
            PAGE_SIZE
        );
        // Either may be the one that is mapped, but not that of a BAR that cannot be.
        let two = [(0x40, 4, 4, 64), (0x50, 4, 0, 24), (0x60, 4, 6, 8)];
        assert_eq!(pci_config_len(&function(&two)), 24);
    }

    /// As QEMU has it for a function with a shared memory region, behind a root port.
    #[test]
    fn interrupts_come_first() {
        let mut space = function(&[(0xbc, 4, 4, 0x1000)]);
        space[0x34] = 0xf4;
        space[0xf4..0xf6].copy_from_slice(&[0x11, 0xbc]);
        assert_eq!(pci_config_len(&space), PAGE_SIZE);
    }

    #[test]
    fn broken_lists() {
        assert_eq!(pci_config_len(&[0; PCI_CONFIG_LEN]), 0);
        assert_eq!(pci_config_len(&[0xff; PCI_CONFIG_LEN]), 0);
        let mut circle = function(&[(0x40, 4, 4, 64)]);
        circle[0x41] = 0x40;
        assert_eq!(pci_config_len(&circle), 64);
    }
}
