// SPDX-License-Identifier: GPL-2.0

//! The driver as the module loader and the DRM core see it: the callbacks that they call.

use crate::{
    debugfs,
    drm::{
        Device,
        File,
        GpuDriver,
        Object, //
    },
    file::FileData,
    gpu, ioctl,
    kapi::{
        dma::fence::check_independence,
        drm::{
            self,
            device::{
                FEAT_GEM,
                FEAT_RENDER,
                FEAT_SYNCOBJ,
                FEAT_SYNCOBJ_TIMELINE, //
            },
            gem::{
                DriverObject,
                IoMemory,
                Owned, //
            },
            ioctl::IoctlTable,
            prime::{
                DmaBufOps,
                Importable, //
            }, //
        },
        sync::ModuleWorkqueueOwner,
        virtio, //
    },
    module_parameters,
    resource::{
        self,
        releases,
        HostResource,
        Resource, //
    },
    svm,
};
use kernel::{
    driver::Registration,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    InPlaceModule, //
};

/// The module: one registered virtio driver.
#[pin_data]
pub(crate) struct VirtgpuUserptr {
    #[pin]
    driver: Registration<virtio::Adapter<gpu::VirtioGpu>>,
    /// Dropped after the driver: what it has released meanwhile is still to go.
    releases: ModuleWorkqueueOwner,
    drops: ModuleWorkqueueOwner,
    svm_ends: ModuleWorkqueueOwner,
    svm_stops: ModuleWorkqueueOwner,
    svm_drops: ModuleWorkqueueOwner,
    /// Dropped after the driver, and after the fences of what is released.
    fence_readers: FenceReaders,
}

/// Those who may still be in the name callbacks of fences, which are part of this module.
struct FenceReaders;

impl Drop for FenceReaders {
    fn drop(&mut self) {
        kernel::sync::rcu::synchronize_rcu();
    }
}

impl InPlaceModule for VirtgpuUserptr {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _: {
                drm::module::check_modeset(module_parameters::modeset.value())?;
                check_independence::<gpu::Timeline>().inspect_err(|_| {
                    pr_err!("not for this kernel, whose fences need the module after its end\n");
                })?;
            },
            // First, as the driver's devices use it.
            releases: releases::QUEUE.create(c"virtgpu-release")?,
            drops: releases::DROPS.create(c"virtgpu-drop")?,
            svm_ends: svm::QUEUE.create(c"virtgpu-svm-end")?,
            svm_stops: svm::STOPS.create(c"virtgpu-svm-stop")?,
            svm_drops: svm::DROPS.create(c"virtgpu-svm-drop")?,
            driver <- Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
            fence_readers: FenceReaders,
        })
    }
}

static DMA_BUF_OPS: DmaBufOps = DmaBufOps::new::<GpuDriver>();

impl drm::Driver for GpuDriver {
    type OwnerModule = VirtgpuUserptr;
    type Data = Arc<gpu::Gpu>;
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
        file.event_sender().resume();
    }

    fn fdinfo(file: &File, out: &drm::fdinfo::FdInfo) {
        debugfs::fdinfo::show(file, out);
    }

    #[cfg(CONFIG_DEBUG_FS)]
    fn debugfs(folder: &drm::debugfs::Folder<'_, Self>) {
        debugfs::add(folder);
    }
}

impl DriverObject for Resource {
    type Driver = GpuDriver;

    fn open(obj: &Object, file: &File) -> Result {
        if let Some(userptr) = obj.userptr() {
            userptr.open()?;
            return file.open_userptr(&obj.host);
        }
        file.open_resource(&obj.host)
    }

    fn close(obj: &Object, file: &File) {
        if let Some(userptr) = obj.userptr() {
            userptr.close();
        }
        file.close_resource(&obj.host);
        if obj.userptr().is_some() {
            // Jobs that are over keep nothing of it, so that this thread releases it, and waits.
            file.settle();
        }
    }

    fn free(obj: Owned<Resource>) {
        HostResource::release(obj);
    }

    fn io_memory(obj: &Object) -> Result<IoMemory> {
        resource::host_memory(obj)
    }

    fn export<B>(obj: &Object, make: impl FnOnce() -> Result<B>) -> Result<B> {
        let shared = obj.prepare_export()?;
        let buf = make()?;
        shared.succeeds();
        Ok(buf)
    }

    fn uuid(obj: &Object) -> Result<[u8; 16]> {
        obj.exported_uuid()
    }

    fn import(dev: &Device, buf: &Importable) -> Result<ARef<Object>> {
        resource::imported::import(dev, buf)
    }
}
