// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The virtio-gpu control queue on the wire.
//!
//! All integers are little-endian and no structure has implicit padding. Sizes and values are those
//! of Linux 7.3's `include/uapi/linux/virtio_gpu.h`.

use zerocopy::little_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The virtio device id of a GPU.
pub const DEVICE_ID: u32 = 16;

/// Feature bits of virtio-gpu.
pub mod feature {
    /// 3D contexts and the commands that need one.
    pub const VIRGL: u32 = 0;
    /// Displays describe themselves with an EDID.
    pub const EDID: u32 = 1;
    /// Resources can be given a UUID, so that another virtio device can name them.
    pub const RESOURCE_UUID: u32 = 2;
    /// Blob resources.
    pub const RESOURCE_BLOB: u32 = 3;
    /// Contexts of several kinds, with several rings.
    pub const CONTEXT_INIT: u32 = 4;
    /// Sizes and offsets of blobs are multiples of `Config::blob_alignment`.
    pub const BLOB_ALIGNMENT: u32 = 5;
}

/// The id of the shared memory region through which host blobs are mapped into the guest.
pub const SHM_ID_HOST_VISIBLE: u8 = 1;

/// Device configuration space, standard part.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Config {
    /// Events the device reports: bit 0 is a display change.
    pub events_read: U32,
    /// Written by the driver to acknowledge events.
    pub events_clear: U32,
    /// Displays; 0 means a device for rendering only.
    pub num_scanouts: U32,
    /// Capability sets that `GET_CAPSET_INFO` can list.
    pub num_capsets: U32,
    /// Bytes; valid with [`feature::BLOB_ALIGNMENT`].
    pub blob_alignment: U32,
}

/// Command types, `Header::kind` of a request.
#[allow(missing_docs)] // The names are those of the specification.
pub mod command {
    pub const GET_DISPLAY_INFO: u32 = 0x0100;
    pub const RESOURCE_CREATE_2D: u32 = 0x0101;
    pub const RESOURCE_UNREF: u32 = 0x0102;
    pub const SET_SCANOUT: u32 = 0x0103;
    pub const RESOURCE_FLUSH: u32 = 0x0104;
    pub const TRANSFER_TO_HOST_2D: u32 = 0x0105;
    pub const RESOURCE_ATTACH_BACKING: u32 = 0x0106;
    pub const RESOURCE_DETACH_BACKING: u32 = 0x0107;
    pub const GET_CAPSET_INFO: u32 = 0x0108;
    pub const GET_CAPSET: u32 = 0x0109;
    pub const GET_EDID: u32 = 0x010a;
    pub const RESOURCE_ASSIGN_UUID: u32 = 0x010b;
    pub const RESOURCE_CREATE_BLOB: u32 = 0x010c;
    pub const SET_SCANOUT_BLOB: u32 = 0x010d;
    pub const CTX_CREATE: u32 = 0x0200;
    pub const CTX_DESTROY: u32 = 0x0201;
    pub const CTX_ATTACH_RESOURCE: u32 = 0x0202;
    pub const CTX_DETACH_RESOURCE: u32 = 0x0203;
    pub const RESOURCE_CREATE_3D: u32 = 0x0204;
    pub const TRANSFER_TO_HOST_3D: u32 = 0x0205;
    pub const TRANSFER_FROM_HOST_3D: u32 = 0x0206;
    pub const SUBMIT_3D: u32 = 0x0207;
    pub const RESOURCE_MAP_BLOB: u32 = 0x0208;
    pub const RESOURCE_UNMAP_BLOB: u32 = 0x0209;
    pub const UPDATE_CURSOR: u32 = 0x0300;
    pub const MOVE_CURSOR: u32 = 0x0301;
}

/// Response types, `Header::kind` of a response.
#[allow(missing_docs)] // The names are those of the specification.
pub mod response {
    pub const OK_NODATA: u32 = 0x1100;
    pub const OK_DISPLAY_INFO: u32 = 0x1101;
    pub const OK_CAPSET_INFO: u32 = 0x1102;
    pub const OK_CAPSET: u32 = 0x1103;
    pub const OK_EDID: u32 = 0x1104;
    pub const OK_RESOURCE_UUID: u32 = 0x1105;
    pub const OK_MAP_INFO: u32 = 0x1106;
    pub const ERR_UNSPEC: u32 = 0x1200;
    pub const ERR_OUT_OF_MEMORY: u32 = 0x1201;
    pub const ERR_INVALID_SCANOUT_ID: u32 = 0x1202;
    pub const ERR_INVALID_RESOURCE_ID: u32 = 0x1203;
    pub const ERR_INVALID_CONTEXT_ID: u32 = 0x1204;
    pub const ERR_INVALID_PARAMETER: u32 = 0x1205;
}

