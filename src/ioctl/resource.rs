// SPDX-License-Identifier: GPL-2.0

//! Buffers: RESOURCE_CREATE, RESOURCE_CREATE_BLOB, RESOURCE_INFO, MAP, WAIT and BO_QUERY.
//!
//! Here sizes, flags and handles are validated, as Linux's driver does it, and the errors are
//! decided that userspace sees. What a buffer consists of is a matter of [`crate::resource`]. A
//! handle is made last, so that no other thread of the program can use, or close, what is not
//! complete.

use super::userptr::register;
use crate::{
    drm::{
        Device,
        File,
        GpuDriver,
        Object, //
    },
    gpu::Gpu,
    kapi::drm::ioctl::Ioctl,
    protocol::{
        uapi::{
            self,
            bo_state,
            memory_model,
            nr,
            BLOB_FLAG_USE_USERPTR,
            BLOB_HINT_DEFER_MAPPING,
            RESOURCE_CREATE_BLOB_MIN_SIZE, //
        },
        virtio_gpu::{
            blob_flag,
            blob_mem, //
        },
        virtio_gpu_image::target,
    },
    resource::{
        self,
        non_blob,
        BlobParams,
        DeviceMapping,
        Kind, //
    },
    submit::submit_inline,
    transport::control::Response,
    userptr::params::Params,
};
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::atomic::ordering::Relaxed,
};

/// How long WAIT waits.
const WAIT_MS: u32 = 15_000;

/// DRM_VIRTGPU_RESOURCE_CREATE.
pub(super) struct ResourceCreate;

impl Ioctl<GpuDriver> for ResourceCreate {
    type Args = uapi::ResourceCreate;

    const NR: u32 = nr::RESOURCE_CREATE;
    const NAME: &'static CStr = c"VIRTGPU_RESOURCE_CREATE";

    fn call(dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        if file.gpu.features.virgl {
            file.ensure_context()?;
        } else if args.target != target::TEXTURE_2D
            || args.depth > 1
            || args.array_size > 1
            || args.last_level > 1
            || args.nr_samples > 1
        {
            // A 2D resource is a picture of one layer.
            return Err(EINVAL);
        }
        // Some resources need no guest memory, but the interface has no resource without.
        let size = match args.size {
            0 => PAGE_SIZE as u64,
            size => size.into(),
        };
        let object = non_blob::create(dev, &file.quota, size, args)?;
        args.bo_handle = object.create_handle(file)?;
        args.res_handle = object.id();
        Ok(())
    }
}

/// DRM_VIRTGPU_RESOURCE_CREATE_BLOB.
pub(super) struct ResourceCreateBlob;

fn blob_params(gpu: &Gpu, args: &uapi::ResourceCreateBlob) -> Result<BlobParams> {
    let known = blob_flag::USE_MAPPABLE | blob_flag::USE_SHAREABLE | blob_flag::USE_CROSS_DEVICE;
    let host = match args.blob_mem {
        blob_mem::GUEST => false,
        blob_mem::HOST3D | blob_mem::HOST3D_GUEST if gpu.features.virgl => true,
        _ => return Err(EINVAL),
    };
    // Nothing else is looked at that Linux's driver does not look at: hints, padding, and what is
    // behind its structure.
    if args.blob_flags & !known != 0 {
        return Err(EINVAL);
    }
    if args.blob_flags & blob_flag::USE_CROSS_DEVICE != 0 && !gpu.features.uuid {
        return Err(EINVAL);
    }
    if !host && args.blob_id != 0 {
        return Err(EINVAL);
    }
    if args.cmd_size != 0 && (!host || args.cmd_size % 4 != 0) {
        return Err(EINVAL);
    }
    if !gpu.features.takes_blob_size(args.size) {
        return Err(EINVAL);
    }
    let mappable = args.blob_flags & blob_flag::USE_MAPPABLE != 0;
    if args.blob_mem == blob_mem::HOST3D && mappable && gpu.host_visible.is_none() {
        return Err(EINVAL);
    }
    // Jobs would work on a copy. What has storage on the host besides is transferred from and to.
    if !host && gpu.bounces() {
        return Err(EOPNOTSUPP);
    }
    Ok(BlobParams {
        mem: args.blob_mem,
        flags: args.blob_flags,
        size: args.size,
        id: args.blob_id,
        defer_mapping: args.blob_hints & BLOB_HINT_DEFER_MAPPING != 0,
    })
}

impl Ioctl<GpuDriver> for ResourceCreateBlob {
    type Args = uapi::ResourceCreateBlob;

    const NR: u32 = nr::RESOURCE_CREATE_BLOB;
    const NAME: &'static CStr = c"VIRTGPU_RESOURCE_CREATE_BLOB";
    const MIN_SIZE: usize = RESOURCE_CREATE_BLOB_MIN_SIZE;

