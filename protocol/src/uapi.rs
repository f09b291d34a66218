// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The ioctl interface, as Rust structures.
//!
//! The standard part follows Linux 7.3's `include/uapi/drm/virtgpu_drm.h`, the extension
//! `uapi/drm/virtgpu_userptr_drm.h`. `client/tests/abi.rs` compares every structure here with
//! those headers through a C compiler.
//!
//! Integers are in the CPU's byte order, and no structure has implicit padding.

use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First ioctl number of a driver (`DRM_COMMAND_BASE`).
pub const COMMAND_BASE: u32 = 0x40;

/// Ioctl numbers, relative to [`COMMAND_BASE`].
#[allow(missing_docs)] // The names are those of the header.
pub mod nr {
    pub const MAP: u32 = 0x01;
    pub const EXECBUFFER: u32 = 0x02;
    pub const GETPARAM: u32 = 0x03;
    pub const RESOURCE_CREATE: u32 = 0x04;
    pub const RESOURCE_INFO: u32 = 0x05;
    pub const TRANSFER_FROM_HOST: u32 = 0x06;
    pub const TRANSFER_TO_HOST: u32 = 0x07;
    pub const WAIT: u32 = 0x08;
    pub const GET_CAPS: u32 = 0x09;
    pub const RESOURCE_CREATE_BLOB: u32 = 0x0a;
    pub const CONTEXT_INIT: u32 = 0x0b;
    pub const USERPTR_REGISTER: u32 = 0x40;
    pub const BO_QUERY: u32 = 0x41;
    pub const USERPTR_PREFETCH: u32 = 0x42;
    pub const SVM_ENABLE: u32 = 0x43;
    pub const SVM_PREFETCH: u32 = 0x44;
    pub const SVM_WAIT: u32 = 0x46;
    pub const SVM_QUERY: u32 = 0x47;
}

/// `drm_virtgpu_map`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Map {
    /// Out: file offset for mmap(2).
    pub offset: u64,
    /// In: GEM handle.
    pub handle: u32,
    /// Zero.
    pub pad: u32,
}

/// `ExecBuffer::flags`: `fence_fd` is a sync_file to wait for.
pub const EXECBUF_FENCE_FD_IN: u32 = 1;
/// `ExecBuffer::flags`: `fence_fd` returns a sync_file.
pub const EXECBUF_FENCE_FD_OUT: u32 = 2;
/// `ExecBuffer::flags`: `ring_idx` is valid.
pub const EXECBUF_RING_IDX: u32 = 4;
/// `ExecBufferSyncobj::flags`: reset the syncobj once the job is queued.
pub const EXECBUF_SYNCOBJ_RESET: u32 = 1;

/// `drm_virtgpu_execbuffer_syncobj`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExecBufferSyncobj {
    /// Syncobj handle.
    pub handle: u32,
    /// [`EXECBUF_SYNCOBJ_RESET`], for syncobjs waited for.
    pub flags: u32,
    /// Timeline point, 0 for a binary syncobj.
    pub point: u64,
}

/// `drm_virtgpu_execbuffer`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExecBuffer {
    /// Mask of `EXECBUF_*`.
    pub flags: u32,
    /// Bytes of the command.
    pub size: u32,
    /// User address of the command.
    pub command: u64,
    /// User address of an array of GEM handles (u32).
    pub bo_handles: u64,
    /// Entries in `bo_handles`.
    pub num_bo_handles: u32,
    /// In or out, see `flags`.
    pub fence_fd: i32,
    /// Ring of the context.
    pub ring_idx: u32,
    /// Bytes of one entry of the two arrays below.
    pub syncobj_stride: u32,
    /// Entries in `in_syncobjs`.
    pub num_in_syncobjs: u32,
    /// Entries in `out_syncobjs`.
    pub num_out_syncobjs: u32,
    /// User address of an array of [`ExecBufferSyncobj`].
    pub in_syncobjs: u64,
    /// User address of an array of [`ExecBufferSyncobj`].
    pub out_syncobjs: u64,
}

