// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Resources that are not blobs: their storage, and transfers between it and guest memory.
//!
//! The storage is linear: level after level, in each slice (or layer) after slice, row after row,
//! without gaps. Guest memory is laid out as each transfer says.

use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use virtgpu_protocol::uapi::Box3d;
use virtgpu_protocol::virtio_gpu_image::{format, target, ResourceCreate3d, TransferHost3d};

use super::segments::Segments;
use crate::cancel::Cancel;

/// The largest width, height and depth of a picture.
const MAX_SIDE: u32 = 1 << 14;
/// The largest width, height and depth of a picture with slices.
const MAX_SIDE_3D: u32 = 1 << 11;
/// The most layers.
const MAX_LAYERS: u32 = 1 << 11;
/// The most bytes of one resource.
const MAX_BYTES: u64 = 1 << 30;
/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;
/// What the start of a piece costs, in bytes of it.
const PIECE_COST: u64 = PIECE / 4096;

/// How often a copy that waits for another one of the same image looks whether it is cancelled.
const TURN: Duration = Duration::from_millis(1);

/// Why an image cannot be, or cannot be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageError {
    /// The target, the format, the number of samples or of levels.
    #[error("no such kind of image")]
    Kind,
    /// A side is 0 or too long, or does not fit the target.
    #[error("its sides make no sense")]
    Shape,
    /// It is larger than the device has memory for.
    #[error("it is too large")]
    TooLarge,
    /// There is no such level, or the box is empty or not inside.
    #[error("the box is not in the image")]
    Box,
    /// The rows are not in guest memory.
    #[error("the rows are not all in the backing memory")]
    Backing,
    /// The context or the device was torn down.
    #[error("cancelled")]
    Cancelled,
}

/// What an image is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// A [`target`].
    pub(crate) target: u32,
    /// A [`format`](mod@format).
    pub(crate) format: u32,
    /// Pixels in a row; of a buffer, bytes.
    pub(crate) width: u32,
    /// Rows.
    pub(crate) height: u32,
    /// Slices.
    pub(crate) depth: u32,
    /// Layers.
    pub(crate) layers: u32,
    /// Mip levels - 1.
    pub(crate) last_level: u32,
    /// Samples.
    pub(crate) samples: u32,
}

impl Shape {
    /// A picture of one layer.
    #[must_use]
    pub(crate) fn picture(format: u32, width: u32, height: u32) -> Self {
        Self {
            target: target::TEXTURE_2D,
            format,
            width,
            height,
            depth: 1,
            layers: 1,
            last_level: 0,
            samples: 0,
        }
    }

    /// What a command asks for.
    #[must_use]
    pub(crate) fn of(request: &ResourceCreate3d) -> Self {
        Self {
            target: request.target.get(),
            format: request.format.get(),
            width: request.width.get(),
            height: request.height.get(),
            depth: request.depth.get(),
            layers: request.array_size.get(),
            last_level: request.last_level.get(),
            samples: request.nr_samples.get(),
        }
    }

    /// Checks what can be said without counting bytes.
    fn check(&self) -> Result<(), ImageError> {
        let flat = self.depth == 1;
        let single = self.layers == 1;
        let row = self.height == 1;
        let fits = match self.target {
            target::BUFFER | target::TEXTURE_1D => row && flat && single,
            target::TEXTURE_2D | target::TEXTURE_RECT => flat && single,
            target::TEXTURE_3D => single,
            target::TEXTURE_CUBE => flat && self.layers == 6 && self.width == self.height,
            target::TEXTURE_1D_ARRAY => row && flat,
            target::TEXTURE_2D_ARRAY => flat,
            target::TEXTURE_CUBE_ARRAY => flat && self.layers % 6 == 0 && self.width == self.height,
            _ => return Err(ImageError::Kind),
        };
        let buffer = self.target == target::BUFFER;
        let longest = self.width.max(self.height).max(self.depth);
        let sides = [self.width, self.height, self.depth];
        let limit = match self.target {
            target::BUFFER => MAX_BYTES as u32,
            target::TEXTURE_3D => MAX_SIDE_3D,
            _ => MAX_SIDE,
        };
        if !fits || sides.contains(&0) || longest > limit || self.layers == 0 {
            return Err(ImageError::Shape);
        }
        if self.layers > MAX_LAYERS {
            return Err(ImageError::Shape);
        }
        let one_level = buffer || self.target == target::TEXTURE_RECT;
        // The last level is the first that is one pixel.
        let levels = if one_level { 0 } else { longest.ilog2() };
        if self.last_level > levels || self.samples > 1 {
            return Err(ImageError::Kind);
        }
        Ok(())
    }
}

