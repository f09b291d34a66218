// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! userfaultfd: faults that a thread of this process resolves.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};

use virtgpu_client::{ioctl, Memory};

use crate::setup::{Result, PAGE};

/// What each message begins with that is about a page.
const PAGEFAULT: u8 = 0x12;
/// Faults on pages that are not there.
const MISSING: u64 = 1;

/// The faults of a range.
pub(super) struct Uffd(File);

impl Uffd {
    pub(super) fn of(memory: &impl Memory) -> Result<Self> {
        // SAFETY: Takes an integer.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(format!("userfaultfd: {error}").into());
        }
        // SAFETY: The kernel has just given us this file descriptor.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }.into());
        // UFFDIO_API and UFFDIO_REGISTER.
        uffd.call(0x3f, &mut [0xaa, 0, 0])?;
        let (start, length) = (memory.as_ptr() as u64, memory.len() as u64);
        uffd.call(0x00, &mut [start, length, MISSING, 0])?;
        Ok(uffd)
    }

    fn call<const N: usize>(&self, nr: u32, argument: &mut [u64; N]) -> Result {
        let number = ioctl::iowr(0xaa, nr, size_of::<[u64; N]>());
        // SAFETY: The argument has the size that the number says. The ranges in it are the
        // caller's, who expects their content to change.
        unsafe { ioctl::call(&self.0, number, argument.as_mut_ptr().cast())? };
        Ok(())
    }

    /// Waits for a fault, and resolves it with a page of zeroes.
    pub(super) fn serve_one(&self) -> Result {
        let mut message = [0_u8; 32];
        (&self.0).read_exact(&mut message)?;
        if message[0] != PAGEFAULT {
            return Err(format!("event {:#x} of userfaultfd", message[0]).into());
        }
        let address = u64::from_ne_bytes(message[16..24].try_into()?);
        let page = address / PAGE as u64 * PAGE as u64;
        // UFFDIO_ZEROPAGE.
        self.call(0x04, &mut [page, PAGE as u64, 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(ioctl::iowr(0xaa, 0x3f, 24), 0xc018_aa3f);
        assert_eq!(ioctl::iowr(0xaa, 0x00, 32), 0xc020_aa00);
        assert_eq!(ioctl::iowr(0xaa, 0x04, 32), 0xc020_aa04);
    }
}