    fn call(dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        let gpu = &file.gpu;
        if !gpu.features.blob {
            return Err(EINVAL);
        }
        if args.blob_flags & BLOB_FLAG_USE_USERPTR != 0 {
            let params = Params::from_blob(args, &gpu.features)?;
            if !gpu.has_userptr() {
                return Err(EOPNOTSUPP);
            }
            let (handle, object) = register(dev, file, &params)?;
            args.bo_handle = handle;
            args.res_handle = object.id();
            return Ok(());
        }

        let params = blob_params(gpu, args)?;
        let context = file.ensure_context()?;
        if let (Some(context), true) = (&context, args.cmd_size != 0) {
            submit_inline(file, context, args.cmd, args.cmd_size)?;
        }
        let object = resource::create_blob(dev, &file.quota, context.as_deref(), params)?;
        args.bo_handle = object.create_handle(file)?;
        args.res_handle = object.id();
        Ok(())
    }
}

/// DRM_VIRTGPU_RESOURCE_INFO.
pub(super) struct ResourceInfo;

impl Ioctl<GpuDriver> for ResourceInfo {
    type Args = uapi::ResourceInfo;

    const NR: u32 = nr::RESOURCE_INFO;
    const NAME: &'static CStr = c"VIRTGPU_RESOURCE_INFO";

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        let object = Object::lookup(file, args.bo_handle)?;
        args.res_handle = object.id();
        // The interface has 32 bits for it; BO_QUERY has more.
        args.size = object.size() as u32;
        if object.params.mem != 0 {
            args.blob_mem = object.params.mem;
        }
        Ok(())
    }
}

/// DRM_VIRTGPU_MAP.
pub(super) struct Map;

impl Ioctl<GpuDriver> for Map {
    type Args = uapi::Map;

    const NR: u32 = nr::MAP;
    const NAME: &'static CStr = c"VIRTGPU_MAP";

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        args.offset = Object::lookup(file, args.handle)?.mmap_offset()?;
        Ok(())
    }
}

/// DRM_VIRTGPU_WAIT.
pub(super) struct Wait;

impl Ioctl<GpuDriver> for Wait {
    type Args = uapi::Wait;

    const NR: u32 = nr::WAIT;
    const NAME: &'static CStr = c"VIRTGPU_WAIT";

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        // Other flags are ignored, as Linux's driver does.
        let object = Object::lookup(file, args.handle)?;
        if args.flags & uapi::WAIT_NOWAIT != 0 {
            if !object.is_idle() {
                return Err(EBUSY);
            }
            return object.host.check();
        }
        object.wait_idle(WAIT_MS)?;
        // The end of the device ends its jobs, too.
        file.gpu.transport.check()?;
        object.host.wait()
    }
}

/// DRM_VIRTGPU_BO_QUERY.
pub(super) struct BoQuery;

impl Ioctl<GpuDriver> for BoQuery {
    type Args = uapi::BoQuery;

    const NR: u32 = nr::BO_QUERY;
    const NAME: &'static CStr = c"VIRTGPU_BO_QUERY";

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        let object = Object::lookup(file, args.bo_handle)?;
        let size = object.size() as u64;
        let known = matches!(object.host.outcome(), Some(Response::Ok(_)));
        let usable = known && !file.gpu.transport.is_lost();
        let (addr, flags, resident) = match &object.kind {
            Kind::Guest | Kind::NonBlob => (0, 0, size),
            Kind::Host(_) => (0, 0, 0),
            Kind::Imported(_) => match &object.mapping {
                Some(mapping) if mapping.is_live() => (0, 0, size),
                _ => (0, 0, 0),
            },
            Kind::Userptr(userptr) => (
                userptr.addr,
                userptr.flags,
                if userptr.as_mirrored().is_some() {
                    // Nothing is held.
                    0
                } else if object.mapping.as_ref().is_some_and(DeviceMapping::is_live) {
                    (userptr.pages as u64) << PAGE_SHIFT
                } else {
                    0
                },
            ),
        };
        *args = uapi::BoQuery {
            bo_handle: args.bo_handle,
            flags,
            memory_model: memory_model::PERMANENT,
            state: if file.gpu.transport.is_lost() {
                bo_state::LOST
            } else {
                bo_state::VALID
            },
            addr,
            size,
            resident_bytes: resident,
            mapped_bytes: if usable { size } else { 0 },
            entries: object.entries.load(Relaxed),
            ..Default::default()
        };
        if let Kind::Imported(imported) = &object.kind {
            if imported.is_revocable() {
                args.memory_model = memory_model::REVOCABLE;
            }
            if imported.is_revoked() && args.state == bo_state::VALID {
                args.state = bo_state::REVOKED;
                args.mapped_bytes = 0;
            }
        }
        let space = object.userptr().and_then(|u| u.space());
        if space.is_some_and(|space| space.is_lost()) && args.state == bo_state::VALID {
            args.state = bo_state::REVOKED;
            args.mapped_bytes = 0;
        }
        if let Some(mirrored) = object.userptr().and_then(|u| u.as_mirrored()) {
            let range = mirrored.range();
            let counters = &range.counters;
            args.memory_model = memory_model::DYNAMIC;
            if range.is_revoked() && args.state == bo_state::VALID {
                args.memory_model = memory_model::REVOCABLE;
                args.state = bo_state::REVOKED;
            }
            args.mapped_bytes = if usable { range.mapped_bytes() } else { 0 };
            args.entries = counters.entries.load(Relaxed);
            args.maps = counters.maps.load(Relaxed);
            args.invalidations = range.invalidations();
            args.retries = counters.retries.load(Relaxed);
            args.faults = counters.faults.load(Relaxed);
        }
        Ok(())
    }
}
