// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P9: what it costs that jobs use pointers of the process, of which the device learns by faults.
//!
//! Times are those of jobs, from EXECBUFFER to the return of SVM_WAIT. What a fault costs is what a
//! job takes longer that has faults than the same one without, so that the way to the device and
//! back counts for neither; it is all that the faulting access waits for.

mod beside;
mod chasing;
mod crowd;
mod exclusive;
mod one_page;
mod tables;
mod touching;
mod uffd;

use std::time::{Duration, Instant};

use virtgpu_client::protocol::compute::Operand;
use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, pointer, AddressSpace, Deadline, Mapping, Memory, SpaceOptions};

use crate::report::Report;
use crate::setup::{nothing, since, Result, PAGE};
use crate::Options;

/// Longer than any job here takes.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    if exclusive::is_needed()? {
        return exclusive::measure(options, report);
    }
    one_page::measure(options, report)?;
    touching::measure(options, report)?;
    chasing::measure(options, report)?;
    crowd::measure(options, report)?;
    beside::measure(options, report)?;
    tables::measure(options, report)
}

/// A context whose jobs use all memory of this process.
struct Svm {
    space: AddressSpace,
    /// Where jobs put what no one looks at.
    sink: Mapping,
}

impl Svm {
    fn open(rings: u32, options: SpaceOptions) -> Result<Self> {
        let device = virtgpu_client::Device::open()?;
        if device.userptr_modes()? & uapi::USERPTR_MODE_SVM == 0 {
            return Err("there is no shared virtual memory here".into());
        }
        device.context_init_compute(rings)?;
        let svm = Self {
            space: AddressSpace::enable(device, options)?,
            sink: Mapping::anonymous(PAGE)?,
        };
        // What only the first job finds untouched.
        let mut job = nothing();
        job.fill(svm.sink(), 8, 0);
        svm.run(&job)?;
        Ok(svm)
    }

    fn sink(&self) -> Operand {
        pointer(self.sink.as_ptr())
    }

    /// Submits a job, and does not wait for it.
    fn submit(&self, ring: u32, job: &compute::Stream) -> Result {
        // SAFETY: The memory of jobs here is that of mappings, to which there are no references.
        unsafe { self.space.submit(ring, job)? };
        Ok(())
    }

    /// Waits for all jobs of a ring.
    fn finish(&self, ring: u32) -> Result {
        Ok(self.space.wait_ring(ring, Deadline::after(LIMIT))?)
    }

    /// Runs a job to its end; what it takes, in nanoseconds.
    fn run(&self, job: &compute::Stream) -> Result<f64> {
        let start = Instant::now();
        self.submit(0, job)?;
        self.finish(0)?;
        Ok(since(start))
    }

    /// Runs a job to its end; what it takes, and the faults that the device has reported for it.
    fn faults(&self, job: &compute::Stream) -> Result<(f64, u64)> {
        let before = self.space.query()?.faults;
        let time = self.run(job)?;
        Ok((time, self.space.query()?.faults - before))
    }

    /// A job that reads a byte of each page.
    fn reading(&self, memory: &impl Memory) -> compute::Stream {
        let mut job = compute::Stream::new();
        let from = pointer(memory.as_ptr());
        job.stride_read(self.sink(), from, memory.len() as u64, PAGE as u64);
        job
    }
}

/// Has the device lose the pages of a range, which stay where they are.
fn revoke(memory: &impl Memory) -> Result {
    for protection in [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
        // SAFETY: The range is ours, and no one writes to it meanwhile.
        let result = unsafe { libc::mprotect(memory.as_ptr().cast(), memory.len(), protection) };
        if result != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    Ok(())
}

/// madvise(2).
fn advise(memory: &impl Memory, advice: i32) -> Result {
    // SAFETY: The range is ours, and what is in it does not matter.
    match unsafe { libc::madvise(memory.as_ptr().cast(), memory.len(), advice) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

/// The numbers below `count`, in an order that is random, and the same each time.
fn shuffled(count: usize) -> Vec<usize> {
    let mut numbers: Vec<_> = (0..count).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..count).rev() {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(last, (state % (last as u64 + 1)) as usize);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_there_and_not_in_order() {
        let mut numbers = shuffled(1000);
        assert!(numbers.windows(2).any(|pair| pair[0] > pair[1]));
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..1000));
    }
}
