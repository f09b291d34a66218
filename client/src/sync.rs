// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Learning that a job is done.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::{drm, ioctl, Device, Errno, Result};

/// State of a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncStatus {
    /// Not signalled.
    Active,
    /// Signalled, without an error.
    Signalled,
    /// Signalled with an error.
    Failed(Errno),
}

/// A sync_file.
#[derive(Debug)]
pub struct SyncFile {
    fd: OwnedFd,
}

impl From<OwnedFd> for SyncFile {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for SyncFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl SyncFile {
    /// Waits until the fence has signalled, for ever if there is no `timeout`.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT, or the error that the fence carries.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let timespec = left.map(|left| Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, timespec.as_ref()) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => return Err(Errno::TIMEDOUT),
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => break,
                Err(error) => return Err(error),
            }
        }
        match self.status()? {
            SyncStatus::Failed(error) => Err(error),
            SyncStatus::Signalled => Ok(()),
            SyncStatus::Active => Err(Errno::IO),
        }
    }

    /// The state of the fence.
    ///
    /// # Errors
    ///
    /// Those of `SYNC_IOC_FILE_INFO`.
    pub fn status(&self) -> Result<SyncStatus> {
        let mut info = drm::SyncFileInfo::default();
        // SAFETY: The structure is that of SYNC_IOC_FILE_INFO, and asks for no array.
        unsafe { ioctl::call(&self.fd, drm::SYNC_FILE_INFO, (&raw mut info).cast())? };
        Ok(match info.status {
            0 => SyncStatus::Active,
            status if status > 0 => SyncStatus::Signalled,
            error => SyncStatus::Failed(Errno::from_raw_os_error(-error)),
        })
    }
}

/// A DRM syncobj, binary or with a timeline; destroyed on drop.
#[derive(Debug)]
pub struct Syncobj<'d> {
    device: &'d Device,
    handle: u32,
}

impl Device {
    /// Makes a syncobj without a fence.
    ///
    /// # Errors
    ///
    /// Those of SYNCOBJ_CREATE.
    pub fn create_syncobj(&self) -> Result<Syncobj<'_>> {
        let mut create = drm::HandleAndWord::default();
        // SAFETY: The structure is that of SYNCOBJ_CREATE.
        unsafe { self.core(drm::SYNCOBJ_CREATE, &mut create)? };
        Ok(Syncobj {
            device: self,
            handle: create.handle,
        })
    }
}

impl Syncobj<'_> {
    /// Handle.
    pub fn handle(&self) -> u32 {
        self.handle
    }

    /// Waits until `point` (0 for a binary syncobj) has signalled, also if there is no fence yet.
    ///
    /// # Errors
    ///
    /// ETIME when `timeout` has passed.
    pub fn wait(&self, point: u64, timeout: Duration) -> Result<()> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
        let mut wait = drm::SyncobjTimelineWait {
            handles: (&raw const self.handle) as u64,
            points: (&raw const point) as u64,
            timeout_nsec: i64::try_from((now + timeout).as_nanos()).unwrap_or(i64::MAX),
            count_handles: 1,
            flags: drm::SYNCOBJ_WAIT_ALL | drm::SYNCOBJ_WAIT_FOR_SUBMIT,
            ..Default::default()
        };
        // SAFETY: The structure is that of SYNCOBJ_TIMELINE_WAIT, the arrays have one entry.
        unsafe { self.device.core(drm::SYNCOBJ_TIMELINE_WAIT, &mut wait)? };
        Ok(())
    }

    /// The newest signalled point.
    ///
    /// # Errors
    ///
    /// Those of SYNCOBJ_QUERY.
    pub fn query(&self) -> Result<u64> {
        let mut point = 0_u64;
        let mut query = drm::SyncobjTimelineArray {
            handles: (&raw const self.handle) as u64,
            points: (&raw mut point) as u64,
            count_handles: 1,
            flags: 0,
        };
        // SAFETY: The structure is that of SYNCOBJ_QUERY, the arrays have one entry.
        unsafe { self.device.core(drm::SYNCOBJ_QUERY, &mut query)? };
        // SAFETY: A plain local; volatile because the kernel wrote it through its address.
        Ok(unsafe { (&raw const point).read_volatile() })
    }

    /// Signals `point` from the CPU.
    ///
    /// # Errors
    ///
    /// Those of SYNCOBJ_TIMELINE_SIGNAL.
    pub fn signal(&self, point: u64) -> Result<()> {
        let mut signal = drm::SyncobjTimelineArray {
            handles: (&raw const self.handle) as u64,
            points: (&raw const point) as u64,
            count_handles: 1,
            flags: 0,
        };
        // SAFETY: The structure is that of SYNCOBJ_TIMELINE_SIGNAL, the arrays have one entry.
        unsafe {
            self.device
                .core(drm::SYNCOBJ_TIMELINE_SIGNAL, &mut signal)?
        };
        Ok(())
    }

    /// Takes the fence away.
    ///
    /// # Errors
    ///
    /// Those of SYNCOBJ_RESET.
    pub fn reset(&self) -> Result<()> {
        let mut array = drm::SyncobjArray {
            handles: (&raw const self.handle) as u64,
            count_handles: 1,
            pad: 0,
        };
        // SAFETY: The structure is that of SYNCOBJ_RESET, the array has one entry.
        unsafe { self.device.core(drm::SYNCOBJ_RESET, &mut array)? };
        Ok(())
    }

    /// The present fence, as a sync_file.
    ///
    /// # Errors
    ///
    /// EINVAL if there is none.
    pub fn export_sync_file(&self) -> Result<SyncFile> {
        let mut handle = drm::SyncobjHandle {
            handle: self.handle,
            flags: drm::SYNCOBJ_SYNC_FILE,
            fd: -1,
            pad: 0,
        };
        // SAFETY: The structure is that of SYNCOBJ_HANDLE_TO_FD.
        unsafe { self.device.core(drm::SYNCOBJ_HANDLE_TO_FD, &mut handle)? };
        // SAFETY: The kernel has just given us this file descriptor.
        Ok(SyncFile::from(unsafe { OwnedFd::from_raw_fd(handle.fd) }))
    }

    /// Makes the fence of a sync_file the present one.
    ///
    /// # Errors
    ///
    /// EINVAL if it is no sync_file.
    pub fn import_sync_file(&self, fd: impl AsFd) -> Result<()> {
        let mut handle = drm::SyncobjHandle {
            handle: self.handle,
            flags: drm::SYNCOBJ_SYNC_FILE,
            fd: fd.as_fd().as_raw_fd(),
            pad: 0,
        };
        // SAFETY: The structure is that of SYNCOBJ_FD_TO_HANDLE.
        unsafe { self.device.core(drm::SYNCOBJ_FD_TO_HANDLE, &mut handle)? };
        Ok(())
    }
}

impl Drop for Syncobj<'_> {
    fn drop(&mut self) {
        let mut destroy = drm::HandleAndWord {
            handle: self.handle,
            word: 0,
        };
        // SAFETY: The structure is that of SYNCOBJ_DESTROY.
        let _ = unsafe { self.device.core(drm::SYNCOBJ_DESTROY, &mut destroy) };
    }
}
