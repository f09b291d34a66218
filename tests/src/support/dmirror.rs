// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The kernel's own test driver for HMM, as a second driver in the same address space.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;

use virtgpu_client::{ioctl, Errno};

use crate::ktap::{Outcome, TestResult};
use crate::support::{eventually, PAGE};

const PATH: &str = "/dev/hmm_dmirror0";

const READ: u32 = 0;
const WRITE: u32 = 1;
const MIGRATE_TO_DEV: u32 = 2;
const EXCLUSIVE: u32 = 5;
const CHECK_EXCLUSIVE: u32 = 6;

/// `struct hmm_dmirror_cmd`.
#[derive(Default)]
#[repr(C)]
struct Arguments {
    addr: u64,
    ptr: u64,
    npages: u64,
    cpages: u64,
    faults: u64,
}

/// An open file of it, which mirrors all of this process.
pub(crate) struct Dmirror {
    file: File,
}

impl Dmirror {
    /// Opens it; a skip where the kernel has none.
    pub(crate) fn open() -> TestResult<Self> {
        if !std::path::Path::new(PATH).exists() {
            let _ = Command::new("modprobe").arg("test_hmm").output();
            eventually(std::time::Duration::from_secs(2), || {
                std::path::Path::new(PATH).exists()
            });
        }
        match File::options().read(true).write(true).open(PATH) {
            Ok(file) => Ok(Self { file }),
            Err(error) => Err(Outcome::Skip(format!("{PATH}: {error}"))),
        }
    }

    fn call(&self, nr: u32, address: u64, pages: usize) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; pages * PAGE];
        self.call_with(nr, address, &mut buffer)?;
        Ok(buffer)
    }

    fn call_with(&self, nr: u32, address: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let mut arguments = Arguments {
            addr: address,
            ptr: buffer.as_mut_ptr() as u64,
            npages: (buffer.len() / PAGE) as u64,
            ..Default::default()
        };
        let number = ioctl::iowr(b'H', nr, size_of::<Arguments>());
        // SAFETY: The structure is that of the ioctl, the buffer has the pages it says.
        unsafe { ioctl::call(&self.file, number, (&raw mut arguments).cast())? };
        Ok(())
    }

    /// What it reads.
    pub(crate) fn read(&self, address: u64, pages: usize) -> Result<Vec<u8>, Errno> {
        self.call(READ, address, pages)
    }

    /// It writes.
    pub(crate) fn write(&self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.call_with(WRITE, address, bytes)
    }

    /// Moves pages to its own memory.
    pub(crate) fn migrate(&self, address: u64, pages: usize) -> Result<Vec<u8>, Errno> {
        self.call(MIGRATE_TO_DEV, address, pages)
    }

    /// Makes the pages its own, for atomic accesses.
    pub(crate) fn make_exclusive(&self, address: u64, pages: usize) -> Result<Vec<u8>, Errno> {
        self.call(EXCLUSIVE, address, pages)
    }

    /// Whether any of the pages still is.
    pub(crate) fn is_exclusive(&self, address: u64, pages: usize) -> Result<bool, Errno> {
        match self.call(CHECK_EXCLUSIVE, address, pages) {
            Ok(_) => Ok(false),
            Err(Errno::PERM) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Dmirror {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
