// SPDX-License-Identifier: GPL-2.0

//! DRM devices: what the DRM core is told of a driver, and its callbacks.
//!
//! A device outlives its hardware: files stay open when it is unplugged, and their ioctls fail from
//! then on. The driver's data is dropped with the last reference to the device, which files and
//! buffers have.
//!
//! C headers: [`include/drm/drm_device.h`](srctree/include/drm/drm_device.h),
//! [`include/drm/drm_drv.h`](srctree/include/drm/drm_drv.h)

use super::{
    file::File,
    gem,
    ioctl::IoctlTable,
    peer::PeerMappings,
    prime::DmaBufOps, //
};
use crate::kapi::bindings;
use core::{
    mem,
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    device,
    error::{
        from_err_ptr,
        to_result, //
    },
    module::{
        this_module,
        ModuleMetadata, //
    },
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

/// Driver feature: GEM objects.
pub(crate) const FEAT_GEM: u32 = bindings::drm_driver_feature_DRIVER_GEM;
/// Driver feature: a render node.
pub(crate) const FEAT_RENDER: u32 = bindings::drm_driver_feature_DRIVER_RENDER;
/// Driver feature: syncobjs.
pub(crate) const FEAT_SYNCOBJ: u32 = bindings::drm_driver_feature_DRIVER_SYNCOBJ;
/// Driver feature: syncobjs with timelines.
pub(crate) const FEAT_SYNCOBJ_TIMELINE: u32 = bindings::drm_driver_feature_DRIVER_SYNCOBJ_TIMELINE;

/// What `DRM_IOCTL_VERSION` tells.
pub(crate) struct DriverInfo {
    /// Major version.
    pub(crate) major: i32,
    /// Minor version.
    pub(crate) minor: i32,
    /// Patch level.
    pub(crate) patchlevel: i32,
    /// Name.
    pub(crate) name: &'static CStr,
    /// Description.
    pub(crate) desc: &'static CStr,
}

/// A DRM driver.
pub(crate) trait Driver: Sized + 'static {
    /// The module that this is part of.
    type OwnerModule: ModuleMetadata;

    /// Data of a device.
    type Data: Send + Sync;

    /// Data of an open file.
    type File: Send + Sync;

    /// Data of a GEM object.
    type Object: gem::DriverObject<Driver = Self>;

    /// What the driver tells of itself.
    const INFO: DriverInfo;

    /// What its dma-bufs are known by.
    const DMA_BUF_OPS: &'static DmaBufOps;

    /// Mask of `FEAT_*`.
    const FEATURES: u32;

    /// The driver's ioctls.
    const IOCTLS: &'static IoctlTable;

    /// A file was opened.
    ///
    /// # Errors
    ///
    /// Any error fails the open.
    fn open(dev: &Device<Self>) -> Result<Pin<KBox<Self::File>>>;

    /// A file is being closed: no more ioctls come, but its handles are still there.
    fn close(file: &File<Self>);

    /// Userspace has read events of `file`, so that there is room for more. May sleep.
    fn events_read(file: &File<Self>);

    /// A program reads the fdinfo of `file`. May sleep.
    fn fdinfo(file: &File<Self>, out: &super::fdinfo::FdInfo);

    /// The device is being registered: adds files to its folder in debugfs.
    #[cfg(CONFIG_DEBUG_FS)]
    fn debugfs(folder: &super::debugfs::Folder<'_, Self>);
}

/// A DRM device with the driver's data.
///
/// # Invariants
///
/// `dev` is a valid `struct drm_device` whose driver is `T`'s.
#[repr(C)]
pub(crate) struct Device<T: Driver> {
    dev: Opaque<bindings::drm_device>,
    /// What other devices have mapped of this one.
    peers: Pin<KBox<PeerMappings>>,
    data: T::Data,
}

impl<T: Driver> Device<T> {
    const VTABLE: bindings::drm_driver = bindings::drm_driver {
        load: None,
        open: Some(File::<T>::open_callback),
        postclose: Some(File::<T>::postclose_callback),
        unload: None,
        release: Some(Self::release_callback),
        master_set: None,
        master_drop: None,
        #[cfg(CONFIG_DEBUG_FS)]
        debugfs_init: Some(super::debugfs::init_callback::<T>),
        #[cfg(not(CONFIG_DEBUG_FS))]
        debugfs_init: None,
        gem_create_object: None,
        prime_handle_to_fd: None,
        prime_fd_to_handle: None,
        gem_prime_import: Some(super::prime::import_callback::<T>),
        gem_prime_import_sg_table: None,
        dumb_create: None,
        dumb_map_offset: None,
        fbdev_probe: None,
        show_fdinfo: Some(super::fdinfo::show_callback::<T>),
        major: T::INFO.major,
        minor: T::INFO.minor,
        patchlevel: T::INFO.patchlevel,
        name: kernel::str::as_char_ptr_in_const_context(T::INFO.name).cast_mut(),
        desc: kernel::str::as_char_ptr_in_const_context(T::INFO.desc).cast_mut(),
        driver_features: T::FEATURES,
        ioctls: T::IOCTLS.descriptors().as_ptr(),
        num_ioctls: T::IOCTLS.descriptors().len() as i32,
        fops: &Self::FOPS,
    };

    const FOPS: bindings::file_operations = {
        let mut fops: bindings::file_operations = pin_init::zeroed();

        fops.owner = this_module::<T::OwnerModule>().as_ptr();
        fops.open = Some(bindings::drm_open);
        fops.release = Some(File::<T>::release_callback);
        fops.unlocked_ioctl = Some(super::ioctl::unlocked_ioctl::<T>);
        #[cfg(CONFIG_COMPAT)]
        {
            fops.compat_ioctl = Some(super::ioctl::compat_ioctl::<T>);
        }
        fops.poll = Some(bindings::drm_poll);
        fops.read = Some(File::<T>::read_callback);
        fops.llseek = Some(bindings::noop_llseek);
        fops.mmap = Some(bindings::drm_gem_mmap);
        fops.get_unmapped_area = Some(bindings::drm_gem_get_unmapped_area);
        fops.show_fdinfo = Some(bindings::drm_show_fdinfo);
        fops.fop_flags = bindings::FOP_UNSIGNED_OFFSET;
        fops
    };

    /// Creates a device below `parent`, which does its DMA.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(parent: &device::Device<device::Bound>, data: T::Data) -> Result<ARef<Self>> {
        let parent: &device::Device = parent;
        let peers = KBox::pin_init(PeerMappings::new(), GFP_KERNEL)?;
        // SAFETY: The table is static; the parent is valid, and transparent.
        let raw: *mut Self = unsafe {
            bindings::__drm_dev_alloc(
                ptr::from_ref(parent).cast_mut().cast(),
                const { &Self::VTABLE },
                mem::size_of::<Self>(),
                mem::offset_of!(Self, dev),
            )
        }
        .cast();
        let raw = NonNull::new(from_err_ptr(raw)?).ok_or(ENOMEM)?;

        // SAFETY: The memory of the data is valid for writes.
        unsafe {
            (&raw mut (*raw.as_ptr()).peers).write(peers);
            (&raw mut (*raw.as_ptr()).data).write(data);
        }

        // INVARIANT: The device is valid and has the driver's table.
        // SAFETY: There is one reference, which is ours.
        Ok(unsafe { ARef::from_raw(raw) })
    }

    pub(super) fn as_raw(&self) -> *mut bindings::drm_device {
        self.dev.get()
    }

    /// The device around a `struct drm_device`.
    ///
    /// # Safety
    ///
    /// `raw` is a valid device of driver `T` for `'a`.
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::drm_device) -> &'a Self {
        // SAFETY: By the requirements of this function; `dev` is the first field.
        unsafe { &*raw.cast() }
    }

    pub(super) fn peers(&self) -> &PeerMappings {
        &self.peers
    }

    /// Keeps the device from being unplugged until the result is dropped; `None` if it is already.
    ///
    /// May be called in any context in which sleeping is allowed. Unplugging waits for it, that of
    /// other DRM devices as well, so it is not for waiting for a device.
    pub(crate) fn enter(&self) -> Option<Entered> {
        let mut section = 0;
        // SAFETY: By the type invariant the device is valid.
        if !unsafe { bindings::drm_dev_enter(self.as_raw(), &mut section) } {
            return None;
        }
        // INVARIANT: The section was entered, by this thread.
        Some(Entered {
            section,
            _not_send: NotThreadSafe,
        })
    }

    extern "C" fn release_callback(raw: *mut bindings::drm_device) {
        // SAFETY: The last reference is gone, so nothing uses the data, which `new` initialized.
        unsafe {
            ptr::drop_in_place(&raw mut (*raw.cast::<Self>()).data);
            ptr::drop_in_place(&raw mut (*raw.cast::<Self>()).peers);
        }
    }
}

