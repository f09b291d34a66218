// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! dma-bufs whose memory can be revoked: those of the module in `tests/exporter`. It imports those
//! of others as well.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::{ioctl, Errno, Mapping};

use crate::ktap::{Outcome, TestResult};
use crate::support::{eventually, gpu};

const MODULE: &str = "/job/virtgpu_test_exporter.ko";

/// `struct virtgpu_test_exporter_create`.
#[repr(C)]
struct Create {
    pages: u32,
    fd: i32,
}

/// `struct virtgpu_test_exporter_revoke`.
#[repr(C)]
struct Revoke {
    fd: i32,
    timeout_ms: u32,
}

/// `struct virtgpu_test_exporter_hold`.
#[repr(C)]
struct Hold {
    fd: i32,
    hold: u32,
    waiting: u32,
    unbound: u32,
}

/// `struct virtgpu_test_exporter_attach`.
#[repr(C)]
struct Attach {
    fd: i32,
    peer2peer: u32,
}

/// `struct virtgpu_test_exporter_uuid`.
#[repr(C)]
struct Uuid {
    fd: i32,
    uuid: [u8; 16],
}

/// `struct virtgpu_test_exporter_import`.
#[repr(C)]
struct Import {
    fd: i32,
    unrevocable: u32,
}

/// `struct virtgpu_test_exporter_imported`.
#[repr(C)]
struct Imported {
    works: u32,
    holds: u32,
    mapped: u32,
    told: u32,
}

/// `VIRTGPU_TEST_EXPORTER_CREATE`.
const CREATE: u32 = (3 << 30) | (8 << 16) | ((b'x' as u32) << 8);
/// `VIRTGPU_TEST_EXPORTER_REVOKE`.
const REVOKE: u32 = (1 << 30) | (8 << 16) | ((b'x' as u32) << 8) | 1;
/// `VIRTGPU_TEST_EXPORTER_HOLD`.
const HOLD: u32 = (3 << 30) | (16 << 16) | ((b'x' as u32) << 8) | 2;
/// `VIRTGPU_TEST_EXPORTER_ATTACH`.
const ATTACH: u32 = (1 << 30) | (8 << 16) | ((b'x' as u32) << 8) | 3;
/// `VIRTGPU_TEST_EXPORTER_UUID`.
const UUID: u32 = (3 << 30) | (20 << 16) | ((b'x' as u32) << 8) | 4;
/// `VIRTGPU_TEST_EXPORTER_IMPORT`.
const IMPORT: u32 = (1 << 30) | (8 << 16) | ((b'x' as u32) << 8) | 5;
/// `VIRTGPU_TEST_EXPORTER_IMPORTED`.
const IMPORTED: u32 = (3 << 30) | (16 << 16) | ((b'x' as u32) << 8) | 6;

/// What is in the memory after it was revoked: `VIRTGPU_TEST_EXPORTER_POISON`.
pub(crate) const POISON: u8 = 0x5a;

/// The exporter's module, loaded until this is dropped.
pub(crate) struct Exporter(Option<File>);

/// What importers of a dma-buf do and did.
pub(crate) struct Held {
    /// One waits in mapping it.
    pub(crate) waiting: bool,
    /// A device that has no driver was given its memory, or had it still.
    pub(crate) unbound: bool,
}

/// Loads it.
pub(crate) fn load() -> TestResult<Exporter> {
    let module = Path::new(MODULE);
    if !module.exists() {
        return Err(Outcome::Skip(format!("{MODULE} is not there")));
    }
    gpu::load(module)?;
    let mut file = open();
    eventually(gpu::LIMIT, || {
        file = open();
        file.is_ok()
    });
    Ok(Exporter(Some(file?)))
}

fn open() -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/virtgpu-test-exporter")
}

fn call<T>(file: &File, request: u32, argument: &mut T) -> Result<(), Errno> {
    let argument: *mut T = argument;
    // SAFETY: The callers pass the structure of the request, which has no addresses.
    unsafe { ioctl::call(file.as_fd(), request, argument.cast())? };
    Ok(())
}

/// A device without hardware that has mapped a dma-buf of anyone, until this is dropped.
pub(crate) struct Importer(File);

impl Importer {
    /// A fence says that the device works on the dma-buf, if it `works`; and it does not unmap it
    /// when it is revoked, if it `holds` it. Both as long as the next call does not say otherwise.
    pub(crate) fn behave(&self, works: bool, holds: bool) -> Result<(), Errno> {
        self.ask(works, holds).map(drop)
    }

