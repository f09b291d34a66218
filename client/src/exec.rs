// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Submitting jobs.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use virtgpu_protocol::uapi;

use crate::{Device, Result, SyncFile};

/// A job to submit.
///
/// ```no_run
/// # use virtgpu_client::{Device, Exec};
/// # fn f(device: &Device, commands: &[u8], buffer: u32) -> virtgpu_client::Result<()> {
/// Exec::new(commands).ring(1).buffers(&[buffer]).submit(device)?;
/// device.wait(buffer)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Exec<'a> {
    command: &'a [u8],
    buffers: &'a [u32],
    ring: Option<u32>,
    in_fence: Option<BorrowedFd<'a>>,
    in_syncobjs: &'a [uapi::ExecBufferSyncobj],
    out_syncobjs: &'a [uapi::ExecBufferSyncobj],
}

impl<'a> Exec<'a> {
    /// A job with these command bytes.
    pub const fn new(command: &'a [u8]) -> Self {
        Self {
            command,
            buffers: &[],
            ring: None,
            in_fence: None,
            in_syncobjs: &[],
            out_syncobjs: &[],
        }
    }

    /// The job uses these GEM handles: WAIT waits for it, and mirrored memory is made usable.
    pub const fn buffers(mut self, handles: &'a [u32]) -> Self {
        self.buffers = handles;
        self
    }

    /// Run on ring `ring` of the context.
    pub const fn ring(mut self, ring: u32) -> Self {
        self.ring = Some(ring);
        self
    }

    /// Start when the sync_file `fence` has signalled.
    pub fn after<F: AsFd>(mut self, fence: &'a F) -> Self {
        self.in_fence = Some(fence.as_fd());
        self
    }

    /// Start when these syncobjs have signalled.
    pub const fn wait_syncobjs(mut self, syncobjs: &'a [uapi::ExecBufferSyncobj]) -> Self {
        self.in_syncobjs = syncobjs;
        self
    }

    /// Signal these syncobjs when the job is done.
    pub const fn signal_syncobjs(mut self, syncobjs: &'a [uapi::ExecBufferSyncobj]) -> Self {
        self.out_syncobjs = syncobjs;
        self
    }

    /// Submits.
    ///
    /// # Errors
    ///
    /// Those of EXECBUFFER.
    pub fn submit(&self, device: &Device) -> Result<()> {
        self.call(device, false)?;
        Ok(())
    }

    /// Submits, and returns a file that becomes readable when the job is done.
    ///
    /// # Errors
    ///
    /// Those of EXECBUFFER.
    pub fn submit_with_fence(&self, device: &Device) -> Result<SyncFile> {
        let fd = self.call(device, true)?;
        // SAFETY: With FENCE_FD_OUT the kernel has just given us this file descriptor.
        Ok(SyncFile::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Submits and waits for the end of the job.
    ///
    /// # Errors
    ///
    /// Those of EXECBUFFER; the job's error, if it failed.
    pub fn run(&self, device: &Device) -> Result<()> {
        self.submit_with_fence(device)?.wait(None)
    }

    fn call(&self, device: &Device, out: bool) -> Result<i32> {
        let mut flags = 0;
        let mut fence_fd = -1;
        if let Some(fence) = &self.in_fence {
            flags |= uapi::EXECBUF_FENCE_FD_IN;
            fence_fd = fence.as_raw_fd();
        }
        if out {
            flags |= uapi::EXECBUF_FENCE_FD_OUT;
        }
        if self.ring.is_some() {
            flags |= uapi::EXECBUF_RING_IDX;
        }
        let mut exec = uapi::ExecBuffer {
            flags,
            size: self.command.len() as u32,
            command: self.command.as_ptr() as u64,
            bo_handles: self.buffers.as_ptr() as u64,
            num_bo_handles: self.buffers.len() as u32,
            fence_fd,
            ring_idx: self.ring.unwrap_or(0),
            syncobj_stride: size_of::<uapi::ExecBufferSyncobj>() as u32,
            num_in_syncobjs: self.in_syncobjs.len() as u32,
            num_out_syncobjs: self.out_syncobjs.len() as u32,
            in_syncobjs: self.in_syncobjs.as_ptr() as u64,
            out_syncobjs: self.out_syncobjs.as_ptr() as u64,
        };
        // SAFETY: The structure is that of EXECBUFFER, and the arrays have the lengths it says.
        unsafe { device.command(uapi::nr::EXECBUFFER, &mut exec)? };
        Ok(exec.fence_fd)
    }
}
