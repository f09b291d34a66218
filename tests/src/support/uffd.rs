// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! userfaultfd: faults that this process resolves itself.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use virtgpu_client::Memory;

use crate::ktap::{readable, Outcome, TestResult};
use crate::support::place::Place;
use crate::support::{job, PAGE};

/// Faults on pages that are not there.
pub(crate) const MISSING: u64 = 1;
/// Faults on pages that are write-protected.
pub(crate) const WP: u64 = 2;
/// Faults on pages that the file has and the page table has not.
pub(crate) const MINOR: u64 = 4;

/// Features to ask for.
pub(crate) mod feature {
    pub(crate) const PAGEFAULT_FLAG_WP: u64 = 1;
    pub(crate) const MISSING_SHMEM: u64 = 1 << 5;
    pub(crate) const MINOR_SHMEM: u64 = 1 << 10;
    pub(crate) const WP_UNPOPULATED: u64 = 1 << 13;
    pub(crate) const POISON: u64 = 1 << 14;
    pub(crate) const WP_ASYNC: u64 = 1 << 15;
    pub(crate) const MOVE: u64 = 1 << 16;
}

/// A fault to resolve.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// First byte of the page.
    pub(crate) address: u64,
    /// It is a write to what is write-protected.
    pub(crate) protected: bool,
}

const READ: u64 = 2 << 30;
const READ_WRITE: u64 = 3 << 30;

/// `_IO*(0xAA, nr, u64[words])`.
const fn number(direction: u64, nr: u64, words: usize) -> u64 {
    direction | ((words as u64 * 8) << 16) | (0xaa << 8) | nr
}

/// An open userfaultfd.
pub(crate) struct Uffd {
    file: File,
}

impl Uffd {
    /// One that faults of the kernel on behalf of this process wait for, too.
    pub(crate) fn open(features: u64) -> TestResult<Self> {
        Self::with_flags(0, features)
    }

    /// One that faults on pages that are not there wait for, in all of a place.
    pub(crate) fn missing(place: &Place) -> TestResult<Self> {
        let uffd = Self::open(0)?;
        uffd.register(place.address(0), place.len(), MISSING)?;
        Ok(uffd)
    }

    /// One that only faults of this process itself wait for.
    pub(crate) fn user_mode_only(features: u64) -> TestResult<Self> {
        Self::with_flags(1, features)
    }

    fn with_flags(flags: i32, features: u64) -> TestResult<Self> {
        let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: Takes an integer.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return Err(Outcome::Skip(format!(
                "userfaultfd: {}",
                std::io::Error::last_os_error()
            )));
        }
        // SAFETY: The kernel has just given us this file descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let uffd = Self {
            file: File::from(fd),
        };
        let mut api = [0xaa, features, 0];
        match uffd.call(number(READ_WRITE, 0x3f, 3), &mut api) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(Outcome::Skip(
                format!("userfaultfd lacks features of {features:#x}"),
            )),
            other => {
                other?;
                Ok(uffd)
            }
        }
    }

    fn call<const N: usize>(&self, number: u64, argument: &mut [u64; N]) -> std::io::Result<()> {
        // SAFETY: The argument has the size that the number says. The ranges in it are the test's,
        // which expects their content to change.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), number, argument.as_mut_ptr()) } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// UFFDIO_REGISTER.
    pub(crate) fn register(&self, address: u64, length: usize, mode: u64) -> TestResult {
        let mut argument = [address, length as u64, mode, 0];
        Ok(self.call(number(READ_WRITE, 0x00, 4), &mut argument)?)
    }

    /// UFFDIO_UNREGISTER, which also wakes whoever waits.
    pub(crate) fn unregister(&self, address: u64, length: usize) -> TestResult {
        let mut argument = [address, length as u64];
        Ok(self.call(number(READ, 0x01, 2), &mut argument)?)
    }

    /// UFFDIO_COPY. A page that is there already is as good.
    pub(crate) fn copy(&self, address: u64, bytes: &[u8]) -> TestResult {
        let mut argument = [address, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0];
        exists(self.call(number(READ_WRITE, 0x03, 5), &mut argument))
    }

    /// UFFDIO_ZEROPAGE.
    pub(crate) fn zero(&self, address: u64, length: usize) -> TestResult {
        let mut argument = [address, length as u64, 0, 0];
        exists(self.call(number(READ_WRITE, 0x04, 4), &mut argument))
    }

    /// UFFDIO_MOVE.
    pub(crate) fn take(&self, to: u64, from: u64, length: usize) -> TestResult {
        let mut argument = [to, from, length as u64, 0, 0];
        Ok(self.call(number(READ_WRITE, 0x05, 5), &mut argument)?)
    }

    /// UFFDIO_WRITEPROTECT.
    pub(crate) fn protect(&self, address: u64, length: usize, on: bool) -> TestResult {
        let mut argument = [address, length as u64, u64::from(on)];
        Ok(self.call(number(READ_WRITE, 0x06, 3), &mut argument)?)
    }

    /// UFFDIO_CONTINUE.
    pub(crate) fn proceed(&self, address: u64, length: usize) -> TestResult {
        let mut argument = [address, length as u64, 0, 0];
        exists(self.call(number(READ_WRITE, 0x07, 4), &mut argument))
    }

    /// UFFDIO_POISON.
    pub(crate) fn poison(&self, address: u64, length: usize) -> TestResult {
        let mut argument = [address, length as u64, 0, 0];
        Ok(self.call(number(READ_WRITE, 0x08, 4), &mut argument)?)
    }

    /// The next fault; None if there is none in time.
    pub(crate) fn next(&self, limit: Duration) -> TestResult<Option<Fault>> {
        const PAGEFAULT: u8 = 0x12;
        let fd = OwnedFd::from(self.file.try_clone()?);
        if !readable(&fd, limit) {
            return Ok(None);
        }
        let mut message = [0_u8; 32];
        match (&self.file).read(&mut message) {
            Ok(32) if message[0] == PAGEFAULT => {}
            // Someone else has resolved it.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            other => {
                return Err(Outcome::Fail(format!(
                    "userfaultfd: {other:?}, event {:#x}",
                    message[0]
                )))
            }
        }
        let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("8 bytes"));
        Ok(Some(Fault {
            address: word(16) & !(PAGE as u64 - 1),
            protected: word(8) & 2 != 0,
        }))
    }

    /// Waits until someone needs a page.
    pub(crate) fn asked(&self) -> TestResult<Fault> {
        let fault = self.next(job::LIMIT)?;
        fault.ok_or_else(|| Outcome::Fail("no one asks for a page".into()))
    }

    /// Runs `work` while a thread resolves faults by `resolve`; returns how many there were.
    pub(crate) fn resolving(
        &self,
        resolve: impl Fn(&Self, Fault) -> TestResult + Send,
        work: impl FnOnce() -> TestResult,
    ) -> TestResult<u64> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let handler = scope.spawn(|| self.serve(&stop, resolve));
            let result = work();
            stop.store(true, Ordering::Relaxed);
            let count = handler.join().expect("no panic")?;
            result.map(|()| count)
        })
    }

    fn serve(
        &self,
        stop: &AtomicBool,
        resolve: impl Fn(&Self, Fault) -> TestResult,
    ) -> TestResult<u64> {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            if let Some(fault) = self.next(Duration::from_millis(20))? {
                resolve(self, fault)?;
                count += 1;
            }
        }
        Ok(count)
    }
}

fn exists(result: std::io::Result<()>) -> TestResult {
    match result {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error.into()),
        _ => Ok(()),
    }
}
