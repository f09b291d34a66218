// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs on memory that is borrowed for as long as they run.

use core::fmt;
use core::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{AddressSpace, Deadline, Job};
use crate::{compute::Stream, Errno, Result};

/// Where jobs can be submitted that use borrowed memory, see [`AddressSpace::scope`].
///
/// As with `std::thread::scope`, the memory of a job is borrowed for `'scope`, which ends only
/// after the jobs have.
pub struct Scope<'scope, 'env: 'scope> {
    space: &'env AddressSpace,
    /// Those that have been used.
    rings: AtomicU64,
    // Neither lifetime may be made shorter or longer.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("rings", &self.rings).finish()
    }
}

impl<'env> Scope<'_, 'env> {
    /// One without jobs.
    pub(super) fn new(space: &'env AddressSpace) -> Self {
        Self {
            space,
            rings: AtomicU64::new(0),
            scope: PhantomData,
            env: PhantomData,
        }
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Submits a job, which may run until the scope ends.
    ///
    /// Memory of the body itself is gone by then:
    ///
    /// ```compile_fail,E0597
    /// # use virtgpu_client::{AddressSpace, Job};
    /// # fn f(space: &AddressSpace) {
    /// let _ = space.scope(|scope| {
    ///     let mut word = 0_u64;
    ///     let mut job = Job::new();
    ///     job.fill((&mut word).into(), 1);
    ///     scope.submit(0, &job)
    /// });
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of EXECBUFFER. Then the job does not run.
    pub fn submit(&'scope self, ring: u32, job: &Job<'scope>) -> Result<()> {
        // SAFETY: The memory is borrowed until the scope has ended.
        unsafe { self.submit_unbound(ring, job.stream()) }
    }

    /// # Safety
    ///
    /// See [`AddressSpace::submit`]: the job ends before [`Self::end`] does.
    pub(super) unsafe fn submit_unbound(&self, ring: u32, stream: &Stream) -> Result<()> {
        // There are 64 at most; what is no ring is refused.
        if ring < u64::BITS {
            self.rings.fetch_or(1 << ring, Ordering::Relaxed);
        }
        // SAFETY: By this function's contract.
        unsafe { self.space.submit(ring, stream) }
    }

    /// Waits for all jobs.
    pub(super) fn end(&self) -> Result<()> {
        let rings = self.rings.load(Ordering::Relaxed);
        let mut result = Ok(());
        for ring in (0..u64::BITS).filter(|ring| rings & (1 << ring) != 0) {
            match self.space.wait_ring(ring, Deadline::Never) {
                Ok(()) => {}
                // A ring that there is not had no job.
                Err(Errno::INVAL) => {}
                // None of them runs any more; or they are those of the process that has made this
                // one by fork, and use its memory.
                Err(error @ (Errno::IO | Errno::NODEV | Errno::ACCESS)) => result = Err(error),
                // A job may still use the memory, and nothing says until when.
                Err(error) => {
                    eprintln!("virtgpu-client: waiting for ring {ring}: {error}");
                    std::process::abort();
                }
            }
        }
        result
    }
}
