// SPDX-License-Identifier: GPL-2.0

//! EXECBUFFER: reads what a job is from userspace, once, and hands it to [`crate::submit`], which
//! decides by the mode of the context how it is sent.

use crate::{
    drm::{
        Device,
        File,
        GpuDriver, //
    },
    kapi::drm::ioctl::Ioctl,
    protocol::uapi::{
        self,
        nr, //
    },
    submit,
};
use kernel::prelude::*;

/// DRM_VIRTGPU_EXECBUFFER.
pub(super) struct ExecBuffer;

impl Ioctl<GpuDriver> for ExecBuffer {
    type Args = uapi::ExecBuffer;

    const NR: u32 = nr::EXECBUFFER;
    const NAME: &'static CStr = c"VIRTGPU_EXECBUFFER";

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        submit::submit(file, args)
    }
}