/// `Header::flags`: respond only when the work is complete, and repeat `fence_id`.
pub const FLAG_FENCE: u32 = 1 << 0;
/// `Header::flags`: the fence belongs to timeline `ring_idx` of the context.
pub const FLAG_INFO_RING_IDX: u32 = 1 << 1;
/// Most timelines of a context: userspace names them by the bits of a 64-bit mask.
pub const MAX_RINGS: u32 = 64;

/// The first bytes of every request and of every response.
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
pub struct Header {
    /// A [`command`] or a [`response`].
    pub kind: U32,
    /// [`FLAG_FENCE`] and [`FLAG_INFO_RING_IDX`]; the response repeats the request's.
    pub flags: U32,
    /// Meaningful with [`FLAG_FENCE`].
    pub fence_id: U64,
    /// The context the command acts on, 0 for none.
    pub ctx_id: U32,
    /// Meaningful with [`FLAG_INFO_RING_IDX`].
    pub ring_idx: u8,
    /// Zero.
    pub padding: [u8; 3],
}

impl Header {
    /// A header without fence for `kind` acting on context `ctx_id`.
    pub const fn new(kind: u32, ctx_id: u32) -> Self {
        Self {
            kind: U32::new(kind),
            flags: U32::ZERO,
            fence_id: U64::ZERO,
            ctx_id: U32::new(ctx_id),
            ring_idx: 0,
            padding: [0; 3],
        }
    }
}

/// `blob_mem` of [`ResourceCreateBlob`].
#[allow(missing_docs)] // The names are those of the specification.
pub mod blob_mem {
    pub const GUEST: u32 = 1;
    pub const HOST3D: u32 = 2;
    pub const HOST3D_GUEST: u32 = 3;
}

/// `blob_flags` of [`ResourceCreateBlob`].
pub mod blob_flag {
    /// The blob can be mapped into the guest.
    pub const USE_MAPPABLE: u32 = 1;
    /// The blob can be shared between contexts.
    pub const USE_SHAREABLE: u32 = 2;
    /// The blob can be shared with other virtio devices.
    pub const USE_CROSS_DEVICE: u32 = 4;
    /// AMD's hosts only: the guest entries are user memory. Collides with other hosts' flags.
    pub const USE_USERPTR: u32 = 8;
}

/// `RESOURCE_CREATE_BLOB`, followed by `nr_entries` of [`MemEntry`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResourceCreateBlob {
    /// Header.
    pub hdr: Header,
    /// The id the driver chose, not 0.
    pub resource_id: U32,
    /// A [`blob_mem`] value.
    pub blob_mem: U32,
    /// A mask of [`blob_flag`].
    pub blob_flags: U32,
    /// Count of [`MemEntry`] that follow.
    pub nr_entries: U32,
    /// Names a host object of the context, for blobs with host storage.
    pub blob_id: U64,
    /// Bytes.
    pub size: U64,
}

/// One physically contiguous piece of guest memory.
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
pub struct MemEntry {
    /// Guest-physical or, with `VIRTIO_F_ACCESS_PLATFORM`, DMA address.
    pub addr: U64,
    /// Bytes.
    pub length: U32,
    /// Zero.
    pub padding: U32,
}

/// `RESOURCE_UNREF`, `CTX_ATTACH_RESOURCE`, `CTX_DETACH_RESOURCE`, `RESOURCE_UNMAP_BLOB`,
/// `RESOURCE_ASSIGN_UUID` and `RESOURCE_DETACH_BACKING`: commands that only name a resource.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResourceCommand {
    /// Header.
    pub hdr: Header,
    /// The resource.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
}

/// `RESOURCE_ATTACH_BACKING`, followed by `nr_entries` of [`MemEntry`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResourceAttachBacking {
    /// Header.
    pub hdr: Header,
    /// The resource.
    pub resource_id: U32,
    /// Count of [`MemEntry`] that follow.
    pub nr_entries: U32,
}

