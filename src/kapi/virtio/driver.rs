// SPDX-License-Identifier: GPL-2.0

//! Registration of virtio drivers: the callbacks of the virtio core, and what holds for a device
//! when each is called.
//!
//! The core calls them one at a time for a device. Between probe and remove there is a binding, in
//! which the driver's data lives; it ends whatever the driver still has of the device, before the
//! core goes on.
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

use super::{
    binding::Binding,
    device::Device,
    setup::QueueSetup, //
};
use crate::kapi::bindings;
use core::{
    mem::offset_of,
    pin::Pin, //
};
use kernel::{
    device,
    device_id::RawDeviceId,
    driver,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque,
    ThisModule, //
};

/// An adapter for the registration of virtio drivers.
pub(crate) struct Adapter<T: Driver>(T);

/// What is kept of a bound device.
#[pin_data]
pub(crate) struct Bound<T: Driver> {
    #[pin]
    data: T::Data,
    binding: Arc<Binding>,
}

impl<T: Driver> Bound<T> {
    fn data(self: Pin<&Self>) -> Pin<&T::Data> {
        // SAFETY: `data` is pinned with the structure.
        unsafe { self.map_unchecked(|this| &this.data) }
    }
}

// SAFETY:
// - `bindings::virtio_driver` is a C type declared as `repr(C)`.
// - `Bound<T>` is the type of the driver's device private data.
// - `struct virtio_driver` embeds a `struct device_driver` at the given offset.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = bindings::virtio_driver;
    type DriverData<'bound> = Bound<T>;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver);
}

// SAFETY: `unregister_virtio_driver()` is the counterpart of a successful
// `__register_virtio_driver()`.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        vdrv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: It is safe to set the fields of `struct virtio_driver` before registration.
        unsafe {
            let vdrv = vdrv.get();
            (*vdrv).driver.name = name.as_char_ptr();
            (*vdrv).id_table = T::ID_TABLE.as_ptr();
            (*vdrv).feature_table = T::FEATURES.as_ptr();
            (*vdrv).feature_table_size = T::FEATURES.len() as c_uint;
            (*vdrv).validate = Some(Self::validate_callback);
            (*vdrv).probe = Some(Self::probe_callback);
            (*vdrv).remove = Some(Self::remove_callback);
            (*vdrv).config_changed = Some(Self::config_changed_callback);
            #[cfg(CONFIG_PM_SLEEP)]
            {
                (*vdrv).freeze = Some(Self::freeze_callback);
                (*vdrv).restore = Some(Self::restore_callback);
            }
            (*vdrv).reset_prepare = Some(Self::reset_prepare_callback);
            (*vdrv).shutdown = Some(Self::shutdown_callback);
        }

        // SAFETY: The caller keeps `vdrv` pinned and valid until `unregister`.
        to_result(unsafe { bindings::__register_virtio_driver(vdrv.get(), module.as_ptr()) })
    }

    unsafe fn unregister(vdrv: &Opaque<Self::DriverType>) {
        // SAFETY: By the requirements of this function, `vdrv` is registered.
        unsafe { bindings::unregister_virtio_driver(vdrv.get()) }
    }
}

impl<T: Driver> Adapter<T> {
    extern "C" fn validate_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio bus calls with a valid device for the duration of the call.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        from_result(|| T::validate(vdev).map(|()| 0))
    }

    extern "C" fn probe_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio bus calls with a valid device for the duration of the call.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        from_result(|| {
            let binding = Binding::new(vdev)?;
            let kept = binding.clone();
            let data = T::probe(vdev, &binding, QueueSetup::new(&binding));
            let bound = try_pin_init!(Bound::<T> {
                data <- data,
                binding: kept,
            });
            vdev.as_ref()
                .set_drvdata(bound)
                .inspect_err(|_| binding.revoke())?;
            Ok(0)
        })
    }

    extern "C" fn remove_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio bus calls with a valid device for the duration of the call.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: `remove` follows a successful `probe`, which stored a `Pin<KBox<Bound<T>>>`.
        let bound = unsafe { vdev.as_ref().drvdata_borrow::<Bound<T>>() };

        T::unbind(vdev, bound.data());

        // The bus insists that a driver leaves its device reset.
        bound.binding.revoke();
    }

    extern "C" fn config_changed_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio bus calls with a valid device for the duration of the call.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: The bus reports changes only between the end of `probe` (`set_drvdata` was
        // called) and the start of `remove`.
        let bound = unsafe { vdev.as_ref().drvdata_borrow::<Bound<T>>() };

        T::config_changed(bound.data());
    }

    #[cfg(CONFIG_PM_SLEEP)]
    extern "C" fn freeze_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio bus calls with a valid, bound device.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: A bound device has gone through a successful `probe`.
        let bound = unsafe { vdev.as_ref().drvdata_borrow::<Bound<T>>() };

        from_result(|| {
            T::freeze(vdev, bound.data())?;
            bound.binding.leave_queues();
            Ok(0)
        })
    }

    #[cfg(CONFIG_PM_SLEEP)]
    extern "C" fn restore_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio bus calls with a valid, bound device.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: A bound device has gone through a successful `probe`.
        let bound = unsafe { vdev.as_ref().drvdata_borrow::<Bound<T>>() };

        from_result(|| T::restore(vdev, bound.data(), QueueSetup::new(&bound.binding)).map(|()| 0))
    }

    extern "C" fn reset_prepare_callback(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The virtio bus calls with a valid, bound device.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: A bound device has gone through a successful `probe`.
        let bound = unsafe { vdev.as_ref().drvdata_borrow::<Bound<T>>() };

        T::reset_prepare(bound.data());
        0
    }

    extern "C" fn shutdown_callback(vdev: *mut bindings::virtio_device) {
        // SAFETY: The virtio bus calls with a valid, bound device.
        let vdev = unsafe { &*vdev.cast::<Device<device::CoreInternal<'_>>>() };

        // SAFETY: A bound device has gone through a successful `probe`.
        let bound = unsafe { vdev.as_ref().drvdata_borrow::<Bound<T>>() };

        T::shutdown(vdev, bound.data());
        bound.binding.leave_queues();
    }
}

