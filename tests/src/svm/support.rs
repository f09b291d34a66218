// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A context whose jobs use pointers of this process: WRITE and CSUM of any address, how a job
//! ends, and what is told of a context that is lost.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use virtgpu_client::protocol::compute::{Operand, Stat};
use virtgpu_client::protocol::uapi::{self, SvmQuery};
use virtgpu_client::{
    compute, pointer, AddressSpace, Bytes, Deadline, Device, Errno, Event, Mapping, Memory,
    SpaceOptions,
};

pub(crate) use crate::ktap::family;
use crate::ktap::{Outcome, TestResult};
use crate::support::errno::name;
pub(crate) use crate::support::place::each_kind;
use crate::support::place::{Pages, Place};
use crate::support::{agree, job, Env, Random, PAGE};
use crate::{check, check_eq, skip};

/// What every context of the tests is enabled with, unless the case is about something else.
pub(crate) const USUAL: SpaceOptions = SpaceOptions::new().events(COOKIE);
/// Returned in events.
pub(crate) const COOKIE: u64 = 0x5eed_c0de;

/// Rings of a context.
pub(crate) const RINGS: u32 = 4;

/// Opens the device with a context of [`RINGS`] rings, if faults of it can be served.
pub(crate) fn device(env: &Env) -> TestResult<Device> {
    let device = env.open()?;
    if device.userptr_modes()? & uapi::USERPTR_MODE_SVM == 0 {
        skip!("there is no shared virtual memory here");
    }
    device.context_init_compute(RINGS)?;
    Ok(device)
}

/// Opens the device with shared virtual memory.
pub(crate) fn open(env: &Env) -> TestResult<Svm> {
    open_with(env, USUAL)
}

/// The same with options.
pub(crate) fn open_with(env: &Env, options: SpaceOptions) -> TestResult<Svm> {
    Svm::new(AddressSpace::enable(device(env)?, options)?)
}

/// Runs `test` on memory of `length` bytes of each kind of pages, on a file of its own each time.
pub(crate) fn on_each_kind(
    env: &Env,
    length: usize,
    test: fn(&Svm, &Place) -> TestResult,
) -> TestResult {
    each_kind(&Pages::ALL, |pages| {
        test(&open(env)?, &Place::new(pages, length)?)
    })
}

/// How a job ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Well.
    Done,
    /// EXECBUFFER refused it.
    Refused(Errno),
    /// It was accepted, and the context is lost.
    Lost,
}

/// What runs through the staging memory at a time.
const STAGING: usize = 16 * PAGE;

/// What a lost context says of the access that has cost it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    /// A `uapi::svm_reason`.
    pub(crate) reason: u32,
    /// A `uapi::svm_access`.
    pub(crate) access: u32,
    /// The page.
    pub(crate) page: u64,
    pub(crate) ring: u32,
}

/// An access that has no memory.
pub(crate) fn bad_address(access: u32, address: u64) -> Cause {
    cause(uapi::svm_reason::BAD_ADDRESS, access, address)
}

/// An access that the memory does not allow.
pub(crate) fn bad_access(access: u32, address: u64) -> Cause {
    cause(uapi::svm_reason::BAD_ACCESS, access, address)
}

/// On ring 0.
fn cause(reason: u32, access: u32, address: u64) -> Cause {
    Cause {
        reason,
        access,
        page: page_of(address),
        ring: 0,
    }
}

fn page_of(address: u64) -> u64 {
    address & !(PAGE as u64 - 1)
}

/// The memory of this process, and a device that uses it.
pub(crate) struct Svm {
    pub(crate) space: AddressSpace,
    staging: Mapping,
}

impl Svm {
    pub(crate) fn new(space: AddressSpace) -> TestResult<Self> {
        let staging = Mapping::anonymous(STAGING)?;
        Ok(Self { space, staging })
    }

    /// The file, for what is not about pointers.
    pub(crate) fn device(&self) -> &Device {
        // SAFETY: The jobs of the tests use memory of the tests only, to which there are no
        // references while they run.
        unsafe { self.space.device() }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.device().as_fd()
    }

    /// State and counters.
    pub(crate) fn count(&self) -> TestResult<SvmQuery> {
        Ok(self.space.query()?)
    }

