// SPDX-License-Identifier: GPL-2.0

//! Sharing objects with other drivers, through dma-bufs.
//!
//! Objects of a driver are exported with operations of its own, [`DmaBufOps`], by which it knows
//! them again. They are those of virtio drivers, of which other virtio drivers may ask under which
//! UUID the host knows the object.
//!
//! A dma-buf of another driver is an [`Importable`]; the driver attaches to it, and maps it. An
//! exporter that can move or revoke its memory is asked to leave it where it is as long as it is
//! mapped; if it revokes it nevertheless, it says so, and the mapping must go soon.
//!
//! C headers: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h),
//! [`include/linux/virtio_dma_buf.h`](srctree/include/linux/virtio_dma_buf.h),
//! [`include/drm/drm_prime.h`](srctree/include/drm/drm_prime.h)

use super::{
    device::{
        Device,
        Driver, //
    },
    gem::{
        DriverObject,
        IoMemory,
        Kind,
        Object, //
    },
};
use crate::kapi::bindings;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    module::this_module,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

/// The operations of the dma-bufs that a driver exports. A driver has one, which is static.
pub(crate) struct DmaBufOps(bindings::virtio_dma_buf_ops);

// SAFETY: A table of functions, which does not change.
unsafe impl Sync for DmaBufOps {}

/// The object behind a dma-buf.
///
/// # Safety
///
/// `buf` is a valid dma-buf with the operations of driver `D`, for `'a`.
unsafe fn object_of<'a, D: Driver>(buf: *mut bindings::dma_buf) -> &'a Object<D::Object> {
    // SAFETY: By the requirements of this function; its private data is the exported object.
    unsafe { Object::from_raw((*buf).priv_.cast()) }
}

impl DmaBufOps {
    /// The operations of driver `D`.
    pub(crate) const fn new<D: Driver>() -> Self {
        let mut ops: bindings::dma_buf_ops = pin_init::zeroed();

        ops.attach = Some(bindings::virtio_dma_buf_attach);
        ops.detach = Some(Self::detach_callback::<D>);
        ops.map_dma_buf = Some(Self::map_callback::<D>);
        ops.unmap_dma_buf = Some(Self::unmap_callback::<D>);
        ops.release = Some(bindings::drm_gem_dmabuf_release);
        ops.mmap = Some(bindings::drm_gem_dmabuf_mmap);
        ops.vmap = Some(bindings::drm_gem_dmabuf_vmap);
        ops.vunmap = Some(bindings::drm_gem_dmabuf_vunmap);
        Self(bindings::virtio_dma_buf_ops {
            ops,
            device_attach: Some(Self::attach_callback::<D>),
            get_uuid: Some(Self::uuid_callback::<D>),
        })
    }

    fn as_raw(&self) -> *const bindings::dma_buf_ops {
        &raw const self.0.ops
    }