/// A mip level.
#[derive(Clone, Copy, Debug)]
struct Level {
    width: u64,
    height: u64,
    /// Slices or layers.
    depth: u64,
    /// Where it begins in the storage.
    start: u64,
}

/// A copy between guest memory and storage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Transfer {
    /// The part of the image.
    pub(crate) region: Box3d,
    /// Mip level.
    pub(crate) level: u32,
    /// Of the first pixel in the backing memory.
    pub(crate) offset: u64,
    /// From row to row in the backing memory, 0 for a row of the level.
    pub(crate) stride: u32,
    /// From slice to slice in the backing memory, 0 for the rows of the level.
    pub(crate) layer_stride: u32,
}

impl Transfer {
    /// What a command asks for.
    #[must_use]
    pub(crate) fn of(request: &TransferHost3d) -> Self {
        let region = &request.region;
        Self {
            region: Box3d {
                x: region.x.get(),
                y: region.y.get(),
                z: region.z.get(),
                w: region.width.get(),
                h: region.height.get(),
                d: region.depth.get(),
            },
            level: request.level.get(),
            offset: request.offset.get(),
            stride: request.stride.get(),
            layer_stride: request.layer_stride.get(),
        }
    }
}

/// Which way a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From guest memory to the storage.
    ToHost,
    /// Back.
    FromHost,
}

/// What a [`Transfer`] comes to: blocks of rows, in the storage and in the backing memory.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Bytes of a row.
    row: u64,
    rows: u64,
    slices: u64,
    /// Of the first byte.
    host: u64,
    guest: u64,
    /// From row to row.
    host_stride: u64,
    guest_stride: u64,
    /// From slice to slice.
    host_slice: u64,
    guest_slice: u64,
}

impl Plan {
    /// The same copy, with rows and slices that follow each other on both sides as one.
    fn merged(mut self) -> Self {
        if self.row == self.host_stride && self.row == self.guest_stride {
            self.row *= self.rows;
            self.rows = 1;
        }
        if self.rows == 1 && self.row == self.host_slice && self.row == self.guest_slice {
            self.row *= self.slices;
            self.slices = 1;
        }
        self
    }
}

/// A resource with storage of its own.
#[derive(Debug)]
pub(crate) struct Image {
    /// Bytes of a pixel.
    pixel: u64,
    levels: Vec<Level>,
    /// Not allocated before it is written: zeroes.
    storage: Mutex<Vec<u8>>,
}

impl Image {
    /// An image of zeroes.
    ///
    /// # Errors
    ///
    /// For one that cannot be.
    pub(crate) fn new(shape: &Shape) -> Result<Self, ImageError> {
        shape.check()?;
        let pixel = if shape.target == target::BUFFER {
            1
        } else {
            u64::from(format::bytes(shape.format).ok_or(ImageError::Kind)?)
        };
        let side = |side: u32, level: u32| u64::from((side >> level).max(1));
        let mut levels = Vec::new();
        let mut bytes = 0u64;
        for level in 0..=shape.last_level {
            let width = side(shape.width, level);
            // Layers of lines are no rows: those of an array of lines are slices.
            let height = side(shape.height, level);
            let depth = side(shape.depth, level) * u64::from(shape.layers);
            levels.push(Level {
                width,
                height,
                depth,
                start: bytes,
            });
            // At most 2^14 * 2^14 * 2^11 * 2^4 more: no overflow.
            bytes += width * height * depth * pixel;
            if bytes > MAX_BYTES {
                return Err(ImageError::TooLarge);
            }
        }
        Ok(Self {
            pixel,
            levels,
            storage: Mutex::new(vec![0; bytes as usize]),
        })
    }

    /// Bytes of storage.
    #[must_use]
    pub(crate) fn size(&self) -> u64 {
        self.levels.last().map_or(0, |level| {
            level.start + level.width * level.height * level.depth * self.pixel
        })
    }

