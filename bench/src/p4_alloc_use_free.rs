// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P4: a program that allocates memory, uses it in a job and frees it, over and over.
//!
//! Its runtime either registers the memory for each job, pinned, because what was pinned is not
//! what the next allocation gets; or has the addresses mirrored, once, and leaves it at that. What
//! a runtime leaves registered may be
//!
//! - a *window*: 1 GiB of addresses around an allocation it has not seen before, registered SPARSE;
//!   what a job uses of it is prefetched, which costs a call, but little if it is mapped still;
//! - each *range* that it was given, which is nothing to do later if the next allocation is there
//!   again, but is many registrations in a program with allocations of many sizes.
//!
//! Allocating is malloc and free, or mmap and munmap. The former are those of the GNU C library
//! (the program is linked to it statically), untouched by mallopt or tunables: 64 KiB come from the
//! heap, larger blocks from mappings of their own until the first of that size is freed, which
//! raises the threshold; from then on they come from the heap, too.

use std::ffi::c_void;
use std::time::{Duration, Instant};

use virtgpu_client::{
    compute, protocol::compute::Operand, Blob, BlobMap, BlobOptions, Bytes, Device, Exec, Memory,
    RegisterOptions, Registration,
};

use crate::memory::{make, Kind};
use crate::meter::profile::{Profile, Worst};
use crate::meter::{linger, Meter, Symbols};
use crate::report::{Goal, Report, Sample};
use crate::setup::{
    map_all, nothing, open_mirroring, since, vm_pin, wait, wait_pinned, Result, MIB, PAGE,
};
use crate::Options;

const KIB: usize = 1 << 10;
/// Allocations in a turn.
const TURN: usize = 5;
const WINDOW: u64 = 1 << 30;
/// End of the addresses of a process.
const END: u64 = (1 << 47) - PAGE as u64;

/// Where memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Malloc,
    Mmap,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Mmap => "mmap",
        }
    }
}

/// An allocation; freed on drop.
struct Block {
    source: Source,
    start: *mut c_void,
    length: usize,
}

impl Block {
    fn new(source: Source, length: usize) -> Result<Self> {
        // SAFETY: Any size may be asked for, and a new mapping replaces nothing.
        let start = unsafe {
            match source {
                Source::Malloc => libc::malloc(length),
                Source::Mmap => libc::mmap(
                    std::ptr::null_mut(),
                    length,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                ),
            }
        };
        if start.is_null() || start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(Self {
            source,
            start,
            length,
        })
    }

    /// The pages that it is in.
    fn pages(&self) -> (u64, u64) {
        let page = PAGE as u64;
        let first = self.start as u64 / page * page;
        let end = (self.start as u64 + self.length as u64).next_multiple_of(page);
        (first, end - first)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: From `new`, and ended once.
        unsafe {
            match self.source {
                Source::Malloc => libc::free(self.start),
                Source::Mmap => {
                    libc::munmap(self.start, self.length);
                }
            }
        }
    }
}

// SAFETY: The block lives until `drop`.
unsafe impl Memory for Block {
    fn as_ptr(&self) -> *mut u8 {
        self.start.cast()
    }
    fn len(&self) -> usize {
        self.length
    }
}

/// What is done with each allocation, and what it takes.
struct Use<'d> {
    device: &'d Device,
    sum: Blob<'d>,
    sum_map: BlobMap,
    /// Whether it lingers for the end of each job.
    lingers: bool,
    /// Different in each use.
    stamp: u64,
}

impl<'d> Use<'d> {
    fn new(device: &'d Device, lingers: bool) -> Result<Self> {
        let sum = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
        let sum_map = sum.map()?;
        Ok(Self {
            device,
            sum,
            sum_map,
            lingers,
            stamp: 0,
        })
    }

    /// The program writes to each page.
    fn write(&mut self, block: &Block) {
        self.stamp += 1;
        for (page, offset) in (0..block.length).step_by(PAGE).enumerate() {
            block.write_u64(offset, self.stamp + page as u64);
        }
    }

    /// The device reads each page and writes to the last one; the program looks at the results.
    fn run(&self, block: &Block, at: impl Fn(u64) -> Operand, handle: u32) -> Result {
        let length = block.length as u64;
        let last = (block.length - 1) / PAGE * PAGE;
        let mut job = compute::Stream::new();
        job.stride_read(self.sum.at(0), at(0), length, PAGE as u64)
            .fill(at(last as u64), 8, !self.stamp);
        let handles = [handle, self.sum.handle()];
        let fence = Exec::new(job.as_bytes())
            .buffers(&handles)
            .submit_with_fence(self.device)?;
        if self.lingers {
            linger(|| block.read_u64(last) == !self.stamp);
        }
        fence.wait(Some(Duration::from_secs(120)))?;
        let pages = length / PAGE as u64;
        let expected = (0..pages)
            .map(|page| (self.stamp + page) & 0xff)
            .sum::<u64>();
        if self.sum_map.read_u64(0) != expected || block.read_u64(last) != !self.stamp {
            return Err("a job did not do what it should".into());
        }
        Ok(())
    }
}