/// Parameters of GETPARAM.
pub mod param {
    /// 3D contexts.
    pub const THREE_D_FEATURES: u64 = 1;
    /// GET_CAPS works as documented; always 1.
    pub const CAPSET_QUERY_FIX: u64 = 2;
    /// RESOURCE_CREATE_BLOB.
    pub const RESOURCE_BLOB: u64 = 3;
    /// Host blobs can be mapped.
    pub const HOST_VISIBLE: u64 = 4;
    /// Blobs can be shared with other virtio devices.
    pub const CROSS_DEVICE: u64 = 5;
    /// CONTEXT_INIT.
    pub const CONTEXT_INIT: u64 = 6;
    /// Mask of capability set ids below 32.
    pub const SUPPORTED_CAPSET_IDS: u64 = 7;
    /// CONTEXT_INIT takes a debug name.
    pub const EXPLICIT_DEBUG_NAME: u64 = 8;
    /// Bytes to which blob sizes are aligned; -ENOENT where the host asks for none.
    pub const BLOB_ALIGNMENT: u64 = 9;
    /// Mask of usable ways to register user memory, `USERPTR_MODE_*`.
    pub const USERPTR_MODES: u64 = 0x1000;
    /// Memory model of each way, 4 bits each, in the order of `USERPTR_MODE_*`.
    pub const USERPTR_MEMORY_MODELS: u64 = 0x1001;
}

/// [`param::USERPTR_MODES`]: pinned registration of an address range.
pub const USERPTR_MODE_PINNED: u32 = 1;
/// [`param::USERPTR_MODES`]: mirrored registration.
pub const USERPTR_MODE_MIRRORED: u32 = 2;
/// [`param::USERPTR_MODES`]: whole address space.
pub const USERPTR_MODE_SVM: u32 = 4;
/// [`param::USERPTR_MODES`]: pinned registration of a memfd range.
pub const USERPTR_MODE_FD: u32 = 8;

/// `drm_virtgpu_getparam`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetParam {
    /// A [`param`].
    pub param: u64,
    /// User address of an int that receives the value.
    pub value: u64,
}

/// `drm_virtgpu_resource_create`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResourceCreate {
    /// Texture target.
    pub target: u32,
    /// Pixel format.
    pub format: u32,
    /// Bind flags.
    pub bind: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Pixels.
    pub depth: u32,
    /// Layers.
    pub array_size: u32,
    /// Mip levels - 1.
    pub last_level: u32,
    /// Samples.
    pub nr_samples: u32,
    /// Flags.
    pub flags: u32,
    /// Out: GEM handle.
    pub bo_handle: u32,
    /// Out: resource id.
    pub res_handle: u32,
    /// Bytes.
    pub size: u32,
    /// Bytes.
    pub stride: u32,
}

/// `drm_virtgpu_resource_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResourceInfo {
    /// In: GEM handle.
    pub bo_handle: u32,
    /// Out: resource id.
    pub res_handle: u32,
    /// Out: bytes, truncated to 32 bits.
    pub size: u32,
    /// Out: blob memory type, for blobs.
    pub blob_mem: u32,
}

/// `drm_virtgpu_3d_box`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Box3d {
    /// Pixels.
    pub x: u32,
    /// Pixels.
    pub y: u32,
    /// Pixels.
    pub z: u32,
    /// Pixels.
    pub w: u32,
    /// Pixels.
    pub h: u32,
    /// Pixels.
    pub d: u32,
}

/// `drm_virtgpu_3d_transfer_to_host` and `_from_host`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Transfer {
    /// GEM handle.
    pub bo_handle: u32,
    /// Region.
    pub region: Box3d,
    /// Mip level.
    pub level: u32,
    /// Bytes.
    pub offset: u32,
    /// Bytes.
    pub stride: u32,
    /// Bytes.
    pub layer_stride: u32,
}

/// `Wait::flags`: do not wait.
pub const WAIT_NOWAIT: u32 = 1;

/// `drm_virtgpu_3d_wait`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Wait {
    /// GEM handle.
    pub handle: u32,
    /// [`WAIT_NOWAIT`].
    pub flags: u32,
}