/// Abstraction for `struct virtio_device_id`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct DeviceId(bindings::virtio_device_id);

impl DeviceId {
    /// Matches devices of type `device`, of any vendor.
    pub(crate) const fn new(device: u32) -> Self {
        Self(bindings::virtio_device_id {
            device,
            vendor: bindings::VIRTIO_DEV_ANY_ID,
        })
    }
}

// SAFETY: `DeviceId` is a `#[repr(transparent)]` wrapper of `virtio_device_id` and adds no
// invariants, so it is safe to transmute to `RawType`.
unsafe impl RawDeviceId for DeviceId {
    type RawType = bindings::virtio_device_id;
}

/// Table of device ids of a driver.
pub(crate) type IdTable = &'static dyn kernel::device_id::IdTable<DeviceId, ()>;

/// Creates a virtio `IdTable` with its alias for modpost.
macro_rules! virtio_device_table {
    ($name:ident, [$($id:expr),* $(,)?]) => {
        kernel::module_device_table!(
            "virtio",
            $crate::kapi::virtio::DeviceId,
            $name, @none,
            [$($id),*]
        );
    };
}
pub(crate) use virtio_device_table;

/// The virtio driver trait.
pub(crate) trait Driver: 'static {
    /// The type of the driver's private data of a device.
    type Data: Send + Sync + 'static;

    /// The device ids that the driver supports.
    const ID_TABLE: IdTable;

    /// The feature bits below 24 and from 50 on that the driver understands.
    const FEATURES: &'static [u32];

    /// Validates the negotiated features before they are final.
    ///
    /// # Errors
    ///
    /// Any error fails the probe.
    fn validate(dev: &Device<device::Core<'_>>) -> Result;

    /// Called when a device is found.
    ///
    /// If it fails, the device is reset and its queues are taken down, as after [`Driver::unbind`].
    fn probe(
        dev: &Device<device::Core<'_>>,
        binding: &Arc<Binding>,
        queues: QueueSetup<'_>,
    ) -> impl PinInit<Self::Data, Error>;

    /// Called when a device goes away, or the driver.
    ///
    /// Afterwards the device is reset and its queues are taken down, with the messages that are in
    /// them.
    fn unbind(dev: &Device<device::Core<'_>>, this: Pin<&Self::Data>);

    /// Called when the device says that its configuration has changed; may be in hard interrupt
    /// context.
    fn config_changed(this: Pin<&Self::Data>);

    /// Called before the machine sleeps, when no process runs.
    ///
    /// After success the device is reset and its queues are taken down.
    ///
    /// # Errors
    ///
    /// An error keeps the machine awake, and the device as it was.
    #[cfg(CONFIG_PM_SLEEP)]
    fn freeze(dev: &Device<device::Core<'_>>, this: Pin<&Self::Data>) -> Result;

    /// Called when the machine wakes up, after [`Driver::freeze`]. The device has been reset, and
    /// has the features that it had.
    ///
    /// # Errors
    ///
    /// After an error the device cannot be used until it is bound again.
    #[cfg(CONFIG_PM_SLEEP)]
    fn restore(
        dev: &Device<device::Core<'_>>,
        this: Pin<&Self::Data>,
        queues: QueueSetup<'_>,
    ) -> Result;

    /// Called before the device is reset by means of its bus. It must not be used any more
    /// until it is bound again.
    fn reset_prepare(this: Pin<&Self::Data>);

    /// Called before the machine is switched off. Afterwards the device is reset and its queues are
    /// taken down.
    fn shutdown(dev: &Device<device::Core<'_>>, this: Pin<&Self::Data>);
}
