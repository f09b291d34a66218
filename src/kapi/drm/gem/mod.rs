// SPDX-License-Identifier: GPL-2.0

//! GEM buffer objects.
//!
//! A driver has one type of object, [`Object`], in three kinds:
//!
//! - *shmem* ([`shmem`]): with pages of its own, which userspace can map;
//! - *I/O* ([`io`]): without pages; what userspace maps is a stretch of device memory;
//! - *private*: cannot be mapped at all.
//!
//! C headers: [`include/drm/drm_gem.h`](srctree/include/drm/drm_gem.h),
//! [`include/drm/drm_gem_shmem_helper.h`](srctree/include/drm/drm_gem_shmem_helper.h)

mod io;
mod shmem;

pub(crate) use self::io::{
    Caching,
    IoMemory, //
};

use super::{
    device::{
        Device,
        Driver, //
    },
    file::File,
    prime::{
        self,
        Attachment,
        Importable, //
    }, //
};
use crate::kapi::{
    bindings,
    dma::{
        map::DmaMap,
        Resv, //
    },
};
use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    prelude::*,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        atomic::{
            ordering::Acquire,
            Atomic,
            AtomicFlag, //
        },
        Arc,
        SetOnce, //
    },
    types::Opaque, //
};

/// The driver's part of a GEM object.
pub(crate) trait DriverObject: Sized + Send + Sync + 'static {
    /// The driver.
    type Driver: Driver<Object = Self>;

    /// A handle is being made for `file`. May sleep.
    ///
    /// # Errors
    ///
    /// Any error refuses the handle.
    fn open(obj: &Object<Self>, file: &File<Self::Driver>) -> Result;

    /// A handle of `file` is being closed. May sleep.
    fn close(obj: &Object<Self>, file: &File<Self::Driver>);

    /// The last reference is gone.
    ///
    /// Called in process context, maybe with `mmap_lock` held if the object can be mapped.
    /// Dropping `obj` frees it, which may be done later, but must be done.
    fn free(obj: Owned<Self>);

    /// What a mapping of an I/O object shows, the same each time. May sleep; `mmap_lock` is held.
    ///
    /// Userspace reaches the memory as long as the object exists and the device is not unplugged.
    ///
    /// # Errors
    ///
    /// Go to userspace.
    fn io_memory(obj: &Object<Self>) -> Result<IoMemory>;

    /// The object is to be shared through a dma-buf, which `make` makes and this returns. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// Go to userspace; those of `make` are to be returned.
    fn export<B>(obj: &Object<Self>, make: impl FnOnce() -> Result<B>) -> Result<B>;

    /// The UUID by which other virtio devices find a shared object on the host. May sleep.
    ///
    /// # Errors
    ///
    /// Go to the driver that asks.
    fn uuid(obj: &Object<Self>) -> Result<[u8; 16]>;

    /// Makes an object of a dma-buf of another driver. May sleep; locks of the core are held.
    ///
    /// # Errors
    ///
    /// Go to userspace.
    fn import(dev: &Device<Self::Driver>, buf: &Importable) -> Result<ARef<Object<Self>>>;
}

/// What kind of memory an object has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Shmem,
    Io,
    Private,
}

/// A GEM object with the driver's data.
///
/// # Invariants
///
/// `base.base` is an initialized GEM object; with [`Kind::Shmem`], `base` is an initialized shmem
/// object. All GEM objects of a device of the driver are of this type.
#[repr(C)]
pub(crate) struct Object<O: DriverObject> {
    base: Opaque<bindings::drm_gem_shmem_object>,
    kind: Kind,
    /// Physical address of an I/O object's memory, set before the object is mapped for the first
    /// time.
    io_base: Atomic<u64>,
    /// The pages are pinned, once, until the object is released.
    pinned: AtomicFlag,
    /// The pages as the device sees them, if they were mapped for it.
    dma: SetOnce<DmaMap>,
    /// The reservation, if it is not the object's own.
    resv: Option<Arc<Resv>>,
    /// The dma-buf whose memory it is.
    import: Option<Arc<Attachment>>,
    dev: ARef<Device<O::Driver>>,
    data: O,
}