    extern "C" fn attach_callback<D: Driver>(
        buf: *mut bindings::dma_buf,
        attach: *mut bindings::dma_buf_attachment,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The core calls with a dma-buf of these operations.
            let obj = unsafe { object_of::<D>(buf) };
            match obj.kind() {
                Kind::Shmem => {
                    // SAFETY: The arguments are those of the core.
                    to_result(unsafe { bindings::drm_gem_map_attach(buf, attach) })?;
                }
                Kind::Io => {
                    // There are no pages, only addresses on the bus.
                    // SAFETY: The attachment is valid.
                    if !unsafe { (*attach).peer2peer } {
                        return Err(EOPNOTSUPP);
                    }
                    // It must let go of them when the device goes.
                    // SAFETY: The attachment is valid.
                    if !unsafe { bindings::dma_buf_attach_revocable(attach) } {
                        return Err(EOPNOTSUPP);
                    }
                    let memory = KBox::new(D::Object::io_memory(obj)?, GFP_KERNEL)?;
                    // SAFETY: The attachment is new, and its private data is the exporter's.
                    unsafe { (*attach).priv_ = KBox::into_raw(memory).cast() };
                }
                Kind::Private => {
                    // Other virtio devices share it on the host, where they name it by its UUID.
                    // SAFETY: The attachment has a valid device.
                    if !unsafe { bindings::is_virtio_device((*attach).dev) } {
                        return Err(EIO);
                    }
                }
            }
            Ok(0)
        })
    }

    extern "C" fn detach_callback<D: Driver>(
        buf: *mut bindings::dma_buf,
        attach: *mut bindings::dma_buf_attachment,
    ) {
        // SAFETY: The core calls with a dma-buf of these operations.
        match unsafe { object_of::<D>(buf) }.kind() {
            // SAFETY: The arguments are those of the core.
            Kind::Shmem => unsafe { bindings::drm_gem_map_detach(buf, attach) },
            // SAFETY: `attach_callback` has put it there.
            Kind::Io => drop(unsafe { KBox::from_raw((*attach).priv_.cast::<IoMemory>()) }),
            Kind::Private => {}
        }
    }

    extern "C" fn map_callback<D: Driver>(
        attach: *mut bindings::dma_buf_attachment,
        direction: bindings::dma_data_direction,
    ) -> *mut bindings::sg_table {
        // SAFETY: The core calls with an attachment to a dma-buf of these operations, whose private
        // data is what `attach_callback` has put there.
        unsafe {
            match object_of::<D>((*attach).dmabuf).kind() {
                Kind::Shmem => bindings::drm_gem_map_dma_buf(attach, direction),
                Kind::Io => {
                    let dev = object_of::<D>((*attach).dmabuf).device();
                    let Some(_entered) = dev.enter() else {
                        return ENODEV.to_ptr();
                    };
                    let memory: &IoMemory = &*(*attach).priv_.cast();
                    match dev.peers().map(attach, memory, direction) {
                        Ok(table) => table,
                        Err(e) => e.to_ptr(),
                    }
                }
                Kind::Private => bindings::kapi_dma_map_io((*attach).dev, 0, 0, direction),
            }
        }
    }

    extern "C" fn unmap_callback<D: Driver>(
        attach: *mut bindings::dma_buf_attachment,
        table: *mut bindings::sg_table,
        direction: bindings::dma_data_direction,
    ) {
        // SAFETY: The core calls with a table that `map_callback` has made.
        unsafe {
            let object = object_of::<D>((*attach).dmabuf);
            match object.kind() {
                Kind::Shmem => bindings::drm_gem_unmap_dma_buf(attach, table, direction),
                Kind::Io => object.device().peers().unmap(attach, table, direction),
                Kind::Private => bindings::kapi_dma_unmap_io((*attach).dev, table, direction),
            }
        }
    }

    extern "C" fn uuid_callback<D: Driver>(
        buf: *mut bindings::dma_buf,
        uuid: *mut bindings::uuid_t,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The core calls with a dma-buf of these operations.
            let bytes = D::Object::uuid(unsafe { object_of::<D>(buf) })?;
            // SAFETY: The caller's UUID is valid for writes.
            unsafe { (*uuid).b = bytes };
            Ok(0)
        })
    }
}

/// Exports an object.
///
/// # Safety
///
/// `raw` is a valid object of driver `D`.
pub(super) unsafe fn export<D: Driver>(
    raw: *mut bindings::drm_gem_object,
    flags: c_int,
) -> *mut bindings::dma_buf {
    // SAFETY: By the requirements of this function. The function takes the references that
    // `drm_gem_dmabuf_release()` puts, and lets unplugging the device find what maps the dma-buf.
    // That virtio drivers recognize it is due to its operations alone.
    unsafe {
        let mut info = bindings::dma_buf_export_info {
            exp_name: D::INFO.name.as_char_ptr(),
            owner: this_module::<D::OwnerModule>().as_ptr(),
            ops: D::DMA_BUF_OPS.as_raw(),
            size: (*raw).size,
            flags,
            resv: (*raw).resv,
            priv_: raw.cast(),
        };
        bindings::drm_gem_dmabuf_export((*raw).dev, &mut info)
    }
}