/// `drm_virtgpu_get_caps`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetCaps {
    /// Capability set.
    pub cap_set_id: u32,
    /// Its version.
    pub cap_set_ver: u32,
    /// User address of the buffer.
    pub addr: u64,
    /// Bytes of the buffer.
    pub size: u32,
    /// Zero.
    pub pad: u32,
}

/// `ResourceCreateBlob::blob_hints`: do not map at creation.
pub const BLOB_HINT_DEFER_MAPPING: u32 = 1;
/// `ResourceCreateBlob::blob_flags` of ROCm: bytes 48 to 55 are a user address.
pub const BLOB_FLAG_USE_USERPTR: u32 = 0x08;
/// `ResourceCreateBlob::blob_flags` of ROCm: the device may only read.
pub const BLOB_FLAG_USERPTR_RDONLY: u32 = 0x10;
/// Smallest `drm_virtgpu_resource_create_blob` in use, in bytes: that of kernels before 7.3.
pub const RESOURCE_CREATE_BLOB_MIN_SIZE: usize = 48;

/// `drm_virtgpu_resource_create_blob`, in the longest layout in use (72 bytes).
///
/// Linux 7.3 ends after `pad2`. With [`BLOB_FLAG_USE_USERPTR`], `blob_hints` and `pad2` are the
/// low and the high half of a user address.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResourceCreateBlob {
    /// 1 guest, 2 host, 3 both.
    pub blob_mem: u32,
    /// Mask of `virtio_gpu::blob_flag`, and ROCm's.
    pub blob_flags: u32,
    /// Out: GEM handle.
    pub bo_handle: u32,
    /// Out: resource id.
    pub res_handle: u32,
    /// Bytes.
    pub size: u64,
    /// Zero.
    pub pad: u32,
    /// Bytes of `cmd`.
    pub cmd_size: u32,
    /// User address of a command submitted before the resource is created.
    pub cmd: u64,
    /// Names a host object.
    pub blob_id: u64,
    /// [`BLOB_HINT_DEFER_MAPPING`].
    pub blob_hints: u32,
    /// Zero.
    pub pad2: u32,
    /// Zero; ROCm's structures are longer.
    pub rocm: [u64; 2],
}

/// Parameters of CONTEXT_INIT.
pub mod context_param {
    /// Capability set id.
    pub const CAPSET_ID: u64 = 1;
    /// Number of rings.
    pub const NUM_RINGS: u64 = 2;
    /// Mask of rings whose fences become DRM events.
    pub const POLL_RINGS_MASK: u64 = 3;
    /// User address of a name, NUL-terminated.
    pub const DEBUG_NAME: u64 = 4;
}

/// `drm_virtgpu_context_set_param`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ContextSetParam {
    /// A [`context_param`].
    pub param: u64,
    /// Its value.
    pub value: u64,
}

/// `drm_virtgpu_context_init`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ContextInit {
    /// Entries.
    pub num_params: u32,
    /// Zero.
    pub pad: u32,
    /// User address of an array of [`ContextSetParam`].
    pub ctx_set_params: u64,
}

/// `UserptrRegister::flags`: the pages are pinned until the handle is closed.
pub const USERPTR_PINNED: u32 = 1;
/// `UserptrRegister::flags`: the device follows the page tables.
pub const USERPTR_MIRRORED: u32 = 2;
/// `UserptrRegister::flags`: the device may only read.
pub const USERPTR_RDONLY: u32 = 4;
/// `UserptrRegister::flags`: a range of `fd`, which is a memfd, instead of an address.
pub const USERPTR_FD: u32 = 8;
/// `UserptrRegister::flags`: make the whole range resident at once.
pub const USERPTR_PREFAULT: u32 = 16;
/// `UserptrRegister::flags`: send a DRM event when the memory goes away.
pub const USERPTR_EVENT: u32 = 32;
/// `UserptrRegister::flags`: jobs use only what was prefetched.
pub const USERPTR_SPARSE: u32 = 64;