    /// Whether the dma-buf is mapped still, and whether it was revoked. The device neither works on
    /// it nor holds it any more.
    pub(crate) fn state(&self) -> Result<(bool, bool), Errno> {
        let response = self.ask(false, false)?;
        Ok((response.mapped != 0, response.told != 0))
    }

    fn ask(&self, works: bool, holds: bool) -> Result<Imported, Errno> {
        let mut argument = Imported {
            works: works.into(),
            holds: holds.into(),
            mapped: 0,
            told: 0,
        };
        call(&self.0, IMPORTED, &mut argument)?;
        Ok(argument)
    }
}

impl Exporter {
    fn call<T>(&self, request: u32, argument: &mut T) -> Result<(), Errno> {
        call(self.0.as_ref().ok_or(Errno::BADF)?, request, argument)
    }

    /// The file, which maps memory that is no page.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("open until it is dropped").as_fd()
    }

    /// Makes a dma-buf of `pages` pages, and maps it.
    pub(crate) fn buffer(&self, pages: usize) -> TestResult<(OwnedFd, Mapping)> {
        let mut create = Create {
            pages: u32::try_from(pages).expect("a few pages"),
            fd: -1,
        };
        self.call(CREATE, &mut create)?;
        // SAFETY: The kernel has just given us this file descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(create.fd) };
        let memory = Mapping::file(
            &fd,
            0,
            pages * virtgpu_client::page_size(),
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
        )?;
        Ok((fd, memory))
    }

    /// Revokes the memory from all importers, waits until they have unmapped it, and fills it
    /// with [`POISON`]. `ETIME` if they have not after `limit`.
    pub(crate) fn revoke(&self, fd: &OwnedFd, limit: Duration) -> Result<(), Errno> {
        let mut revoke = Revoke {
            fd: fd.as_raw_fd(),
            timeout_ms: limit.as_millis().try_into().unwrap_or(u32::MAX),
        };
        self.call(REVOKE, &mut revoke)
    }

    /// With `hold`, importers that map the dma-buf wait until a call without.
    pub(crate) fn hold(&self, fd: &OwnedFd, hold: bool) -> Result<Held, Errno> {
        let mut argument = Hold {
            fd: fd.as_raw_fd(),
            hold: hold.into(),
            waiting: 0,
            unbound: 0,
        };
        self.call(HOLD, &mut argument)?;
        Ok(Held {
            waiting: argument.waiting != 0,
            unbound: argument.unbound != 0,
        })
    }

    /// Attaches a device to a dma-buf of anyone, and maps it, for a moment; with `peer2peer` one
    /// that needs no pages.
    pub(crate) fn attach(&self, fd: &OwnedFd, peer2peer: bool) -> Result<(), Errno> {
        let mut attach = Attach {
            fd: fd.as_raw_fd(),
            peer2peer: peer2peer.into(),
        };
        self.call(ATTACH, &mut attach)
    }

    /// The UUID by which drivers of other virtio devices find a dma-buf of anyone on the host.
    pub(crate) fn uuid(&self, fd: &OwnedFd) -> Result<[u8; 16], Errno> {
        let mut argument = Uuid {
            fd: fd.as_raw_fd(),
            uuid: [0; 16],
        };
        self.call(UUID, &mut argument)?;
        Ok(argument.uuid)
    }

    /// Attaches a device that needs no pages to a dma-buf of anyone, and maps it. It does not want
    /// to know when the memory is revoked, unless it is `revocable`.
    pub(crate) fn import(&self, fd: &OwnedFd, revocable: bool) -> Result<Importer, Errno> {
        let file = open().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let mut argument = Import {
            fd: fd.as_raw_fd(),
            unrevocable: (!revocable).into(),
        };
        call(&file, IMPORT, &mut argument)?;
        Ok(Importer(file))
    }

    /// Unloads it, which fails as long as anyone has a dma-buf of it.
    pub(crate) fn unload(mut self) -> TestResult {
        self.0 = None;
        let mut last = Ok(());
        eventually(gpu::LIMIT, || {
            last = gpu::unload("virtgpu_test_exporter");
            last.is_ok()
        });
        Ok(last?)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // After a failure; else it is unloaded already.
        if self.0.take().is_some() {
            let _ = gpu::unload("virtgpu_test_exporter");
        }
    }
}
