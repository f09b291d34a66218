// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! ioctl numbers, and the one place that calls ioctl(2).

use core::ffi::c_void;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use virtgpu_protocol::uapi;

use crate::Result;

const WRITE: u32 = 1;
const READ: u32 = 2;

/// `_IOC(direction, group, nr, size)` of the generic Linux layout (x86-64, arm64, RISC-V).
const fn ioc(direction: u32, group: u8, nr: u32, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | ((group as u32) << 8) | nr
}

/// Number of a DRM core ioctl that reads and writes `size` bytes.
pub const fn drm_iowr(nr: u32, size: usize) -> u32 {
    ioc(READ | WRITE, b'd', nr, size)
}

/// Number of a DRM core ioctl that only passes `size` bytes to the kernel.
pub const fn drm_iow(nr: u32, size: usize) -> u32 {
    ioc(WRITE, b'd', nr, size)
}

/// Number of the virtgpu ioctl `nr` (one of [`uapi::nr`]) with a structure of `size` bytes.
pub const fn virtgpu(nr: u32, size: usize) -> u32 {
    drm_iowr(uapi::COMMAND_BASE + nr, size)
}

/// Number of `_IOWR(group, nr, size)`.
pub const fn iowr(group: u8, nr: u32, size: usize) -> u32 {
    ioc(READ | WRITE, group, nr, size)
}

struct Call {
    opcode: Opcode,
    arg: *mut c_void,
}

// SAFETY: The opcode and the argument are what the caller of `call_once` vouches for.
unsafe impl Ioctl for Call {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.arg
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<i32> {
        Ok(out)
    }
}

/// One ioctl(2), not repeated when a signal interrupts it.
///
/// # Safety
///
/// `arg` must be what the ioctl `number` of this file takes, and everything it points to must be
/// valid for what the kernel does with it.
pub unsafe fn call_once(fd: impl AsFd, number: u32, arg: *mut c_void) -> Result<i32> {
    let call = Call {
        opcode: number as Opcode,
        arg,
    };
    // SAFETY: By this function's contract.
    unsafe { rustix::ioctl::ioctl(fd, call) }
}

/// Like [`call_once`], repeated while signals interrupt it.
///
/// Unlike libdrm's `drmIoctl`, EAGAIN is passed on: the driver never returns it.
///
/// # Safety
///
/// See [`call_once`].
pub unsafe fn call(fd: impl AsFd, number: u32, arg: *mut c_void) -> Result<i32> {
    loop {
        // SAFETY: By this function's contract.
        match unsafe { call_once(fd.as_fd(), number, arg) } {
            Err(Errno::INTR) => continue,
            other => return other,
        }
    }
}