/// How long the device's view of a buffer lasts, `memory_model`.
pub mod memory_model {
    /// Until the handle is closed.
    pub const PERMANENT: u32 = 1;
    /// Follows the process's page tables.
    pub const DYNAMIC: u32 = 2;
    /// Its owner may revoke it.
    pub const REVOCABLE: u32 = 3;
}

/// State of a buffer, `BoQuery::state`.
pub mod bo_state {
    /// The device can use it.
    pub const VALID: u32 = 1;
    /// It was revoked and does not come back.
    pub const REVOKED: u32 = 2;
    /// The device is lost.
    pub const LOST: u32 = 3;
}

/// Type of the DRM event for each fence of a ring in [`context_param::POLL_RINGS_MASK`].
pub const EVENT_FENCE_SIGNALED: u32 = 0x9000_0000;

/// What is read for such a fence: a `drm_event` and nothing more.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FenceEvent {
    /// `drm_event::type`: [`EVENT_FENCE_SIGNALED`].
    pub kind: u32,
    /// `drm_event::length`: bytes of the whole.
    pub length: u32,
}

/// Type of the DRM event that [`USERPTR_EVENT`] asks for.
pub const EVENT_USERPTR: u32 = 0x9000_1000;

/// Why memory is gone, [`UserptrEvent::reason`].
pub mod event_reason {
    /// The process has unmapped it; the registration lives on.
    pub const UNMAP: u32 = 1;
    /// The process has ended or called exec.
    pub const MM_GONE: u32 = 2;
    /// The device has lost it.
    pub const LOST: u32 = 3;
}

/// `drm_virtgpu_userptr_event`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserptrEvent {
    /// `drm_event::type`: [`EVENT_USERPTR`].
    pub kind: u32,
    /// `drm_event::length`: bytes of the whole.
    pub length: u32,
    /// GEM handle of the registration.
    pub bo_handle: u32,
    /// An [`event_reason`].
    pub reason: u32,
    /// Guest-virtual address of what is gone.
    pub addr: u64,
    /// Bytes of what is gone.
    pub size: u64,
    /// `UserptrRegister::cookie`.
    pub cookie: u64,
}

/// `drm_virtgpu_userptr_register`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserptrRegister {
    /// In: guest-virtual address, a multiple of the page size; 0 with [`USERPTR_FD`].
    pub addr: u64,
    /// In: bytes, a multiple of the page size and of the blob alignment.
    pub size: u64,
    /// In: mask of `USERPTR_*`.
    pub flags: u32,
    /// In: memfd with [`USERPTR_FD`], else 0.
    pub fd: i32,
    /// In: bytes, a multiple of the page size; 0 without [`USERPTR_FD`].
    pub fd_offset: u64,
    /// In: passed on to the host; 0 with `blob_mem` GUEST.
    pub blob_id: u64,
    /// In: `virtio_gpu::blob_mem` GUEST or HOST3D_GUEST.
    pub blob_mem: u32,
    /// Out: GEM handle.
    pub bo_handle: u32,
    /// Out: resource id.
    pub res_handle: u32,
    /// Out: a [`memory_model`].
    pub memory_model: u32,
    /// In: returned in events.
    pub cookie: u64,
    /// Zero.
    pub pad: u64,
}

/// `drm_virtgpu_bo_query`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BoQuery {
    /// In: GEM handle.
    pub bo_handle: u32,
    /// Out: flags of the registration, 0 for other buffers.
    pub flags: u32,
    /// Out: a [`memory_model`].
    pub memory_model: u32,
    /// Out: a [`bo_state`].
    pub state: u32,
    /// Out: address of the registration, 0 for other buffers.
    pub addr: u64,
    /// Out: bytes.
    pub size: u64,
    /// Out: bytes of guest memory that the buffer holds.
    pub resident_bytes: u64,
    /// Out: bytes that the device can reach.
    pub mapped_bytes: u64,
    /// Out: memory entries sent to the device.
    pub entries: u64,
    /// Out: MAP commands sent.
    pub maps: u64,
    /// Out: INVALIDATE commands sent.
    pub invalidations: u64,
    /// Out: submissions repeated because pages moved.
    pub retries: u64,
    /// Out: pages faulted in.
    pub faults: u64,
}

