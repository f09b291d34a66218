// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The extension of virtio-gpu by which a device follows the guest's page tables, on the wire.
//!
//! Feature bits, two virtqueues and a part of the configuration space; see `docs/protocol.md` for
//! the rules. All integers are little-endian and no structure has implicit padding.

use zerocopy::little_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature bits of the extension.
pub mod feature {
    /// Spaces, the mirror queue and the event queue.
    pub const MIRROR: u32 = 22;
    /// Faults of the device are resolved by the guest; needs [`MIRROR`].
    pub const PAGE_FAULT: u32 = 23;
}

/// Index of the mirror queue.
pub const MIRROR_QUEUE: u16 = 2;
/// Index of the event queue.
pub const EVENT_QUEUE: u16 = 3;
/// The fewest descriptors of a mirror queue.
pub const MIN_QUEUE_SIZE: u16 = 64;
/// Descriptors of the mirror queue that MAP and SPACE_CREATE leave free for the other commands.
pub const RESERVED_DESCRIPTORS: u16 = 32;

/// Bytes from the start of the configuration space to [`MirrorConfig`].
pub const CONFIG_OFFSET: usize = 32;
/// [`MirrorConfig::mirror_version`] of what is described here.
pub const VERSION: u32 = 1;

/// Device configuration space, at [`CONFIG_OFFSET`]; valid with [`feature::MIRROR`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MirrorConfig {
    /// [`VERSION`].
    pub mirror_version: U32,
    /// Most entries of a MAP.
    pub max_entries: U32,
    /// Most spaces at a time.
    pub max_spaces: U32,
    /// Buffers that the driver should keep in the event queue.
    pub event_slots: U32,
    /// Bytes that addresses and lengths are multiples of, a power of two.
    pub granularity: U32,
    /// A [`device_state`]; announced by a configuration interrupt.
    pub device_state: U32,
    /// Most faults of a space that are not resolved; with [`feature::PAGE_FAULT`], else 0.
    pub max_faults: U32,
    /// Zero.
    pub padding: U32,
}

/// [`MirrorConfig::device_state`].
pub mod device_state {
    /// All is well.
    pub const OK: u32 = 0;
    /// The device must be reset.
    pub const LOST: u32 = 1;
}

/// Command types, [`Header::kind`].
pub mod command {
    /// [`SpaceCreate`](super::SpaceCreate); the response is a status.
    pub const SPACE_CREATE: u32 = 0x0400;
    /// A bare header; the used entry is the response.
    pub const SPACE_DESTROY: u32 = 0x0401;
    /// [`Map`](super::Map) and its entries; the response is a status.
    pub const MAP: u32 = 0x0402;
    /// [`Invalidate`](super::Invalidate); the used entry is the response.
    pub const INVALIDATE: u32 = 0x0403;
    /// [`FaultResolve`](super::FaultResolve); the used entry is the response.
    pub const FAULT_RESOLVE: u32 = 0x0404;
}

/// The status that the device writes, a little-endian 32-bit word.
pub mod status {
    /// Done.
    pub const OK: u32 = 0;
    /// The command is not well-formed, or names memory outside guest RAM.
    pub const INVALID: u32 = 1;
    /// There is no such space.
    pub const NO_SUCH_SPACE: u32 = 2;
    /// The device lacks memory.
    pub const NO_MEMORY: u32 = 3;
    /// There are too many spaces.
    pub const LIMIT: u32 = 4;
}

/// What may be done with memory: masks.
pub mod access {
    /// It may be read.
    pub const READ: u32 = 1;
    /// It may be written.
    pub const WRITE: u32 = 2;
    /// Of a fault: a read-modify-write of a device that is not coherent with the processors.
    pub const ATOMIC: u32 = 4;
    /// Of a MAP, in a space with faults: the device alone has the page, also for atomic accesses.
    pub const EXCLUSIVE: u32 = READ | WRITE | ATOMIC;
}

/// The first bytes of every command.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// A [`command`].
    pub kind: U32,
    /// Zero.
    pub flags: U32,
    /// The space that the command acts on, not 0.
    pub space_id: U32,
    /// Zero.
    pub padding: U32,
}

impl Header {
    /// A header for `kind` acting on `space_id`.
    #[must_use]
    pub const fn new(kind: u32, space_id: u32) -> Self {
        Self {
            kind: U32::new(kind),
            flags: U32::ZERO,
            space_id: U32::new(space_id),
            padding: U32::ZERO,
        }
    }
}

