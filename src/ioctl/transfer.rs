// SPDX-License-Identifier: GPL-2.0

//! TRANSFER_TO_HOST and TRANSFER_FROM_HOST: copies between the guest's pages of a buffer and the
//! host's storage of it.
//!
//! The box is validated here as far as it can be without knowing the format; the host knows it, and
//! refuses the rest. The copy is a job of the buffer: whoever waits for the buffer waits for it.

use crate::{
    drm::{
        Device,
        File,
        GpuDriver, //
    },
    kapi::drm::ioctl::Ioctl,
    protocol::uapi::{
        nr,
        Transfer, //
    },
    submit::transfer::{
        from_host,
        to_host, //
    },
};
use kernel::prelude::*;

/// DRM_VIRTGPU_TRANSFER_TO_HOST.
pub(super) struct TransferToHost;

impl Ioctl<GpuDriver> for TransferToHost {
    type Args = Transfer;

    const NR: u32 = nr::TRANSFER_TO_HOST;
    const NAME: &'static CStr = c"VIRTGPU_TRANSFER_TO_HOST";

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        to_host(file, args)
    }
}

/// DRM_VIRTGPU_TRANSFER_FROM_HOST.
pub(super) struct TransferFromHost;

impl Ioctl<GpuDriver> for TransferFromHost {
    type Args = Transfer;

    const NR: u32 = nr::TRANSFER_FROM_HOST;
    const NAME: &'static CStr = c"VIRTGPU_TRANSFER_FROM_HOST";

    fn call(_dev: &Device, file: &File, args: &mut Self::Args) -> Result {
        from_host(file, args)
    }
}
