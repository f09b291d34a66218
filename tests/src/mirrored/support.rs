// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The device as the kernel's hmm-tests have it: READ, WRITE, COPY and CSUM of mirrored memory, and
//! counters that show that the device was told when pages went away.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use virtgpu_client::protocol::compute::Stat;
use virtgpu_client::protocol::uapi::{self, BoQuery};
use virtgpu_client::{
    compute, Blob, BlobMap, BlobOptions, Bytes, Device, Errno, Event, Exec, Memory,
    RegisterOptions, Registration, SyncFile,
};

pub(crate) use crate::ktap::family;
use crate::ktap::{Outcome, TestResult};
use crate::support::errno::name;
pub(crate) use crate::support::place::each_kind;
use crate::support::place::{Pages, Place};
use crate::support::stat::Oracle;
use crate::support::{agree, job, pace, Env, Random, HUGE, PAGE};
use crate::{check, check_eq, skip};

/// Readable and writable, all of it at every job.
pub(crate) const WHOLE: RegisterOptions = RegisterOptions::mirrored();
/// Only what was prefetched.
pub(crate) const SPARSE: RegisterOptions = RegisterOptions::mirrored().sparse();
/// The device may only read.
pub(crate) const READ_ONLY: RegisterOptions = RegisterOptions::mirrored().read_only();

/// Where a case that does things at random begins; it says so, and how to have the same again.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("VIRTGPU_TESTS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    println!("    # seed {seed}: VIRTGPU_TESTS_SEED={seed} repeats it, as far as threads repeat");
    seed
}

/// Opens the device with a context of 4 rings, if it can mirror memory.
pub(crate) fn open(env: &Env) -> TestResult<Device> {
    let device = env.compute()?;
    if device.userptr_modes()? & uapi::USERPTR_MODE_MIRRORED == 0 {
        skip!("the device does not mirror user memory");
    }
    Ok(device)
}

/// Runs `test` on memory of `length` bytes of each kind of pages, on a file of its own each time.
pub(crate) fn on_each_kind(
    env: &Env,
    length: usize,
    test: fn(&Device, &Place) -> TestResult,
) -> TestResult {
    on_each(env, |pages| Place::new(pages, length), test)
}

/// The same, where the memory has a part in each of two page tables, and no more than that needs.
pub(crate) fn across_tables(env: &Env, test: fn(&Device, &Place) -> TestResult) -> TestResult {
    let place = |pages| match pages {
        Pages::Base => Place::across(33 * PAGE),
        Pages::Huge => Place::new(pages, HUGE + 2 * PAGE),
        Pages::Hugetlb => Place::new(pages, 2 * HUGE),
    };
    on_each(env, place, test)
}

fn on_each(
    env: &Env,
    place: impl Fn(Pages) -> TestResult<Place>,
    test: fn(&Device, &Place) -> TestResult,
) -> TestResult {
    each_kind(&Pages::ALL, |pages| {
        let device = open(env)?;
        test(&device, &place(pages)?)
    })
}

/// How a job ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Well.
    Done,
    /// EXECBUFFER refused it.
    Refused(Errno),
    /// It was queued, and its fence carries an error.
    Failed(Errno),
}

/// How often a job is tried again that was refused because memory kept changing.
const BUSY: usize = 20;

/// The ring of the jobs that ask the device for its counts.
const STAT_RING: u32 = 3;

/// Longer than the kernel keeps on reclaiming memory that no one uses.
const SETTLED: Duration = Duration::from_secs(20);

/// What runs through the staging buffer at a time.
const STAGING: usize = 16 * PAGE;

/// Mirrored memory, and a device that uses it.
pub(crate) struct Mirror<'a> {
    pub(crate) device: &'a Device,
    pub(crate) userptr: Registration<'a, &'a Place>,
    place: &'a Place,
    /// Where in `place` the registration starts.
    offset: usize,
    length: usize,
    staging: Blob<'a>,
    staged: BlobMap,
    oracle: OnceLock<Oracle<'a>>,
}

/// What driver and device have counted of a registration.
pub(crate) struct Both {
    pub(crate) driver: BoQuery,
    pub(crate) device: Stat,
}

/// Pages mapped, MAPs and INVALIDATEs, as the driver has counted them.
fn driver_counts(count: &BoQuery) -> [u64; 3] {
    let pages = count.mapped_bytes / PAGE as u64;
    [pages, count.maps, count.invalidations]
}

/// The same, as the device has.
fn device_counts(stat: &Stat) -> [u64; 3] {
    [stat.space_pages, stat.space_maps, stat.space_invalidates].map(u64::from)
}

