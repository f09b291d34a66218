// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Resources that are not blobs on the control queue: storage of the host, guest memory behind it,
//! and transfers between the two.
//!
//! Sizes are those of Linux 7.3's `include/uapi/linux/virtio_gpu.h`; formats and targets are those
//! of virgl, of which the display commands know a few.

use super::virtio_gpu::Header;
use zerocopy::little_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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

/// A box in pixels; of a buffer, in bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cuboid {
    /// Left edge.
    pub x: U32,
    /// Upper edge.
    pub y: U32,
    /// First slice or layer.
    pub z: U32,
    /// Pixels in a row.
    pub width: U32,
    /// Rows.
    pub height: U32,
    /// Slices or layers.
    pub depth: U32,
}

/// What an image is, `ResourceCreate3d::target`.
#[allow(missing_docs)] // The names are virgl's.
pub mod target {
    pub const BUFFER: u32 = 0;
    pub const TEXTURE_1D: u32 = 1;
    pub const TEXTURE_2D: u32 = 2;
    pub const TEXTURE_3D: u32 = 3;
    pub const TEXTURE_CUBE: u32 = 4;
    pub const TEXTURE_RECT: u32 = 5;
    pub const TEXTURE_1D_ARRAY: u32 = 6;
    pub const TEXTURE_2D_ARRAY: u32 = 7;
    pub const TEXTURE_CUBE_ARRAY: u32 = 8;
}

/// Some pixel formats.
#[allow(missing_docs)] // The names are virgl's.
pub mod format {
    pub const B8G8R8A8_UNORM: u32 = 1;
    pub const B8G8R8X8_UNORM: u32 = 2;
    pub const A8R8G8B8_UNORM: u32 = 3;
    pub const X8R8G8B8_UNORM: u32 = 4;
    pub const B5G6R5_UNORM: u32 = 7;
    pub const R32_FLOAT: u32 = 28;
    pub const R32G32_FLOAT: u32 = 29;
    pub const R32G32B32A32_FLOAT: u32 = 31;
    pub const R16_UNORM: u32 = 48;
    pub const R16G16_UNORM: u32 = 49;
    pub const R16G16B16A16_UNORM: u32 = 51;
    pub const R8_UNORM: u32 = 64;
    pub const R8G8_UNORM: u32 = 65;
    pub const R8G8B8_UNORM: u32 = 66;
    pub const R8G8B8A8_UNORM: u32 = 67;
    pub const X8B8G8R8_UNORM: u32 = 68;
    pub const A8B8G8R8_UNORM: u32 = 121;
    pub const R8G8B8X8_UNORM: u32 = 134;

    /// Bytes of a pixel; `None` for a format that is not listed above.
    pub const fn bytes(format: u32) -> Option<u32> {
        Some(match format {
            R8_UNORM => 1,
            B5G6R5_UNORM | R16_UNORM | R8G8_UNORM => 2,
            R8G8B8_UNORM => 3,
            R32_FLOAT | R16G16_UNORM => 4,
            R32G32_FLOAT | R16G16B16A16_UNORM => 8,
            R32G32B32A32_FLOAT => 16,
            _ if is_2d(format) => 4,
            _ => return None,
        })
    }

    /// Whether `RESOURCE_CREATE_2D` knows the format. All of these have four bytes.
    pub const fn is_2d(format: u32) -> bool {
        matches!(
            format,
            B8G8R8A8_UNORM
                | B8G8R8X8_UNORM
                | A8R8G8B8_UNORM
                | X8R8G8B8_UNORM
                | R8G8B8A8_UNORM
                | X8B8G8R8_UNORM
                | A8B8G8R8_UNORM
                | R8G8B8X8_UNORM
        )
    }
}

/// `RESOURCE_CREATE_2D`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResourceCreate2d {
    /// Header.
    pub hdr: Header,
    /// The id the driver chose, not 0.
    pub resource_id: U32,
    /// A [`format`](mod@format) of four bytes.
    pub format: U32,
    /// Pixels in a row.
    pub width: U32,
    /// Rows.
    pub height: U32,
}

/// `RESOURCE_CREATE_3D`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResourceCreate3d {
    /// Header.
    pub hdr: Header,
    /// The id the driver chose, not 0.
    pub resource_id: U32,
    /// A [`target`].
    pub target: U32,
    /// A [`format`](mod@format).
    pub format: U32,
    /// What it is used for, for the host's renderer.
    pub bind: U32,
    /// Pixels in a row; of a buffer, bytes.
    pub width: U32,
    /// Rows.
    pub height: U32,
    /// Slices.
    pub depth: U32,
    /// Layers.
    pub array_size: U32,
    /// Mip levels - 1.
    pub last_level: U32,
    /// Samples of a pixel; 0 is 1.
    pub nr_samples: U32,
    /// For the host's renderer.
    pub flags: U32,
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

/// `TRANSFER_TO_HOST_3D` and `TRANSFER_FROM_HOST_3D`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TransferHost3d {
    /// Header.
    pub hdr: Header,
    /// The part to copy.
    pub region: Cuboid,
    /// Byte offset of its first pixel in the backing memory.
    pub offset: U64,
    /// The resource.
    pub resource_id: U32,
    /// Mip level.
    pub level: U32,
    /// Bytes from row to row in the backing memory; 0 for a row of the level.
    pub stride: U32,
    /// Bytes from slice to slice in the backing memory; 0 for the rows of the level.
    pub layer_stride: U32,
}

const _: () = {
    assert!(size_of::<ResourceCreate2d>() == 40);
    assert!(size_of::<ResourceCreate3d>() == 72);
    assert!(size_of::<TransferToHost2d>() == 56);
    assert!(size_of::<TransferHost3d>() == 72);
};
