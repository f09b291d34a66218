// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The display half of the virtio-gpu control queue, for the device and its tests.
//!
//! The driver of this project has no displays and does not compile this file.

use super::virtio_gpu::Header;
use zerocopy::little_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Displays an answer to `GET_DISPLAY_INFO` has room for.
pub const MAX_SCANOUTS: usize = 16;

/// A rectangle in pixels.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Rect {
    /// Left edge.
    pub x: U32,
    /// Upper edge.
    pub y: U32,
    /// Pixels in a row.
    pub width: U32,
    /// Rows.
    pub height: U32,
}

/// One display of [`ResponseDisplayInfo`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DisplayOne {
    /// Preferred place and size.
    pub rect: Rect,
    /// Not 0 if the display is connected.
    pub enabled: U32,
    /// Zero.
    pub flags: U32,
}

/// Answer to `GET_DISPLAY_INFO`, type `OK_DISPLAY_INFO`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResponseDisplayInfo {
    /// Header.
    pub hdr: Header,
    /// The displays; those beyond `Config::num_scanouts` are not enabled.
    pub modes: [DisplayOne; MAX_SCANOUTS],
}

/// `RESOURCE_CREATE_2D`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResourceCreate2d {
    /// Header.
    pub hdr: Header,
    /// The id the driver chose, not 0.
    pub resource_id: U32,
    /// A pixel format of four bytes.
    pub format: U32,
    /// Pixels in a row.
    pub width: U32,
    /// Rows.
    pub height: U32,
}

/// `SET_SCANOUT`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SetScanout {
    /// Header.
    pub hdr: Header,
    /// The part to show.
    pub rect: Rect,
    /// The display.
    pub scanout_id: U32,
    /// The resource, 0 to show nothing.
    pub resource_id: U32,
}

/// `RESOURCE_FLUSH`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResourceFlush {
    /// Header.
    pub hdr: Header,
    /// The part that changed.
    pub rect: Rect,
    /// The resource.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
}

/// `TRANSFER_TO_HOST_2D`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TransferToHost2d {
    /// Header.
    pub hdr: Header,
    /// The part to copy.
    pub rect: Rect,
    /// Byte offset of its first pixel in the backing memory.
    pub offset: U64,
    /// The resource.
    pub resource_id: U32,
    /// Zero.
    pub padding: U32,
}

const _: () = {
    assert!(size_of::<ResponseDisplayInfo>() == 408);
    assert!(size_of::<ResourceCreate2d>() == 40);
    assert!(size_of::<SetScanout>() == 48);
    assert!(size_of::<ResourceFlush>() == 48);
    assert!(size_of::<TransferToHost2d>() == 56);
};
