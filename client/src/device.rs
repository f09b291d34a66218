// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! One open file of a render node.

use core::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use virtgpu_protocol::{compute, uapi};
use zerocopy::{FromZeros, IntoBytes};

use crate::{drm, ioctl, Result};

/// The DRM name of virtio-gpu, whichever driver serves it.
pub const DRIVER_NAME: &str = "virtio_gpu";

/// What `DRM_IOCTL_VERSION` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Name of the driver.
    pub name: String,
    /// Major version.
    pub major: i32,
    /// Minor version.
    pub minor: i32,
    /// Patch level.
    pub patch: i32,
}

/// One open file of a virtio-gpu render node.
///
/// Handles, and the host context that jobs run in, belong to the file.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Opens the first render node whose driver is [`DRIVER_NAME`].
    ///
    /// # Errors
    ///
    /// ENODEV if there is none.
    pub fn open() -> Result<Self> {
        let path = render_nodes().into_iter().next().ok_or(Errno::NODEV)?;
        Self::open_path(path)
    }

    /// Opens the render (or primary) node `path`.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open_path(path: impl AsRef<Path>) -> Result<Self> {
        let fd = rustix::fs::open(path.as_ref(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// Takes an open file of a DRM node.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Calls the virtgpu ioctl `nr` with a structure, and returns the ioctl's return value.
    ///
    /// # Safety
    ///
    /// `argument` must be the structure of that ioctl, and the addresses in it valid.
    ///
    /// # Errors
    ///
    /// Those of the ioctl.
    pub unsafe fn command<T: IntoBytes>(&self, nr: u32, argument: &mut T) -> Result<i32> {
        let number = ioctl::virtgpu(nr, size_of::<T>());
        // SAFETY: By this function's contract.
        unsafe { ioctl::call(&self.fd, number, (&raw mut *argument).cast()) }
    }

    /// Calls a DRM core ioctl.
    ///
    /// # Safety
    ///
    /// `argument` must be the structure of that ioctl, and the addresses in it valid.
    pub(crate) unsafe fn core<T>(&self, number: u32, argument: &mut T) -> Result<i32> {
        // SAFETY: By this function's contract.
        unsafe { ioctl::call(&self.fd, number, (&raw mut *argument).cast::<c_void>()) }
    }

    /// Which driver serves this file.
    ///
    /// # Errors
    ///
    /// Those of the ioctl.
    pub fn version(&self) -> Result<Version> {
        let mut name = [0_u8; 64];
        let mut version = drm::Version {
            name_len: name.len() as u64,
            name: name.as_mut_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: The structure is that of VERSION; `name` has the room it says.
        unsafe { self.core(drm::VERSION, &mut version)? };
        let length = name.len().min(version.name_len as usize);
        Ok(Version {
            name: String::from_utf8_lossy(&name[..length]).into_owned(),
            major: version.major,
            minor: version.minor,
            patch: version.patch,
        })
    }

    /// The value of parameter `param` (one of [`uapi::param`]).
    ///
    /// # Errors
    ///
    /// EINVAL for a parameter that the driver does not know.
    pub fn getparam(&self, param: u64) -> Result<u32> {
        // Drivers write 4 bytes; the room for 8 is for one that would not.
        let mut value = [0_u32; 2];
        let mut getparam = uapi::GetParam {
            param,
            value: value.as_mut_ptr() as u64,
        };
        // SAFETY: The structure is that of GETPARAM, and `value` is valid.
        unsafe { self.command(uapi::nr::GETPARAM, &mut getparam)? };
        Ok(value[0])
    }

    /// Mask of `uapi::USERPTR_MODE_*`; 0 on a driver without the extension.
    ///
    /// # Errors
    ///
    /// Those of GETPARAM, except EINVAL.
    pub fn userptr_modes(&self) -> Result<u32> {
        match self.getparam(uapi::param::USERPTR_MODES) {
            Err(Errno::INVAL) => Ok(0),
            other => other,
        }
    }

    /// Bytes of which sizes of blobs must be a multiple: 1 where the host asks for nothing.
    ///
    /// # Errors
    ///
    /// Those of GETPARAM, except ENOENT and (older kernels) EINVAL.
    pub fn blob_alignment(&self) -> Result<u32> {
        match self.getparam(uapi::param::BLOB_ALIGNMENT) {
            Err(Errno::NOENT | Errno::INVAL) => Ok(1),
            other => Ok(other?.max(1)),
        }
    }

    /// Reads version `version` of capability set `id` into `buffer`, which may be shorter than it.
    ///
    /// # Errors
    ///
    /// EINVAL for one that the host does not have.
    pub fn caps(&self, id: u32, version: u32, buffer: &mut [u8]) -> Result<()> {
        let mut caps = uapi::GetCaps {
            cap_set_id: id,
            cap_set_ver: version,
            addr: buffer.as_mut_ptr() as u64,
            size: buffer.len() as u32,
            pad: 0,
        };
        // SAFETY: The structure is that of GET_CAPS, and `buffer` has `size` bytes.
        unsafe { self.command(uapi::nr::GET_CAPS, &mut caps)? };
        Ok(())
    }

    /// The capability set of the compute context.
    ///
    /// # Errors
    ///
    /// EINVAL on a host without it.
    pub fn compute_caps(&self) -> Result<compute::Capset> {
        let mut capset = compute::Capset::new_zeroed();
        self.caps(
            compute::CAPSET_ID,
            compute::CAPSET_VERSION,
            capset.as_mut_bytes(),
        )?;
        Ok(capset)
    }

    /// Makes the host context of this file.
    ///
    /// # Errors
    ///
    /// EEXIST if it has one, EINVAL for parameters that make no sense.
    ///
    /// # Safety
    ///
    /// The value of [`uapi::context_param::DEBUG_NAME`] is an address, which must be valid.
    pub unsafe fn context_init(&self, params: &[uapi::ContextSetParam]) -> Result<()> {
        let mut init = uapi::ContextInit {
            num_params: params.len() as u32,
            pad: 0,
            ctx_set_params: params.as_ptr() as u64,
        };
        // SAFETY: The structure is that of CONTEXT_INIT, the array has `num_params` entries.
        unsafe { self.command(uapi::nr::CONTEXT_INIT, &mut init)? };
        Ok(())
    }

    /// Makes a compute context with `rings` rings.
    ///
    /// # Errors
    ///
    /// Those of [`Device::context_init`].
    pub fn context_init_compute(&self, rings: u32) -> Result<()> {
        self.context_init_capset(compute::CAPSET_ID, rings)
    }

    /// Makes a context of capability set `id` with `rings` rings.
    ///
    /// # Errors
    ///
    /// Those of [`Device::context_init`].
    pub fn context_init_capset(&self, id: u32, rings: u32) -> Result<()> {
        let params = [
            uapi::ContextSetParam {
                param: uapi::context_param::CAPSET_ID,
                value: u64::from(id),
            },
            uapi::ContextSetParam {
                param: uapi::context_param::NUM_RINGS,
                value: u64::from(rings),
            },
        ];
        // SAFETY: No parameter is an address.
        unsafe { self.context_init(&params) }
    }

    /// Waits until no job uses buffer `handle`.
    ///
    /// # Errors
    ///
    /// EBUSY if that takes longer than the driver's limit (15 s), ENOENT for an unknown handle.
    pub fn wait(&self, handle: u32) -> Result<()> {
        self.wait_with(handle, 0)
    }

    /// Whether a job uses buffer `handle`.
    ///
    /// # Errors
    ///
    /// ENOENT for an unknown handle.
    pub fn is_busy(&self, handle: u32) -> Result<bool> {
        match self.wait_with(handle, uapi::WAIT_NOWAIT) {
            Ok(()) => Ok(false),
            Err(Errno::BUSY) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// WAIT with `flags`.
    ///
    /// # Errors
    ///
    /// Those of the ioctl.
    pub fn wait_with(&self, handle: u32, flags: u32) -> Result<()> {
        let mut wait = uapi::Wait { handle, flags };
        // SAFETY: The structure is that of WAIT.
        unsafe { self.command(uapi::nr::WAIT, &mut wait)? };
        Ok(())
    }

    /// RESOURCE_INFO of `handle`.
    ///
    /// # Errors
    ///
    /// ENOENT for an unknown handle.
    pub fn resource_info(&self, handle: u32) -> Result<uapi::ResourceInfo> {
        let mut info = uapi::ResourceInfo {
            bo_handle: handle,
            ..Default::default()
        };
        // SAFETY: The structure is that of RESOURCE_INFO.
        unsafe { self.command(uapi::nr::RESOURCE_INFO, &mut info)? };
        Ok(info)
    }

    /// BO_QUERY of `handle`, of any kind.
    ///
    /// # Errors
    ///
    /// ENOENT for an unknown handle, EINVAL or ENOTTY on a driver without the extension.
    pub fn query(&self, handle: u32) -> Result<uapi::BoQuery> {
        let mut query = uapi::BoQuery {
            bo_handle: handle,
            ..Default::default()
        };
        // SAFETY: The structure is that of BO_QUERY.
        unsafe { self.command(uapi::nr::BO_QUERY, &mut query)? };
        Ok(query)
    }

    /// Closes the GEM handle `handle`.
    ///
    /// # Errors
    ///
    /// EINVAL for an unknown handle.
    pub fn gem_close(&self, handle: u32) -> Result<()> {
        let mut close = drm::HandleAndWord { handle, word: 0 };
        // SAFETY: The structure is that of GEM_CLOSE.
        unsafe { self.core(drm::GEM_CLOSE, &mut close)? };
        Ok(())
    }

    /// Gives buffer `handle` a global name. Primary nodes only.
    ///
    /// # Errors
    ///
    /// EACCES on a render node.
    pub fn gem_flink(&self, handle: u32) -> Result<u32> {
        let mut flink = drm::HandleAndWord { handle, word: 0 };
        // SAFETY: The structure is that of GEM_FLINK.
        unsafe { self.core(drm::GEM_FLINK, &mut flink)? };
        Ok(flink.word)
    }

    /// Opens the buffer with global name `name`. Primary nodes only.
    ///
    /// # Errors
    ///
    /// ENOENT for an unknown name, EACCES for user memory.
    pub fn gem_open(&self, name: u32) -> Result<u32> {
        let mut open = drm::GemOpen {
            name,
            ..Default::default()
        };
        // SAFETY: The structure is that of GEM_OPEN.
        unsafe { self.core(drm::GEM_OPEN, &mut open)? };
        Ok(open.handle)
    }

    /// Exports buffer `handle` as a dma-buf that can be mapped for writing.
    ///
    /// # Errors
    ///
    /// EINVAL for user memory, ENOENT for an unknown handle.
    pub fn prime_export(&self, handle: u32) -> Result<OwnedFd> {
        let mut prime = drm::PrimeHandle {
            handle,
            flags: (OFlags::CLOEXEC | OFlags::RDWR).bits(),
            fd: -1,
        };
        // SAFETY: The structure is that of PRIME_HANDLE_TO_FD.
        unsafe { self.core(drm::PRIME_HANDLE_TO_FD, &mut prime)? };
        // SAFETY: The kernel has just given us this file descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(prime.fd) })
    }

    /// Imports a dma-buf, and returns a GEM handle.
    ///
    /// # Errors
    ///
    /// Those of the ioctl.
    pub fn prime_import(&self, fd: impl AsFd) -> Result<u32> {
        use std::os::fd::AsRawFd;
        let mut prime = drm::PrimeHandle {
            handle: 0,
            flags: 0,
            fd: fd.as_fd().as_raw_fd(),
        };
        // SAFETY: The structure is that of PRIME_FD_TO_HANDLE.
        unsafe { self.core(drm::PRIME_FD_TO_HANDLE, &mut prime)? };
        Ok(prime.handle)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The render nodes whose driver is [`DRIVER_NAME`] and which this process may open.
pub fn render_nodes() -> Vec<PathBuf> {
    (128..192)
        .map(|minor| PathBuf::from(format!("/dev/dri/renderD{minor}")))
        .filter(|path| {
            Device::open_path(path)
                .and_then(|device| device.version())
                .is_ok_and(|version| version.name == DRIVER_NAME)
        })
        .collect()
}
