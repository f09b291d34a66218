// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Resources that are not blobs: storage on the host, and guest memory to copy from and to.

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_protocol::uapi::{self, Box3d};
use virtgpu_protocol::virtio_gpu_image::{format, target};

use crate::{BlobMap, Device, Mapping, Result};

/// What a transfer copies, and where it lies in guest memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    /// The part of the image, in pixels.
    pub region: Box3d,
    /// Mip level.
    pub level: u32,
    /// Byte of the guest memory at which the first pixel is.
    pub offset: u32,
    /// Bytes from row to row, 0 for what the host takes for a row.
    pub stride: u32,
    /// Bytes from slice to slice, 0 for what the host takes for a slice.
    pub layer_stride: u32,
}

impl Region {
    /// The whole of a picture, row after row.
    pub fn picture(width: u32, height: u32) -> Self {
        Self {
            region: Box3d {
                w: width,
                h: height,
                d: 1,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    /// A row of bytes, the same in the guest as on the host.
    pub fn bytes(offset: u32, length: u32) -> Self {
        Self {
            region: Box3d {
                x: offset,
                w: length,
                h: 1,
                d: 1,
                ..Default::default()
            },
            offset,
            ..Default::default()
        }
    }
}

impl Device {
    /// Creates a resource that is not a blob. Sizes and handles in `create` are replaced by those
    /// of the new one.
    ///
    /// # Errors
    ///
    /// Those of RESOURCE_CREATE.
    pub fn create_image(&self, create: &mut uapi::ResourceCreate) -> Result<Image<'_>> {
        // SAFETY: The structure is that of RESOURCE_CREATE, which has no addresses.
        unsafe { self.command(uapi::nr::RESOURCE_CREATE, create)? };
        Ok(Image {
            device: self,
            handle: create.bo_handle,
            resource: create.res_handle,
            size: create.size.max(1),
        })
    }

    /// Creates a picture of 32-bit pixels.
    ///
    /// # Errors
    ///
    /// Those of RESOURCE_CREATE.
    pub fn create_picture(&self, width: u32, height: u32) -> Result<Image<'_>> {
        self.create_image(&mut uapi::ResourceCreate {
            target: target::TEXTURE_2D,
            format: format::B8G8R8A8_UNORM,
            width,
            height,
            depth: 1,
            array_size: 1,
            size: 4 * width * height,
            ..Default::default()
        })
    }

    /// Creates a buffer of `size` bytes.
    ///
    /// # Errors
    ///
    /// Those of RESOURCE_CREATE.
    pub fn create_buffer(&self, size: u32) -> Result<Image<'_>> {
        self.create_image(&mut uapi::ResourceCreate {
            target: target::BUFFER,
            format: format::R8_UNORM,
            width: size,
            height: 1,
            depth: 1,
            array_size: 1,
            size,
            ..Default::default()
        })
    }

    /// Copies from the guest memory of buffer `handle` to the host. WAIT tells when that is done.
    ///
    /// # Errors
    ///
    /// Those of TRANSFER_TO_HOST.
    pub fn transfer_to_host(&self, handle: u32, region: &Region) -> Result<()> {
        self.transfer(uapi::nr::TRANSFER_TO_HOST, handle, region)
    }

    /// Copies from the host to the guest memory of buffer `handle`. WAIT tells when that is done.
    ///
    /// # Errors
    ///
    /// Those of TRANSFER_FROM_HOST.
    pub fn transfer_from_host(&self, handle: u32, region: &Region) -> Result<()> {
        self.transfer(uapi::nr::TRANSFER_FROM_HOST, handle, region)
    }

    fn transfer(&self, nr: u32, handle: u32, region: &Region) -> Result<()> {
        let mut transfer = uapi::Transfer {
            bo_handle: handle,
            region: region.region,
            level: region.level,
            offset: region.offset,
            stride: region.stride,
            layer_stride: region.layer_stride,
        };
        // SAFETY: The structure is that of the two ioctls, which has no addresses.
        unsafe { self.command(nr, &mut transfer)? };
        Ok(())
    }
}

/// A resource that is not a blob; its handle is closed on drop.
#[derive(Debug)]
pub struct Image<'d> {
    device: &'d Device,
    handle: u32,
    resource: u32,
    size: u32,
}

impl Image<'_> {
    /// GEM handle.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Resource id.
    pub fn resource(&self) -> u32 {
        self.resource
    }

    /// Maps the guest memory.
    ///
    /// # Errors
    ///
    /// Those of MAP and mmap(2).
    pub fn map(&self) -> Result<BlobMap> {
        let mapping = Mapping::file(
            self.device,
            self.device.map_offset(self.handle)?,
            (self.size as usize).next_multiple_of(crate::page_size()),
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
        )?;
        Ok(BlobMap::new(mapping))
    }

    /// Copies to the host, and waits.
    ///
    /// # Errors
    ///
    /// Those of TRANSFER_TO_HOST and WAIT.
    pub fn to_host(&self, region: &Region) -> Result<()> {
        self.device.transfer_to_host(self.handle, region)?;
        self.device.wait(self.handle)
    }

    /// Copies from the host, and waits.
    ///
    /// # Errors
    ///
    /// Those of TRANSFER_FROM_HOST and WAIT.
    pub fn from_host(&self, region: &Region) -> Result<()> {
        self.device.transfer_from_host(self.handle, region)?;
        self.device.wait(self.handle)
    }

    /// Gives the handle up without closing it.
    pub fn into_handle(self) -> u32 {
        let handle = self.handle;
        core::mem::forget(self);
        handle
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        let _ = self.device.gem_close(self.handle);
    }
}