    /// What `transfer` would copy.
    fn plan(&self, backing: &Segments, transfer: &Transfer) -> Result<Plan, ImageError> {
        let region = &transfer.region;
        let level = self.levels.get(transfer.level as usize);
        let level = level.ok_or(ImageError::Box)?;
        let inside = |from: u32, length: u32, side: u64| {
            length != 0 && u64::from(from) + u64::from(length) <= side
        };
        if !inside(region.x, region.w, level.width)
            || !inside(region.y, region.h, level.height)
            || !inside(region.z, region.d, level.depth)
        {
            return Err(ImageError::Box);
        }
        let host_stride = level.width * self.pixel;
        let guest_stride = match transfer.stride {
            0 => host_stride,
            stride => stride.into(),
        };
        let guest_slice = match transfer.layer_stride {
            0 => guest_stride.checked_mul(level.height),
            stride => Some(stride.into()),
        };
        let line = u64::from(region.z) * level.height + u64::from(region.y);
        let plan = Plan {
            row: u64::from(region.w) * self.pixel,
            rows: region.h.into(),
            slices: region.d.into(),
            host: level.start + line * host_stride + u64::from(region.x) * self.pixel,
            guest: transfer.offset,
            host_stride,
            guest_stride,
            host_slice: host_stride * level.height,
            guest_slice: guest_slice.ok_or(ImageError::Backing)?,
        };
        let last = || {
            let slices = (plan.slices - 1).checked_mul(plan.guest_slice)?;
            let rows = (plan.rows - 1).checked_mul(plan.guest_stride)?;
            plan.guest.checked_add(slices)?.checked_add(rows)
        };
        let last = last().ok_or(ImageError::Backing)?;
        backing
            .check(last, plan.row)
            .map_err(|_| ImageError::Backing)?;
        Ok(plan.merged())
    }

    /// Whether [`Self::transfer`] can copy that.
    ///
    /// # Errors
    ///
    /// If the box is not in the image, or its rows are not in the backing memory.
    pub(crate) fn check(&self, backing: &Segments, transfer: &Transfer) -> Result<(), ImageError> {
        self.plan(backing, transfer).map(|_| ())
    }

    /// Copies; nothing if any of it is out of bounds.
    ///
    /// # Errors
    ///
    /// As [`Self::check`], or if it is cancelled.
    pub(crate) fn transfer(
        &self,
        backing: &Segments,
        transfer: &Transfer,
        direction: Direction,
        cancel: &Cancel,
    ) -> Result<(), ImageError> {
        let plan = self.plan(backing, transfer)?;
        // Another copy may take its time.
        let mut storage = loop {
            match self.storage.try_lock() {
                Ok(storage) => break storage,
                Err(TryLockError::Poisoned(error)) => break error.into_inner(),
                Err(TryLockError::WouldBlock) if cancel.sleep(TURN) => {
                    return Err(ImageError::Cancelled)
                }
                Err(TryLockError::WouldBlock) => {}
            }
        };
        // What may be done before the next look at the flag.
        let mut credit = 0;
        for (slice, row) in (0..plan.slices).flat_map(|z| (0..plan.rows).map(move |y| (z, y))) {
            let mut host = plan.host + slice * plan.host_slice + row * plan.host_stride;
            // Not beyond the last one, which was checked.
            let mut guest = plan.guest + slice * plan.guest_slice + row * plan.guest_stride;
            let end = host + plan.row;
            while host < end {
                if credit == 0 {
                    if cancel.is_set() {
                        return Err(ImageError::Cancelled);
                    }
                    credit = PIECE;
                }
                let take = (end - host).min(PIECE);
                credit = credit.saturating_sub(take + PIECE_COST);
                let range = host as usize..(host + take) as usize;
                let part = storage.get_mut(range).ok_or(ImageError::Box)?;
                match direction {
                    Direction::ToHost => backing.read(guest, part),
                    Direction::FromHost => backing.write(guest, part),
                }
                .map_err(|_| ImageError::Backing)?;
                host += take;
                guest += take;
            }
        }
        Ok(())
    }
}

/// A [`Transfer`] with all that it needs.
#[derive(Debug)]
pub(crate) struct Copying {
    pub(crate) image: Arc<Image>,
    pub(crate) backing: Arc<Segments>,
    pub(crate) transfer: Transfer,
    pub(crate) direction: Direction,
}

