// SPDX-License-Identifier: GPL-2.0

//! Buffers in memory of other drivers, from their dma-bufs.
//!
//! To the host such a buffer is a guest blob. Its memory is pinned as long as the host knows it. If
//! the exporter revokes it nevertheless, the driver detaches it from the resource on the host and
//! then unmaps it; the buffer is of no use afterwards.

use super::{
    create_command,
    device_mapping::{
        Memory,
        Unmap, //
    },
    BlobParams,
    DeviceMapping,
    Entries,
    HostResource,
    Kind,
    Resource,
    Use,
    PRIME_WAIT_MS, //
};
use crate::{
    drm::{
        Device,
        Object, //
    },
    gpu::Gpu,
    kapi::{
        drm::prime::{
            Importable,
            Importer, //
        },
        sync::{
            cancel_delayed_sync,
            system_workqueue, //
        },
    },
    protocol::virtio_gpu::{
        blob_flag,
        blob_mem,
        ResourceCommand, //
    },
    transport::control::{
        commands,
        Command,
        Completion,
        ControlQueue,
        Expect,
        Request,
        Response, //
    },
};
use kernel::{
    impl_has_delayed_work,
    list::ListArc,
    new_delayed_work, new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic,
            AtomicFlag, //
        },
        Arc,
        SpinLock, //
    },
    workqueue::{
        DelayedWork,
        WorkItem, //
    },
};

/// A buffer in memory of another driver.
pub(crate) struct Imported {
    revocation: Arc<DmaBufRevocation>,
    /// The exporter can revoke the memory.
    dynamic: bool,
}

impl Imported {
    /// Whether the exporter can revoke the memory.
    pub(crate) fn is_revocable(&self) -> bool {
        self.dynamic
    }

    /// Whether it has done so.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revocation.revoked.load(Acquire)
    }

    /// Cancels the revocation, as the resource is about to be destroyed. May sleep.
    pub(super) fn end(&self) {
        self.revocation.disarm();
    }
}

/// Unmaps memory that the exporter revokes.
#[pin_data]
struct DmaBufRevocation {
    gpu: Arc<Gpu>,
    revoked: AtomicFlag,
    /// RESOURCE_DETACH_BACKING, whose completion unmaps the memory; `None` before the host knows
    /// the memory, and once it was sent. Protects only itself.
    #[pin]
    detach: SpinLock<Option<ListArc<Command>>>,
    #[pin]
    work: DelayedWork<DmaBufRevocation, 1>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for DmaBufRevocation { self.work }
}

impl DmaBufRevocation {
    fn new(gpu: &Arc<Gpu>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                gpu: gpu.clone(),
                revoked: AtomicFlag::new(false),
                detach <- new_spinlock!(None, "DmaBufRevocation::detach"),
                work <- new_delayed_work!("DmaBufRevocation::work"),
            }),
            GFP_KERNEL,
        )
    }

    fn enqueue(self: &Arc<Self>) {
        // If it is enqueued already, it has not begun.
        let _ = system_workqueue().enqueue_delayed::<Arc<Self>, 1>(self.clone(), 0);
    }

    /// The host is about to know the memory: a revocation has to detach it.
    fn arm(self: &Arc<Self>, detach: ListArc<Command>) {
        *self.detach.lock() = Some(detach);
        if self.revoked.load(Acquire) {
            self.enqueue();
        }
    }

    /// The memory is not detached any more if it has not been by now.
    fn disarm(self: &Arc<Self>) {
        // A work that runs has its command in the queue afterwards, before UNREF.
        cancel_delayed_sync::<Self, 1>(self);
        let detach = self.detach.lock().take();
        drop(detach);
    }
}

/// What the exporter calls, which then holds the lock that unmapping takes.
struct InvalidateMappings(Arc<DmaBufRevocation>);

impl Importer for InvalidateMappings {
    fn revoked(&self) {
        self.0.revoked.store(true, Release);
        self.0.enqueue();
    }
}

impl Drop for InvalidateMappings {
    fn drop(&mut self) {
        // The exporter does not call any more: the attachment is gone, and the object goes after
        // it.
        cancel_delayed_sync::<DmaBufRevocation, 1>(&self.0);
    }
}

