// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Processes that do at random whatever can be done with mirrored memory, each against a copy that
//! says what has to come out. `VIRTGPU_TESTS_SEED` repeats a run as far as processes repeat,
//! `VIRTGPU_TESTS_SECONDS` makes it longer.
//!
//! What `processes` does at a time is one thing a process; `threads` is in `stress_threads`.

use std::time::{Duration, Instant};

use virtgpu_client::{compute, Bytes, Device, Errno, RegisterOptions};

use super::stress_threads::threads;
use super::support::{family, open, seed, End, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::{child, Env, Random, HUGE, PAGE};
use crate::{cases, check_eq};

pub(crate) const FAMILY: Family = family("stress", cases![processes: 7200, threads: 7200]);

const PROCESSES: u64 = 4;
const PAGES: usize = 64;
pub(super) const SIZE: usize = PAGES * PAGE;

/// How long a case is to take.
pub(super) fn seconds() -> u64 {
    std::env::var("VIRTGPU_TESTS_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(5)
}

/// What a page is to whom uses it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Gone,
    ReadOnly,
    Writable,
}

/// Memory, what is in it, and what may be done with each page.
pub(super) struct Model<'a> {
    place: &'a Place,
    bytes: Vec<u8>,
    pages: [State; PAGES],
    /// The process has no other threads, so that it may fork.
    alone: bool,
}

impl<'a> Model<'a> {
    /// New memory of [`SIZE`] bytes, in a process with other threads.
    pub(super) fn new(place: &'a Place) -> Self {
        Self {
            place,
            bytes: vec![0; SIZE],
            pages: [State::Writable; PAGES],
            alone: false,
        }
    }

    /// How a job on all pages of the range has to end: the first page that is in the way decides.
    fn expected(&self, first: usize, count: usize, write: bool) -> End {
        for state in &self.pages[first..first + count] {
            match state {
                State::Gone => return End::Refused(Errno::FAULT),
                State::ReadOnly if write => return End::Refused(Errno::PERM),
                _ => {}
            }
        }
        End::Done
    }

    /// All pages that can be read hold what they should, for the process.
    pub(super) fn check(&self) -> TestResult {
        for page in 0..PAGES {
            if self.pages[page] != State::Gone {
                let at = page * PAGE;
                check_eq!(
                    compute::crc32c(0, &self.place.to_vec(at, PAGE)),
                    compute::crc32c(0, &self.bytes[at..at + PAGE]),
                    "our view of page {page}"
                );
            }
        }
        Ok(())
    }

    fn set(&mut self, first: usize, count: usize, state: State) {
        self.pages[first..first + count].fill(state);
    }

    fn clear(&mut self, first: usize, count: usize) {
        self.bytes[first * PAGE..(first + count) * PAGE].fill(0);
    }
}

/// One action on the address space; no device takes part.
fn change(model: &mut Model<'_>, random: &mut Random) -> TestResult {
    let count = 1 + random.below(16) as usize;
    let first = random.below((PAGES - count) as u64 + 1) as usize;
    let (offset, length) = (first * PAGE, count * PAGE);
    let place = model.place;
    let all = |model: &Model<'_>, state| {
        model.pages[first..first + count]
            .iter()
            .all(|page| *page == state)
    };
    let present = !model.pages[first..first + count].contains(&State::Gone);
    match random.below(9) {
        0 => {
            place.unmap(offset, length)?;
            model.set(first, count, State::Gone);
        }
        1 | 2 => {
            place.map(offset, length)?;
            model.set(first, count, State::Writable);
            model.clear(first, count);
        }
        3 if present => {
            place.protect(offset, length, READ)?;
            model.set(first, count, State::ReadOnly);
        }
        4 if present => {
            place.protect(offset, length, RW)?;
            model.set(first, count, State::Writable);
        }
        5 if present => {
            place.advise(offset, length, libc::MADV_DONTNEED)?;
            model.clear(first, count);
        }
        6 if all(model, State::Writable) => {
            let data = random.bytes(length);
            place.write(offset, &data);
            model.bytes[offset..offset + length].copy_from_slice(&data);
        }
        7 if model.pages[first] != State::Gone => {
            // There and back; one page is one mapping for sure.
            let other = Place::reserve(Pages::Base, PAGE)?;
            place.move_to(offset, PAGE, &other, 0, 0)?;
            other.move_to(0, PAGE, place, offset, 0)?;
        }
        8 if model.alone => child::run(|| {
            model.check()?;
            if all(model, State::Writable) {
                place.write(offset, &vec![0xee; length]);
            }
            Ok(())
        })?,
        _ => {}
    }
    Ok(())
}

/// Runs a job to its end.
pub(super) type Run<'a> = dyn Fn(&Mirror<'_>, &compute::Stream) -> TestResult<End> + 'a;

