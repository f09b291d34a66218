// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Buffers that the kernel or the host allocates.

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_protocol::virtio_gpu::{blob_flag, blob_mem};
use virtgpu_protocol::{compute::Operand, uapi};

use crate::{Device, Mapping, Memory, Result};

/// How to create a [`Blob`].
#[derive(Clone, Copy, Debug, Default)]
pub struct BlobOptions<'a> {
    /// A [`blob_mem`] value.
    pub mem: u32,
    /// Mask of [`blob_flag`].
    pub flags: u32,
    /// Bytes.
    pub size: u64,
    /// Names a host object.
    pub blob_id: u64,
    /// Mask of `uapi::BLOB_HINT_*`.
    pub hints: u32,
    /// Submitted before the resource is created.
    pub command: &'a [u8],
}

impl BlobOptions<'_> {
    /// Guest memory that the device and the CPU share.
    pub fn guest(size: u64) -> Self {
        Self {
            mem: blob_mem::GUEST,
            flags: blob_flag::USE_MAPPABLE,
            size,
            ..Default::default()
        }
    }

    /// Host memory, mapped into the guest.
    pub fn host3d(size: u64, blob_id: u64) -> Self {
        Self {
            mem: blob_mem::HOST3D,
            flags: blob_flag::USE_MAPPABLE,
            size,
            blob_id,
            ..Default::default()
        }
    }

    /// A host object with guest memory behind it.
    pub fn host3d_guest(size: u64, blob_id: u64) -> Self {
        Self {
            mem: blob_mem::HOST3D_GUEST,
            flags: blob_flag::USE_MAPPABLE,
            size,
            blob_id,
            ..Default::default()
        }
    }
}

impl Device {
    /// Creates a blob.
    ///
    /// # Errors
    ///
    /// Those of RESOURCE_CREATE_BLOB.
    pub fn create_blob(&self, options: &BlobOptions<'_>) -> Result<Blob<'_>> {
        let mut create = uapi::ResourceCreateBlob {
            blob_mem: options.mem,
            blob_flags: options.flags,
            size: options.size,
            cmd_size: options.command.len() as u32,
            cmd: if options.command.is_empty() {
                0
            } else {
                options.command.as_ptr() as u64
            },
            blob_id: options.blob_id,
            blob_hints: options.hints,
            ..Default::default()
        };
        // SAFETY: The structure is that of RESOURCE_CREATE_BLOB, `cmd` has `cmd_size` bytes.
        unsafe { self.command(uapi::nr::RESOURCE_CREATE_BLOB, &mut create)? };
        Ok(Blob {
            device: self,
            handle: create.bo_handle,
            resource: create.res_handle,
            size: options.size,
        })
    }
}

/// A buffer of the kernel or the host; its handle is closed on drop.
#[derive(Debug)]
pub struct Blob<'d> {
    device: &'d Device,
    handle: u32,
    resource: u32,
    size: u64,
}

impl Blob<'_> {
    /// GEM handle.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Resource id, as jobs name the buffer.
    pub fn resource(&self) -> u32 {
        self.resource
    }

    /// Bytes asked for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Byte `offset` of the buffer, for a job.
    pub fn at(&self, offset: u64) -> Operand {
        Operand::resource(self.resource, offset)
    }

    /// What RESOURCE_INFO says.
    ///
    /// # Errors
    ///
    /// Those of the ioctl.
    pub fn info(&self) -> Result<uapi::ResourceInfo> {
        self.device.resource_info(self.handle)
    }

    /// The file offset for mmap(2).
    ///
    /// # Errors
    ///
    /// Those of MAP.
    pub fn map_offset(&self) -> Result<u64> {
        self.device.map_offset(self.handle)
    }

    /// Maps the whole buffer.
    ///
    /// # Errors
    ///
    /// EINVAL for a host blob that is not mappable.
    pub fn map(&self) -> Result<BlobMap> {
        let mapping = Mapping::file(
            self.device,
            self.map_offset()?,
            (self.size as usize).next_multiple_of(crate::page_size()),
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
        )?;
        Ok(BlobMap::new(mapping))
    }

    /// Gives the handle up without closing it.
    pub fn into_handle(self) -> u32 {
        let handle = self.handle;
        core::mem::forget(self);
        handle
    }
}

impl Device {
    /// The file offset at which buffer `handle` can be mapped.
    ///
    /// # Errors
    ///
    /// ENOENT for an unknown handle, EINVAL for one that cannot be mapped.
    pub fn map_offset(&self, handle: u32) -> Result<u64> {
        let mut map = uapi::Map {
            handle,
            ..Default::default()
        };
        // SAFETY: The structure is that of MAP.
        unsafe { self.command(uapi::nr::MAP, &mut map)? };
        Ok(map.offset)
    }
}

impl Drop for Blob<'_> {
    fn drop(&mut self) {
        let _ = self.device.gem_close(self.handle);
    }
}

/// The CPU's view of a [`Blob`]; outlives the handle.
#[derive(Debug)]
pub struct BlobMap {
    mapping: Mapping,
}

impl BlobMap {
    pub(crate) fn new(mapping: Mapping) -> Self {
        Self { mapping }
    }
}

// SAFETY: That of the mapping.
unsafe impl Memory for BlobMap {
    fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }
    fn len(&self) -> usize {
        self.mapping.len()
    }
}