impl<'a> Mirror<'a> {
    /// Registers all of `place`.
    pub(crate) fn new(device: &'a Device, place: &'a Place) -> TestResult<Self> {
        Self::with(device, place, WHOLE)
    }

    /// The same with options.
    pub(crate) fn with(
        device: &'a Device,
        place: &'a Place,
        options: RegisterOptions,
    ) -> TestResult<Self> {
        Self::part(device, place, 0, place.len(), options)
    }

    /// Registers a part of `place`.
    pub(crate) fn part(
        device: &'a Device,
        place: &'a Place,
        offset: usize,
        length: usize,
        options: RegisterOptions,
    ) -> TestResult<Self> {
        let userptr = device.register_range(place, offset, length, options)?;
        let staging = device.create_blob(&BlobOptions::guest(STAGING as u64))?;
        let staged = staging.map()?;
        Ok(Self {
            device,
            userptr,
            place,
            offset,
            length,
            staging,
            staged,
            oracle: OnceLock::new(),
        })
    }

    /// State and counters.
    pub(crate) fn count(&self) -> TestResult<BoQuery> {
        Ok(self.userptr.query()?)
    }

    /// What the device itself says of the space, on a ring that no test keeps busy for long.
    pub(crate) fn stat(&self) -> TestResult<Stat> {
        let oracle = match self.oracle.get() {
            Some(oracle) => oracle,
            None => {
                let new = Oracle::new(self.device)?;
                self.oracle.get_or_init(|| new)
            }
        };
        oracle.read_on(STAT_RING, self.userptr.at(0).resource_id.get())
    }

    /// What both have counted, at a moment when they have to say the same.
    pub(crate) fn count_both(&self, what: &str) -> TestResult<Both> {
        // What the kernel does in the background may come in between.
        let deadline = Instant::now() + pace::limit(SETTLED);
        let both = loop {
            let driver = self.count()?;
            let both = Both {
                driver,
                device: self.stat()?,
            };
            let now = self.count()?;
            if driver_counts(&now) == driver_counts(&driver) {
                break both;
            }
            check!(Instant::now() < deadline, "{what}: memory keeps changing");
        };
        check_eq!(
            driver_counts(&both.driver),
            device_counts(&both.device),
            "{what}: pages mapped, MAPs and INVALIDATEs, the driver's and the device's"
        );
        Ok(both)
    }

    /// What a job of [`Self::reading`] uses.
    pub(crate) fn handles(&self) -> [u32; 2] {
        [self.userptr.handle(), self.staging.handle()]
    }

    /// Queues a job that uses the memory.
    pub(crate) fn submit(&self, stream: &compute::Stream) -> Result<SyncFile, Errno> {
        self.submit_on(0, stream)
    }

    /// The same on a ring.
    pub(crate) fn submit_on(&self, ring: u32, stream: &compute::Stream) -> Result<SyncFile, Errno> {
        Exec::new(stream.as_bytes())
            .ring(ring)
            .buffers(&self.handles())
            .submit_with_fence(self.device)
    }

    /// Runs a job to its end, whatever that is.
    pub(crate) fn end(&self, stream: &compute::Stream) -> TestResult<End> {
        let fence = match self.submit(stream) {
            Ok(fence) => fence,
            Err(error) => return Ok(End::Refused(error)),
        };
        match fence.wait(Some(job::LIMIT)) {
            Ok(()) => Ok(End::Done),
            Err(Errno::TIMEDOUT) => Err(Outcome::Fail("a job does not end".into())),
            Err(error) => Ok(End::Failed(error)),
        }
    }

    /// [`Self::end`] of a job that is not to be refused because memory keeps changing. What the
    /// kernel does in the background may win the race for the driver's patience, on a slow machine
    /// more than once.
    pub(crate) fn end_at_last(&self, what: &str, stream: &compute::Stream) -> TestResult<End> {
        let mut end = self.end(stream)?;
        for _ in 0..BUSY {
            if end != End::Refused(Errno::BUSY) {
                break;
            }
            println!("    # {what}: busy, again");
            end = self.end(stream)?;
        }
        Ok(end)
    }

    /// Runs a job that must succeed.
    pub(crate) fn run(&self, what: &str, stream: &compute::Stream) -> TestResult {
        match self.end_at_last(what, stream)? {
            End::Done => Ok(()),
            End::Refused(error) => Err(Outcome::Fail(format!(
                "{what}: EXECBUFFER: {}",
                name(error)
            ))),
            End::Failed(error) => Err(Outcome::Fail(format!("{what}: the job: {}", name(error)))),
        }
    }

