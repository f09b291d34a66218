// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! An open file with registrations, jobs in flight and threads that wait, whose device goes away.

use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use std::sync::Arc;

use virtgpu_client::{
    compute, BlobOptions, Device, Errno, Exec, Mapping, Memory, RegisterOptions, SyncFile,
    SyncStatus,
};

use crate::ktap::TestResult;
use crate::support::memory::small_pages;
use crate::support::{errno, eventually, job, procfs, raw, Env, PAGE};
use crate::{check, check_eq};

/// Pages registered.
const PAGES: usize = 64;

pub(crate) struct Victim {
    pub(crate) device: Arc<Device>,
    memory: Mapping,
    handle: u32,
    blob: u32,
    fences: Vec<SyncFile>,
    waiters: Vec<JoinHandle<Result<(), Errno>>>,
}

impl Victim {
    /// Jobs of 10 seconds on 4 rings, and threads that wait for them.
    pub(crate) fn new(env: &Env) -> TestResult<Self> {
        let device = Arc::new(env.compute()?);
        let memory = small_pages(PAGES * PAGE)?;
        let addr = memory.as_ptr() as u64;
        let handle = raw::register(&device, raw::pinned(addr, (PAGES * PAGE) as u64))?;
        let blob = device
            .create_blob(&BlobOptions::guest(PAGE as u64))?
            .into_handle();
        let mut stream = compute::Stream::new();
        stream.delay(10_000_000);
        let fences = (0..4)
            .map(|ring| {
                Exec::new(stream.as_bytes())
                    .ring(ring)
                    .buffers(&[handle, blob])
                    .submit_with_fence(&device)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let waiters = [handle, blob]
            .map(|handle| {
                let tid = Arc::new(AtomicI32::new(0));
                let (device, shared) = (device.clone(), tid.clone());
                let thread = std::thread::spawn(move || {
                    // SAFETY: Takes nothing.
                    shared.store(unsafe { libc::gettid() }, Ordering::Release);
                    device.wait(handle)
                });
                // Whether it already waits in WAIT cannot be seen; asleep it is nowhere else.
                eventually(job::LIMIT, || {
                    let tid = tid.load(Ordering::Acquire);
                    tid != 0 && procfs::asleep(tid)
                });
                thread
            })
            .into();
        Ok(Self {
            device,
            memory,
            handle,
            blob,
            fences,
            waiters,
        })
    }

    /// All who wait are released in time, the fences with an error.
    pub(crate) fn released(&mut self, limit: Duration) -> TestResult {
        self.ended(limit, &[Errno::NODEV, Errno::IO, Errno::CANCELED])
    }

    /// The same where it takes the driver longer to notice than WAIT waits.
    pub(crate) fn released_late(&mut self, limit: Duration) -> TestResult {
        self.ended(
            limit,
            &[Errno::NODEV, Errno::IO, Errno::CANCELED, Errno::BUSY],
        )
    }

    fn ended(&mut self, limit: Duration, errors: &[Errno]) -> TestResult {
        let start = Instant::now();
        for fence in &self.fences {
            let left = limit.saturating_sub(start.elapsed());
            let result = fence.wait(Some(left));
            check!(
                !matches!(result, Err(Errno::TIMEDOUT)),
                "a fence is not signalled after {limit:?}"
            );
            let status = fence.status()?;
            check!(
                matches!(status, SyncStatus::Failed(_)),
                "a fence is signalled without error: {status:?}"
            );
        }
        for waiter in std::mem::take(&mut self.waiters) {
            let left = limit.saturating_sub(start.elapsed());
            check!(
                eventually(left, || waiter.is_finished()),
                "a thread still waits in WAIT after {limit:?}"
            );
            let result = waiter.join().expect("no panic");
            check!(
                matches!(result, Err(error) if errors.contains(&error)),
                "WAIT has ended with {}",
                errno::describe(&result)
            );
        }
        println!(
            "    # released after {:.1} s",
            start.elapsed().as_secs_f32()
        );
        Ok(())
    }

    /// Registers memory, for a moment.
    pub(crate) fn registers(&self) -> Result<(), Errno> {
        self.device
            .register(&self.memory, RegisterOptions::pinned())?
            .close()
    }

    /// Every ioctl is refused, with one of `errors`, and in time.
    pub(crate) fn refused(&self, errors: &[Errno]) -> TestResult {
        let device = &*self.device;
        let mut stream = compute::Stream::new();
        stream.delay(1);
        let start = Instant::now();
        for (what, result) in [
            (
                "USERPTR_REGISTER",
                device
                    .register(&self.memory, RegisterOptions::pinned())
                    .map(drop),
            ),
            (
                "RESOURCE_CREATE_BLOB",
                device.create_blob(&BlobOptions::guest(4096)).map(drop),
            ),
            (
                "EXECBUFFER",
                Exec::new(stream.as_bytes())
                    .buffers(&[self.blob])
                    .submit(device),
            ),
        ] {
            check!(
                matches!(result, Err(error) if errors.contains(&error)),
                "{what}: {}",
                errno::describe(&result)
            );
        }
        check!(
            start.elapsed() < Duration::from_secs(30),
            "the refusals took {:?}",
            start.elapsed()
        );
        Ok(())
    }

    /// Ioctls that need no device return ENODEV once the driver has left it.
    pub(crate) fn gone(&self) -> TestResult {
        self.refused(&[Errno::NODEV])?;
        for (what, result) in [
            ("WAIT", self.device.wait(self.handle)),
            ("BO_QUERY", self.device.query(self.handle).map(drop)),
            (
                "RESOURCE_INFO",
                self.device.resource_info(self.blob).map(drop),
            ),
            ("MAP", self.device.map_offset(self.blob).map(drop)),
            ("GETPARAM", self.device.userptr_modes().map(drop)),
        ] {
            check!(
                result == Err(Errno::NODEV),
                "{what}: {}",
                errno::describe(&result)
            );
        }
        Ok(())
    }

    /// Closes the file: no page stays pinned.
    pub(crate) fn close(self, limit: Duration) -> TestResult {
        let Self { device, fences, .. } = self;
        drop(fences);
        check_eq!(Arc::strong_count(&device), 1, "users of the file");
        drop(device);
        check!(
            eventually(limit, || procfs::vm_pin() == Ok(0)),
            "VmPin is {:?} after the file was closed",
            procfs::vm_pin()
        );
        Ok(())
    }
}