    /// Submits a job.
    pub(crate) fn submit(&self, ring: u32, stream: &compute::Stream) -> Result<(), Errno> {
        // SAFETY: As in `device`.
        unsafe { self.space.submit(ring, stream) }
    }

    /// Waits for the jobs of a ring.
    pub(crate) fn finish(&self, ring: u32) -> TestResult<End> {
        match self.space.wait_ring(ring, Deadline::after(job::LIMIT)) {
            Ok(()) => Ok(End::Done),
            Err(Errno::IO) => Ok(End::Lost),
            Err(Errno::TIME) => Err(Outcome::Fail(format!("a job of ring {ring} does not end"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs a job to its end, whatever that is.
    pub(crate) fn end(&self, stream: &compute::Stream) -> TestResult<End> {
        self.end_on(0, stream)
    }

    /// The same on a ring.
    pub(crate) fn end_on(&self, ring: u32, stream: &compute::Stream) -> TestResult<End> {
        match self.submit(ring, stream) {
            Ok(()) => self.finish(ring),
            Err(error) => Ok(End::Refused(error)),
        }
    }

    /// Runs a job that must succeed.
    pub(crate) fn run(&self, what: &str, stream: &compute::Stream) -> TestResult {
        self.run_on(0, what, stream)
    }

    /// The same on a ring.
    pub(crate) fn run_on(&self, ring: u32, what: &str, stream: &compute::Stream) -> TestResult {
        match self.end_on(ring, stream)? {
            End::Done => Ok(()),
            End::Refused(error) => Err(Outcome::Fail(format!(
                "{what}: EXECBUFFER: {}",
                name(error)
            ))),
            End::Lost => Err(Outcome::Fail(format!(
                "{what}: the context is lost: {:x?}",
                self.count()?
            ))),
        }
    }

    /// A job that writes a word.
    pub(crate) fn writing(address: u64, value: u64) -> compute::Stream {
        let mut stream = compute::Stream::new();
        stream.fill(at(address), 8, value);
        stream
    }

    /// A job that reads a word.
    pub(crate) fn reading(&self, address: u64) -> compute::Stream {
        let mut stream = compute::Stream::new();
        stream.copy(self.staged(), at(address), 8);
        stream
    }

    fn staged(&self) -> Operand {
        pointer(self.staging.as_ptr())
    }

    /// WRITE.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> TestResult {
        for (index, part) in bytes.chunks(STAGING).enumerate() {
            let to = address + (index * STAGING) as u64;
            self.staging.write(0, part);
            let mut stream = compute::Stream::new();
            stream.copy(at(to), self.staged(), part.len() as u64);
            self.run(&format!("writing {} bytes at {to:#x}", part.len()), &stream)?;
        }
        Ok(())
    }

    /// CSUM: the device's CRC32C.
    pub(crate) fn csum(&self, address: u64, length: usize) -> TestResult<u32> {
        let mut stream = compute::Stream::new();
        stream.crc32c(self.staged(), at(address), length as u64);
        self.run(
            &format!("checksum of {length} bytes at {address:#x}"),
            &stream,
        )?;
        Ok(self.staging.read_u32(0))
    }

    /// The u64 at an address, as the device sees it.
    pub(crate) fn peek(&self, address: u64) -> TestResult<u64> {
        self.run(&format!("reading at {address:#x}"), &self.reading(address))?;
        Ok(self.staging.read_u64(0))
    }

    /// The device writes a u64.
    pub(crate) fn poke(&self, address: u64, value: u64) -> TestResult {
        self.run(
            &format!("writing at {address:#x}"),
            &Self::writing(address, value),
        )
    }

    /// The device writes `value` everywhere.
    pub(crate) fn fill(&self, place: &Place, value: u64) -> TestResult {
        let mut stream = compute::Stream::new();
        stream.fill(at(place.address(0)), place.len() as u64, value);
        self.run("filling", &stream)
    }

    /// A job that adds 1 to each u32 of a place.
    pub(crate) fn adding(place: &Place) -> compute::Stream {
        let mut stream = compute::Stream::new();
        stream.add_u32(at(place.address(0)), place.len() as u64, 1);
        stream
    }

    /// Both sides see the same bytes everywhere.
    pub(crate) fn agrees(&self, what: &str, place: &Place) -> TestResult {
        self.sees(what, place, &place.to_vec(0, place.len()))
    }

    /// The device sees `expected` from the start of the place on.
    pub(crate) fn sees(&self, what: &str, place: &Place, expected: &[u8]) -> TestResult {
        let csum = self.csum(place.address(0), expected.len())?;
        agree::sees(what, csum, expected)
    }

    /// Each side sees what the other writes at `offset`.
    pub(crate) fn coherent(&self, what: &str, place: &Place, offset: usize) -> TestResult {
        let address = place.address(offset);
        agree::coherent(
            what,
            place,
            offset,
            || self.peek(address),
            |value| self.poke(address, value),
        )
    }

    /// [`Self::coherent`] at the first page, the last page and one in the middle.
    pub(crate) fn coherent_all_over(&self, what: &str, place: &Place) -> TestResult {
        for offset in agree::spread(place.len()) {
            self.coherent(what, place, offset)?;
        }
        Ok(())
    }

    /// Runs `event` with all of `place` read by the device before: it must be told, and lose at
    /// least `bytes`.
    pub(crate) fn loses<T>(
        &self,
        what: &str,
        place: &Place,
        bytes: usize,
        event: impl FnOnce() -> TestResult<T>,
    ) -> TestResult<T> {
        self.agrees(&format!("{what}: before"), place)?;
        let before = self.stat()?;
        let value = event()?;
        let after = self.stat()?;
        agree::has_lost(what, [&before, &after], bytes)?;
        Ok(value)
    }

    /// What the device itself says of the address space.
    pub(crate) fn stat(&self) -> TestResult<Stat> {
        let mut stream = compute::Stream::new();
        stream.stat(self.staged());
        self.run("asking the device", &stream)?;
        Ok(compute::read_stat(&self.staging, 0))
    }

    /// Writes data that depends on the seed to all of the place, and returns it.
    pub(crate) fn scatter(place: &Place, seed: u64) -> Vec<u8> {
        let data = Random(seed).bytes(place.len());
        place.write(0, &data);
        data
    }

    /// A job costs the context, and the file says once why.
    pub(crate) fn fails(&self, what: &str, stream: &compute::Stream, cause: Cause) -> TestResult {
        check_eq!(
            self.end_on(cause.ring, stream)?,
            End::Lost,
            "{what}: the job"
        );
        self.is_lost(what, cause)
    }

    /// The context is lost, as all who ask are told.
    pub(crate) fn is_lost(&self, what: &str, cause: Cause) -> TestResult {
        let query = self.count()?;
        check_eq!(query.state, uapi::svm_state::LOST, "{what}: the state");
        let told = Cause {
            reason: query.reason,
            access: query.access,
            page: page_of(query.addr),
            ring: query.ring,
        };
        check_eq!(told, cause, "{what}: what QUERY says");
        let mut idle = compute::Stream::new();
        idle.delay(1);
        check_eq!(
            self.end(&idle)?,
            End::Refused(Errno::IO),
            "{what}: a later job of the same context"
        );
        let events = self.space.events(job::LIMIT)?;
        let [Event::Svm(event)] = events[..] else {
            return Err(Outcome::Fail(format!("{what}: the events are {events:?}")));
        };
        let told = Cause {
            reason: event.reason,
            access: event.access,
            page: page_of(event.addr),
            ring: event.ring,
        };
        check_eq!(told, cause, "{what}: what the event says");
        check_eq!(event.cookie, COOKIE, "{what}: the cookie of the event");
        self.quiet(what)
    }

    /// Nothing can be read from the file.
    pub(crate) fn quiet(&self, what: &str) -> TestResult {
        check!(
            !self.space.wait_for_event(Duration::ZERO)?,
            "{what}: an event: {:?}",
            self.space.events(Duration::ZERO)
        );
        Ok(())
    }
}

/// An address, for a job.
pub(crate) fn at(address: u64) -> Operand {
    Operand::resource(0, address)
}

/// A context of its own still works, whatever has become of others.
pub(crate) fn others_work(env: &Env, what: &str) -> TestResult {
    let other = open(env)?;
    let place = Place::base(PAGE)?;
    other.coherent(&format!("{what}: another context"), &place, 0)
}