/// What a space belongs to, [`SpaceCreate::kind`].
pub mod space_kind {
    /// A resource: addresses are bytes from its start.
    pub const RESOURCE: u32 = 1;
    /// A context: addresses are guest-virtual.
    pub const CONTEXT: u32 = 2;
}

/// [`SpaceCreate::flags`]: an access to what is not mapped is a fault, not an error.
pub const SPACE_FAULTS: u32 = 1;

/// SPACE_CREATE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SpaceCreate {
    /// Type [`command::SPACE_CREATE`].
    pub hdr: Header,
    /// A [`space_kind`].
    pub kind: U32,
    /// The resource or the context.
    pub id: U32,
    /// Bytes of addresses, from 0 on.
    pub size: U64,
    /// The most that any MAP may allow, a mask of [`access`].
    pub access: U32,
    /// [`SPACE_FAULTS`].
    pub flags: U32,
}

/// SPACE_DESTROY.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SpaceDestroy {
    /// Type [`command::SPACE_DESTROY`].
    pub hdr: Header,
}

/// MAP; `nr_entries` [`MapEntry`]s follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Map {
    /// Type [`command::MAP`].
    pub hdr: Header,
    /// First address in the space.
    pub start: U64,
    /// Bytes, the sum of those of the entries.
    pub length: U64,
    /// Entries, at most [`MirrorConfig::max_entries`], not 0.
    pub nr_entries: U32,
    /// Zero.
    pub padding: U32,
}

/// A stretch of guest memory.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MapEntry {
    /// Guest-physical or DMA address.
    pub addr: U64,
    /// Bytes, not 0.
    pub length: U32,
    /// [`access::READ`], both [`access::READ`] and [`access::WRITE`], or [`access::EXCLUSIVE`].
    pub access: U32,
}

/// INVALIDATE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Invalidate {
    /// Type [`command::INVALIDATE`].
    pub hdr: Header,
    /// First address.
    pub start: U64,
    /// Last address.
    pub last: U64,
}

/// FAULT_RESOLVE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FaultResolve {
    /// Type [`command::FAULT_RESOLVE`].
    pub hdr: Header,
    /// [`Event::id`] of the fault.
    pub fault_id: U64,
    /// A [`resolution`].
    pub status: U32,
    /// Zero.
    pub padding: U32,
}

/// [`FaultResolve::status`].
pub mod resolution {
    /// The access can be tried again.
    pub const OK: u32 = 0;
    /// Nothing is mapped there.
    pub const BAD_ADDRESS: u32 = 1;
    /// The access is not allowed.
    pub const BAD_ACCESS: u32 = 2;
    /// The access can be tried again, but will probably fault once more.
    pub const RETRY: u32 = 3;
}

/// What the device writes into a buffer of the event queue.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Event {
    /// An [`event`].
    pub kind: U32,
    /// The space.
    pub space_id: U32,
    /// FAULT: the access that stalled, one of [`access`]. RING_DONE: a [`job_result`].
    pub access: U32,
    /// FAULT: the ring of the job plus 1, or 0. RING_DONE: the ring.
    pub info: U32,
    /// FAULT: the address. RING_DONE: the address, of [`job_result::FAULTED`].
    pub address: U64,
    /// FAULT: names the fault. RING_DONE: `fence_id` of the job.
    pub id: U64,
}

/// [`Event::kind`].
pub mod event {
    /// An access to what is not mapped is stalled, and waits for FAULT_RESOLVE.
    pub const FAULT: u32 = 1;
    /// The space is gone; nothing is accessed through it any more.
    pub const SPACE_LOST: u32 = 2;
    /// A job of a context in fault mode is over.
    pub const RING_DONE: u32 = 3;
}

/// [`Event::access`] of RING_DONE.
pub mod job_result {
    /// All of it is done.
    pub const OK: u32 = 0;
    /// An operation failed. The context is lost, unless it only waited too long.
    pub const FAILED: u32 = 1;
    /// An access was not possible: of a fault that was resolved so, or outside of the space. The
    /// context is lost.
    pub const FAULTED: u32 = 2;
    /// The context was lost, or its end came first.
    pub const CANCELLED: u32 = 3;
}

const _: () = {
    assert!(size_of::<MirrorConfig>() == 32);
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<SpaceCreate>() == 40);
    assert!(size_of::<SpaceDestroy>() == 16);
    assert!(size_of::<Map>() == 40);
    assert!(size_of::<MapEntry>() == 16);
    assert!(size_of::<Invalidate>() == 32);
    assert!(size_of::<FaultResolve>() == 32);
    assert!(size_of::<Event>() == 32);
};
