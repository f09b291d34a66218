// SPDX-License-Identifier: GPL-2.0

//! What a job waits for, and what it signals.
//!
//! Fences that a job waits for are waited for by the CPU, in the ioctl, before any lock is taken:
//! so no fence of another driver gets between a fence of ours and its signalling.

use crate::{
    drm::File,
    kapi::{
        dma::{
            fence::ChainNode,
            sync_file::{
                self,
                PendingSyncFile, //
            },
            Fence,
            UnpublishedFence, //
        },
        drm::syncobj::{
            self,
            Syncobj, //
        },
    },
    protocol::uapi::{
        self,
        ExecBuffer,
        ExecBufferSyncobj, //
    },
};
use kernel::{
    fs::file::FileDescriptorReservation,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};
use zerocopy::IntoBytes;

/// Most syncobjs in one list.
const MAX_SYNCOBJS: u32 = 1 << 16;
/// How long a wait goes on before the device is looked at again.
const WAIT_SLICE_MS: u32 = 1_000;

/// Waits without a time limit, unless the device is lost. `wait` waits for so many milliseconds at
/// most, and then fails with [`EBUSY`].
///
/// # Errors
///
/// [`ENODEV`] if the device is lost, those of `wait`.
pub(super) fn wait_unless_lost(file: &File, wait: impl Fn(u32) -> Result) -> Result {
    loop {
        file.gpu.transport.check()?;
        match wait(WAIT_SLICE_MS) {
            Err(e) if e == EBUSY => continue,
            other => return other,
        }
    }
}

/// Reads an array of syncobj descriptions, whose entries may be shorter or longer than ours.
fn read_syncobjs(addr: u64, count: u32, stride: u32) -> Result<KVVec<ExecBufferSyncobj>> {
    if count > MAX_SYNCOBJS {
        return Err(EINVAL);
    }
    let mut list = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
    let len = (stride as usize).min(size_of::<ExecBufferSyncobj>());
    for i in 0..u64::from(count) {
        let at = addr.checked_add(i * u64::from(stride)).ok_or(EFAULT)?;
        let mut entry = ExecBufferSyncobj::default();
        UserSlice::new(UserPtr::from_addr(usize::try_from(at)?), len)
            .reader()
            .read_slice(&mut entry.as_mut_bytes()[..len])?;
        list.push(entry, GFP_KERNEL)?;
    }
    Ok(list)
}

/// Fences that were waited for.
pub(super) struct InFences {
    /// Syncobjs to reset once the job is queued.
    resets: KVVec<Syncobj>,
}

impl InFences {
    /// Waits for the fences that the job depends on, but for those of its own timeline.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] or [`ENOENT`] if there is no such fence, [`ERESTARTSYS`], [`ENODEV`].
    pub(super) fn wait(file: &File, args: &ExecBuffer, timeline: u64) -> Result<Self> {
        let mut resets = KVVec::new();
        for entry in &read_syncobjs(args.in_syncobjs, args.num_in_syncobjs, args.syncobj_stride)? {
            if entry.flags & !uapi::EXECBUF_SYNCOBJ_RESET != 0 {
                return Err(EINVAL);
            }
            Self::wait_for(
                file,
                &*syncobj::find_fence(file, entry.handle, entry.point)?,
                timeline,
            )?;
            if entry.flags & uapi::EXECBUF_SYNCOBJ_RESET != 0 {
                resets.push(Syncobj::find(file, entry.handle)?, GFP_KERNEL)?;
            }
        }
        if args.flags & uapi::EXECBUF_FENCE_FD_IN != 0 {
            Self::wait_for(file, &*sync_file::fence_of(args.fence_fd)?, timeline)?;
        }
        Ok(Self { resets })
    }

    fn wait_for(file: &File, fence: &Fence, timeline: u64) -> Result {
        wait_unless_lost(file, |ms| fence.wait_for_others(timeline, ms))
    }

    /// Resets the syncobjs that userspace wants reset. The job is queued.
    pub(super) fn reset(self) {
        for syncobj in &self.resets {
            syncobj.replace_fence(None);
        }
    }
}

/// Where a job's fence goes.
pub(super) struct OutFences {
    syncobjs: KVVec<(Syncobj, u64, Option<ChainNode>)>,
    fd: Option<FileDescriptorReservation>,
}

impl OutFences {
    /// Allocates what it takes to hand the fence out.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] for a syncobj that does not exist, [`EFAULT`], [`ENOMEM`], [`EMFILE`].
    pub(super) fn prepare(file: &File, args: &ExecBuffer) -> Result<Self> {
        let list = read_syncobjs(
            args.out_syncobjs,
            args.num_out_syncobjs,
            args.syncobj_stride,
        )?;
        let mut syncobjs = KVVec::with_capacity(list.len(), GFP_KERNEL)?;
        for entry in &list {
            if entry.flags != 0 {
                return Err(EINVAL);
            }
            let node = if entry.point == 0 {
                None
            } else {
                Some(ChainNode::new()?)
            };
            syncobjs.push(
                (Syncobj::find(file, entry.handle)?, entry.point, node),
                GFP_KERNEL,
            )?;
        }
        let fd = if args.flags & uapi::EXECBUF_FENCE_FD_OUT != 0 {
            Some(FileDescriptorReservation::get_unused_fd_flags(
                kernel::fs::file::flags::O_CLOEXEC,
            )?)
        } else {
            None
        };
        Ok(Self { syncobjs, fd })
    }

    /// The file that shows the fence, if one was asked for.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn sync_file(&self, fence: &UnpublishedFence) -> Result<Option<PendingSyncFile>> {
        match &self.fd {
            Some(_) => PendingSyncFile::new(fence).map(Some),
            None => Ok(None),
        }
    }

    /// Hands the fence of a queued job out. Returns the descriptor of the sync_file.
    pub(super) fn publish(self, fence: &Fence, file: Option<PendingSyncFile>) -> Option<i32> {
        for (syncobj, point, node) in self.syncobjs {
            match node {
                Some(node) => syncobj.add_point(node, fence, point),
                None => syncobj.replace_fence(Some(fence)),
            }
        }
        let (fd, file) = (self.fd?, file?.publish(fence).ok()?);
        let number = fd.reserved_fd();
        fd.fd_install(file);
        Some(number as i32)
    }
}