/// `drm_virtgpu_userptr_prefetch`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserptrPrefetch {
    /// In: GEM handle.
    pub bo_handle: u32,
    /// In: zero.
    pub flags: u32,
    /// In: bytes from the start of the registration, a multiple of the page size.
    pub offset: u64,
    /// In: bytes, a multiple of the page size.
    pub length: u64,
    /// Out: bytes from `offset` that the device can reach now.
    pub done: u64,
}

/// `SvmEnable::flags`: send a DRM event when the context is lost.
pub const SVM_EVENT: u32 = 1;
/// `SvmEnable::flags`: a fault makes its own page usable, and none beside it.
pub const SVM_EXACT: u32 = 2;
/// The most that `SvmEnable::workers` may ask for.
pub const SVM_MAX_WORKERS: u32 = 8;

/// `drm_virtgpu_svm_enable`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SvmEnable {
    /// In: mask of [`SVM_EVENT`] and [`SVM_EXACT`].
    pub flags: u32,
    /// In: threads of the process that serve faults, [`SVM_MAX_WORKERS`] at most; 0 for 2.
    pub workers: u32,
    /// In: returned in the event.
    pub cookie: u64,
    /// Out: end of the addresses that jobs may use.
    pub va_end: u64,
    /// Out: faults of the context that the device has on the way at once.
    pub max_faults: u32,
    /// Zero.
    pub pad: u32,
}

/// `SvmPrefetch::flags`: for writing, which breaks copy-on-write; otherwise for reading.
pub const SVM_PREFETCH_WRITE: u32 = 1;

/// `drm_virtgpu_svm_prefetch`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SvmPrefetch {
    /// In: address, a multiple of the page size.
    pub addr: u64,
    /// In: bytes, a multiple of the page size.
    pub length: u64,
    /// In: [`SVM_PREFETCH_WRITE`] or 0.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
    /// Out: bytes from `addr` that the device can reach now.
    pub done: u64,
}

/// What to wait for, `SvmWait::op`.
pub mod svm_wait {
    /// Until all jobs that were accepted for `ring` before the call are done.
    pub const RING: u32 = 0;
    /// Until the u64 at `addr`, masked, equals `value`.
    pub const EQ: u32 = 1;
    /// Until it does not.
    pub const NE: u32 = 2;
    /// Until it is greater, unsigned.
    pub const GT: u32 = 3;
    /// Until it is greater or equal, unsigned.
    pub const GE: u32 = 4;
    /// Until it is less, unsigned.
    pub const LT: u32 = 5;
    /// Until it is less or equal, unsigned.
    pub const LE: u32 = 6;
}

/// `drm_virtgpu_svm_wait`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SvmWait {
    /// In: address of a u64, a multiple of 8; 0 with [`svm_wait::RING`].
    pub addr: u64,
    /// In: compared with the u64; 0 with [`svm_wait::RING`].
    pub value: u64,
    /// In: bits of the u64 that count; 0 with [`svm_wait::RING`].
    pub mask: u64,
    /// In: absolute CLOCK_MONOTONIC time; 0 asks without waiting, negative waits for ever.
    pub deadline_ns: i64,
    /// In: an [`svm_wait`].
    pub op: u32,
    /// In: ring, with [`svm_wait::RING`]; else 0.
    pub ring: u32,
    /// In: zero.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// State of the address space, `SvmQuery::state`.
pub mod svm_state {
    /// Jobs are accepted.
    pub const ACTIVE: u32 = 1;
    /// The context is lost; `SvmQuery::reason` says why.
    pub const LOST: u32 = 2;
}

/// What was tried, `SvmQuery::access` and `SvmEvent::access`.
pub mod svm_access {
    /// To read.
    pub const READ: u32 = 1;
    /// To write.
    pub const WRITE: u32 = 2;
    /// To read and write in one step.
    pub const ATOMIC: u32 = 4;
}

