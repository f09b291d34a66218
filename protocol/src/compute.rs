// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The compute context of the reference device.
//!
//! A context created with capability set [`CAPSET_ID`] takes `SUBMIT_3D` commands whose payload is
//! an array of [`Op`], executed in order on the ring the command names. All integers are
//! little-endian. A job with a malformed operation has the response `ERR_INVALID_PARAMETER` and has
//! no effect. A job that touches what its context may not touch has the response `ERR_UNSPEC`, and
//! so is every later job of that context. A context in fault mode has addresses, which operands
//! name with resource 0; the response to its jobs comes when they are accepted, and an event tells
//! of their end.

use zerocopy::little_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Capability set id of the compute context. Below 31, because Linux's C driver computes
/// `1 << id` in an `int`.
pub const CAPSET_ID: u32 = 29;
/// The one version of [`Capset`].
pub const CAPSET_VERSION: u32 = 1;

/// What `GET_CAPSET` returns for [`CAPSET_ID`].
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Capset {
    /// [`CAPSET_VERSION`].
    pub version: U32,
    /// Rings a context may use.
    pub max_rings: U32,
    /// Operations in one job.
    pub max_ops: U32,
    /// Zero.
    pub padding: U32,
    /// Bit `1 << op` for every [`op`] the device executes.
    pub ops: U64,
}

/// Operations, `Op::op`.
pub mod op {
    /// `dst[..length]` = the 8 bytes of `imm[0]`, repeated; `length` is a multiple of 8.
    pub const FILL: u32 = 1;
    /// `dst[..length]` = `src[0][..length]`; the two must not overlap.
    pub const COPY: u32 = 2;
    /// `dst` (u32) = CRC32C of `src[0][..length]` (reflected, initial value and final xor !0).
    pub const CRC32C: u32 = 3;
    /// Each u32 of `dst[..length]` += `imm[0]`, wrapping.
    pub const ADD_U32: u32 = 4;
    /// Each f32 of `dst[..length]` = a * that of `src[0]` + itself, a = f32 of the bits `imm[0]`;
    /// multiplied and added with two roundings.
    pub const SAXPY_F32: u32 = 5;
    /// `dst` (m x n) = `src[0]` (m x k) * `src[1]` (k x n), row-major f32, m = low half of
    /// `imm[0]`, n = its high half, k = low half of `imm[1]`; `length` = m * n * 4. Each
    /// element is summed over ascending k, multiplied and added with two roundings.
    pub const GEMM_F32: u32 = 6;
    /// The u64 at `dst` += `imm[0]` atomically, `length` / 8 times.
    pub const ATOMIC_ADD_U64: u32 = 7;
    /// `dst` (u64) = wrapping sum of the bytes of `src[0][..length]` at multiples of `imm[0]`.
    pub const STRIDE_READ: u32 = 8;
    /// Starting with offset (or address) `src[0].offset`, read a u64, which is the next offset
    /// (or address), `imm[0]` times; `dst` (u64) = the last one read. With a resource, all
    /// offsets are in `src[0].resource_id` and `length` is ignored.
    pub const POINTER_CHASE: u32 = 9;
    /// Wait for `imm[0]` microseconds, 120 s at most.
    pub const DELAY_US: u32 = 10;
    /// Wait until the u64 at `src[0]` equals `imm[0]`, for `imm[1]` microseconds, 120 s at most;
    /// a time-out fails the job.
    pub const SPIN_UNTIL: u32 = 11;
    /// `dst` = a [`Stat`](super::Stat), cut off at `length` bytes; its last fields are about the
    /// resource of `src0`.
    pub const STAT: u32 = 12;
    /// Number after the last operation.
    pub const END: u32 = 13;
}

/// A place in memory.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Operand {
    /// A resource attached to the context, or 0 for the context's address space.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
    /// Byte offset in the resource, or guest-virtual address.
    pub offset: U64,
}

impl Operand {
    /// Byte `offset` of resource `resource_id`.
    pub const fn resource(resource_id: u32, offset: u64) -> Self {
        Self {
            resource_id: U32::new(resource_id),
            padding: U32::ZERO,
            offset: U64::new(offset),
        }
    }
}

/// One operation of a job.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Op {
    /// An [`op`] value.
    pub op: U32,
    /// Zero.
    pub flags: U32,
    /// Written.
    pub dst: Operand,
    /// Read.
    pub src: [Operand; 2],
    /// Bytes.
    pub length: U64,
    /// Immediate values.
    pub imm: [U64; 2],
}

/// What [`op::STAT`] writes: counts of the whole device at the time the operation runs.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Stat {
    /// Resources that exist.
    pub resources: U64,
    /// Contexts that exist.
    pub contexts: U64,
    /// Commands taken from the control queue since the device was started.
    pub commands: U64,
    /// Bytes of guest memory that the existing resources reach.
    pub guest_bytes: U64,
    /// Memory entries of the existing resources.
    pub guest_entries: U64,
    /// Bytes of the host-visible region in use.
    pub host_bytes: U64,
    /// Nanoseconds the device itself spent on `RESOURCE_CREATE_BLOB`, from taking the request to
    /// returning the response, since it was started.
    pub create_blob_ns: U64,
    /// The same for `RESOURCE_UNREF`, without the time spent waiting for jobs.
    pub unref_ns: U64,
    /// Spaces that exist.
    pub spaces: U64,
    /// `MAP`s carried out since the device was started.
    pub maps: U64,
    /// `INVALIDATE`s acknowledged since the device was started.
    pub invalidates: U64,
    /// Pages of 4096 bytes that are mapped in spaces.
    pub mapped_pages: U64,
    /// Descriptors of the mirror queue, once it was used.
    pub mirror_ring: U64,
    /// Most `MAP`s of one context that were in the mirror queue before an `INVALIDATE` of another
    /// context, since the device was started.
    pub maps_ahead: U64,
    /// Pages of 4096 bytes that are mapped in the space of the resource of `src0`; of resource 0 in
    /// that of the context.
    pub space_pages: U64,
    /// `MAP`s carried out in that space.
    pub space_maps: U64,
    /// `INVALIDATE`s that named that space.
    pub space_invalidates: U64,
    /// Faults that the guest was told of, since the device was started.
    pub faults: U64,
    /// Accesses that found a fault of another access to the same page, and waited for that.
    pub joined_faults: U64,
    /// Faults that are not resolved.
    pub pending_faults: U64,
    /// `MAP`s carried out that made pages exclusive, since the device was started.
    pub exclusive_maps: U64,
}

/// The longest [`op::DELAY_US`] and [`op::SPIN_UNTIL`], in microseconds.
pub const MAX_DELAY_US: u64 = 120_000_000;

const _: () = {
    assert!(size_of::<Capset>() == 24);
    assert!(size_of::<Operand>() == 16);
    assert!(size_of::<Op>() == 80);
    assert!(size_of::<Stat>() == 168);
};
