// SPDX-License-Identifier: GPL-2.0

//! Shmem objects: with pages of their own, which userspace can map.

use super::{
    DriverObject,
    Kind,
    Object,
    Table, //
};
use crate::kapi::{
    bindings,
    dma::map::{
        DmaMap,
        Mapper,
        SyncForCpu, //
    },
    drm::device::Device, //
};
use core::ptr;
use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::ordering::{
            Acquire,
            Full, //
        },
        Arc, //
    }, //
};

impl<O: DriverObject> Table<O> {
    pub(super) const SHMEM: bindings::drm_gem_object_funcs = {
        let mut funcs = Self::PRIVATE;

        funcs.pin = Some(shmem_pin);
        funcs.unpin = Some(shmem_unpin);
        funcs.get_sg_table = Some(shmem_get_sg_table);
        funcs.vmap = Some(shmem_vmap);
        funcs.vunmap = Some(shmem_vunmap);
        funcs.mmap = Some(shmem_mmap);
        funcs.vm_ops = &raw const bindings::drm_gem_shmem_vm_ops;
        funcs
    };
}

extern "C" fn shmem_pin(obj: *mut bindings::drm_gem_object) -> c_int {
    // SAFETY: Called for shmem objects only, in which the GEM object is the first field.
    unsafe { bindings::drm_gem_shmem_pin_locked(obj.cast()) }
}

extern "C" fn shmem_unpin(obj: *mut bindings::drm_gem_object) {
    // SAFETY: As in `shmem_pin`.
    unsafe { bindings::drm_gem_shmem_unpin_locked(obj.cast()) }
}

extern "C" fn shmem_get_sg_table(obj: *mut bindings::drm_gem_object) -> *mut bindings::sg_table {
    // SAFETY: As in `shmem_pin`.
    unsafe { bindings::drm_gem_shmem_get_sg_table(obj.cast()) }
}

extern "C" fn shmem_vmap(
    obj: *mut bindings::drm_gem_object,
    map: *mut bindings::iosys_map,
) -> c_int {
    // SAFETY: As in `shmem_pin`.
    unsafe { bindings::drm_gem_shmem_vmap_locked(obj.cast(), map) }
}

extern "C" fn shmem_vunmap(obj: *mut bindings::drm_gem_object, map: *mut bindings::iosys_map) {
    // SAFETY: As in `shmem_pin`.
    unsafe { bindings::drm_gem_shmem_vunmap_locked(obj.cast(), map) }
}

extern "C" fn shmem_mmap(
    obj: *mut bindings::drm_gem_object,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: As in `shmem_pin`.
    unsafe { bindings::drm_gem_shmem_mmap(obj.cast(), vma) }
}

impl<O: DriverObject> Object<O> {
    /// A shmem object of `size` bytes, a multiple of the page size and not 0.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new_shmem(dev: &Device<O::Driver>, size: usize, data: O) -> Result<ARef<Self>> {
        let raw = Self::allocate(dev, Kind::Shmem, data)?;
        // SAFETY: The object is zeroed, and has its functions.
        let made = unsafe { bindings::drm_gem_shmem_init(dev.as_raw(), raw.as_ptr().cast(), size) };
        if let Err(e) = to_result(made) {
            // SAFETY: The function undoes what it did, so that what is left is our memory.
            unsafe {
                ptr::drop_in_place(&raw mut (*raw.as_ptr()).data);
                Self::deallocate(raw);
            }
            return Err(e);
        }
        // INVARIANT: The object was initialized.
        // SAFETY: It has one reference, which is ours.
        Ok(unsafe { ARef::from_raw(raw) })
    }

    /// Passes the pieces of a shmem object's memory to `emit`, as physical address and length in
    /// bytes, in order.
    ///
    /// From then on the pages stay where they are, as long as the object exists.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is not a shmem object, [`ENOMEM`], [`EINTR`] or [`ERESTARTSYS`] on a
    /// signal, and those of `emit`.
    pub(crate) fn for_each_run(&self, mut emit: impl FnMut(u64, u64) -> Result) -> Result {
        /// Pages looked at in one go: so few that their runs are on the stack.
        const BATCH: usize = 16;

        if self.kind != Kind::Shmem {
            return Err(EINVAL);
        }
        if !self.pinned.load(Acquire) {
            // SAFETY: By the type invariant this is a shmem object.
            to_result(unsafe { bindings::drm_gem_shmem_pin(self.base.get()) })?;
            if self.pinned.xchg(true, Full) {
                // SAFETY: Another thread has pinned it as well; one pin is enough.
                unsafe { bindings::drm_gem_shmem_unpin(self.base.get()) };
            }
        }
        let mut runs: [_; BATCH] = core::array::from_fn(|_| bindings::kapi_run::default());
        let (mut addr, mut length) = (0, 0);
        let count = self.size() >> kernel::page::PAGE_SHIFT;
        for first in (0..count).step_by(BATCH) {
            // SAFETY: A pinned object has an array of all its pages, and there is room for as many
            // runs as pages are looked at.
            let used = unsafe {
                bindings::kapi_pages_to_runs(
                    (*self.base.get()).pages.add(first),
                    (count - first).min(BATCH),
                    runs.as_mut_ptr(),
                )
            };
            // What goes on from one batch to the next is one run.
            for run in &runs[..used] {
                if length > 0 && addr + length == run.addr {
                    length += run.length;
                    continue;
                }
                if length > 0 {
                    emit(addr, length)?;
                }
                (addr, length) = (run.addr, run.length);
            }
        }
        match length {
            0 => Ok(()),
            _ => emit(addr, length),
        }
    }

    /// Maps the memory of a shmem object for the device, until the object is released or the driver
    /// is unbound. To be done once.
    ///
    /// # Errors
    ///
    /// Those of [`Object::for_each_run`] and [`DmaMap::new`]; [`EBUSY`] if it was done before.
    pub(crate) fn map_for(&self, mapper: &Arc<Mapper>) -> Result<&DmaMap> {
        // SAFETY: The pages stay as long as the object is not released, and the mapping is dropped
        // before.
        let dma = unsafe { DmaMap::new(mapper, true, |emit| self.for_each_run(emit)) }?;
        if !self.dma.populate(dma) {
            return Err(EBUSY);
        }
        self.dma.as_ref().ok_or(EBUSY)
    }

    /// The memory of a shmem object as the device sees it, if it was mapped for it.
    pub(crate) fn dma(&self) -> Option<&DmaMap> {
        self.dma.as_ref()
    }
}

impl<O: DriverObject> SyncForCpu for ARef<Object<O>> {
    fn sync_for_cpu(&self) {
        if let Some(dma) = self.dma() {
            dma.sync_for_cpu();
        }
    }
}
