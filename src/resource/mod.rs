// SPDX-License-Identifier: GPL-2.0

//! Resources: what the host knows of a buffer, and the kinds of buffer.
//!
//! - [`guest`]: pages of the guest, allocated for the buffer;
//! - [`non_blob`]: storage on the host, and pages of the guest to transfer from and to;
//! - [`host_visible`]: memory of the host, shown in the host-visible window;
//! - [`userptr`]: memory of the process;
//! - [`imported`]: memory of other drivers;
//! - [`pinned`]: user memory that is pinned;
//! - [`releases`]: user memory that is released by a worker;
//! - [`uses`]: what a buffer is used for;
//! - [`device_mapping`]: addresses for devices that do not see physical ones.

pub(crate) mod device_mapping;
mod guest;
pub(crate) mod host_resource;
mod host_visible;
pub(crate) mod imported;
pub(crate) mod non_blob;
pub(crate) mod pinned;
pub(crate) mod releases;
pub(crate) mod userptr;
mod uses;

use crate::{
    context::Context,
    drm::{
        Device,
        Object, //
    },
    gpu::Gpu,
    kapi::{
        drm::gem::IoMemory,
        virtio::{
            Chunks,
            Pieces, //
        },
    },
    protocol::{
        runs::{
            Merger,
            Run, //
        },
        virtio_gpu::{
            blob_flag,
            blob_mem,
            Header,
            MemEntry,
            ResourceCreateBlob, //
        },
    },
    transport::control::{
        commands,
        Command,
        Request,
        RingQuota, //
    },
};
use kernel::{
    list::ListArc,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::Atomic,
        Arc, //
    },
};
use zerocopy::IntoBytes;

pub(crate) use self::{
    device_mapping::DeviceMapping,
    host_resource::HostResource,
    uses::{
        Begun,
        Use, //
    },
};

/// What userspace asks of a blob.
#[derive(Clone, Copy, Default)]
pub(crate) struct BlobParams {
    /// A [`blob_mem`] value; 0 for what is no blob.
    pub(crate) mem: u32,
    /// Flags for the host.
    pub(crate) flags: u32,
    /// Bytes, as the host is told.
    pub(crate) size: u64,
    /// Names a host object.
    pub(crate) id: u64,
    /// Map at first use only.
    pub(crate) defer_mapping: bool,
}

/// What kind of buffer a resource is.
pub(crate) enum Kind {
    /// Pages allocated for the buffer.
    Guest,
    /// The same, with storage on the host apart from them: no blob.
    NonBlob,
    /// Memory of the host.
    Host(host_visible::HostMemory),
    /// Memory of the process.
    Userptr(userptr::Userptr),
    /// Memory of another driver.
    Imported(imported::Imported),
}

/// The driver's part of a buffer.
pub(crate) struct Resource {
    /// As created.
    pub(crate) params: BlobParams,
    /// The device's view of its guest memory.
    pub(crate) mapping: Option<DeviceMapping>,
    /// The kind, and its own data.
    pub(crate) kind: Kind,
    /// Memory entries that the host was told.
    pub(crate) entries: Atomic<u64>,
    /// What happens between creation and release. Dropped last: with it the id is free again.
    pub(crate) host: HostResource,
}

impl Resource {
    /// The id on the wire.
    pub(crate) fn id(&self) -> u32 {
        self.host.id()
    }

    fn gpu(&self) -> &Arc<Gpu> {
        self.host.gpu()
    }

    /// Whether other virtio devices may share the resource on the host.
    fn is_known_elsewhere(&self) -> bool {
        let asked = self.params.flags & blob_flag::USE_CROSS_DEVICE != 0;
        self.gpu().features.uuid && (asked || matches!(self.kind, Kind::NonBlob))
    }

    /// Fails if the memory was revoked.
    ///
    /// # Errors
    ///
    /// [`EIO`].
    pub(crate) fn check_not_revoked(&self) -> Result {
        match &self.kind {
            Kind::Imported(imported) if imported.is_revoked() => Err(EIO),
            Kind::Userptr(userptr) if userptr.space().is_some_and(|space| space.is_lost()) => {
                Err(EIO)
            }
            _ => Ok(()),
        }
    }