    /// A job that reads all of the memory.
    pub(crate) fn reading(&self) -> compute::Stream {
        self.reading_part(0, self.length)
    }

    /// A job that reads a part of the memory.
    pub(crate) fn reading_part(&self, offset: usize, length: usize) -> compute::Stream {
        let mut stream = compute::Stream::new();
        stream.crc32c(
            self.staging.at(0),
            self.userptr.at(offset as u64),
            length as u64,
        );
        stream
    }

    /// What [`Self::reading`] has found, once it is done.
    pub(crate) fn result(&self) -> u32 {
        self.staged.read_u32(0)
    }

    /// A job that reads the first word of each page, of at most [`STAGING`] bytes of words.
    pub(crate) fn reading_words(&self) -> compute::Stream {
        let mut stream = compute::Stream::new();
        for page in 0..self.length / PAGE {
            let (to, from) = (8 * page as u64, (page * PAGE) as u64);
            stream.copy(self.staging.at(to), self.userptr.at(from), 8);
        }
        stream
    }

    /// Makes what [`Self::reading_words`] has found last unlike anything that it can find.
    pub(crate) fn forget_words(&self) {
        self.staged.write(0, &vec![0xff; 8 * self.length / PAGE]);
    }

    /// What [`Self::reading_words`] has found in a page, once it is done.
    pub(crate) fn word(&self, page: usize) -> u64 {
        self.staged.read_u64(8 * page)
    }

    /// A job that writes a word.
    pub(crate) fn writing(&self, offset: usize, value: u64) -> compute::Stream {
        let mut stream = compute::Stream::new();
        stream.fill(self.userptr.at(offset as u64), 8, value);
        stream
    }

    /// A job that does not touch the memory, but lists it.
    pub(crate) fn idle(&self) -> compute::Stream {
        let mut stream = compute::Stream::new();
        stream.delay(1);
        stream
    }