/// `RESOURCE_MAP_BLOB`: show a host blob in the host-visible region.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResourceMapBlob {
    /// Header.
    pub hdr: Header,
    /// The resource.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
    /// Bytes from the start of the host-visible region.
    pub offset: U64,
}

/// How the guest must map a host blob, `ResponseMapInfo::map_info`.
#[allow(missing_docs)] // The names are those of the specification.
pub mod map_cache {
    pub const MASK: u32 = 0x0f;
    pub const NONE: u32 = 0;
    pub const CACHED: u32 = 1;
    pub const UNCACHED: u32 = 2;
    pub const WC: u32 = 3;
}

/// Response to `RESOURCE_MAP_BLOB`, type `OK_MAP_INFO`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResponseMapInfo {
    /// Header.
    pub hdr: Header,
    /// A [`map_cache`] value.
    pub map_info: U32,
    /// Zero.
    pub padding: U32,
}

/// Ids of capability sets, as `CtxCreate::context_init` and `GetCapset` have them. Those of others
/// are in `include/uapi/linux/virtio_gpu.h`.
pub mod capset {
    /// OpenGL, in the extensible form.
    pub const VIRGL2: u32 = 2;
    /// Vulkan.
    pub const VENUS: u32 = 4;
    /// AMD's kernel driver, for ROCm.
    pub const AMD: u32 = 8;
}

/// Bytes of the debug name in [`CtxCreate`].
pub const DEBUG_NAME_LEN: usize = 64;
/// The bits of `CtxCreate::context_init` that hold the capability set id.
pub const CONTEXT_INIT_CAPSET_ID_MASK: u32 = 0xff;

/// `CTX_CREATE`; the id of the new context is in the header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CtxCreate {
    /// Header.
    pub hdr: Header,
    /// Bytes of `debug_name` in use.
    pub nlen: U32,
    /// The capability set id, with [`feature::CONTEXT_INIT`].
    pub context_init: U32,
    /// For logs.
    pub debug_name: [u8; DEBUG_NAME_LEN],
}

/// `CTX_DESTROY`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CtxDestroy {
    /// Header.
    pub hdr: Header,
}

/// `SUBMIT_3D`, followed by `size` bytes of commands.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Submit3d {
    /// Header.
    pub hdr: Header,
    /// Bytes that follow.
    pub size: U32,
    /// Zero.
    pub padding: U32,
}

/// `GET_CAPSET_INFO`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GetCapsetInfo {
    /// Header.
    pub hdr: Header,
    /// 0 to `Config::num_capsets` - 1.
    pub capset_index: U32,
    /// Zero.
    pub padding: U32,
}

/// Response to `GET_CAPSET_INFO`, type `OK_CAPSET_INFO`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResponseCapsetInfo {
    /// Header.
    pub hdr: Header,
    /// The capability set's id.
    pub capset_id: U32,
    /// The newest version the device has.
    pub capset_max_version: U32,
    /// Bytes of the largest version.
    pub capset_max_size: U32,
    /// Zero.
    pub padding: U32,
}

/// `GET_CAPSET`; the response is a [`Header`] of type `OK_CAPSET` and the capability set.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GetCapset {
    /// Header.
    pub hdr: Header,
    /// The capability set's id.
    pub capset_id: U32,
    /// The version asked for.
    pub capset_version: U32,
}

/// Response to `RESOURCE_ASSIGN_UUID`, type `OK_RESOURCE_UUID`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResponseResourceUuid {
    /// Header.
    pub hdr: Header,
    /// RFC 4122 bytes.
    pub uuid: [u8; 16],
}

const _: () = {
    assert!(size_of::<Config>() == 20);
    assert!(size_of::<Header>() == 24);
    assert!(size_of::<ResourceCreateBlob>() == 56);
    assert!(size_of::<MemEntry>() == 16);
    assert!(size_of::<ResourceCommand>() == 32);
    assert!(size_of::<ResourceAttachBacking>() == 32);
    assert!(size_of::<ResourceMapBlob>() == 40);
    assert!(size_of::<ResponseMapInfo>() == 32);
    assert!(size_of::<CtxCreate>() == 96);
    assert!(size_of::<Submit3d>() == 32);
    assert!(size_of::<GetCapsetInfo>() == 32);
    assert!(size_of::<ResponseCapsetInfo>() == 40);
    assert!(size_of::<GetCapset>() == 32);
    assert!(size_of::<ResponseResourceUuid>() == 40);
};
