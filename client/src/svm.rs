// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The whole address space of this process, used by the device in place.

use core::fmt;
use core::marker::PhantomData;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtgpu_protocol::{compute::Operand, uapi};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{compute::Stream, Device, Errno, Event, Exec, Memory, Result};

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

/// Until when to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Only ask.
    Now,
    /// CLOCK_MONOTONIC, in nanoseconds.
    At(i64),
    /// For ever.
    Never,
}

impl Deadline {
    /// So long from now on.
    pub fn after(time: Duration) -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let end = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_add(time);
        Self::At(i64::try_from(end.as_nanos()).unwrap_or(i64::MAX))
    }

    fn nanoseconds(self) -> i64 {
        match self {
            Self::Now => 0,
            Self::At(end) => end.max(0),
            Self::Never => -1,
        }
    }
}

/// How [`AddressSpace::wait_value`] compares, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Comparison {
    /// Equal.
    Equal = uapi::svm_wait::EQ,
    /// Not equal.
    NotEqual = uapi::svm_wait::NE,
    /// Greater.
    Greater = uapi::svm_wait::GT,
    /// Greater or equal.
    GreaterOrEqual = uapi::svm_wait::GE,
    /// Less.
    Less = uapi::svm_wait::LT,
    /// Less or equal.
    LessOrEqual = uapi::svm_wait::LE,
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
            unsafe { scope.submit_unbound(ring, &job.stream) }
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
        let scope = Scope {
            space: self,
            rings: AtomicU64::new(0),
            scope: PhantomData,
            env: PhantomData,
        };
        let value = catch_unwind(AssertUnwindSafe(|| body(&scope)));
        let end = scope.end();
        match value {
            Ok(value) => end.map(|()| value),
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Where jobs can be submitted that use borrowed memory, see [`AddressSpace::scope`].
///
/// As with `std::thread::scope`, the memory of a job is borrowed for `'scope`, which ends only after
/// the jobs have.
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
        unsafe { self.submit_unbound(ring, &job.stream) }
    }

    /// # Safety
    ///
    /// See [`AddressSpace::submit`]: the job ends before [`Self::end`] does.
    unsafe fn submit_unbound(&self, ring: u32, stream: &Stream) -> Result<()> {
        // There are 64 at most; what is no ring is refused.
        if ring < u64::BITS {
            self.rings.fetch_or(1 << ring, Ordering::Relaxed);
        }
        // SAFETY: By this function's contract.
        unsafe { self.space.submit(ring, stream) }
    }

    /// Waits for all jobs.
    fn end(&self) -> Result<()> {
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
                // Nobody knows when the memory is free again.
                Err(error) => {
                    eprintln!("virtgpu-client: waiting for ring {ring}: {error}");
                    std::process::abort();
                }
            }
        }
        result
    }
}

/// Memory that a job reads.
#[derive(Clone, Copy, Debug)]
pub struct Input<'m> {
    address: u64,
    length: u64,
    memory: PhantomData<&'m [u8]>,
}

/// Memory that a job reads and writes.
///
/// It can be named by many operations and jobs: the order in which jobs of several rings write is
/// open, but nobody else uses the memory for `'m`.
#[derive(Clone, Copy, Debug)]
pub struct Output<'m> {
    address: u64,
    length: u64,
    memory: PhantomData<&'m mut [u8]>,
}

impl<'m, T: IntoBytes + Immutable + ?Sized> From<&'m T> for Input<'m> {
    fn from(value: &'m T) -> Self {
        Self {
            address: (&raw const *value).addr() as u64,
            length: size_of_val(value) as u64,
            memory: PhantomData,
        }
    }
}

impl<'m, T: FromBytes + IntoBytes + ?Sized> From<&'m mut T> for Output<'m> {
    fn from(value: &'m mut T) -> Self {
        let length = size_of_val(value) as u64;
        Self {
            // The device writes through it, as a system call would.
            address: (&raw mut *value).expose_provenance() as u64,
            length,
            memory: PhantomData,
        }
    }
}

