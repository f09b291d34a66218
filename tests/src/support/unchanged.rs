// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! An ioctl that is refused must change nothing.

use std::fs;
use std::time::Duration;

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, BlobMap, Device, Errno};

use crate::ktap::{Outcome, TestResult};
use crate::support::errno::{describe, name};
use crate::support::{eventually, job, procfs, raw, Env};

#[derive(Debug, PartialEq, Eq)]
struct State {
    next_handle: u32,
    open_files: usize,
    vm_pin: u64,
    pinned_pages: Option<i64>,
    resources: u64,
    guest_bytes: u64,
}

impl State {
    /// What a worker still had to give back before may be given back by now.
    fn unchanged_since(&self, before: &Self) -> bool {
        self.next_handle == before.next_handle
            && self.open_files == before.open_files
            && self.vm_pin <= before.vm_pin
            && self.pinned_pages <= before.pinned_pages
            && self.resources <= before.resources
            && self.guest_bytes <= before.guest_bytes
    }
}

/// A device on which ioctls are refused.
pub(crate) struct Refusing {
    pub(crate) device: Device,
    report: BlobMap,
    resource: u32,
    handle: u32,
}

impl Refusing {
    pub(crate) fn new(env: &Env) -> TestResult<Self> {
        let device = env.compute()?;
        let blob = job::shared_blob(&device, 4096)?;
        let report = blob.map()?;
        let resource = blob.resource();
        let handle = blob.into_handle();
        Ok(Self {
            device,
            report,
            resource,
            handle,
        })
    }

    fn state(&self) -> TestResult<State> {
        // The kernel gives the lowest free handle.
        let probe = job::shared_blob(&self.device, 4096)?;
        let next_handle = probe.handle();
        drop(probe);
        let mut stream = compute::Stream::new();
        let at = virtgpu_client::protocol::compute::Operand::resource(self.resource, 0);
        stream.stat(at);
        job::run(&self.device, &stream, &[self.handle])?;
        let stat = compute::read_stat(&self.report, 0);
        Ok(State {
            next_handle,
            open_files: fs::read_dir("/proc/self/fd")?.count(),
            vm_pin: procfs::vm_pin()?,
            // Only root may add the counters of all processors up.
            pinned_pages: procfs::pinned_pages().ok(),
            resources: stat.resources.get(),
            guest_bytes: stat.guest_bytes.get(),
        })
    }

    /// The number of a state is stable only when the workers that end resources are done.
    fn settled(&self) -> TestResult<State> {
        let mut last = self.state()?;
        let mut current = Ok(());
        eventually(Duration::from_secs(30), || match self.state() {
            Ok(now) => {
                let same = now == last;
                last = now;
                same
            }
            Err(error) => {
                current = Err(error);
                true
            }
        });
        current.map(|()| last)
    }

    /// Runs `attempt`, which must end with one of `errors` and change nothing.
    pub(crate) fn one_of<T>(
        &self,
        errors: &[Errno],
        what: &str,
        attempt: impl FnOnce(&Device) -> Result<T, Errno>,
    ) -> TestResult {
        let before = self.settled()?;
        let result = attempt(&self.device).map(drop);
        match &result {
            Err(error) if errors.contains(error) => {}
            other => {
                let wanted: Vec<_> = errors.iter().map(|error| name(*error)).collect();
                return Err(Outcome::Fail(format!(
                    "{what}: {}, not {}",
                    describe(other),
                    wanted.join(" or ")
                )));
            }
        }
        let mut after = None;
        let same = eventually(Duration::from_secs(30), || {
            after = self.state().ok();
            after
                .as_ref()
                .is_some_and(|after| after.unchanged_since(&before))
        });
        if same {
            return Ok(());
        }
        Err(Outcome::Fail(format!(
            "{what}: left something behind: before {before:?}, after {after:?}"
        )))
    }

    /// Runs `attempt`, which must end with `error` and change nothing.
    pub(crate) fn refuse<T>(
        &self,
        error: Errno,
        what: &str,
        attempt: impl FnOnce(&Device) -> Result<T, Errno>,
    ) -> TestResult {
        self.one_of(&[error], what, attempt)
    }

    /// A registration that must be refused.
    pub(crate) fn register(
        &self,
        error: Errno,
        what: &str,
        register: uapi::UserptrRegister,
    ) -> TestResult {
        self.refuse(error, what, |device| raw::register(device, register))
    }
}
