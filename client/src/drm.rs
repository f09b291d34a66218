// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The structures of the DRM core ioctls that virtio-gpu programs need, as in `<drm/drm.h>`.

use crate::ioctl::{drm_iow, drm_iowr, iowr};

/// `drm_version`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Version {
    /// Major version.
    pub major: i32,
    /// Minor version.
    pub minor: i32,
    /// Patch level.
    pub patch: i32,
    /// Explicit padding.
    pub pad: i32,
    /// In: room at `name`; out: length of the name.
    pub name_len: u64,
    /// Address of the buffer for the name.
    pub name: u64,
    /// In: room at `date`.
    pub date_len: u64,
    /// Address.
    pub date: u64,
    /// In: room at `desc`.
    pub desc_len: u64,
    /// Address.
    pub desc: u64,
}

/// `drm_gem_close`, and the other ioctls that take a handle and one more word.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HandleAndWord {
    /// GEM or syncobj handle.
    pub handle: u32,
    /// Padding, flags or name.
    pub word: u32,
}

/// `drm_gem_open`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct GemOpen {
    /// In: the name that FLINK gave.
    pub name: u32,
    /// Out: handle.
    pub handle: u32,
    /// Out: bytes.
    pub size: u64,
}

/// `drm_prime_handle`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PrimeHandle {
    /// GEM handle.
    pub handle: u32,
    /// `O_CLOEXEC`, `O_RDWR`.
    pub flags: u32,
    /// dma-buf.
    pub fd: i32,
}

/// `drm_syncobj_handle`, without the `point` that newer kernels add.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SyncobjHandle {
    /// Syncobj handle.
    pub handle: u32,
    /// [`SYNCOBJ_SYNC_FILE`].
    pub flags: u32,
    /// File.
    pub fd: i32,
    /// Zero.
    pub pad: u32,
}

/// `SyncobjHandle::flags`: the file is a sync_file, not a syncobj.
pub const SYNCOBJ_SYNC_FILE: u32 = 1;

/// `drm_syncobj_timeline_wait`, without the deadline that newer kernels add.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SyncobjTimelineWait {
    /// Address of the handles (u32).
    pub handles: u64,
    /// Address of the points (u64).
    pub points: u64,
    /// Absolute CLOCK_MONOTONIC time.
    pub timeout_nsec: i64,
    /// Entries.
    pub count_handles: u32,
    /// `SYNCOBJ_WAIT_*`.
    pub flags: u32,
    /// Out.
    pub first_signaled: u32,
    /// Zero.
    pub pad: u32,
}

/// Wait for all.
pub const SYNCOBJ_WAIT_ALL: u32 = 1;
/// Wait also for a fence to be there.
pub const SYNCOBJ_WAIT_FOR_SUBMIT: u32 = 2;

/// `drm_syncobj_timeline_array` and, with `points` left out, `drm_syncobj_array`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SyncobjTimelineArray {
    /// Address of the handles (u32).
    pub handles: u64,
    /// Address of the points (u64).
    pub points: u64,
    /// Entries.
    pub count_handles: u32,
    /// Zero.
    pub flags: u32,
}

/// `drm_syncobj_array`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SyncobjArray {
    /// Address of the handles (u32).
    pub handles: u64,
    /// Entries.
    pub count_handles: u32,
    /// Zero.
    pub pad: u32,
}

/// `sync_file_info`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SyncFileInfo {
    /// Name.
    pub name: [u8; 32],
    /// 0 active, 1 signalled, else -errno.
    pub status: i32,
    /// Zero.
    pub flags: u32,
    /// Fences in the file.
    pub num_fences: u32,
    /// Zero.
    pub pad: u32,
    /// Address of an array of `sync_fence_info`.
    pub sync_fence_info: u64,
}

/// `DRM_IOCTL_VERSION`.
pub const VERSION: u32 = drm_iowr(0x00, size_of::<Version>());
/// `DRM_IOCTL_GEM_CLOSE`.
pub const GEM_CLOSE: u32 = drm_iow(0x09, size_of::<HandleAndWord>());
/// `DRM_IOCTL_GEM_FLINK`.
pub const GEM_FLINK: u32 = drm_iowr(0x0a, size_of::<HandleAndWord>());
/// `DRM_IOCTL_GEM_OPEN`.
pub const GEM_OPEN: u32 = drm_iowr(0x0b, size_of::<GemOpen>());
/// `DRM_IOCTL_PRIME_HANDLE_TO_FD`.
pub const PRIME_HANDLE_TO_FD: u32 = drm_iowr(0x2d, size_of::<PrimeHandle>());
/// `DRM_IOCTL_PRIME_FD_TO_HANDLE`.
pub const PRIME_FD_TO_HANDLE: u32 = drm_iowr(0x2e, size_of::<PrimeHandle>());
/// `DRM_IOCTL_SYNCOBJ_CREATE`.
pub const SYNCOBJ_CREATE: u32 = drm_iowr(0xbf, size_of::<HandleAndWord>());
/// `DRM_IOCTL_SYNCOBJ_DESTROY`.
pub const SYNCOBJ_DESTROY: u32 = drm_iowr(0xc0, size_of::<HandleAndWord>());
/// `DRM_IOCTL_SYNCOBJ_HANDLE_TO_FD`.
pub const SYNCOBJ_HANDLE_TO_FD: u32 = drm_iowr(0xc1, size_of::<SyncobjHandle>());
/// `DRM_IOCTL_SYNCOBJ_FD_TO_HANDLE`.
pub const SYNCOBJ_FD_TO_HANDLE: u32 = drm_iowr(0xc2, size_of::<SyncobjHandle>());
/// `DRM_IOCTL_SYNCOBJ_RESET`.
pub const SYNCOBJ_RESET: u32 = drm_iowr(0xc4, size_of::<SyncobjArray>());
/// `DRM_IOCTL_SYNCOBJ_TIMELINE_WAIT`.
pub const SYNCOBJ_TIMELINE_WAIT: u32 = drm_iowr(0xca, size_of::<SyncobjTimelineWait>());
/// `DRM_IOCTL_SYNCOBJ_QUERY`.
pub const SYNCOBJ_QUERY: u32 = drm_iowr(0xcb, size_of::<SyncobjTimelineArray>());
/// `DRM_IOCTL_SYNCOBJ_TIMELINE_SIGNAL`.
pub const SYNCOBJ_TIMELINE_SIGNAL: u32 = drm_iowr(0xcd, size_of::<SyncobjTimelineArray>());
/// `SYNC_IOC_FILE_INFO`.
pub const SYNC_FILE_INFO: u32 = iowr(b'>', 4, size_of::<SyncFileInfo>());

const _: () = {
    assert!(size_of::<Version>() == 64);
    assert!(size_of::<PrimeHandle>() == 12);
    assert!(size_of::<SyncobjTimelineWait>() == 40);
    assert!(size_of::<SyncFileInfo>() == 56);
};