impl Copying {
    /// Copies; see [`Image::transfer`].
    pub(crate) fn run(&self, cancel: &Cancel) -> Result<(), ImageError> {
        self.image
            .transfer(&self.backing, &self.transfer, self.direction, cancel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;
    use virtgpu_protocol::virtio_gpu::MemEntry;
    use vm_memory::{Bytes, GuestAddress};
    use zerocopy::little_endian::{U32, U64};

    use crate::memory::ram::{GuestRam, Memory};

    const RAM: usize = 1 << 16;

    fn backing(size: u64) -> (Arc<Memory>, Segments) {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
        let ram = Arc::new(GuestRam::new(memory.clone(), None));
        let entry = MemEntry {
            addr: U64::new(0),
            length: U32::new(size as u32),
            padding: U32::ZERO,
        };
        let segments = Segments::from_entries(&ram, &[entry], size).unwrap();
        (memory, segments)
    }

    fn shape(target: u32, sides: [u32; 3], layers: u32, last_level: u32) -> Shape {
        Shape {
            target,
            format: format::R8_UNORM,
            width: sides[0],
            height: sides[1],
            depth: sides[2],
            layers,
            last_level,
            samples: 0,
        }
    }

    #[test]
    fn shapes() {
        let size = |shape: &Shape| Image::new(shape).map(|image| image.size());
        let picture = Shape::picture(format::B8G8R8A8_UNORM, 16, 8);
        assert_eq!(size(&picture), Ok(512));
        assert_eq!(size(&shape(target::BUFFER, [100, 1, 1], 1, 0)), Ok(100));
        // 64 + 16 + 4 + 1 pixels.
        assert_eq!(size(&shape(target::TEXTURE_2D, [8, 8, 1], 1, 3)), Ok(85));
        // 64 + 8 + 1.
        assert_eq!(size(&shape(target::TEXTURE_3D, [4, 4, 4], 1, 2)), Ok(73));
        assert_eq!(size(&shape(target::TEXTURE_CUBE, [4, 4, 1], 6, 0)), Ok(96));
        assert_eq!(
            size(&shape(target::TEXTURE_2D_ARRAY, [4, 2, 1], 5, 1)),
            Ok(50)
        );

        let wrong = ImageError::Shape;
        for bad in [
            shape(target::TEXTURE_2D, [0, 1, 1], 1, 0),
            shape(target::TEXTURE_2D, [1, 0, 1], 1, 0),
            shape(target::TEXTURE_2D, [1, 1, 0], 1, 0),
            shape(target::TEXTURE_2D, [1, 1, 1], 0, 0),
            shape(target::TEXTURE_2D, [1, 1, 2], 1, 0),
            shape(target::TEXTURE_2D, [u32::MAX, 1, 1], 1, 0),
            shape(target::TEXTURE_CUBE, [4, 2, 1], 6, 0),
            shape(target::TEXTURE_CUBE, [4, 4, 1], 5, 0),
            shape(target::TEXTURE_2D_ARRAY, [4, 4, 1], u32::MAX, 0),
            shape(target::BUFFER, [4, 2, 1], 1, 0),
            shape(target::BUFFER, [u32::MAX, 1, 1], 1, 0),
        ] {
            assert_eq!(size(&bad), Err(wrong), "{bad:?}");
        }
        for bad in [
            shape(9, [1, 1, 1], 1, 0),
            shape(u32::MAX, [1, 1, 1], 1, 0),
            shape(target::TEXTURE_2D, [8, 8, 1], 1, 4),
            shape(target::TEXTURE_RECT, [8, 8, 1], 1, 1),
            Shape {
                samples: 4,
                ..picture
            },
            Shape {
                format: 0,
                ..picture
            },
            Shape {
                format: u32::MAX,
                ..picture
            },
        ] {
            assert_eq!(size(&bad), Err(ImageError::Kind), "{bad:?}");
        }
        let large = shape(target::TEXTURE_3D, [1 << 11, 1 << 11, 1 << 11], 1, 0);
        assert_eq!(size(&large), Err(ImageError::TooLarge));
        for sides in [[1, 1, 2049], [1, 2049, 1], [2049, 1, 1]] {
            let deep = shape(target::TEXTURE_3D, sides, 1, 0);
            assert_eq!(size(&deep), Err(wrong), "{deep:?}");
        }
    }

    #[test]
    fn boxes_that_are_not_inside() {
        let (_, segments) = backing(4096);
        let image = Image::new(&Shape::picture(format::B8G8R8A8_UNORM, 16, 8)).unwrap();
        let full = Box3d {
            w: 16,
            h: 8,
            d: 1,
            ..Default::default()
        };
        let good = Transfer {
            region: full,
            ..Default::default()
        };
        let go = |transfer: Transfer| {
            image.transfer(&segments, &transfer, Direction::ToHost, &Cancel::default())
        };
        assert_eq!(go(good), Ok(()));
        for region in [
            Box3d { w: 0, ..full },
            Box3d { h: 0, ..full },
            Box3d { d: 0, ..full },
            Box3d { w: 17, ..full },
            Box3d { h: 9, ..full },
            Box3d { d: 2, ..full },
            Box3d { x: 1, ..full },
            Box3d { z: 1, ..full },
            Box3d {
                x: u32::MAX,
                w: 1,
                ..full
            },
            Box3d {
                w: u32::MAX,
                ..full
            },
        ] {
            assert_eq!(go(Transfer { region, ..good }), Err(ImageError::Box));
        }
        let bad_level = Transfer { level: 1, ..good };
        assert_eq!(go(bad_level), Err(ImageError::Box));
        for transfer in [
            Transfer {
                offset: 4096 - 511,
                ..good
            },
            Transfer {
                offset: u64::MAX,
                ..good
            },
            Transfer {
                stride: u32::MAX,
                ..good
            },
            Transfer {
                stride: 600,
                ..good
            },
        ] {
            assert_eq!(go(transfer), Err(ImageError::Backing), "{transfer:?}");
        }
        let layer_stride = u32::MAX;
        // Of one layer there is no stride.
        assert_eq!(
            go(Transfer {
                layer_stride,
                ..good
            }),
            Ok(())
        );
    }

    proptest! {
        /// What goes to the host and comes back elsewhere is the same box, and nothing else moves.
        #[test]
        fn there_and_back(
            region in (0..4u32, 0..4u32, 0..3u32, 1..5u32, 1..5u32, 1..4u32),
            offsets in (0..100u64, 0..100u64),
            strides in (0..40u32, 0..400u32),
            level in 0..2u32,
        ) {
            let (memory, segments) = backing(8192);
            let image = Image::new(&shape(target::TEXTURE_3D, [8, 8, 6], 1, 1)).unwrap();
            let (x, y, z, w, h, d) = region;
            let region = Box3d { x, y, z, w, h, d };
            let pattern: Vec<u8> = (0..8192).map(|i| (i * 31 % 251) as u8 + 1).collect();
            memory.write_slice(&pattern, GuestAddress(0)).unwrap();
            let side = 8 >> level;
            let inside = x + w <= side && y + h <= side && z + d <= 6 >> level;
            let there = Transfer {
                region,
                level,
                offset: offsets.0,
                stride: strides.0,
                layer_stride: strides.1,
            };
            let went = image.transfer(&segments, &there, Direction::ToHost, &Cancel::default());
            prop_assert_eq!(went.is_ok(), inside);
            if !inside {
                return Ok(());
            }
            memory.write_slice(&[0; 8192], GuestAddress(0)).unwrap();
            // Back without gaps.
            let back = Transfer {
                offset: offsets.1,
                stride: w,
                layer_stride: w * h,
                ..there
            };
            image.transfer(&segments, &back, Direction::FromHost, &Cancel::default()).unwrap();
            let mut got = vec![0; 8192];
            memory.read_slice(&mut got, GuestAddress(0)).unwrap();
            let stride = if strides.0 == 0 { side } else { strides.0 };
            let layer = if strides.1 == 0 { stride * side } else { strides.1 };
            let mut want = vec![0; 8192];
            for z in 0..d {
                for y in 0..h {
                    for x in 0..w {
                        let to = offsets.1 as usize + ((z * h + y) * w + x) as usize;
                        let from = offsets.0 as usize + (z * layer + y * stride + x) as usize;
                        want[to] = pattern[from];
                    }
                }
            }
            prop_assert_eq!(got, want);
        }
    }
}