/// A section in which a device is not unplugged; see [`Device::enter`].
///
/// # Invariants
///
/// `section` is from `drm_dev_enter()` in this thread.
#[must_use = "the section ends when this is dropped"]
pub(crate) struct Entered {
    section: c_int,
    _not_send: NotThreadSafe,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::drm_dev_exit(self.section) }
    }
}

impl<T: Driver> Deref for Device<T> {
    type Target = T::Data;

    fn deref(&self) -> &T::Data {
        &self.data
    }
}

// SAFETY: The functions count references; the last put releases the device.
unsafe impl<T: Driver> AlwaysRefCounted for Device<T> {
    fn inc_ref(&self) {
        // SAFETY: The existence of a reference guarantees that the count is non-zero.
        unsafe { bindings::drm_dev_get(self.as_raw()) }
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller passes a reference on.
        unsafe { bindings::drm_dev_put(obj.as_ptr().cast()) }
    }
}

// SAFETY: The functions of a device may be called from any thread; the data may be sent.
unsafe impl<T: Driver> Send for Device<T> {}

// SAFETY: The functions of a device may be called concurrently; the data may be shared.
unsafe impl<T: Driver> Sync for Device<T> {}

/// A device that userspace can open.
///
/// # Invariants
///
/// `drm_dev_register()` has succeeded.
pub(crate) struct Registration<T: Driver>(ARef<Device<T>>);