    /// The buffer is about to be shared through a dma-buf: has the host give it a UUID if it may be
    /// shared with other virtio devices there. The buffer is not shared unless what is returned
    /// succeeds.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] for what cannot be shared, [`EOPNOTSUPP`] for what a job in fault mode has
    /// listed, those of [`HostResource::assign_uuid`].
    pub(crate) fn prepare_export(&self) -> Result<Begun<'_>> {
        match &self.kind {
            // The core knows what it has imported, and exports it as the dma-buf that it is.
            Kind::Userptr(_) | Kind::Imported(_) => Err(EINVAL),
            _ => {
                let shared = self.host.begin_use(Use::Shared)?;
                if self.is_known_elsewhere() {
                    self.host.assign_uuid()?;
                }
                Ok(shared)
            }
        }
    }

    /// The UUID by which other virtio devices find the buffer on the host.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if they cannot, those of [`HostResource::uuid`].
    pub(crate) fn exported_uuid(&self) -> Result<[u8; 16]> {
        if !self.is_known_elsewhere() {
            return Err(ENODEV);
        }
        self.host.uuid()
    }

    /// The registration, if this is user memory.
    pub(crate) fn userptr(&self) -> Option<&userptr::Userptr> {
        match &self.kind {
            Kind::Userptr(userptr) => Some(userptr),
            _ => None,
        }
    }
}

/// How long PRIME waits for room in the ring, in milliseconds: DRM holds a lock there that every
/// client takes.
const PRIME_WAIT_MS: u32 = 1_000;

/// A list of memory entries for the device, made run by run.
pub(crate) struct Entries {
    merger: Merger,
    bytes: Chunks,
    count: u64,
    pieces: Pieces,
}

impl Entries {
    /// An empty list, for a command of `gpu`, of about `expected` entries.
    pub(crate) fn new(gpu: &Gpu, expected: usize) -> Self {
        Self {
            merger: Merger::new(),
            bytes: Chunks::expecting(expected * size_of::<MemEntry>()),
            count: 0,
            // The header and the response take a descriptor each, and so does each part of a
            // command that is sent together with this one.
            pieces: gpu.control.pieces(4),
        }
    }

    /// Adds `len` bytes at `addr`, an address as the device sees it.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`E2BIG`] if the list cannot be sent in one command.
    pub(crate) fn push(&mut self, addr: u64, len: u64) -> Result {
        let (bytes, count, max) = (&mut self.bytes, &mut self.count, self.pieces);
        self.merger
            .push(addr, len, |run| append(bytes, count, max, run))
    }

    /// The list, and how many entries it has.
    ///
    /// # Errors
    ///
    /// As [`Entries::push`].
    pub(crate) fn finish(mut self) -> Result<(Chunks, u64)> {
        let (bytes, count, max) = (&mut self.bytes, &mut self.count, self.pieces);
        self.merger.flush(|run| append(bytes, count, max, run))?;
        Ok((self.bytes, self.count))
    }
}

fn append(bytes: &mut Chunks, count: &mut u64, pieces: Pieces, run: Run) -> Result {
    let entry = MemEntry {
        addr: run.addr.into(),
        length: run.length.into(),
        padding: 0.into(),
    };
    *count += 1;
    bytes.append(entry.as_bytes(), pieces)
}

/// The command that creates a blob.
///
/// # Errors
///
/// [`ENOMEM`], [`E2BIG`].
pub(crate) fn create_command(
    context: Option<&Context>,
    resource: &HostResource,
    params: &BlobParams,
    entries: Chunks,
    count: u64,
) -> Result<ListArc<Command>> {
    let fixed = ResourceCreateBlob {
        hdr: Header::default(),
        resource_id: resource.id().into(),
        blob_mem: params.mem.into(),
        blob_flags: params.flags.into(),
        nr_entries: u32::try_from(count).map_err(|_| E2BIG)?.into(),
        blob_id: params.id.into(),
        size: params.size.into(),
    };
    let context = context.map_or(0, Context::id);
    let mut request = Request::<commands::ResourceCreateBlob>::new(context, &fixed);
    request.payload(entries);
    request.about(resource.shared_id());
    request.build()
}

/// Creates a blob of any kind but user memory, and tells the host; does not wait for its response.
/// The commands take room of `quota`.
///
/// # Errors
///
/// [`ENOMEM`], [`E2BIG`] if the memory is too scattered, [`ENOSPC`] if the host-visible window is
/// full, [`ENODEV`].
pub(crate) fn create_blob(
    dev: &Device,
    quota: &Arc<RingQuota>,
    context: Option<&Context>,
    params: BlobParams,
) -> Result<ARef<Object>> {
    match params.mem {
        blob_mem::HOST3D => host_visible::create(dev, quota, context, params),
        _ => guest::create(dev, quota, context, params),
    }
}

/// What the CPU can map of a buffer in host memory.
///
/// # Errors
///
/// [`EINVAL`] if it is none, or if the host refused; those of
/// [`HostMemory::map`](host_visible::HostMemory::map).
pub(crate) fn host_memory(obj: &Object) -> Result<IoMemory> {
    match &obj.kind {
        Kind::Host(memory) => memory.map(obj),
        _ => Err(EINVAL),
    }
}
