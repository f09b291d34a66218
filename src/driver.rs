// SPDX-License-Identifier: GPL-2.0

//! The driver as the DRM core sees it.

use crate::{
    context::FileData,
    gpu::Gpu,
    ioctl,
    kapi::drm::{
        self,
        device::{
            FEAT_GEM,
            FEAT_RENDER,
            FEAT_SYNCOBJ,
            FEAT_SYNCOBJ_TIMELINE, //
        },
        ioctl::IoctlTable,
        prime::DmaBufOps, //
    },
    resource::Resource,
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The DRM driver.
pub(crate) struct GpuDriver;

static DMA_BUF_OPS: DmaBufOps = DmaBufOps::new::<GpuDriver>();

/// A device.
pub(crate) type Device = drm::Device<GpuDriver>;
/// An open file.
pub(crate) type File = drm::File<GpuDriver>;
/// A buffer.
pub(crate) type Object = drm::gem::Object<Resource>;

impl drm::Driver for GpuDriver {
    type OwnerModule = crate::VirtgpuUserptr;
    type Data = Arc<Gpu>;
    type File = FileData;
    type Object = Resource;

    // Name and version are those of Linux's C driver: userspace looks for them.
    const INFO: drm::DriverInfo = drm::DriverInfo {
        major: 0,
        minor: 1,
        patchlevel: 0,
        name: c"virtio_gpu",
        desc: c"virtio GPU",
    };
    const DMA_BUF_OPS: &'static DmaBufOps = &DMA_BUF_OPS;
    const FEATURES: u32 = FEAT_GEM | FEAT_RENDER | FEAT_SYNCOBJ | FEAT_SYNCOBJ_TIMELINE;
    const IOCTLS: &'static IoctlTable = &ioctl::TABLE;

    fn open(dev: &Device) -> Result<Pin<KBox<FileData>>> {
        FileData::new(dev)
    }

    fn close(file: &File) {
        file.close();
    }

    fn events_read(file: &File) {
        file.outbox().resume();
    }

    fn fdinfo(file: &File, out: &drm::fdinfo::FdInfo) {
        crate::observe::fdinfo::show(file, out);
    }

    #[cfg(CONFIG_DEBUG_FS)]
    fn debugfs(folder: &drm::debugfs::Folder<'_, Self>) {
        crate::observe::debugfs::add(folder);
        crate::observe::device_files::add(folder);
    }
}
