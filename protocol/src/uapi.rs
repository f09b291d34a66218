// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The ioctl interface, as Rust structures.
//!
//! The standard part follows Linux 7.3's `include/uapi/drm/virtgpu_drm.h`, the extension
//! `uapi/drm/virtgpu_userptr_drm.h`. `client/tests/abi.rs` compares every structure here with
//! those headers through a C compiler.
//!
//! Integers are in the CPU's byte order, and no structure has implicit padding.

mod standard;
mod svm;
mod userptr;

pub use self::standard::*;
pub use self::svm::*;
pub use self::userptr::*;

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