/// `drm_driver::gem_prime_import`.
pub(super) extern "C" fn import_callback<D: Driver>(
    dev: *mut bindings::drm_device,
    buf: *mut bindings::dma_buf,
) -> *mut bindings::drm_gem_object {
    // SAFETY: The core calls with a device of this driver and a valid dma-buf. One with the
    // operations of this driver has an object of it.
    let (dev, imported) = unsafe {
        if ptr::eq((*buf).ops, D::DMA_BUF_OPS.as_raw()) {
            let raw: *mut bindings::drm_gem_object = (*buf).priv_.cast();
            if (*raw).dev == dev {
                bindings::kapi_drm_gem_object_get(raw);
                return raw;
            }
        }
        (
            Device::<D>::from_raw(dev),
            Importable(NonNull::new_unchecked(buf)),
        )
    };
    match D::Object::import(dev, &imported) {
        Ok(object) => ARef::into_raw(object).as_ptr().cast(),
        Err(e) => e.to_ptr(),
    }
}

/// A dma-buf of another exporter, to be imported.
///
/// # Invariants
///
/// A valid dma-buf.
pub(crate) struct Importable(NonNull<bindings::dma_buf>);

/// What the exporter of a dma-buf calls.
pub(crate) trait Importer: Send + Sync {
    /// The exporter revokes the memory for good: the mapping must go soon, but not here.
    ///
    /// Called with the reservation of the dma-buf locked.
    fn revoked(&self);
}

impl Importable {
    /// Bytes.
    pub(crate) fn size(&self) -> usize {
        // SAFETY: By the type invariant.
        unsafe { self.0.as_ref().size }
    }

    /// Whether the exporter can move or revoke the memory.
    pub(crate) fn is_dynamic(&self) -> bool {
        // SAFETY: By the type invariant; a dma-buf has operations.
        unsafe { (*self.0.as_ref().ops).pin.is_some() }
    }

    /// Attaches the device that does DMA for `dev`, which gets memory with pages only.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if addresses of that device are not those that it was said to see, as
    /// `physical` demands; [`ENOMEM`]; that of the exporter.
    pub(crate) fn attach<D: Driver>(
        &self,
        dev: &Device<D>,
        physical: bool,
        importer: Arc<dyn Importer>,
    ) -> Result<Arc<Attachment>> {
        let importer = KBox::new(importer, GFP_KERNEL)?;
        // SAFETY: The device and the dma-buf are valid. What is passed to the callback lives as
        // long as the attachment. The dma-buf gets one more reference, which is the attachment's.
        unsafe {
            let parent = (*dev.as_raw()).dev;
            if physical && !bindings::kapi_dma_is_physical(parent) {
                return Err(EOPNOTSUPP);
            }
            let attach = from_err_ptr(bindings::dma_buf_dynamic_attach(
                self.0.as_ptr(),
                parent,
                const { &Attachment::OPS },
                ptr::from_ref(&*importer).cast_mut().cast(),
            ))?;
            bindings::kapi_get_dma_buf(self.0.as_ptr());
            // INVARIANT: The attachment was just made, with this importer.
            let this = Attachment {
                buf: self.0,
                attach: NonNull::new_unchecked(attach),
                _importer: importer,
            };
            Ok(Arc::new(this, GFP_KERNEL)?)
        }
    }
}

/// A device attached to a dma-buf.
///
/// # Invariants
///
/// `attach` is an attachment to `buf`, of which this owns a reference; its private data of the
/// importer is the importer's address.
pub(crate) struct Attachment {
    buf: NonNull<bindings::dma_buf>,
    attach: NonNull<bindings::dma_buf_attachment>,
    _importer: KBox<Arc<dyn Importer>>,
}

// SAFETY: The functions of an attachment may be called from any thread.
unsafe impl Send for Attachment {}

// SAFETY: The functions of an attachment lock the reservation.
unsafe impl Sync for Attachment {}

/// The reservation of a dma-buf, locked.
struct Locked(*mut bindings::dma_resv);

