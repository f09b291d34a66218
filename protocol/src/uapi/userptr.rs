// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! User memory that is registered, pinned or mirrored.

use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

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

const _: () = {
    assert!(size_of::<UserptrEvent>() == 40);
    assert!(size_of::<UserptrRegister>() == 72);
    assert!(size_of::<BoQuery>() == 88);
    assert!(size_of::<UserptrPrefetch>() == 32);
};
