// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory of this process, used by the device in place.

use std::os::fd::{AsFd, AsRawFd};

use virtgpu_protocol::virtio_gpu::blob_mem;
use virtgpu_protocol::{compute::Operand, uapi};

use crate::{Device, Memory, Result};

/// How to register memory.
#[derive(Clone, Copy, Debug)]
pub struct RegisterOptions {
    flags: u32,
    blob_mem: u32,
    blob_id: u64,
    cookie: u64,
}

impl RegisterOptions {
    /// Pinned until the registration is dropped, readable and writable.
    pub const fn pinned() -> Self {
        Self {
            flags: uapi::USERPTR_PINNED,
            blob_mem: blob_mem::GUEST,
            blob_id: 0,
            cookie: 0,
        }
    }

    /// The device follows the page tables; nothing is pinned.
    pub const fn mirrored() -> Self {
        Self {
            flags: uapi::USERPTR_MIRRORED,
            ..Self::pinned()
        }
    }

    /// The device may only read.
    pub const fn read_only(self) -> Self {
        self.flag(uapi::USERPTR_RDONLY)
    }

    /// Mirrored: jobs use only what was prefetched and is still mapped.
    pub const fn sparse(self) -> Self {
        self.flag(uapi::USERPTR_SPARSE)
    }

    /// Mirrored: a [`crate::Event`] with `cookie` in it tells when memory is gone.
    pub const fn events(self, cookie: u64) -> Self {
        self.flag(uapi::USERPTR_EVENT).cookie(cookie)
    }

    /// Sets further `uapi::USERPTR_*`.
    pub const fn flag(self, flag: u32) -> Self {
        Self {
            flags: self.flags | flag,
            ..self
        }
    }

    /// The memory backs host object `blob_id` (blob memory HOST3D_GUEST).
    pub const fn host3d_guest(self, blob_id: u64) -> Self {
        Self {
            blob_mem: blob_mem::HOST3D_GUEST,
            blob_id,
            ..self
        }
    }

    /// Returned in events.
    pub const fn cookie(self, cookie: u64) -> Self {
        Self { cookie, ..self }
    }
}

impl Device {
    /// Lets the device use `memory` in place.
    ///
    /// # Errors
    ///
    /// Those of USERPTR_REGISTER; see `docs/uapi.md`.
    pub fn register<M: Memory>(
        &self,
        memory: M,
        options: RegisterOptions,
    ) -> Result<Registration<'_, M>> {
        let (addr, size) = (memory.as_ptr() as u64, memory.len() as u64);
        // SAFETY: By the contract of `Memory`, and the registration keeps `memory`.
        unsafe { self.register_with(memory, addr, size, options) }
    }

    /// Lets the device use a part of `memory` in place.
    ///
    /// # Errors
    ///
    /// EINVAL if the range is not inside `memory`; those of USERPTR_REGISTER.
    pub fn register_range<M: Memory>(
        &self,
        memory: M,
        offset: usize,
        length: usize,
        options: RegisterOptions,
    ) -> Result<Registration<'_, M>> {
        if offset
            .checked_add(length)
            .is_none_or(|end| end > memory.len())
        {
            return Err(crate::Errno::INVAL);
        }
        let addr = memory.as_ptr() as u64 + offset as u64;
        // SAFETY: By the contract of `Memory`, and the registration keeps `memory`.
        unsafe { self.register_with(memory, addr, length as u64, options) }
    }

    /// Lets the device use `size` bytes at `addr` in place.
    ///
    /// # Safety
    ///
    /// Until the registration is dropped, the range must not be used for anything that the device
    /// must not change, and no Rust reference to it may be used while a job accesses it. (A range
    /// that is not valid at all is no danger: the kernel refuses it.)
    ///
    /// # Errors
    ///
    /// Those of USERPTR_REGISTER.
    pub unsafe fn register_raw(
        &self,
        addr: u64,
        size: u64,
        options: RegisterOptions,
    ) -> Result<Registration<'_, ()>> {
        // SAFETY: By this function's contract.
        unsafe { self.register_with((), addr, size, options) }
    }

    /// Lets the device use `size` bytes at `offset` of a memfd, which need not be mapped.
    ///
    /// # Errors
    ///
    /// Those of USERPTR_REGISTER.
    pub fn register_memfd(
        &self,
        fd: impl AsFd,
        offset: u64,
        size: u64,
        options: RegisterOptions,
    ) -> Result<Registration<'_, ()>> {
        let register = uapi::UserptrRegister {
            size,
            flags: options.flags | uapi::USERPTR_FD,
            fd: fd.as_fd().as_raw_fd(),
            fd_offset: offset,
            ..options.fill()
        };
        self.finish((), register)
    }

    /// # Safety
    ///
    /// See [`Device::register_raw`]; dropping `memory` may end the promise.
    unsafe fn register_with<M>(
        &self,
        memory: M,
        addr: u64,
        size: u64,
        options: RegisterOptions,
    ) -> Result<Registration<'_, M>> {
        let register = uapi::UserptrRegister {
            addr,
            size,
            flags: options.flags,
            ..options.fill()
        };
        self.finish(memory, register)
    }

    fn finish<M>(
        &self,
        memory: M,
        mut register: uapi::UserptrRegister,
    ) -> Result<Registration<'_, M>> {
        // SAFETY: The structure is that of USERPTR_REGISTER. What the range must fulfil, the
        // callers know.
        unsafe { self.command(uapi::nr::USERPTR_REGISTER, &mut register)? };
        Ok(Registration {
            device: self,
            handle: register.bo_handle,
            resource: register.res_handle,
            memory_model: register.memory_model,
            size: register.size,
            _memory: memory,
        })
    }
}

