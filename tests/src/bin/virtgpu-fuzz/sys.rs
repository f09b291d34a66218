// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! System calls as they are: integers in, an integer or an errno out.
//!
//! Addresses are those of [`layout`](crate::layout), where no Rust object lives, or none at all;
//! memory there is read and written by the kernel, so that a page which is not there is an error
//! and not a signal. That is what makes these functions safe to call.

use std::io;

/// What the call returns, or the errno.
pub(crate) type Result<T = ()> = core::result::Result<T, i32>;

/// The errno of the last call.
fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Any system call.
pub(crate) fn call(number: i64, arguments: [usize; 6]) -> Result<usize> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: By this module's rule, the kernel accesses no Rust object.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    match result {
        -1 => Err(errno()),
        value => Ok(value as usize),
    }
}

/// ioctl(2).
pub(crate) fn ioctl(fd: i32, number: u32, argument: usize) -> Result<i32> {
    let arguments = [fd as usize, number as usize, argument, 0, 0, 0];
    call(libc::SYS_ioctl, arguments).map(|value| value as i32)
}

/// mmap(2) at an address.
pub(crate) fn map(
    address: usize,
    length: usize,
    protection: i32,
    flags: i32,
    fd: i32,
    offset: u64,
) -> Result {
    let flags = (flags | libc::MAP_FIXED) as usize;
    let arguments = [
        address,
        length,
        protection as usize,
        flags,
        fd as usize,
        offset as usize,
    ];
    call(libc::SYS_mmap, arguments).map(drop)
}

/// Private memory at an address.
pub(crate) fn map_anonymous(address: usize, length: usize, protection: i32) -> Result {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    map(address, length, protection, flags, -1, 0)
}

/// munmap(2).
pub(crate) fn unmap(address: usize, length: usize) -> Result {
    call(libc::SYS_munmap, [address, length, 0, 0, 0, 0]).map(drop)
}

/// mprotect(2).
pub(crate) fn protect(address: usize, length: usize, protection: i32) -> Result {
    let arguments = [address, length, protection as usize, 0, 0, 0];
    call(libc::SYS_mprotect, arguments).map(drop)
}

/// madvise(2).
pub(crate) fn advise(address: usize, length: usize, advice: i32) -> Result {
    let arguments = [address, length, advice as usize, 0, 0, 0];
    call(libc::SYS_madvise, arguments).map(drop)
}

/// close(2).
pub(crate) fn close(fd: i32) {
    let _ = call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
}

/// Writes to memory of this process.
pub(crate) fn write_memory(address: usize, bytes: &[u8]) -> Result {
    let ours = bytes.as_ptr() as usize;
    transfer(libc::SYS_process_vm_writev, ours, address, bytes.len())
}

/// Reads memory of this process.
pub(crate) fn read_memory(address: usize, bytes: &mut [u8]) -> Result {
    let ours = bytes.as_mut_ptr() as usize;
    transfer(libc::SYS_process_vm_readv, ours, address, bytes.len())
}

fn transfer(number: i64, ours: usize, theirs: usize, length: usize) -> Result {
    let local = [ours, length];
    let remote = [theirs, length];
    let arguments = [
        std::process::id() as usize,
        local.as_ptr() as usize,
        1,
        remote.as_ptr() as usize,
        1,
        0,
    ];
    match call(number, arguments)? {
        done if done == length => Ok(()),
        _ => Err(libc::EFAULT),
    }
}

/// The calling thread.
pub(crate) fn thread_id() -> usize {
    call(libc::SYS_gettid, [0; 6]).unwrap_or(0)
}

/// Memory that child processes share, for good.
pub(crate) fn share(length: usize) -> Result<usize> {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as usize;
    call(
        libc::SYS_mmap,
        [0, length, protection, flags, usize::MAX, 0],
    )
}