/// One registration for a few jobs, which must all end as the model says.
fn use_device(
    model: &mut Model<'_>,
    device: &Device,
    random: &mut Random,
    run: &Run<'_>,
) -> TestResult {
    let count = 1 + random.below(24) as usize;
    let first = random.below((PAGES - count) as u64 + 1) as usize;
    let writable = random.below(3) != 0;
    let options: RegisterOptions = if writable { WHOLE } else { READ_ONLY };
    let (offset, length) = (first * PAGE, count * PAGE);
    let mirror = match Mirror::part(device, model.place, offset, length, options) {
        Ok(mirror) => mirror,
        // Nothing at all is mapped there.
        Err(Outcome::Fail(reason))
            if reason.contains("EFAULT")
                && model.pages[first..first + count]
                    .iter()
                    .all(|state| *state == State::Gone) =>
        {
            return Ok(())
        }
        Err(error) => return Err(error),
    };
    for _ in 0..1 + random.below(4) {
        let expected = model.expected(first, count, writable);
        let value = random.next() as u32;
        let write = writable && random.below(2) == 0;
        let mut stream = compute::Stream::new();
        if write {
            stream.add_u32(mirror.userptr.at(0), length as u64, value);
        } else {
            stream = mirror.reading();
        }
        let end = run(&mirror, &stream)?;
        check_eq!(end, expected, "a job on pages {first} to {}", first + count);
        if end != End::Done {
            continue;
        }
        let bytes = &mut model.bytes[offset..offset + length];
        if write {
            for word in bytes.chunks_exact_mut(4) {
                let sum = u32::from_le_bytes((&*word).try_into().expect("4 bytes"));
                word.copy_from_slice(&sum.wrapping_add(value).to_le_bytes());
            }
        } else {
            check_eq!(
                mirror.result(),
                compute::crc32c(0, bytes),
                "the device's view of pages {first} to {}",
                first + count
            );
        }
    }
    Ok(())
}

/// A registration that stays has to follow all of it.
fn follow(model: &Model<'_>, lasting: &Mirror<'_>, random: &mut Random) -> TestResult {
    let page = random.below(PAGES as u64) as usize;
    let prefetch = || {
        lasting
            .userptr
            .prefetch((page * PAGE) as u64, PAGE as u64)
            .map(drop)
    };
    // Other threads may keep the page from staying what it is.
    let result = (0..20)
        .map(|_| prefetch())
        .find(|result| *result != Err(Errno::BUSY))
        .unwrap_or(Err(Errno::BUSY));
    let expected = match model.pages[page] {
        State::Gone => Err(Errno::FAULT),
        State::ReadOnly => Err(Errno::PERM),
        State::Writable => Ok(()),
    };
    check_eq!(result, expected, "prefetching page {page}");
    Ok(())
}

/// One thing of all that can be done, and now and then a look at all of the memory.
pub(super) fn act(
    model: &mut Model<'_>,
    device: &Device,
    lasting: &Mirror<'_>,
    random: &mut Random,
    number: u64,
    run: &Run<'_>,
) -> TestResult {
    match random.below(4) {
        0 | 1 => change(model, random)?,
        2 => use_device(model, device, random, run)?,
        _ => follow(model, lasting, random)?,
    }
    match number % 16 {
        0 => model.check(),
        _ => Ok(()),
    }
}

/// What a process does until the time is over.
fn process(env: &Env, seed: u64, until: Instant) -> TestResult {
    let mut random = Random(seed);
    let mut actions = 0_u64;
    let run = |mirror: &Mirror<'_>, stream: &compute::Stream| mirror.end_at_last("a job", stream);
    while Instant::now() < until {
        let device = open(env)?;
        let place = Place::base(SIZE)?;
        let mut model = Model::new(&place);
        model.alone = true;
        let lasting = Mirror::with(&device, &place, SPARSE)?;
        for _ in 0..200 {
            actions += 1;
            if let Err(Outcome::Fail(reason)) =
                act(&mut model, &device, &lasting, &mut random, actions, &run)
            {
                return Err(Outcome::Fail(format!(
                    "seed {seed}, action {actions}: {reason}"
                )));
            }
            if Instant::now() >= until {
                break;
            }
        }
        model.check()?;
    }
    println!("    # seed {seed}: {actions} actions");
    Ok(())
}

/// Whatever there was on the device, it works.
pub(super) fn works_afterwards(env: &Env) -> TestResult {
    let large = Place::new(Pages::Huge, 2 * HUGE)?;
    let device = open(env)?;
    let mirror = Mirror::new(&device, &large)?;
    mirror.coherent_all_over("after all")
}

fn processes(env: &Env) -> TestResult {
    drop(open(env)?);
    let (seed, seconds) = (seed(), seconds());
    println!("    # {PROCESSES} processes, {seconds} s");
    let until = Instant::now() + Duration::from_secs(seconds);
    let children = (0..PROCESSES)
        .map(|index| child::spawn(|| process(env, seed * 1000 + index, until)))
        .collect::<TestResult<Vec<_>>>()?;
    let ends: Vec<TestResult> = children.into_iter().map(child::Child::join).collect();
    ends.into_iter().collect::<TestResult>()?;
    works_afterwards(env)
}
