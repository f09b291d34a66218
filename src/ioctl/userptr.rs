// SPDX-License-Identifier: GPL-2.0

//! User memory: USERPTR_REGISTER and USERPTR_PREFETCH.
//!
//! The flags say which of the two ways of using memory is meant, pinned or mirrored, and
//! [`crate::userptr`] does the rest. The handle belongs to the file, the memory to the process that
//! calls: another process that has the file cannot have it prefetched.

use crate::{
    drm::{
        Device,
        File,
        GpuDriver,
        Object, //
    },
    kapi::drm::ioctl::Ioctl,
    protocol::uapi::{
        self,
        memory_model,
        nr, //
    },
    trace,
    userptr::{
        mirrored,
        params::Params,
        pinned, //
    },
};
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::aref::ARef, //
};

/// Registers memory and makes the one handle for it.
pub(super) fn register(dev: &Device, file: &File, params: &Params) -> Result<(u32, ARef<Object>)> {
    let context = file.ensure_context()?;
    let (object, handle) = if params.mirrored {
        // Only jobs use what moves. Those of a context in fault mode use addresses.
        let context = context.as_ref().ok_or(EOPNOTSUPP)?;
        if file.svm().is_some() {
            return Err(EOPNOTSUPP);
        }
        let (object, mirrored) = mirrored::register(dev, file, context, params)?;
        if params.prefault {
            mirrored.prefetch(0, params.len >> PAGE_SHIFT).1?;
        }
        let handle = object.create_handle(file)?;
        mirrored.set_handle(handle);
        (object, handle)
    } else {
        let object = pinned::register(dev, file, context.as_deref(), params)?;
        let handle = object.create_handle(file)?;
        (object, handle)
    };
    let device = file.gpu.transport.name();
    let (id, size) = (object.id(), object.size() as u64);
    trace::register(device, id, params.source.addr(), size, params.flags);
    Ok((handle, object))
}

/// DRM_VIRTGPU_USERPTR_REGISTER.
pub(super) struct UserptrRegister;

impl Ioctl<GpuDriver> for UserptrRegister {
    type Args = uapi::UserptrRegister;

    const NR: u32 = nr::USERPTR_REGISTER;
    const NAME: &'static CStr = c"VIRTGPU_USERPTR_REGISTER";
    const MIN_SIZE: usize = size_of::<uapi::UserptrRegister>();

    fn call(dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        if !file.gpu.has_userptr() {
            return Err(EOPNOTSUPP);
        }
        let params = Params::new(args, &file.gpu.features)?;
        let (handle, object) = register(dev, file, &params)?;
        args.bo_handle = handle;
        args.res_handle = object.id();
        args.memory_model = if params.mirrored {
            memory_model::DYNAMIC
        } else {
            memory_model::PERMANENT
        };
        Ok(())
    }
}

/// DRM_VIRTGPU_USERPTR_PREFETCH.
pub(super) struct UserptrPrefetch;

impl Ioctl<GpuDriver> for UserptrPrefetch {
    type Args = uapi::UserptrPrefetch;

    const NR: u32 = nr::USERPTR_PREFETCH;
    const NAME: &'static CStr = c"VIRTGPU_USERPTR_PREFETCH";
    const MIN_SIZE: usize = size_of::<uapi::UserptrPrefetch>();

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        let object = Object::lookup(file, args.bo_handle)?;
        let userptr = object.userptr().ok_or(EINVAL)?;
        if args.flags != 0 {
            return Err(EINVAL);
        }
        let end = args.offset.checked_add(args.length).ok_or(EINVAL)?;
        let aligned = (args.offset | args.length) % PAGE_SIZE as u64 == 0;
        if !aligned || args.length == 0 || end > object.size() as u64 {
            return Err(EINVAL);
        }
        file.gpu.transport.check()?;
        let Some(mirrored) = userptr.as_mirrored() else {
            // Pinned memory was made reachable by its registration.
            args.done = args.length;
            return Ok(());
        };
        let first = usize::try_from(args.offset)? >> PAGE_SHIFT;
        let pages = usize::try_from(args.length)? >> PAGE_SHIFT;
        let (done, outcome) = mirrored.prefetch(first, pages);
        args.done = (done as u64) << PAGE_SHIFT;
        outcome
    }
}