impl WorkItem<1> for DmaBufRevocation {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let detach = this.detach.lock().take();
        if let Some(detach) = detach {
            this.gpu.control.teardown(detach);
        }
    }
}

/// The end of RESOURCE_DETACH_BACKING.
struct Detached {
    unmap: Unmap,
}

impl Completion for Detached {
    fn complete(self: Arc<Self>, _response: &Response) {
        self.unmap.run();
    }
}

/// Makes a buffer of a dma-buf, and tells the host; does not wait for its response.
///
/// # Errors
///
/// [`EOPNOTSUPP`] if the device has no blobs, sees other addresses than the platform maps, or
/// copies; [`EINVAL`] for a size that the host does not take; [`ENOMEM`]; [`E2BIG`] if the memory
/// is too scattered; [`ENOSPC`] if there are no more ids; [`EBUSY`], [`ERESTARTSYS`], [`ENODEV`];
/// that of the exporter.
pub(crate) fn import(dev: &Device, buf: &Importable) -> Result<ARef<Object>> {
    let gpu: &Arc<Gpu> = dev;
    if !gpu.features.blob || gpu.bounces() {
        return Err(EOPNOTSUPP);
    }
    let size = buf.size();
    if size % PAGE_SIZE != 0 || !gpu.features.takes_blob_size(size as u64) {
        return Err(EINVAL);
    }
    gpu.transport.check()?;
    let host = HostResource::new(gpu)?;
    host.begin_use(Use::Shared)?.succeeds();
    let revocation = DmaBufRevocation::new(gpu)?;
    let invalidate = Arc::new(InvalidateMappings(revocation.clone()), GFP_KERNEL)?;
    // The memory is in `DeviceMappings` before the device goes, which releases it.
    let entered = dev.enter().ok_or(ENODEV)?;
    let attachment = buf.attach(dev, gpu.mapper.is_none(), invalidate)?;
    let mapped = attachment.map()?;

    let mut entries = Entries::new(gpu, 0);
    let mut total = 0u64;
    mapped.for_each_run(|addr, len| {
        // What an exporter maps beyond the end is not the host's business.
        let len = len.min(size as u64 - total);
        total += len;
        if len == 0 {
            return Ok(());
        }
        entries.push(addr, len)
    })?;
    if total != size as u64 {
        return Err(EINVAL);
    }
    let (entries, count) = entries.finish()?;
    let mapping = DeviceMapping::new(gpu, host.id(), Memory::Imported(mapped))?;
    drop(entered);

    let fixed = ResourceCommand {
        resource_id: host.id().into(),
        ..Default::default()
    };
    let mut detach = Request::<commands::ResourceDetachBacking>::new(0, &fixed);
    let detached = Detached {
        unmap: mapping.unmap(),
    };
    detach.then(Arc::new(detached, GFP_KERNEL)?);
    detach.about(host.shared_id());
    let mut detach = detach.build()?;

    let params = BlobParams {
        mem: blob_mem::GUEST,
        flags: blob_flag::USE_SHAREABLE,
        size: size as u64,
        ..Default::default()
    };
    let object = Object::new_imported(
        dev,
        size,
        attachment,
        Resource {
            host,
            params,
            mapping: Some(mapping),
            kind: Kind::Imported(Imported {
                revocation: revocation.clone(),
                dynamic: buf.is_dynamic(),
            }),
            entries: Atomic::new(0),
        },
    )?;
    object.entries.store(count, Relaxed);
    let create = create_command(None, &object.host, &params, entries, count)?;
    let sent = create.clone_arc();
    ControlQueue::set_expect(&mut detach, Expect::SuccessUnlessFailed(sent.clone()));
    let credit = gpu
        .control
        .credit_within(&gpu.quota, [&create], PRIME_WAIT_MS)?;
    object.host.set_sent(sent);
    gpu.control
        .add(create, credit)
        .inspect_err(|_| object.host.set_not_sent())?;
    gpu.control.kick();
    revocation.arm(detach);
    Ok(object)
}