impl Locked {
    fn new(attachment: &Attachment) -> Self {
        // SAFETY: By the type invariant the dma-buf is valid, and has a reservation. Without a
        // context, the lock is waited for like any other, and cannot fail.
        unsafe {
            let resv = attachment.buf.as_ref().resv;
            bindings::dma_resv_lock(resv, ptr::null_mut());
            Self(resv)
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: `new` has locked it.
        unsafe { bindings::dma_resv_unlock(self.0) }
    }
}

impl Attachment {
    const OPS: bindings::dma_buf_attach_ops = bindings::dma_buf_attach_ops {
        allow_peer2peer: false,
        invalidate_mappings: Some(Self::invalidate_callback),
    };

    extern "C" fn invalidate_callback(attach: *mut bindings::dma_buf_attachment) {
        // SAFETY: The private data of the importer is what `attach` has passed, which lives as long
        // as the attachment is in the list of the dma-buf.
        let importer: &Arc<dyn Importer> = unsafe { &*(*attach).importer_priv.cast() };
        importer.revoked();
    }

    pub(super) fn as_raw(&self) -> *mut bindings::dma_buf_attachment {
        self.attach.as_ptr()
    }

    pub(super) fn reservation(&self) -> *mut bindings::dma_resv {
        // SAFETY: By the type invariant.
        unsafe { self.buf.as_ref().resv }
    }

    /// Maps the memory for reading and writing, where it stays until this is undone.
    ///
    /// # Errors
    ///
    /// That of the exporter, [`ERESTARTSYS`] on a signal.
    pub(crate) fn map(self: &Arc<Self>) -> Result<Mapped> {
        let both = bindings::dma_data_direction::DMA_BIDIRECTIONAL;
        let _locked = Locked::new(self);
        // SAFETY: By the type invariant the attachment is valid; the reservation is locked.
        unsafe {
            to_result(bindings::dma_buf_pin(self.as_raw()))?;
            // What the exporter itself still does to the memory comes first.
            let left = bindings::dma_resv_wait_timeout(
                self.reservation(),
                bindings::dma_resv_usage_DMA_RESV_USAGE_KERNEL,
                true,
                c_long::MAX as c_ulong,
            );
            let table = if left < 0 {
                Err(Error::from_errno(left as c_int))
            } else {
                from_err_ptr(bindings::dma_buf_map_attachment(self.as_raw(), both))
            };
            match table {
                // INVARIANT: The memory was just pinned and mapped.
                Ok(table) => Ok(Mapped {
                    attachment: self.clone(),
                    table: NonNull::new_unchecked(table),
                }),
                Err(e) => {
                    bindings::dma_buf_unpin(self.as_raw());
                    Err(e)
                }
            }
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; nothing is mapped any more, since mappings keep this.
        unsafe {
            bindings::dma_buf_detach(self.buf.as_ptr(), self.attach.as_ptr());
            bindings::dma_buf_put(self.buf.as_ptr());
        }
    }
}

/// Memory of a dma-buf, as a device sees it.
///
/// Dropping it takes the lock of the dma-buf's reservation.
///
/// # Invariants
///
/// `table` is from mapping `attachment`, whose memory is pinned once for it.
pub(crate) struct Mapped {
    attachment: Arc<Attachment>,
    table: NonNull<bindings::sg_table>,
}

// SAFETY: A mapping may be looked at and undone from any thread.
unsafe impl Send for Mapped {}

// SAFETY: The table does not change.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Passes the pieces of the memory to `emit`, as address for the device and length in bytes, in
    /// order.
    ///
    /// # Errors
    ///
    /// Those of `emit`.
    pub(crate) fn for_each_run(&self, mut emit: impl FnMut(u64, u64) -> Result) -> Result {
        // SAFETY: By the type invariant the table is valid, and does not change.
        let table: &kernel::scatterlist::SGTable =
            unsafe { kernel::scatterlist::SGTable::from_raw(self.table.as_ptr()) };
        for entry in table.iter() {
            emit(entry.dma_address(), entry.dma_len())?;
        }
        Ok(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let both = bindings::dma_data_direction::DMA_BIDIRECTIONAL;
        let _locked = Locked::new(&self.attachment);
        // SAFETY: By the type invariant, and the reservation is locked.
        unsafe {
            bindings::dma_buf_unmap_attachment(self.attachment.as_raw(), self.table.as_ptr(), both);
            bindings::dma_buf_unpin(self.attachment.as_raw());
        }
    }
}
