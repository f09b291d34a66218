// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The whole address space of this process, used by the device in place.

mod job;
mod memory;
mod scope;
mod wait;

use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use virtgpu_protocol::uapi;

use crate::{compute::Stream, Device, Event, Exec, Result};

pub use self::job::Job;
pub use self::memory::{pointer, Input, Output};
pub use self::scope::Scope;
pub use self::wait::{Comparison, Deadline};

/// How to make an [`AddressSpace`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SpaceOptions {
    flags: u32,
    workers: u32,
    cookie: u64,
}

impl SpaceOptions {
    /// As the driver thinks best, without an event.
    pub const fn new() -> Self {
        Self {
            flags: 0,
            workers: 0,
            cookie: 0,
        }
    }

    /// An [`Event::Svm`] with `cookie` in it tells when the context is lost, and why.
    pub const fn events(self, cookie: u64) -> Self {
        Self { cookie, ..self }.flag(uapi::SVM_EVENT)
    }

    /// A fault makes its own page usable, and none beside it.
    pub const fn exact(self) -> Self {
        self.flag(uapi::SVM_EXACT)
    }

    /// So many threads of the process serve faults, [`uapi::SVM_MAX_WORKERS`] at most.
    pub const fn workers(self, workers: u32) -> Self {
        Self { workers, ..self }
    }

    /// Sets further `uapi::SVM_*`.
    pub const fn flag(self, flag: u32) -> Self {
        Self {
            flags: self.flags | flag,
            ..self
        }
    }
}

/// A device whose jobs use every address of this process.
///
/// It owns the [`Device`]: a job that is submitted on it by other ways could name memory of anyone
/// in the process.
///
/// ```no_run
/// use virtgpu_client::{AddressSpace, Device, Job, SpaceOptions};
///
/// # fn main() -> virtgpu_client::Result<()> {
/// let device = Device::open()?;
/// device.context_init_compute(1)?;
/// let space = AddressSpace::enable(device, SpaceOptions::new())?;
///
/// // A vector, as the allocator has made it; the device adds 1 to each of its words.
/// let mut numbers = vec![41_u32; 1000];
/// let mut job = Job::new();
/// job.add_u32((&mut numbers[..]).into(), 1);
/// space.run(0, &job)?;
/// assert!(numbers.iter().all(|&number| number == 42));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AddressSpace {
    device: Device,
    va_end: u64,
    max_faults: u32,
}

impl AddressSpace {
    /// Gives the context of `device`, which must have rings, the address space of this process.
    ///
    /// # Errors
    ///
    /// Those of SVM_ENABLE; see `docs/uapi.md`.
    pub fn enable(device: Device, options: SpaceOptions) -> Result<Self> {
        let mut enable = uapi::SvmEnable {
            flags: options.flags,
            workers: options.workers,
            cookie: options.cookie,
            ..Default::default()
        };
        // SAFETY: The structure is that of SVM_ENABLE.
        unsafe { device.command(uapi::nr::SVM_ENABLE, &mut enable)? };
        Ok(Self {
            device,
            va_end: enable.va_end,
            max_faults: enable.max_faults,
        })
    }

    /// The device, for all that needs no pointer: buffers, registrations, parameters.
    ///
    /// # Safety
    ///
    /// For each job that is submitted on it, what [`AddressSpace::submit`] asks for holds.
    pub unsafe fn device(&self) -> &Device {
        &self.device
    }

    /// End of the addresses that jobs may use.
    pub fn va_end(&self) -> u64 {
        self.va_end
    }

    /// Faults that the device has on the way at once, at most.
    pub fn max_faults(&self) -> u32 {
        self.max_faults
    }

    /// State and counters.
    ///
    /// # Errors
    ///
    /// Those of SVM_QUERY.
    pub fn query(&self) -> Result<uapi::SvmQuery> {
        let mut query = uapi::SvmQuery::default();
        // SAFETY: The structure is that of SVM_QUERY.
        unsafe { self.device.command(uapi::nr::SVM_QUERY, &mut query)? };
        Ok(query)
    }

    /// Makes `length` bytes at `address` usable for reading; returns how many of them are.
    ///
    /// # Errors
    ///
    /// Those of SVM_PREFETCH.
    pub fn prefetch(&self, address: u64, length: u64) -> Result<u64> {
        self.prefetch_with(address, length, 0)
    }

    /// The same for writing, which breaks copy-on-write.
    ///
    /// # Errors
    ///
    /// Those of SVM_PREFETCH.
    pub fn prefetch_for_writing(&self, address: u64, length: u64) -> Result<u64> {
        self.prefetch_with(address, length, uapi::SVM_PREFETCH_WRITE)
    }

