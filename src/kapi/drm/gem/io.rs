// SPDX-License-Identifier: GPL-2.0

//! I/O objects: what userspace maps is a stretch of device memory.

use super::{
    DriverObject,
    Kind,
    Object,
    Table, //
};
use crate::kapi::{
    bindings,
    drm::device::Device, //
};
use kernel::{
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::ordering::Relaxed, //
    }, //
};

/// How the CPU maps device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Like ordinary memory.
    Cached,
    /// Not at all.
    Uncached,
    /// Writes may be combined.
    WriteCombining,
}

/// A stretch of device memory that userspace may map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoMemory {
    /// Physical address, a multiple of the page size.
    pub(crate) phys: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// How.
    pub(crate) caching: Caching,
}

impl<O: DriverObject> Table<O> {
    pub(super) const IO: bindings::drm_gem_object_funcs = {
        let mut funcs = Self::PRIVATE;

        funcs.mmap = Some(Object::<O>::io_mmap_callback);
        funcs.vm_ops = &Self::IO_VM_OPS;
        funcs
    };

    const IO_VM_OPS: bindings::vm_operations_struct = {
        let mut ops: bindings::vm_operations_struct = pin_init::zeroed();

        ops.fault = Some(Object::<O>::io_fault_callback);
        ops.open = Some(bindings::drm_gem_vm_open);
        ops.close = Some(bindings::drm_gem_vm_close);
        ops
    };
}

impl<O: DriverObject> Object<O> {
    /// An I/O object of `size` bytes, a multiple of the page size and not 0.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new_io(dev: &Device<O::Driver>, size: usize, data: O) -> Result<ARef<Self>> {
        let object = Self::new_without_memory(dev, Kind::Io, size, None, data)?;
        // Before anything can be mapped: areas are told apart from the offset when a page of them
        // is touched, and must all have been made with the same one.
        object.mmap_offset()?;
        Ok(object)
    }

    extern "C" fn io_mmap_callback(
        raw: *mut bindings::drm_gem_object,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The core calls with an object of this driver.
            let obj = unsafe { Self::from_raw(raw) };
            let memory = O::io_memory(obj)?;
            // SAFETY: The core calls with a new area, whose offset is relative to that of the
            // object.
            let (offset, len) = unsafe {
                let start = bindings::kapi_drm_gem_object_mmap_offset(raw);
                let page = ((*vma).vm_pgoff as u64) << bindings::PAGE_SHIFT;
                let range = (*vma).__bindgen_anon_1.__bindgen_anon_1;
                (
                    page.wrapping_sub(start),
                    (range.vm_end - range.vm_start) as u64,
                )
            };
            if offset.checked_add(len).ok_or(EINVAL)? > memory.len {
                return Err(EINVAL);
            }
            let caching = match memory.caching {
                Caching::Cached => 0,
                Caching::Uncached => 1,
                Caching::WriteCombining => 2,
            };
            obj.io_base.store(memory.phys, Relaxed);
            // SAFETY: The area is new.
            to_result(unsafe { bindings::kapi_vm_io_prepare(vma, caching) })?;
            Ok(0)
        })
    }

    /// Not done by mmap itself: unplugging ends what it finds mapped in the areas that it finds. An
    /// area is not to be found before its mmap is over, but does not fault before that either.
    extern "C" fn io_fault_callback(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The core calls with an area of an I/O object, which it keeps and whose address is
        // its private data.
        let obj = unsafe {
            let vma = (*vmf).__bindgen_anon_1.vma;
            Self::from_raw((*vma).vm_private_data.cast())
        };
        let Some(_entered) = obj.dev.enter() else {
            return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
        };
        // SAFETY: `io_mmap_callback` has prepared the area, has checked that the memory is as long
        // as it, and has stored the address, which does not change. The object has not given the
        // memory up, since the area has a reference.
        unsafe { bindings::kapi_vm_io_fault(vmf, obj.as_raw(), obj.io_base.load(Relaxed)) }
    }
}
