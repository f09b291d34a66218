// SPDX-License-Identifier: GPL-2.0

//! CONTEXT_INIT: a file chooses what its context on the host can do, once, before the first use of
//! a context makes one without a choice.
//!
//! All parameters are read and validated before anything is sent, so that a call that fails changes
//! nothing. Two calls at the same time meet in the file, where the second finds a context.

use crate::{
    context::ContextParams,
    drm::{
        Device,
        File,
        GpuDriver, //
    },
    kapi::drm::ioctl::Ioctl,
    protocol::{
        uapi::{
            self,
            context_param,
            nr,
            ContextSetParam, //
        },
        virtio_gpu::{
            DEBUG_NAME_LEN,
            MAX_RINGS, //
        },
    },
};
use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};
use zerocopy::IntoBytes;

/// Most parameters.
const MAX_PARAMS: u32 = 4;

/// DRM_VIRTGPU_CONTEXT_INIT.
pub(super) struct ContextInit;

/// Reads all parameters, so that a call that fails changes nothing.
fn read_params(file: &File, args: &uapi::ContextInit) -> Result<ContextParams> {
    let mut params = ContextParams::implicit();
    let mut seen = 0u32;
    let bytes = args.num_params as usize * size_of::<ContextSetParam>();
    let addr = UserPtr::from_addr(usize::try_from(args.ctx_set_params)?);
    let mut reader = UserSlice::new(addr, bytes).reader();
    for _ in 0..args.num_params {
        let mut entry = ContextSetParam::default();
        reader.read_slice(entry.as_mut_bytes())?;

        if entry.param > context_param::DEBUG_NAME || seen & 1 << entry.param != 0 {
            return Err(EINVAL);
        }
        seen |= 1 << entry.param;
        match entry.param {
            context_param::CAPSET_ID => {
                let id = u32::try_from(entry.value).map_err(|_| EINVAL)?;
                if !file.gpu.capsets.contains(id) {
                    return Err(EINVAL);
                }
                params.capset_id = id;
            }
            context_param::NUM_RINGS => {
                let rings = u32::try_from(entry.value).map_err(|_| EINVAL)?;
                if rings == 0 || rings > MAX_RINGS {
                    return Err(EINVAL);
                }
                params.rings = rings;
            }
            context_param::POLL_RINGS_MASK => params.poll_rings = entry.value,
            context_param::DEBUG_NAME => {
                let mut name = [0; DEBUG_NAME_LEN];
                let addr = UserPtr::from_addr(usize::try_from(entry.value)?);
                let name = UserSlice::new(addr, DEBUG_NAME_LEN)
                    .reader()
                    .strcpy_into_buf(&mut name)?;
                params.set_name(name.to_bytes());
            }
            _ => return Err(EINVAL),
        }
    }
    // Only rings that there are, in whatever order the parameters come.
    let rings = match params.rings {
        MAX_RINGS => u64::MAX,
        rings => (1 << rings) - 1,
    };
    if params.poll_rings & !rings != 0 {
        return Err(EINVAL);
    }
    Ok(params)
}

impl Ioctl<GpuDriver> for ContextInit {
    type Args = uapi::ContextInit;

    const NR: u32 = nr::CONTEXT_INIT;
    const NAME: &'static CStr = c"VIRTGPU_CONTEXT_INIT";

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        let features = &file.gpu.features;
        if !features.context_init || !features.virgl {
            return Err(EINVAL);
        }
        if args.num_params > MAX_PARAMS {
            return Err(EINVAL);
        }
        // The response to a second call does not depend on its parameters.
        if file.context().is_some() {
            return Err(EEXIST);
        }
        let params = read_params(file, args)?;
        file.init_context(&params)?;
        Ok(())
    }
}