/// Registrations that stay.
struct Cache<'d> {
    device: &'d Device,
    windows: bool,
    known: Vec<(u64, u64, Registration<'d>)>,
    /// Jobs since the last look, and those that needed a new registration.
    uses: u64,
    misses: u64,
}

impl<'d> Cache<'d> {
    fn new(device: &'d Device, windows: bool) -> Self {
        Self {
            device,
            windows,
            known: Vec::new(),
            uses: 0,
            misses: 0,
        }
    }

    /// The registration for pages, and the offset of the first of them in it.
    fn get(&mut self, first: u64, size: u64) -> Result<(&Registration<'d>, u64)> {
        self.uses += 1;
        let known = self.known.iter().position(|(start, length, _)| {
            if self.windows {
                *start <= first && first + size <= start + length
            } else {
                // Jobs make all of a registration usable, so that it must be the very range.
                (*start, *length) == (first, size)
            }
        });
        let index = match known {
            Some(index) => index,
            None => {
                let (start, length, options) = if self.windows {
                    let start = first / WINDOW * WINDOW;
                    let end = (first + size).next_multiple_of(WINDOW).min(END);
                    (start, end - start, RegisterOptions::mirrored().sparse())
                } else {
                    (first, size, RegisterOptions::mirrored())
                };
                self.misses += 1;
                // SAFETY: The device uses only what jobs name, which is memory that is allocated
                // then, and to which there are no references.
                let userptr = unsafe { self.device.register_raw(start, length, options)? };
                self.known.push((start, length, userptr));
                self.known.len() - 1
            }
        };
        let (start, _, userptr) = &self.known[index];
        let offset = first - start;
        if self.windows && userptr.prefetch(offset, size)? != size {
            return Err("an allocation could not be prefetched".into());
        }
        Ok((userptr, offset))
    }

    /// The share of the jobs since the last call that needed no new registration.
    fn hits(&mut self) -> f64 {
        let hits = (self.uses - self.misses) as f64 / self.uses as f64;
        (self.uses, self.misses) = (0, 0);
        hits
    }

    /// MAPs, their entries and INVALIDATEs sent.
    fn traffic(&self) -> Result<[u64; 3]> {
        let mut traffic = [0; 3];
        for (_, _, userptr) in &self.known {
            let query = userptr.query()?;
            traffic[0] += query.maps;
            traffic[1] += query.entries;
            traffic[2] += query.invalidations;
        }
        Ok(traffic)
    }
}