impl<'m> From<Output<'m>> for Input<'m> {
    fn from(output: Output<'m>) -> Self {
        Self {
            address: output.address,
            length: output.length,
            memory: PhantomData,
        }
    }
}

fn part(length: u64, offset: u64, part: u64) {
    let inside = offset.checked_add(part).is_some_and(|end| end <= length);
    assert!(inside, "{offset}+{part} is outside of {length} bytes");
}

impl<'m> Input<'m> {
    /// All of `memory`.
    pub fn memory<M: Memory + ?Sized>(memory: &'m M) -> Self {
        Output::memory(memory).into()
    }

    /// `length` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// If they are not inside.
    pub fn part(self, offset: u64, length: u64) -> Self {
        part(self.length, offset, length);
        Self {
            address: self.address + offset,
            length,
            ..self
        }
    }

    fn operand(self) -> Operand {
        Operand::resource(0, self.address)
    }
}

impl<'m> Output<'m> {
    /// All of `memory`.
    pub fn memory<M: Memory + ?Sized>(memory: &'m M) -> Self {
        Self {
            address: memory.as_ptr().expose_provenance() as u64,
            length: memory.len() as u64,
            memory: PhantomData,
        }
    }

    /// A word that others may use at the same time.
    pub fn word(word: &'m AtomicU64) -> Self {
        Self {
            address: word.as_ptr().expose_provenance() as u64,
            length: size_of::<u64>() as u64,
            memory: PhantomData,
        }
    }

    /// `length` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// If they are not inside.
    pub fn part(self, offset: u64, length: u64) -> Self {
        part(self.length, offset, length);
        Self {
            address: self.address + offset,
            length,
            ..self
        }
    }

    fn operand(self) -> Operand {
        Operand::resource(0, self.address)
    }
}

/// `pointer` as an operand of a [`Stream`], for [`AddressSpace::submit`].
pub fn pointer<T: ?Sized>(pointer: *const T) -> Operand {
    Operand::resource(0, pointer.cast::<u8>().expose_provenance() as u64)
}

/// A job of the compute context of the reference device, on memory of this process: operations that
/// run in order.
#[derive(Clone, Debug, Default)]
pub struct Job<'m> {
    stream: Stream,
    memory: PhantomData<&'m mut [u8]>,
}

/// All panic if the memory has not the length that they say.
impl<'m> Job<'m> {
    /// A job that does nothing.
    pub const fn new() -> Self {
        Self {
            stream: Stream::new(),
            memory: PhantomData,
        }
    }

    /// `to` = the bytes of `pattern`, repeated; a multiple of 8 bytes.
    pub fn fill(&mut self, to: Output<'m>, pattern: u64) -> &mut Self {
        multiple(to.length, 8);
        self.stream.fill(to.operand(), to.length, pattern);
        self
    }

    /// `to` = `from`, of the same length.
    pub fn copy(&mut self, to: Output<'m>, from: Input<'m>) -> &mut Self {
        exactly(from.length, to.length);
        self.stream.copy(to.operand(), from.operand(), to.length);
        self
    }

    /// `to` (4 bytes) = CRC32C of `from`.
    pub fn crc32c(&mut self, to: Output<'m>, from: Input<'m>) -> &mut Self {
        exactly(to.length, 4);
        self.stream
            .crc32c(to.operand(), from.operand(), from.length);
        self
    }

    /// Adds `value` to each u32 of `to`.
    pub fn add_u32(&mut self, to: Output<'m>, value: u32) -> &mut Self {
        multiple(to.length, 4);
        self.stream.add_u32(to.operand(), to.length, value);
        self
    }

    /// Each f32 of `to` += `a` * that of `from`, of the same length.
    pub fn saxpy(&mut self, to: Output<'m>, from: Input<'m>, a: f32) -> &mut Self {
        exactly(from.length, to.length);
        multiple(to.length, 4);
        self.stream
            .saxpy(to.operand(), from.operand(), to.length, a);
        self
    }