impl RegisterOptions {
    fn fill(&self) -> uapi::UserptrRegister {
        uapi::UserptrRegister {
            blob_id: self.blob_id,
            blob_mem: self.blob_mem,
            cookie: self.cookie,
            ..Default::default()
        }
    }
}

/// Memory that the device uses in place, until this is dropped. Keeps the memory's owner.
#[derive(Debug)]
pub struct Registration<'d, M = ()> {
    device: &'d Device,
    handle: u32,
    resource: u32,
    memory_model: u32,
    size: u64,
    // Declared last, but dropped after `drop` below has closed the handle in any case.
    _memory: M,
}

impl<M> Registration<'_, M> {
    /// GEM handle.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Resource id, as jobs name the buffer.
    pub fn resource(&self) -> u32 {
        self.resource
    }

    /// A `uapi::memory_model`.
    pub fn memory_model(&self) -> u32 {
        self.memory_model
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Byte `offset` of the memory, for a job.
    pub fn at(&self, offset: u64) -> Operand {
        Operand::resource(self.resource, offset)
    }

    /// State and counters.
    ///
    /// # Errors
    ///
    /// Those of BO_QUERY.
    pub fn query(&self) -> Result<uapi::BoQuery> {
        self.device.query(self.handle)
    }

    /// Makes a part usable now; returns how many bytes from `offset` on are.
    ///
    /// # Errors
    ///
    /// Those of USERPTR_PREFETCH.
    pub fn prefetch(&self, offset: u64, length: u64) -> Result<u64> {
        let mut prefetch = uapi::UserptrPrefetch {
            bo_handle: self.handle,
            offset,
            length,
            ..Default::default()
        };
        // SAFETY: The structure is that of USERPTR_PREFETCH.
        unsafe {
            self.device
                .command(uapi::nr::USERPTR_PREFETCH, &mut prefetch)?
        };
        Ok(prefetch.done)
    }

    /// Ends the registration, and reports what dropping would ignore.
    ///
    /// # Errors
    ///
    /// Those of GEM_CLOSE.
    pub fn close(self) -> Result<()> {
        let result = self.device.gem_close(self.handle);
        // SAFETY: `self` is forgotten right after, so that its memory is dropped once.
        let memory = unsafe { core::ptr::read(&self._memory) };
        core::mem::forget(self);
        drop(memory);
        result
    }
}

impl<M> Drop for Registration<'_, M> {
    fn drop(&mut self) {
        let _ = self.device.gem_close(self.handle);
    }
}