    /// READ.
    pub(crate) fn read(&self, offset: usize, length: usize) -> TestResult<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset + bytes.len();
            let part = STAGING.min(length - bytes.len());
            let mut stream = compute::Stream::new();
            stream.copy(self.staging.at(0), self.userptr.at(at as u64), part as u64);
            self.run(&format!("reading {part} bytes at {at:#x}"), &stream)?;
            bytes.extend(self.staged.to_vec(0, part));
        }
        Ok(bytes)
    }

    /// WRITE.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> TestResult {
        for (index, part) in bytes.chunks(STAGING).enumerate() {
            let at = offset + index * STAGING;
            self.staged.write(0, part);
            let mut stream = compute::Stream::new();
            stream.copy(
                self.userptr.at(at as u64),
                self.staging.at(0),
                part.len() as u64,
            );
            self.run(&format!("writing {} bytes at {at:#x}", part.len()), &stream)?;
        }
        Ok(())
    }

    /// WRITE of what fits into one job, to its end, whatever that is.
    pub(crate) fn try_write(&self, offset: usize, bytes: &[u8]) -> TestResult<End> {
        self.staged.write(0, bytes);
        let mut stream = compute::Stream::new();
        stream.copy(
            self.userptr.at(offset as u64),
            self.staging.at(0),
            bytes.len() as u64,
        );
        self.end(&stream)
    }

    /// COPY within the memory.
    pub(crate) fn copy(&self, to: usize, from: usize, length: usize) -> TestResult {
        let mut stream = compute::Stream::new();
        stream.copy(
            self.userptr.at(to as u64),
            self.userptr.at(from as u64),
            length as u64,
        );
        self.run("copying", &stream)
    }

    /// CSUM: the device's CRC32C.
    pub(crate) fn csum(&self, offset: usize, length: usize) -> TestResult<u32> {
        let stream = self.reading_part(offset, length);
        self.run(
            &format!("checksum of {length} bytes at {offset:#x}"),
            &stream,
        )?;
        Ok(self.staged.read_u32(0))
    }

    /// The u64 at `offset`, as the device sees it.
    pub(crate) fn peek(&self, offset: usize) -> TestResult<u64> {
        let mut stream = compute::Stream::new();
        stream.copy(self.staging.at(0), self.userptr.at(offset as u64), 8);
        self.run(&format!("reading at {offset:#x}"), &stream)?;
        Ok(self.staged.read_u64(0))
    }

    /// The device writes a u64.
    pub(crate) fn poke(&self, offset: usize, value: u64) -> TestResult {
        self.run(
            &format!("writing at {offset:#x}"),
            &self.writing(offset, value),
        )
    }

    /// The device writes `value` everywhere.
    pub(crate) fn fill(&self, value: u64) -> TestResult {
        let mut stream = compute::Stream::new();
        stream.fill(self.userptr.at(0), self.length as u64, value);
        self.run("filling", &stream)
    }

    /// Makes a part usable by later jobs, all of it.
    pub(crate) fn prefetch(&self, offset: usize, length: usize) -> TestResult {
        let done = self.userptr.prefetch(offset as u64, length as u64)?;
        check_eq!(done, length as u64, "bytes prefetched at {offset:#x}");
        Ok(())
    }

    /// Both sides see the same bytes everywhere.
    pub(crate) fn agrees(&self, what: &str) -> TestResult {
        self.agrees_at(what, 0, self.length)
    }

    /// Both sides see the same bytes in a part.
    pub(crate) fn agrees_at(&self, what: &str, offset: usize, length: usize) -> TestResult {
        let ours = self.place.to_vec(self.offset + offset, length);
        agree::sees(
            &format!("{what}: at {offset:#x}"),
            self.csum(offset, length)?,
            &ours,
        )
    }

    /// Each side sees what the other writes at `offset`.
    pub(crate) fn coherent(&self, what: &str, offset: usize) -> TestResult {
        agree::coherent(
            what,
            self.place,
            self.offset + offset,
            || self.peek(offset),
            |value| self.poke(offset, value),
        )
    }

    /// [`Self::coherent`] at the first page, the last page and one in the middle.
    pub(crate) fn coherent_all_over(&self, what: &str) -> TestResult {
        for offset in agree::spread(self.length) {
            self.coherent(what, offset)?;
        }
        Ok(())
    }

    /// A job that reads the memory is refused with `error`, and one that only lists it, too.
    pub(crate) fn refused(&self, what: &str, error: Errno) -> TestResult {
        for stream in [self.reading(), self.idle()] {
            check_eq!(self.end(&stream)?, End::Refused(error), "{what}: a job");
        }
        Ok(())
    }

    /// A job is queued and fails alone; the context is lost by it.
    pub(crate) fn fails(&self, what: &str, stream: &compute::Stream) -> TestResult {
        check_eq!(self.end(stream)?, End::Failed(Errno::IO), "{what}: the job");
        check_eq!(
            self.end(&self.idle())?,
            End::Refused(Errno::IO),
            "{what}: a later job of the same context"
        );
        Ok(())
    }

    /// Runs `event` with all of the memory mapped by the device: the device must be told, and lose
    /// at least `bytes` of it.
    pub(crate) fn loses<T>(
        &self,
        what: &str,
        bytes: usize,
        event: impl FnOnce() -> TestResult<T>,
    ) -> TestResult<T> {
        self.run(&format!("{what}: mapping everything"), &self.idle())?;
        let before = self.count_both(what)?.device;
        let value = event()?;
        let after = self.count_both(what)?.device;
        agree::has_lost(what, [&before, &after], bytes)?;
        Ok(value)
    }

    /// Runs `event` with all of the memory mapped by the device, which must not lose any of it.
    pub(crate) fn keeps<T>(
        &self,
        what: &str,
        event: impl FnOnce() -> TestResult<T>,
    ) -> TestResult<T> {
        self.run(&format!("{what}: mapping everything"), &self.idle())?;
        let before = self.count_both(what)?.device;
        let value = event()?;
        let after = self.count_both(what)?.device;
        check_eq!(
            (after.space_invalidates, after.space_pages),
            (before.space_invalidates, before.space_pages),
            "{what}: INVALIDATEs and pages mapped in the device"
        );
        Ok(value)
    }

    /// Writes data that depends on the seed to all of the memory, and returns it.
    pub(crate) fn scatter(&self, seed: u64) -> Vec<u8> {
        let data = Random(seed).bytes(self.length);
        self.place.write(self.offset, &data);
        data
    }
}

/// The next event, which must be about user memory.
pub(crate) fn next_event(device: &Device) -> TestResult<Vec<uapi::UserptrEvent>> {
    device
        .events(job::LIMIT)?
        .into_iter()
        .map(|event| match event {
            Event::Userptr(event) => Ok(event),
            other => Err(Outcome::Fail(format!("{other:?}"))),
        })
        .collect()
}

/// Nothing can be read. Events that were due have been waited for by the caller.
pub(crate) fn no_event(device: &Device) -> TestResult {
    check!(
        !device.wait_for_event(Duration::ZERO)?,
        "an event: {:?}",
        device.events(Duration::ZERO)
    );
    Ok(())
}