    /// `to` (m x n) = `a` (m x k) * `b` (k x n), row-major f32.
    pub fn gemm(
        &mut self,
        to: Output<'m>,
        [a, b]: [Input<'m>; 2],
        [m, n, k]: [u32; 3],
    ) -> &mut Self {
        let bytes = |rows, columns| u64::from(rows) * u64::from(columns) * 4;
        exactly(to.length, bytes(m, n));
        exactly(a.length, bytes(m, k));
        exactly(b.length, bytes(k, n));
        self.stream
            .gemm(to.operand(), [a.operand(), b.operand()], [m, n, k]);
        self
    }

    /// Adds `value` to `word`, `times` times, atomically: others may use it at the same time.
    pub fn atomic_add(&mut self, word: &'m AtomicU64, value: u64, times: u64) -> &mut Self {
        self.stream
            .atomic_add(Output::word(word).operand(), value, times);
        self
    }

    /// `word` = `value`: a user fence, which [`AddressSpace::wait_value`] can wait for.
    pub fn store(&mut self, word: &'m AtomicU64, value: u64) -> &mut Self {
        self.fill(Output::word(word), value)
    }

    /// `to` (8 bytes) = sum of the bytes of `from` at multiples of `stride`.
    pub fn stride_read(&mut self, to: Output<'m>, from: Input<'m>, stride: u64) -> &mut Self {
        exactly(to.length, 8);
        self.stream
            .stride_read(to.operand(), from.operand(), from.length, stride);
        self
    }

    /// Follows a chain of pointers: reads the address of the next at `first`, and so on, `steps`
    /// times; `to` (8 bytes) = the last one read.
    ///
    /// A chain that leads out of the memory of the process costs the context, and nothing else: the
    /// device only reads.
    pub fn pointer_chase<T: ?Sized>(
        &mut self,
        to: Output<'m>,
        first: *const T,
        steps: u64,
    ) -> &mut Self {
        exactly(to.length, 8);
        self.stream
            .pointer_chase(to.operand(), pointer(first), steps);
        self
    }

    /// Waits until `word` equals `value`, for `microseconds` at most.
    pub fn spin_until(&mut self, word: &'m AtomicU64, value: u64, microseconds: u64) -> &mut Self {
        self.stream
            .spin_until(Output::word(word).operand(), value, microseconds);
        self
    }

    /// Waits for `microseconds`.
    pub fn delay(&mut self, microseconds: u64) -> &mut Self {
        self.stream.delay(microseconds);
        self
    }
}

fn multiple(length: u64, of: u64) {
    assert!(length % of == 0, "{length} bytes, not a multiple of {of}");
}

fn exactly(length: u64, expected: u64) {
    assert_eq!(length, expected, "bytes of memory");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(job: &Job<'_>) -> Vec<u8> {
        job.stream.as_bytes().to_vec()
    }

    #[test]
    fn operands_are_pointers() {
        let mut words = [1_u64; 4];
        let address = words.as_ptr() as u64;
        let mut job = Job::new();
        job.fill(Output::from(&mut words[1..]).part(8, 16), 7);
        let mut expected = Stream::new();
        expected.fill(Operand::resource(0, address + 16), 16, 7);
        assert_eq!(bytes(&job), expected.as_bytes());
    }

    #[test]
    #[should_panic(expected = "is outside of 8 bytes")]
    fn a_part_is_inside() {
        let _ = Input::from(&1_u64).part(4, 5);
    }

    #[test]
    #[should_panic(expected = "bytes of memory")]
    fn lengths_agree() {
        let mut to = [0_u8; 8];
        Job::new().copy((&mut to).into(), (&[0_u8; 9]).into());
    }

    #[test]
    fn deadlines() {
        assert_eq!(Deadline::Now.nanoseconds(), 0);
        assert!(Deadline::Never.nanoseconds() < 0);
        let soon = Deadline::after(Duration::from_secs(1)).nanoseconds();
        assert!(soon > Deadline::after(Duration::ZERO).nanoseconds());
        assert_eq!(Deadline::after(Duration::MAX).nanoseconds(), i64::MAX);
    }
}