/// One way to go through the loop.
enum Way<'d> {
    /// Pinned for each job.
    PinEachTime,
    /// Left registered.
    Cached(Cache<'d>),
    /// No allocation, no registration: those of the start stay.
    Permanent(Block, Registration<'d>),
}

impl<'d> Way<'d> {
    fn permanent(device: &'d Device, source: Source, length: usize) -> Result<Self> {
        let block = Block::new(source, length)?;
        let (first, size) = block.pages();
        // SAFETY: The block lives as long as the registration, without references to it.
        let userptr = unsafe { device.register_raw(first, size, RegisterOptions::pinned())? };
        Ok(Self::Permanent(block, userptr))
    }

    fn once(&mut self, user: &mut Use<'d>, source: Source, length: usize) -> Result {
        if let Self::Permanent(block, userptr) = self {
            user.write(block);
            let skip = block.as_ptr() as u64 - block.pages().0;
            return user.run(block, |at| userptr.at(skip + at), userptr.handle());
        }
        let block = Block::new(source, length)?;
        user.write(&block);
        let (first, size) = block.pages();
        let skip = block.as_ptr() as u64 - first;
        match self {
            Self::Cached(cache) => {
                let (userptr, offset) = cache.get(first, size)?;
                let at = |at| userptr.at(offset + skip + at);
                user.run(&block, at, userptr.handle())
            }
            _ => {
                let options = RegisterOptions::pinned();
                // SAFETY: As in `permanent`.
                let userptr = unsafe { user.device.register_raw(first, size, options)? };
                user.run(&block, |at| userptr.at(skip + at), userptr.handle())?;
                userptr.close()?;
                Ok(())
            }
        }
    }
}

/// What one run of a way gave.
#[derive(Default)]
struct Results {
    /// Or instructions.
    time: Sample,
    profile: Profile,
    /// Share of the jobs that needed no new registration.
    hits: Sample,
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let mut worst = Worst::new();
    compare(options, report, "P4", &mut Meter::Clock, &mut worst)
}

/// Goes all ways, in rows of `measure`. Only times have goals.
pub(crate) fn compare(
    options: &Options,
    report: &mut Report,
    measure: &str,
    meter: &mut Meter,
    worst: &mut Worst,
) -> Result {
    let device = open_mirroring()?;
    for source in [Source::Malloc, Source::Mmap] {
        for (name, length, times) in [
            ("64KiB", 64 * KIB, 100),
            ("1MiB", MIB, 50),
            ("16MiB", 16 * MIB, 10),
        ] {
            let id = format!("{measure}-{}-{name}", source.name());
            let lingers = !matches!(meter, Meter::Clock);
            let ways = Ways::new(&device, source, [length, times], lingers)?;
            ways.compare(options, report, &id, meter, worst)?;
        }
    }
    submission(options, report, &device, measure, meter)
}

/// The ways, and what they are to do.
struct Ways<'d> {
    user: Use<'d>,
    source: Source,
    length: usize,
    /// Allocations in a run.
    times: usize,
    ways: [Way<'d>; 4],
    /// Bytes that stay pinned.
    pinned: u64,
}

impl<'d> Ways<'d> {
    fn new(
        device: &'d Device,
        source: Source,
        [length, times]: [usize; 2],
        lingers: bool,
    ) -> Result<Self> {
        let permanent = Way::permanent(device, source, length)?;
        Ok(Self {
            user: Use::new(device, lingers)?,
            source,
            length,
            times,
            ways: [
                Way::PinEachTime,
                Way::Cached(Cache::new(device, true)),
                Way::Cached(Cache::new(device, false)),
                permanent,
            ],
            pinned: vm_pin()?,
        })
    }

    /// Goes all ways, in turns of a few times.
    fn run(&mut self, meter: &mut Meter, symbols: &Symbols) -> Result<[(f64, Profile); 4]> {
        match meter {
            Meter::Clock => Ok(self.time()?.map(|time| (time, Profile::default()))),
            Meter::Instructions(_) => self.count(meter, symbols),
        }
    }

    /// The medians of instructions, and where they are. What the driver does in the background for
    /// a turn is done when a job after it has taken a while, without which the job is counted, too.
    fn count(&mut self, meter: &mut Meter, symbols: &Symbols) -> Result<[(f64, Profile); 4]> {
        let mut job = compute::Stream::new();
        job.delay(300);
        let device = self.user.device;
        let settle = || wait(&Exec::new(job.as_bytes()), device);
        let alone = meter.median(TURN as u32, |meter| meter.one(settle))?;
        let mut counts: [(f64, Profile); 4] = Default::default();
        for (way, count) in self.ways.iter_mut().zip(&mut counts) {
            let (user, source, length) = (&mut self.user, self.source, self.length);
            let pinned = self.pinned;
            let number = meter.number("", "", |meter| {
                meter.median((self.times / TURN) as u32, |meter| {
                    let once = || way.once(user, source, length);
                    let count = meter.batch(TURN as u32, once, settle)?;
                    wait_pinned(pinned)?;
                    Ok(count - alone / TURN as f64)
                })
            })?;
            *count = (number.value, Profile::new(&number, symbols));
        }
        Ok(counts)
    }

    /// The medians of nanoseconds, which a busy host disturbs least.
    fn time(&mut self) -> Result<[f64; 4]> {
        let mut times: [Sample; 4] = Default::default();
        for _ in 0..self.times / TURN {
            for (way, times) in self.ways.iter_mut().zip(&mut times) {
                for _ in 0..TURN {
                    let start = Instant::now();
                    way.once(&mut self.user, self.source, self.length)?;
                    times.0.push(since(start));
                }
                // Unpinning goes on in the background. It is not to disturb the next.
                wait_pinned(self.pinned)?;
            }
        }
        Ok(times.map(|times| times.median()))
    }

    fn compare(
        mut self,
        options: &Options,
        report: &mut Report,
        id: &str,
        meter: &mut Meter,
        worst: &mut Worst,
    ) -> Result {
        let mut results: [Results; 4] = Default::default();
        let symbols = meter.symbols()?;
        // Once for malloc to settle, then in turns.
        for run in 0..=options.runs {
            let times = self.run(meter, &symbols)?;
            for ((way, results), (time, profile)) in
                self.ways.iter_mut().zip(&mut results).zip(times)
            {
                let hits = match way {
                    Way::Cached(cache) => cache.hits(),
                    _ => 0.0,
                };
                if run > 0 {
                    results.time.0.push(time);
                    results.hits.0.push(hits);
                    results.profile = profile;
                }
            }
        }
        let clock = matches!(meter, Meter::Clock);
        let goal = |goal| match self.source {
            Source::Malloc if clock => goal,
            _ => Goal::None,
        };
        // Of times it is how many times as fast.
        let add: fn(&mut Report, &str, &str, &'static str, [Sample; 2], Goal) = match clock {
            true => Report::add_speedup,
            false => Report::add,
        };
        let [pinning, windows, ranges, permanent] = results;
        for (what, suffix, mirrored) in [("windows", "", windows), ("ranges", "-ranges", ranges)] {
            let row = format!("{id}{suffix}");
            worst.add(
                &row,
                mirrored.time.median() / pinning.time.median(),
                [
                    ("mirrored", &mirrored.profile),
                    ("pinned", &pinning.profile),
                ],
            );
            add(
                report,
                &row,
                &format!("allocate, job, free: {what} stay mirrored, against pinned each time"),
                meter.unit(),
                [mirrored.time.clone(), pinning.time.clone()],
                goal(Goal::AtLeast(1.3)),
            );
            let row = format!("{id}{suffix}-rate");
            add(
                report,
                &row,
                "the same, against jobs on memory that stays allocated and pinned",
                meter.unit(),
                [mirrored.time, permanent.time.clone()],
                goal(Goal::AtLeast(0.95)),
            );
            if !clock {
                continue;
            }
            let all = Sample(vec![1.0; mirrored.hits.0.len()]);
            report.add(
                &format!("{id}{suffix}-hits"),
                "share of the jobs that needed no new registration",
                "",
                [mirrored.hits, all],
                goal(Goal::AtLeast(0.95)),
            );
        }
        for way in &self.ways {
            if let Way::Cached(cache) = way {
                let [maps, entries, invalidations] = cache.traffic()?;
                eprintln!(
                    "  {id}: {} registrations, {maps} MAPs of {entries} entries, \
                     {invalidations} INVALIDATEs in {} jobs",
                    cache.known.len(),
                    self.times * (options.runs + 1),
                );
            }
        }
        Ok(())
    }
}

/// The other side: what a job costs on memory that is registered and in use already.
fn submission(
    options: &Options,
    report: &mut Report,
    device: &Device,
    measure: &str,
    meter: &mut Meter,
) -> Result {
    const TIMES: u32 = 500;
    let memory = make(Kind::Thp, 16 * MIB)?;
    let mirrored = device.register(&memory, RegisterOptions::mirrored())?;
    let pinned = device.register(&memory, RegisterOptions::pinned())?;
    let stream = nothing();
    map_all(device, mirrored.handle())?;
    let before = mirrored.query()?;
    let mut results: [[Sample; 2]; 2] = Default::default();
    for run in 0..=options.runs {
        let mut new: [[Sample; 2]; 2] = Default::default();
        for _ in 0..meter.times(TIMES) {
            let handles = [mirrored.handle(), pinned.handle()];
            for (handle, [submit, whole]) in handles.into_iter().zip(&mut new) {
                let handles = [handle];
                let exec = Exec::new(stream.as_bytes()).buffers(&handles);
                let [first, both] = meter.two(
                    || Ok(exec.submit_with_fence(device)?),
                    |fence| Ok(fence.wait(Some(Duration::from_secs(120)))?),
                )?;
                submit.0.push(first);
                whole.0.push(both);
            }
        }
        if run > 0 {
            for (all, new) in results.iter_mut().flatten().zip(new.iter().flatten()) {
                all.0.push(new.median());
            }
        }
    }
    let after = mirrored.query()?;
    if (after.mapped_bytes, after.invalidations) != (before.size, before.invalidations) {
        return Err("the memory did not stay mapped".into());
    }
    let [[submit, whole], [pinned_submit, pinned_whole]] = results;
    report.add(
        &format!("{measure}-warm-submit"),
        "EXECBUFFER with 16 MiB that are mapped already: mirrored, against pinned",
        meter.unit(),
        [submit, pinned_submit],
        Goal::None,
    );
    report.add(
        &format!("{measure}-warm-round-trip"),
        "the same until the job is done",
        meter.unit(),
        [whole, pinned_whole],
        Goal::None,
    );
    Ok(())
}
