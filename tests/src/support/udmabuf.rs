// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! dma-bufs of another driver: udmabuf, which makes one of a part of a memfd.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::{ioctl, Mapping};

use crate::ktap::{Outcome, TestResult};

/// `udmabuf_create`.
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// `UDMABUF_FLAGS_CLOEXEC`.
const CLOEXEC: u32 = 1;
/// `UDMABUF_CREATE`.
const CREATE: u32 = (1 << 30) | ((size_of::<Create>() as u32) << 16) | ((b'u' as u32) << 8) | 0x42;

/// A dma-buf, and the memory that it is.
pub(crate) struct Udmabuf {
    pub(crate) fd: OwnedFd,
    pub(crate) memory: Mapping,
}

/// Makes one of `pages` pages in the middle of a memfd.
pub(crate) fn new(pages: usize) -> TestResult<Udmabuf> {
    let page = virtgpu_client::page_size();
    let Ok(device) = File::options().read(true).write(true).open("/dev/udmabuf") else {
        return Err(Outcome::Skip("there is no /dev/udmabuf".into()));
    };
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let memfd = rustix::fs::memfd_create("virtgpu-tests", flags)?;
    rustix::fs::ftruncate(&memfd, (page * (pages + 2)) as u64)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK)?;
    let mut create = Create {
        memfd: memfd.as_raw_fd() as u32,
        flags: CLOEXEC,
        offset: page as u64,
        size: (page * pages) as u64,
    };
    // SAFETY: The structure is that of UDMABUF_CREATE, which has no addresses.
    let fd = unsafe { ioctl::call(device.as_fd(), CREATE, (&raw mut create).cast())? };
    // SAFETY: The kernel has just given us this file descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let memory = Mapping::file(
        &memfd,
        page as u64,
        page * pages,
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::SHARED,
    )?;
    Ok(Udmabuf { fd, memory })
}
