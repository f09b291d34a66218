// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The display half of the virtio-gpu control queue, for the device and its tests.
//!
//! The driver of this project has no displays and does not compile this file.

use super::virtio_gpu::Header;
use super::virtio_gpu_image::Rect;
use zerocopy::little_endian::U32;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Displays a response to `GET_DISPLAY_INFO` has room for.
pub const MAX_SCANOUTS: usize = 16;

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

/// Response to `GET_DISPLAY_INFO`, type `OK_DISPLAY_INFO`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResponseDisplayInfo {
    /// Header.
    pub hdr: Header,
    /// The displays; those beyond `Config::num_scanouts` are not enabled.
    pub modes: [DisplayOne; MAX_SCANOUTS],
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

const _: () = {
    assert!(size_of::<ResponseDisplayInfo>() == 408);
    assert!(size_of::<SetScanout>() == 48);
    assert!(size_of::<ResourceFlush>() == 48);
};
