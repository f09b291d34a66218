// SPDX-License-Identifier: GPL-2.0

//! Buffers in host memory, which userspace sees through the host-visible window.
//!
//! The window is a region of the device's PCI memory in which the host shows a buffer at the place
//! that the driver chooses. A place is taken before MAP_BLOB is sent and free again only when
//! UNMAP_BLOB was responded to, or the device was reset, so that no two buffers are ever seen at
//! the same place. A buffer is shown when it is created, or when it is mapped first.

use super::{
    create_command,
    BlobParams,
    HostResource,
    Kind,
    Resource, //
};
use crate::{
    context::Context,
    drm::{
        Device,
        Object, //
    },
    gpu::Gpu,
    kapi::{
        drm::{
            gem::{
                Caching,
                IoMemory, //
            }, //
        },
        virtio::Chunks, //
    },
    protocol::virtio_gpu::{blob_flag, map_cache, response, ResourceCommand, ResourceMapBlob},
    transport::control::{
        commands,
        Command,
        ControlQueue,
        Credit,
        Expect,
        Request,
        Response,
        RingQuota, //
        Sent,
    },
};
use kernel::{
    list::ListArc,
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::Atomic,
        Arc,
        Mutex, //
    },
};

/// A host buffer's place in the window.
pub(crate) struct HostMemory {
    /// Protects the mapping; held while it is being made, and taken with `mmap_lock` held.
    mapping: Pin<KBox<Mutex<Option<WindowMapping>>>>,
    /// Part of the ring of the file that has made it.
    quota: Arc<RingQuota>,
}

struct WindowMapping {
    offset: u64,
    map: Sent<commands::ResourceMapBlob>,
    /// Ends the mapping; carries the range until then.
    unmap: ListArc<Command>,
}

/// Creates a buffer in host memory.
///
/// # Errors
///
/// See [`super::create_blob`].
pub(super) fn create(
    dev: &Device,
    quota: &Arc<RingQuota>,
    context: Option<&Context>,
    params: BlobParams,
) -> Result<ARef<Object>> {
    let gpu: &Arc<Gpu> = dev;
    let size = usize::try_from(params.size)?
        .checked_next_multiple_of(PAGE_SIZE)
        .ok_or(EINVAL)?;
    let mappable = params.flags & blob_flag::USE_MAPPABLE != 0;
    let data = Resource {
        host: HostResource::new(gpu)?,
        params,
        mapping: None,
        kind: Kind::Host(HostMemory {
            mapping: KBox::pin_init(new_mutex!(None, "HostMemory::mapping"), GFP_KERNEL)?,
            quota: quota.clone(),
        }),
        entries: Atomic::new(0),
    };
    let object = if mappable {
        Object::new_io(dev, size, data)?
    } else {
        Object::new_private(dev, size, data)?
    };

    let create = create_command(context, &object.host, &params, Chunks::new(), 0)?;
    let showing = match &object.kind {
        Kind::Host(memory) if mappable && !params.defer_mapping => {
            Some((memory, Showing::new(gpu, &object)?))
        }
        _ => None,
    };
    // One credit for both: who holds one must not wait for another.
    let map = showing.as_ref().map(|(_, showing)| &showing.map);
    let commands = Iterator::chain(core::iter::once(&create), map);
    let mut credit = gpu.control.credit(quota, commands)?;
    let map_credit = map.map(|map| credit.split(map)).transpose()?;
    object.host.set_sent(create.clone_arc());
    gpu.control
        .add(create, credit)
        .inspect_err(|_| object.host.set_not_sent())?;
    if let (Some((memory, showing)), Some(map_credit)) = (showing, map_credit) {
        *memory.mapping.lock() = Some(showing.send(gpu, map_credit)?);
    }
    gpu.control.kick();
    Ok(object)
}

/// A place in the window, and the commands that show a buffer there and end that.
struct Showing {
    offset: u64,
    map: ListArc<Command>,
    sent_map: Sent<commands::ResourceMapBlob>,
    unmap: ListArc<Command>,
}

