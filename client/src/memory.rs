// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory of this process that a device may share.

use core::ptr::{self, NonNull};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::{Errno, Result};

/// The size of a page.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// Memory that stays where it is, for as long as the value lives.
///
/// # Safety
///
/// The range must stay mapped with the promised access, and belong to this value alone, until the
/// value is dropped. In particular no Rust reference to any of its bytes may be used while a job
/// that accesses them is running.
pub unsafe trait Memory {
    /// First byte.
    fn as_ptr(&self) -> *mut u8;
    /// Bytes.
    fn len(&self) -> usize;
    /// Whether there is no byte in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// SAFETY: The mapping outlives the reference.
unsafe impl<M: Memory + ?Sized> Memory for &M {
    fn as_ptr(&self) -> *mut u8 {
        (**self).as_ptr()
    }
    fn len(&self) -> usize {
        (**self).len()
    }
}

// SAFETY: The mapping outlives the reference.
unsafe impl<M: Memory + ?Sized> Memory for Arc<M> {
    fn as_ptr(&self) -> *mut u8 {
        (**self).as_ptr()
    }
    fn len(&self) -> usize {
        (**self).len()
    }
}

/// Access by copying to memory that a device may change at any time.
///
/// All methods panic when the range is not inside the memory.
pub trait Bytes: Memory {
    /// The address of `offset`, of which `length` bytes are inside.
    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(
            offset
                .checked_add(length)
                .is_some_and(|end| end <= self.len()),
            "{offset}+{length} is outside of {} bytes",
            self.len(),
        );
        self.as_ptr().wrapping_add(offset)
    }

    /// Copies out.
    fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        compiler_fence();
        // SAFETY: `at` checked the range, which the trait `Memory` keeps mapped, and `to` cannot
        // overlap it, because there are no references to it.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        compiler_fence();
    }

    /// Copies in.
    fn write(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        compiler_fence();
        // SAFETY: As in `read`.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        compiler_fence();
    }

    /// All bytes of a range.
    fn to_vec(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read(offset, &mut bytes);
        bytes
    }

    /// Reads the u32 at the (aligned) `offset`.
    fn read_u32(&self, offset: usize) -> u32 {
        let from = self.at(offset, 4).cast::<u32>();
        assert!(from.is_aligned());
        // SAFETY: In range, mapped and aligned.
        unsafe { from.read_volatile() }
    }

    /// Writes the u32 at the (aligned) `offset`.
    fn write_u32(&self, offset: usize, value: u32) {
        let to = self.at(offset, 4).cast::<u32>();
        assert!(to.is_aligned());
        // SAFETY: In range, mapped and aligned.
        unsafe { to.write_volatile(value) }
    }

    /// Reads the u64 at the (aligned) `offset`.
    fn read_u64(&self, offset: usize) -> u64 {
        let from = self.at(offset, 8).cast::<u64>();
        assert!(from.is_aligned());
        // SAFETY: In range, mapped and aligned.
        unsafe { from.read_volatile() }
    }

    /// Writes the u64 at the (aligned) `offset`.
    fn write_u64(&self, offset: usize, value: u64) {
        let to = self.at(offset, 8).cast::<u64>();
        assert!(to.is_aligned());
        // SAFETY: In range, mapped and aligned.
        unsafe { to.write_volatile(value) }
    }

    /// Writes `byte` everywhere.
    fn fill(&self, byte: u8) {
        // SAFETY: The whole range is mapped.
        unsafe { ptr::write_bytes(self.as_ptr(), byte, self.len()) };
        compiler_fence();
    }
}

impl<M: Memory + ?Sized> Bytes for M {}

/// A device's accesses are ordered with the compiler's by system calls; this keeps plain copies
/// from being moved across them.
fn compiler_fence() {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}

/// A mapping of its own, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: A mapping belongs to the process, not to a thread, and is accessed by copying only.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private zeroed memory.
    ///
    /// # Errors
    ///
    /// Those of mmap(2).
    pub fn anonymous(length: usize) -> Result<Self> {
        Self::anonymous_with(
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }

    /// Zeroed memory with the given protection and flags.
    ///
    /// # Errors
    ///
    /// Those of mmap(2); EINVAL for MAP_FIXED, which could replace what is mapped there.
    pub fn anonymous_with(length: usize, prot: ProtFlags, flags: MapFlags) -> Result<Self> {
        if flags.intersects(MapFlags::FIXED) {
            return Err(Errno::INVAL);
        }
        // SAFETY: A new mapping at an address the kernel chooses.
        let start = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), length, prot, flags)? };
        Self::own(start.cast(), length)
    }

    /// Maps `length` bytes at `offset` of a file.
    ///
    /// # Errors
    ///
    /// Those of mmap(2); EINVAL for MAP_FIXED, which could replace what is mapped there.
    pub fn file(
        fd: impl AsFd,
        offset: u64,
        length: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<Self> {
        if flags.intersects(MapFlags::FIXED) {
            return Err(Errno::INVAL);
        }
        // SAFETY: A new mapping at an address the kernel chooses. Others may change the file, which
        // is no worse than a device that does.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), length, prot, flags, fd, offset)? };
        Self::own(start.cast(), length)
    }

    fn own(start: *mut u8, length: usize) -> Result<Self> {
        let start = NonNull::new(start).ok_or(Errno::FAULT)?;
        Ok(Self { start, length })
    }

    /// Takes over the `length` bytes from `start` on.
    ///
    /// # Errors
    ///
    /// EFAULT for a null pointer.
    ///
    /// # Safety
    ///
    /// They are mapped, and belong to no one else.
    pub unsafe fn from_raw(start: *mut u8, length: usize) -> Result<Self> {
        Self::own(start, length)
    }

    /// Gives the mapping up without unmapping it.
    pub fn into_raw(self) -> (*mut u8, usize) {
        let parts = (self.start.as_ptr(), self.length);
        core::mem::forget(self);
        parts
    }
}

// SAFETY: The mapping lives until `drop`, and no references to it are made.
unsafe impl Memory for Mapping {
    fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    fn len(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: This value owns the mapping.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A file in memory, as [`crate::Device::register_memfd`] takes it.
#[derive(Debug)]
pub struct Memfd {
    fd: OwnedFd,
    length: u64,
}

impl Memfd {
    /// A memfd of `length` bytes that can be sealed.
    ///
    /// # Errors
    ///
    /// Those of memfd_create(2) and ftruncate(2).
    pub fn new(length: u64) -> Result<Self> {
        Self::with_flags(length, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
    }

    /// A memfd with the given flags, for instance `HUGETLB`.
    ///
    /// # Errors
    ///
    /// Those of memfd_create(2) and ftruncate(2).
    pub fn with_flags(length: u64, flags: MemfdFlags) -> Result<Self> {
        let fd = rustix::fs::memfd_create("virtgpu-client", flags)?;
        rustix::fs::ftruncate(&fd, length)?;
        Ok(Self { fd, length })
    }

    /// Maps the whole file, shared and writable.
    ///
    /// # Errors
    ///
    /// Those of mmap(2).
    pub fn map(&self) -> Result<Mapping> {
        Mapping::file(
            &self.fd,
            0,
            self.length as usize,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
        )
    }

    /// Seals the file.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2).
    pub fn seal(&self, seals: SealFlags) -> Result<()> {
        rustix::fs::fcntl_add_seals(&self.fd, seals)
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
