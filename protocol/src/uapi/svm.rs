// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Shared virtual memory.

use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
    assert!(size_of::<SvmEnable>() == 32);
    assert!(size_of::<SvmPrefetch>() == 32);
    assert!(size_of::<SvmWait>() == 48);
    assert!(size_of::<SvmQuery>() == 120);
    assert!(size_of::<SvmEvent>() == 40);
};