    fn prefetch_with(&self, addr: u64, length: u64, flags: u32) -> Result<u64> {
        let mut prefetch = uapi::SvmPrefetch {
            addr,
            length,
            flags,
            ..Default::default()
        };
        // SAFETY: The structure is that of SVM_PREFETCH. It faults pages in, as reading them does,
        // and changes no content.
        unsafe { self.device.command(uapi::nr::SVM_PREFETCH, &mut prefetch)? };
        Ok(prefetch.done)
    }

    /// Waits until all jobs that were submitted on `ring` before are done.
    ///
    /// # Errors
    ///
    /// ETIME at the deadline, EIO if the context is lost and none of these jobs runs any more;
    /// those of SVM_WAIT.
    pub fn wait_ring(&self, ring: u32, deadline: Deadline) -> Result<()> {
        self.wait(uapi::SvmWait {
            deadline_ns: deadline.nanoseconds(),
            op: uapi::svm_wait::RING,
            ring,
            ..Default::default()
        })
    }

    /// Waits until the bits of `word` in `mask` compare so with `value`. It is looked at when a job
    /// of this space ends, so a job has to write it.
    ///
    /// # Errors
    ///
    /// ETIME at the deadline, EIO if the context is lost; those of SVM_WAIT.
    pub fn wait_value(
        &self,
        word: &AtomicU64,
        comparison: Comparison,
        value: u64,
        mask: u64,
        deadline: Deadline,
    ) -> Result<()> {
        self.wait(uapi::SvmWait {
            addr: word.as_ptr() as u64,
            value,
            mask,
            deadline_ns: deadline.nanoseconds(),
            op: comparison as u32,
            ..Default::default()
        })
    }

    fn wait(&self, mut wait: uapi::SvmWait) -> Result<()> {
        // SAFETY: The structure is that of SVM_WAIT; the kernel only reads the word it names.
        unsafe { self.device.command(uapi::nr::SVM_WAIT, &mut wait)? };
        Ok(())
    }

    /// [`Device::wait_for_event`].
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn wait_for_event(&self, timeout: Duration) -> Result<bool> {
        self.device.wait_for_event(timeout)
    }

    /// [`Device::events`].
    ///
    /// # Errors
    ///
    /// See there.
    pub fn events(&self, timeout: Duration) -> Result<Vec<Event>> {
        self.device.events(timeout)
    }

    /// Submits a job with whatever pointers it has, and does not wait for it.
    ///
    /// # Safety
    ///
    /// Until the job has ended, no Rust reference to memory that the job writes is used, and no
    /// `&mut` to memory that it reads. (An address that is not valid at all is no danger: the job
    /// fails, and the context is lost.)
    ///
    /// # Errors
    ///
    /// Those of EXECBUFFER. Then the job does not run.
    pub unsafe fn submit(&self, ring: u32, stream: &Stream) -> Result<()> {
        Exec::new(stream.as_bytes()).ring(ring).submit(&self.device)
    }

    /// Runs a job to its end, and those that were submitted on `ring` before.
    ///
    /// # Errors
    ///
    /// Those of EXECBUFFER; EIO if the context is lost.
    pub fn run(&self, ring: u32, job: &Job<'_>) -> Result<()> {
        self.scope(|scope| {
            // SAFETY: The memory is borrowed for longer than this call, which ends after the job.
            unsafe { scope.submit_unbound(ring, job.stream()) }
        })?
    }

    /// Runs `body`, whose jobs may use all memory that is borrowed for longer than that, and waits
    /// for the end of these jobs.
    ///
    /// ```no_run
    /// # use virtgpu_client::{AddressSpace, Job};
    /// # fn f(space: &AddressSpace) -> virtgpu_client::Result<()> {
    /// let (from, mut low, mut high) = (vec![7_u64; 512], [0_u64; 256], [0_u64; 256]);
    /// space.scope(|scope| {
    ///     let mut job = Job::new();
    ///     job.copy((&mut low).into(), (&from[..256]).into());
    ///     scope.submit(0, &job)?;
    ///     let mut job = Job::new();
    ///     job.copy((&mut high).into(), (&from[256..]).into());
    ///     scope.submit(1, &job)
    /// })??;
    /// assert_eq!(low, high);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// EIO if the context is lost: what the jobs have written is a part of the whole then.
    pub fn scope<'env, F, R>(&'env self, body: F) -> Result<R>
    where
        F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R,
    {
        let scope = Scope::new(self);
        let value = catch_unwind(AssertUnwindSafe(|| body(&scope)));
        let end = scope.end();
        match value {
            Ok(value) => end.map(|()| value),
            Err(panic) => resume_unwind(panic),
        }
    }
}
