// SPDX-License-Identifier: GPL-2.0

//! The ioctls: each reads its arguments, judges them, and calls one function of the layers below.
//!
//! The structures are those of `protocol::uapi`. The places of RESOURCE_CREATE and the two
//! TRANSFER ioctls, which are for resources of the time before blobs, are empty: the DRM core
//! answers them with `-EINVAL`.

mod context;
mod device;
mod resource;
mod submit;
mod userptr;

use crate::{
    driver::GpuDriver,
    kapi::drm::ioctl::IoctlTable, //
};

/// All ioctls of the driver.
pub(crate) static TABLE: IoctlTable = IoctlTable::new()
    .with::<GpuDriver, resource::Map>()
    .with::<GpuDriver, submit::ExecBuffer>()
    .with::<GpuDriver, device::GetParam>()
    .with::<GpuDriver, resource::ResourceInfo>()
    .with::<GpuDriver, resource::Wait>()
    .with::<GpuDriver, device::GetCaps>()
    .with::<GpuDriver, resource::ResourceCreateBlob>()
    .with::<GpuDriver, context::ContextInit>()
    .with::<GpuDriver, userptr::UserptrRegister>()
    .with::<GpuDriver, resource::BoQuery>()
    .with::<GpuDriver, userptr::UserptrPrefetch>();
