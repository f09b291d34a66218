// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The ioctls of Linux's own driver: `virtgpu_drm.h`.

use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
};
