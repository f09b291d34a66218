// SPDX-License-Identifier: GPL-2.0

//! The ioctls: each reads its arguments, validates them, and calls one function of the layers
//! below.
//!
//! The structures are those of `protocol::uapi`.

mod context;
mod device;
mod resource;
mod submit;
mod svm;
mod transfer;
mod userptr;

use crate::{
    drm::GpuDriver,
    kapi::drm::ioctl::IoctlTable, //
};

/// All ioctls of the driver.
pub(crate) static TABLE: IoctlTable = IoctlTable::new()
    .with::<GpuDriver, resource::Map>()
    .with::<GpuDriver, submit::ExecBuffer>()
    .with::<GpuDriver, device::GetParam>()
    .with::<GpuDriver, resource::ResourceCreate>()
    .with::<GpuDriver, resource::ResourceInfo>()
    .with::<GpuDriver, transfer::TransferFromHost>()
    .with::<GpuDriver, transfer::TransferToHost>()
    .with::<GpuDriver, resource::Wait>()
    .with::<GpuDriver, device::GetCaps>()
    .with::<GpuDriver, resource::ResourceCreateBlob>()
    .with::<GpuDriver, context::ContextInit>()
    .with::<GpuDriver, userptr::UserptrRegister>()
    .with::<GpuDriver, resource::BoQuery>()
    .with::<GpuDriver, userptr::UserptrPrefetch>()
    .with::<GpuDriver, svm::SvmEnable>()
    .with::<GpuDriver, svm::SvmPrefetch>()
    .with::<GpuDriver, svm::SvmWait>()
    .with::<GpuDriver, svm::SvmQuery>();