/// Why the context is lost, `SvmQuery::reason` and `SvmEvent::reason`.
pub mod svm_reason {
    /// There is no memory at the address that a device could use.
    pub const BAD_ADDRESS: u32 = 1;
    /// The memory must not be used in this way.
    pub const BAD_ACCESS: u32 = 2;
    /// There was no memory to serve the fault.
    pub const NO_MEMORY: u32 = 3;
    /// The memory cannot be given to the device alone, as the access needs.
    pub const NO_ATOMIC: u32 = 4;
    /// The process has ended or called exec.
    pub const MM_GONE: u32 = 5;
    /// The device has lost the context, or the device is lost.
    pub const LOST: u32 = 6;
}

/// `ring` of [`SvmEvent`] and [`SvmQuery`] where no ring's job was the cause.
pub const SVM_NO_RING: u32 = 0xffff_ffff;

/// `drm_virtgpu_svm_query`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SvmQuery {
    /// Out: an [`svm_state`].
    pub state: u32,
    /// Out: an [`svm_reason`], 0 while active.
    pub reason: u32,
    /// Out: an [`svm_access`], 0 where no access was the cause.
    pub access: u32,
    /// Out: ring of the job that was the cause, or [`SVM_NO_RING`].
    pub ring: u32,
    /// Out: address that was the cause, or 0.
    pub addr: u64,
    /// Out: end of the addresses that jobs may use.
    pub va_end: u64,
    /// Out: bytes that the device can reach.
    pub mapped_bytes: u64,
    /// Out: faults that the device has reported.
    pub faults: u64,
    /// Out: of these, faults on pages that were mapped by the time.
    pub coalesced: u64,
    /// Out: pages made usable.
    pub pages: u64,
    /// Out: MAP commands sent.
    pub maps: u64,
    /// Out: memory entries sent to the device.
    pub entries: u64,
    /// Out: INVALIDATE commands sent.
    pub invalidations: u64,
    /// Out: faults looked up again because pages moved.
    pub retries: u64,
    /// Out: times that memory was revoked because the host had no room for more.
    pub evictions: u64,
    /// Out: pages given to the device alone.
    pub exclusive: u64,
    /// Out: faults refused.
    pub bad: u64,
}

/// Type of the DRM event that [`SVM_EVENT`] asks for.
pub const EVENT_SVM: u32 = 0x9000_1001;

/// `drm_virtgpu_svm_event`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SvmEvent {
    /// `drm_event::type`: [`EVENT_SVM`].
    pub kind: u32,
    /// `drm_event::length`: bytes of the whole.
    pub length: u32,
    /// An [`svm_reason`].
    pub reason: u32,
    /// An [`svm_access`], 0 where no access was the cause.
    pub access: u32,
    /// Address that was the cause, or 0.
    pub addr: u64,
    /// `SvmEnable::cookie`.
    pub cookie: u64,
    /// Ring of the job that was the cause, or [`SVM_NO_RING`].
    pub ring: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = {
    assert!(size_of::<Map>() == 16);
    assert!(size_of::<ExecBuffer>() == 64);
    assert!(size_of::<ExecBufferSyncobj>() == 16);
    assert!(size_of::<ResourceCreate>() == 56);
    assert!(size_of::<Transfer>() == 44);
    assert!(size_of::<GetCaps>() == 24);
    assert!(size_of::<ResourceCreateBlob>() == 72);
    assert!(size_of::<ContextInit>() == 16);
    assert!(size_of::<FenceEvent>() == 8);
    assert!(size_of::<UserptrEvent>() == 40);
    assert!(size_of::<UserptrRegister>() == 72);
    assert!(size_of::<BoQuery>() == 88);
    assert!(size_of::<UserptrPrefetch>() == 32);
    assert!(size_of::<SvmEnable>() == 32);
    assert!(size_of::<SvmPrefetch>() == 32);
    assert!(size_of::<SvmWait>() == 48);
    assert!(size_of::<SvmQuery>() == 120);
    assert!(size_of::<SvmEvent>() == 40);
};