struct Table<O>(PhantomData<O>);

impl<O: DriverObject> Table<O> {
    const PRIVATE: bindings::drm_gem_object_funcs = {
        let mut funcs: bindings::drm_gem_object_funcs = pin_init::zeroed();

        funcs.free = Some(Object::<O>::free_callback);
        funcs.open = Some(Object::<O>::open_callback);
        funcs.close = Some(Object::<O>::close_callback);
        funcs.export = Some(Object::<O>::export_callback);
        funcs
    };
}

impl<O: DriverObject> Object<O> {
    /// A private object of `size` bytes, a multiple of the page size and not 0.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new_private(dev: &Device<O::Driver>, size: usize, data: O) -> Result<ARef<Self>> {
        Self::new_without_memory(dev, Kind::Private, size, None, data)
    }

    /// A private object whose fences are in `resv`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new_private_with_resv(
        dev: &Device<O::Driver>,
        size: usize,
        resv: Arc<Resv>,
        data: O,
    ) -> Result<ARef<Self>> {
        Self::new_without_memory(dev, Kind::Private, size, Some(resv), data)
    }

    /// A private object of `size` bytes, a multiple of the page size and not 0, for the memory of a
    /// dma-buf, whose fences are its fences.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new_imported(
        dev: &Device<O::Driver>,
        size: usize,
        attachment: Arc<Attachment>,
        data: O,
    ) -> Result<ARef<Self>> {
        let raw = Self::allocate(dev, Kind::Private, data)?;
        // INVARIANT: The object is initialized here.
        // SAFETY: As in `new_without_memory`. Attachment and reservation live as long as the
        // object, which keeps them.
        unsafe {
            let object: *mut bindings::drm_gem_object = raw.as_ptr().cast();
            (*object).resv = attachment.reservation();
            (*object).import_attach = attachment.as_raw();
            (&raw mut (*raw.as_ptr()).import).write(Some(attachment));
            bindings::drm_gem_private_object_init(dev.as_raw(), object, size);
            Ok(ARef::from_raw(raw))
        }
    }

    fn new_without_memory(
        dev: &Device<O::Driver>,
        kind: Kind,
        size: usize,
        resv: Option<Arc<Resv>>,
        data: O,
    ) -> Result<ARef<Self>> {
        let raw = Self::allocate(dev, kind, data)?;
        // INVARIANT: The object is initialized here.
        // SAFETY: The object is zeroed, and has its functions. It gets one reference, which is
        // ours. A reservation from outside lives as long as the object, which keeps it.
        unsafe {
            if let Some(resv) = resv {
                (*raw.cast::<bindings::drm_gem_object>().as_ptr()).resv = resv.as_raw();
                (&raw mut (*raw.as_ptr()).resv).write(Some(resv));
            }
            bindings::drm_gem_private_object_init(dev.as_raw(), raw.as_ptr().cast(), size);
            Ok(ARef::from_raw(raw))
        }
    }

    fn allocate(dev: &Device<O::Driver>, kind: Kind, data: O) -> Result<NonNull<Self>> {
        let memory: KBox<MaybeUninit<Self>> =
            KBox::new_uninit(GFP_KERNEL | kernel::alloc::flags::__GFP_ZERO)?;
        let raw = KBox::into_raw(memory).cast::<Self>();

        // SAFETY: The memory is valid for writes, and does not move.
        unsafe {
            (&raw mut (*raw).data).write(data);
            (&raw mut (*raw).kind).write(kind);
            (&raw mut (*raw).io_base).write(Atomic::new(0));
            (&raw mut (*raw).pinned).write(AtomicFlag::new(false));
            (&raw mut (*raw).dma).write(SetOnce::new());
            (&raw mut (*raw).resv).write(None);
            (&raw mut (*raw).import).write(None);
            (&raw mut (*raw).dev).write(dev.into());
            (*raw.cast::<bindings::drm_gem_object>()).funcs = match kind {
                Kind::Shmem => const { &Table::<O>::SHMEM },
                Kind::Io => const { &Table::<O>::IO },
                Kind::Private => const { &Table::<O>::PRIVATE },
            };
            Ok(NonNull::new_unchecked(raw))
        }
    }

    /// Frees the memory.
    ///
    /// # Safety
    ///
    /// `raw` is from `allocate`, its GEM object is not initialized or released, its data is
    /// dropped, and it is not in use any more.
    unsafe fn deallocate(raw: NonNull<Self>) {
        let raw = raw.as_ptr();
        // SAFETY: By the requirements of this function. The device goes last: it may be what
        // keeps the module.
        unsafe {
            let dev = ptr::read(&raw const (*raw).dev);
            drop(ptr::read(&raw const (*raw).resv));
            drop(ptr::read(&raw const (*raw).import));
            drop(KBox::from_raw(raw.cast::<MaybeUninit<Self>>()));
            drop(dev);
        }
    }

    pub(super) fn as_raw(&self) -> *mut bindings::drm_gem_object {
        self.base.get().cast()
    }

    /// The object around a `struct drm_gem_object`.
    ///
    /// # Safety
    ///
    /// `raw` is a valid object of a device of driver `O::Driver` for `'a`.
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::drm_gem_object) -> &'a Self {
        // SAFETY: By the requirements of this function, and the type invariant.
        unsafe { &*raw.cast() }
    }

    pub(super) fn device(&self) -> &Device<O::Driver> {
        &self.dev
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes.
    pub(crate) fn size(&self) -> usize {
        // SAFETY: By the type invariant the object is valid; the size does not change.
        unsafe { (*self.as_raw()).size }
    }

    /// Whether userspace can map it.
    pub(crate) fn is_mappable(&self) -> bool {
        self.kind != Kind::Private
    }

    /// Makes a handle for `file`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], or that of [`DriverObject::open`].
    pub(crate) fn create_handle(&self, file: &File<O::Driver>) -> Result<u32> {
        let mut handle = 0;
        // SAFETY: The file and, by the type invariant, the object are valid.
        to_result(unsafe {
            bindings::drm_gem_handle_create(file.as_raw(), self.as_raw(), &mut handle)
        })?;
        Ok(handle)
    }

    /// The object with `handle` of `file`.
    ///
    /// # Errors
    ///
    /// [`ENOENT`].
    pub(crate) fn lookup(file: &File<O::Driver>, handle: u32) -> Result<ARef<Self>> {
        // SAFETY: The file is valid.
        let raw = unsafe { bindings::drm_gem_object_lookup(file.as_raw(), handle) };
        let raw = NonNull::new(raw).ok_or(ENOENT)?;
        // SAFETY: The function returns a reference; by the type invariant all objects are of this
        // type.
        Ok(unsafe { ARef::from_raw(raw.cast()) })
    }

    /// The offset for mmap(2), which stays the same.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the object cannot be mapped, [`ENOMEM`].
    pub(crate) fn mmap_offset(&self) -> Result<u64> {
        if !self.is_mappable() {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariant the object is valid.
        unsafe {
            to_result(bindings::drm_gem_create_mmap_offset(self.as_raw()))?;
            Ok(bindings::kapi_drm_gem_object_mmap_offset(self.as_raw()))
        }
    }

    /// Waits until the jobs that write the object are done, for `ms` milliseconds at most.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] when the time is over, [`ERESTARTSYS`] on a signal.
    pub(crate) fn wait_idle(&self, ms: u32) -> Result {
        // SAFETY: By the type invariant the object, and so its reservation, is valid.
        let left = unsafe {
            bindings::dma_resv_wait_timeout(
                (*self.as_raw()).resv,
                bindings::dma_resv_usage_DMA_RESV_USAGE_READ,
                true,
                crate::kapi::sync::jiffies(ms),
            )
        };
        match left {
            0 => Err(EBUSY),
            left if left < 0 => Err(Error::from_errno(left as c_int)),
            _ => Ok(()),
        }
    }

    /// Whether the jobs that use the object are done.
    pub(crate) fn is_idle(&self) -> bool {
        // SAFETY: By the type invariant the object, and so its reservation, is valid.
        unsafe {
            bindings::dma_resv_test_signaled(
                (*self.as_raw()).resv,
                bindings::dma_resv_usage_DMA_RESV_USAGE_READ,
            )
        }
    }

    extern "C" fn free_callback(raw: *mut bindings::drm_gem_object) {
        // SAFETY: The core calls when the last reference is gone.
        // INVARIANT: So this is the only user of the object.
        O::free(Owned(unsafe { NonNull::new_unchecked(raw.cast()) }));
    }

    extern "C" fn open_callback(
        raw: *mut bindings::drm_gem_object,
        file: *mut bindings::drm_file,
    ) -> c_int {
        // SAFETY: The core calls with an object and a file of this driver.
        let (obj, file) = unsafe { (Self::from_raw(raw), File::from_raw(file)) };
        from_result(|| O::open(obj, file).map(|()| 0))
    }

    extern "C" fn close_callback(
        raw: *mut bindings::drm_gem_object,
        file: *mut bindings::drm_file,
    ) {
        // SAFETY: The core calls with an object and a file of this driver.
        let (obj, file) = unsafe { (Self::from_raw(raw), File::from_raw(file)) };
        O::close(obj, file);
    }

    extern "C" fn export_callback(
        raw: *mut bindings::drm_gem_object,
        flags: c_int,
    ) -> *mut bindings::dma_buf {
        // SAFETY: The core calls with an object of this driver.
        let obj = unsafe { Self::from_raw(raw) };
        // SAFETY: The arguments are those of the core.
        let make = || from_err_ptr(unsafe { prime::export::<O::Driver>(raw, flags) });
        O::export(obj, make).unwrap_or_else(Error::to_ptr)
    }
}

impl<O: DriverObject> Deref for Object<O> {
    type Target = O;

    fn deref(&self) -> &O {
        &self.data
    }
}

// SAFETY: The functions count references; the last put calls `free_callback`.
unsafe impl<O: DriverObject> AlwaysRefCounted for Object<O> {
    fn inc_ref(&self) {
        // SAFETY: The existence of a reference guarantees that the count is non-zero.
        unsafe { bindings::kapi_drm_gem_object_get(self.as_raw()) }
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller passes a reference on.
        unsafe { bindings::kapi_drm_gem_object_put(obj.as_ptr().cast()) }
    }
}

// SAFETY: The functions of an object may be called from any thread; the data may be sent.
unsafe impl<O: DriverObject> Send for Object<O> {}

// SAFETY: The functions of an object may be called concurrently; the data may be shared.
unsafe impl<O: DriverObject> Sync for Object<O> {}

/// An object without references, about to be freed.
///
/// # Invariants
///
/// The pointer is that of an initialized object, of which this is the only user.
pub(crate) struct Owned<O: DriverObject>(NonNull<Object<O>>);

// SAFETY: An object may be freed by any thread.
unsafe impl<O: DriverObject> Send for Owned<O> {}

// SAFETY: Shared references give what a shared `Object` gives.
unsafe impl<O: DriverObject> Sync for Owned<O> {}

impl<O: DriverObject> Deref for Owned<O> {
    type Target = Object<O>;

    fn deref(&self) -> &Object<O> {
        // SAFETY: By the type invariant.
        unsafe { self.0.as_ref() }
    }
}

impl<O: DriverObject> Drop for Owned<O> {
    fn drop(&mut self) {
        let raw = self.as_raw();
        // SAFETY: By the type invariant the object is initialized, and has no other user. The
        // device's view of the pages goes before they do.
        unsafe {
            ptr::drop_in_place(&raw mut (*self.0.as_ptr()).data);
            ptr::drop_in_place(&raw mut (*self.0.as_ptr()).dma);
            match self.kind {
                Kind::Shmem => {
                    if self.pinned.load(Acquire) {
                        bindings::drm_gem_shmem_unpin(raw.cast());
                    }
                    bindings::drm_gem_shmem_release(raw.cast());
                }
                Kind::Io | Kind::Private => bindings::drm_gem_object_release(raw),
            }
            Object::deallocate(self.0);
        }
    }
}