impl<T: Driver> Registration<T> {
    /// Makes device nodes for `dev`.
    ///
    /// # Errors
    ///
    /// Those of `drm_dev_register()`.
    pub(crate) fn new(dev: ARef<Device<T>>) -> Result<Self> {
        // SAFETY: The device is valid and not yet registered.
        to_result(unsafe { bindings::drm_dev_register(dev.as_raw(), 0) })?;
        // INVARIANT: The registration has succeeded.
        Ok(Self(dev))
    }

    /// Takes the nodes away, and ends all mappings of programs; open files stay, and get
    /// [`ENODEV`].
    pub(crate) fn unplug(self) -> Unplugged<T> {
        let dev = self.0.clone();
        drop(self);
        // INVARIANT: The registration has ended.
        Unplugged(dev)
    }
}

impl<T: Driver> Drop for Registration<T> {
    /// Takes the nodes away, and ends all mappings; open files stay, and get [`ENODEV`].
    fn drop(&mut self) {
        // SAFETY: By the type invariant the device is registered.
        unsafe { bindings::drm_dev_unplug(self.0.as_raw()) }
    }
}

/// A device that userspace cannot open any more.
///
/// # Invariants
///
/// `drm_dev_unplug()` has returned.
pub(crate) struct Unplugged<T: Driver>(ARef<Device<T>>);

impl<T: Driver> Unplugged<T> {
    /// Revokes the memory of I/O objects from other devices that have mapped it, and returns when
    /// they have let go of it.
    ///
    /// Waits for all fences of such objects, so that those of this device must be signalled in the
    /// end whatever becomes of it.
    pub(crate) fn revoke(self) {
        // SAFETY: By the type invariant of a device it is valid, and has a parent.
        let parent: &device::Device = unsafe { device::Device::from_raw((*self.0.as_raw()).dev) };
        self.0.peers().revoke(parent);
    }
}
