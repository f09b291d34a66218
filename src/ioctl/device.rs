// SPDX-License-Identifier: GPL-2.0

//! What the device can do: GETPARAM and GET_CAPS.
//!
//! Both tell what was negotiated or read when the device was probed, and create nothing. Only a
//! capability set that was not asked for before is fetched from the host, which may take a round
//! trip.

use crate::{
    drm::{
        Device,
        File,
        GpuDriver, //
    },
    gpu::Gpu,
    kapi::drm::ioctl::Ioctl,
    protocol::uapi::{
        self,
        memory_model,
        nr,
        param, //
    },
};
use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// DRM_VIRTGPU_GETPARAM.
pub(super) struct GetParam;

fn parameter(gpu: &Gpu, param: u64) -> Result<u32> {
    let features = &gpu.features;
    Ok(match param {
        param::THREE_D_FEATURES => features.virgl.into(),
        param::CAPSET_QUERY_FIX => 1,
        param::RESOURCE_BLOB => features.blob.into(),
        param::HOST_VISIBLE => gpu.host_visible.is_some().into(),
        param::CROSS_DEVICE => features.uuid.into(),
        param::CONTEXT_INIT | param::EXPLICIT_DEBUG_NAME => features.context_init.into(),
        // The interface has 32 bits for it.
        param::SUPPORTED_CAPSET_IDS => gpu.capsets.mask() as u32,
        param::BLOB_ALIGNMENT => features.blob_alignment.ok_or(ENOENT)?,
        param::USERPTR_MODES if gpu.has_userptr() => {
            let mirrored = match gpu.features.mirror {
                Some(_) => uapi::USERPTR_MODE_MIRRORED,
                None => 0,
            };
            let svm = match gpu.features.faults {
                Some(_) => uapi::USERPTR_MODE_SVM,
                None => 0,
            };
            uapi::USERPTR_MODE_PINNED | uapi::USERPTR_MODE_FD | mirrored | svm
        }
        param::USERPTR_MODES => 0,
        // Pinned in the lowest four bits, mirrored in the second, the address space in the third, a
        // memfd range in the fourth.
        param::USERPTR_MEMORY_MODELS if gpu.has_userptr() => {
            let mirrored = match gpu.features.mirror {
                Some(_) => memory_model::DYNAMIC << 4,
                None => 0,
            };
            let svm = match gpu.features.faults {
                Some(_) => memory_model::DYNAMIC << 8,
                None => 0,
            };
            memory_model::PERMANENT | mirrored | svm | memory_model::PERMANENT << 12
        }
        param::USERPTR_MEMORY_MODELS => 0,
        _ => return Err(EINVAL),
    })
}

impl Ioctl<GpuDriver> for GetParam {
    type Args = uapi::GetParam;

    const NR: u32 = nr::GETPARAM;
    const NAME: &'static CStr = c"VIRTGPU_GETPARAM";

    fn call(dev: &Device, _file: &File, args: &mut Self::Args) -> Result {
        let value = parameter(dev, args.param)?;
        let addr = UserPtr::from_addr(usize::try_from(args.value)?);
        UserSlice::new(addr, size_of::<u32>())
            .writer()
            .write(&value)
    }
}

/// DRM_VIRTGPU_GET_CAPS.
pub(super) struct GetCaps;

impl Ioctl<GpuDriver> for GetCaps {
    type Args = uapi::GetCaps;

    const NR: u32 = nr::GET_CAPS;
    const NAME: &'static CStr = c"VIRTGPU_GET_CAPS";

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        let gpu = &file.gpu;
        if gpu.capsets.is_empty() {
            return Err(ENOSYS);
        }
        if args.size == 0 {
            return Err(EINVAL);
        }
        let bytes =
            gpu.capsets
                .get(&gpu.control, &file.quota, args.cap_set_id, args.cap_set_ver)?;
        let len = bytes.len().min(args.size as usize);
        let addr = UserPtr::from_addr(usize::try_from(args.addr)?);
        UserSlice::new(addr, len)
            .writer()
            .write_slice(&bytes[..len])
    }
}