impl Showing {
    /// For `object`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no window, [`ENOSPC`] if it is full, [`ENOMEM`].
    fn new(gpu: &Arc<Gpu>, object: &Object) -> Result<Self> {
        let window = gpu.host_visible.as_ref().ok_or(EINVAL)?;
        let range = window
            .ranges
            .allocate(object.size() as u64, PAGE_SIZE as u64)?;
        let offset = range.start();

        let fixed = ResourceMapBlob {
            resource_id: object.id().into(),
            offset: offset.into(),
            ..Default::default()
        };
        let mut map = Request::<commands::ResourceMapBlob>::new(0, &fixed);
        map.about(object.host.shared_id());
        let (map, sent_map) = map.build_to_read()?;

        let fixed = ResourceCommand {
            resource_id: object.id().into(),
            ..Default::default()
        };
        let mut unmap = Request::<commands::ResourceUnmapBlob>::new(0, &fixed);
        // Until the host has confirmed that nothing is mapped there.
        unmap.keep(range)?;
        unmap.about(object.host.shared_id());
        let unmap = unmap.build()?;
        Ok(Self {
            offset,
            map,
            sent_map,
            unmap,
        })
    }

    /// Puts the command that shows the buffer into the ring.
    ///
    /// # Errors
    ///
    /// Those of [`ControlQueue::add`].
    fn send(self, gpu: &Arc<Gpu>, credit: Credit) -> Result<WindowMapping> {
        gpu.control.add(self.map, credit)?;
        Ok(WindowMapping {
            offset: self.offset,
            map: self.sent_map,
            unmap: self.unmap,
        })
    }
}

impl HostMemory {
    /// Asks the host to show the buffer in the window, without waiting for its response.
    fn start(&self, gpu: &Arc<Gpu>, object: &Object) -> Result {
        let mut mapping = self.mapping.lock();
        if mapping.is_some() {
            return Ok(());
        }
        let showing = Showing::new(gpu, object)?;
        let credit = gpu.control.credit(&self.quota, [&showing.map])?;
        *mapping = Some(showing.send(gpu, credit)?);
        Ok(())
    }

    /// What the CPU can map. Waits for the host, killably and no longer than the time limit.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the host refused, [`ENOSPC`] if the window is full, [`EBUSY`] if the host has
    /// not responded, [`ERESTARTSYS`] on a fatal signal, [`ENODEV`].
    pub(super) fn map(&self, object: &Object) -> Result<IoMemory> {
        let gpu = object.gpu();
        gpu.transport.check()?;
        let window = gpu.host_visible.as_ref().ok_or(EINVAL)?;
        self.start(gpu, object)?;
        gpu.control.kick();

        let (offset, map) = {
            let mapping = self.mapping.lock();
            let mapping = mapping.as_ref().ok_or(EINVAL)?;
            (mapping.offset, mapping.map.clone())
        };
        if gpu.control.wait_killable(&map)? != Response::Ok(response::OK_MAP_INFO) {
            return Err(EINVAL);
        }
        let caching = match map.response().map_info.get() & map_cache::MASK {
            map_cache::NONE | map_cache::CACHED => Caching::Cached,
            map_cache::UNCACHED => Caching::Uncached,
            map_cache::WC => Caching::WriteCombining,
            _ => return Err(EINVAL),
        };
        Ok(IoMemory {
            phys: window.base + offset,
            len: object.size() as u64,
            caching,
        })
    }

    /// Takes the buffer out of the window, if it was ever put there.
    pub(super) fn unmap(&self, object: &Resource) {
        let Some(mut mapping) = self.mapping.lock().take() else {
            return;
        };
        match ControlQueue::ended(&mapping.map) {
            // Never mapped: dropping the command frees the range.
            Some(Response::Error(_) | Response::Aborted) => {}
            Some(Response::Ok(_)) => {
                ControlQueue::set_expect(&mut mapping.unmap, Expect::Success);
                object.gpu().control.teardown(mapping.unmap);
            }
            None | Some(Response::Invalid) => {
                let expect = Expect::SuccessUnlessFailed(mapping.map.command().clone());
                ControlQueue::set_expect(&mut mapping.unmap, expect);
                object.gpu().control.teardown(mapping.unmap);
            }
        }
    }
}
