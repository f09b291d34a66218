// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Threads of a process that change its address space, have the kernel move its pages, and run
//! jobs, all at the same time, so that each meets the others in the middle of what they do.
//!
//! A process has three areas of memory, each with a thread for its jobs and a model of what is in
//! it: small pages that this thread maps and unmaps, too; a huge page; and pages that another
//! thread replaces meanwhile, where the model says between which two versions what a job has seen
//! must be. One more thread does to all of them what leaves the content alone.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use virtgpu_client::{compute, Bytes, Device, Errno, Memory};

use super::hammer;
use super::stress::{self, Model};
use super::support::{open, seed, End, Mirror, SPARSE, WHOLE};
use crate::ktap::{Outcome, TestResult};
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::{child, numa, pace, procfs, swap, thp, Env, Random, HUGE, PAGE};
use crate::{check, check_eq};

const PROCESSES: u64 = 2;
/// Events between two jobs, at most.
const BURST: u64 = 8;
/// Longer than it takes until each kind of event has happened once during a job.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happens to memory while jobs are made ready and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    PageOut,
    MovePages,
    Collapse,
    Split,
    Fork,
    SoftDirty,
    Compact,
    Remap,
    Replace,
    Discard,
    Protect,
}

use Event::*;

/// Those that leave the content alone.
const HARMLESS: [Event; 7] = [
    PageOut, MovePages, Collapse, Split, Fork, SoftDirty, Compact,
];
/// Those of who replaces the pages that another thread's jobs use.
const CHANGES: [Event; 4] = [Remap, Replace, Discard, Protect];
const KINDS: usize = HARMLESS.len() + CHANGES.len();

/// Events of a kind.
#[derive(Default)]
struct Count {
    begun: AtomicU64,
    ended: AtomicU64,
    /// Those that had an effect.
    done: AtomicU64,
    /// Jobs that were submitted, or not over, during one.
    met: AtomicU64,
}

/// Memory on which one thread runs jobs, and what happens to it.
struct Area {
    place: Place,
    events: [Count; KINDS],
    jobs: AtomicU64,
}

impl Area {
    fn new(place: Place) -> Self {
        Self {
            place,
            events: Default::default(),
            jobs: AtomicU64::new(0),
        }
    }

    /// Runs a job to its end, again if it is refused because memory keeps changing. Returns how it
    /// has ended at last, and which events this time has met.
    fn job(
        &self,
        turns: &Turns,
        mut job: impl FnMut() -> TestResult<End>,
    ) -> TestResult<(End, Vec<Event>)> {
        const TRIES: u64 = 20;
        let mut attempt = || -> TestResult<(End, Vec<Event>)> {
            let ended: Vec<u64> = self.events.iter().map(|of| of.ended.load(SeqCst)).collect();
            turns.job();
            self.jobs.fetch_add(1, SeqCst);
            let end = job()?;
            let met: Vec<Event> = HARMLESS
                .into_iter()
                .chain(CHANGES)
                .filter(|kind| self.of(*kind).begun.load(SeqCst) > ended[*kind as usize])
                .collect();
            for kind in &met {
                self.of(*kind).met.fetch_add(1, SeqCst);
            }
            Ok((end, met))
        };
        for _ in 1..TRIES {
            let (end, met) = attempt()?;
            if end != End::Refused(Errno::BUSY) {
                return Ok((end, met));
            }
        }
        attempt()
    }

    fn of(&self, kind: Event) -> &Count {
        &self.events[kind as usize]
    }
}

/// Has `event` happen to areas, and counts it if it says that it had an effect.
fn happen(areas: &[&Area], kind: Event, event: impl FnOnce() -> TestResult<bool>) -> TestResult {
    for area in areas {
        area.of(kind).begun.fetch_add(1, SeqCst);
    }
    let effect = event()?;
    for area in areas {
        area.of(kind).ended.fetch_add(1, SeqCst);
        area.of(kind).done.fetch_add(u64::from(effect), SeqCst);
    }
    Ok(())
}

/// What the threads agree by: events come in bursts, of which none begins before another job does,
/// so that jobs get through.
#[derive(Default)]
struct Turns {
    jobs: Mutex<u64>,
    changed: Condvar,
    over: AtomicBool,
}

impl Turns {
    /// A job begins.
    fn job(&self) {
        *self.jobs.lock().expect("no panic") += 1;
        self.changed.notify_all();
    }

    /// Waits for a job that begins after this, or the end.
    fn wait_for_job(&self) {
        let jobs = self.jobs.lock().expect("no panic");
        let before = *jobs;
        let waiting = |jobs: &mut u64| *jobs == before && !self.over();
        drop(self.changed.wait_while(jobs, waiting).expect("no panic"));
    }

    fn over(&self) -> bool {
        self.over.load(SeqCst)
    }

    /// Has all threads come to their end.
    fn end(&self) {
        let jobs = self.jobs.lock().expect("no panic");
        self.over.store(true, SeqCst);
        drop(jobs);
        self.changed.notify_all();
    }

    /// Sleeps until `enough`, which is looked at now and then.
    fn wait_until(&self, enough: impl Fn() -> bool) {
        let mut jobs = self.jobs.lock().expect("no panic");
        while !self.over() && !enough() {
            (jobs, _) = self
                .changed
                .wait_timeout(jobs, Duration::from_millis(100))
                .expect("no panic");
        }
    }

    /// Runs a thread's work; all have to end if it fails.
    fn run(&self, work: impl FnOnce() -> TestResult) -> TestResult {
        let result = work();
        if result.is_err() {
            self.end();
        }
        result
    }
}

/// Small pages, which this thread maps, unmaps and protects between its jobs.
fn small(area: &Area, turns: &Turns, device: &Device, mut random: Random) -> TestResult {
    let mut model = Model::new(&area.place);
    let lasting = Mirror::with(device, &area.place, SPARSE)?;
    let run = |mirror: &Mirror<'_>, stream: &compute::Stream| {
        let (end, _) = area.job(turns, || mirror.end(stream))?;
        Ok(end)
    };
    let mut actions = 0_u64;
    while !turns.over() {
        stress::act(&mut model, device, &lasting, &mut random, actions, &run)
            .map_err(|outcome| at(outcome, "small pages", actions))?;
        actions += 1;
    }
    model.check()
}

/// A huge page, whose content this thread and its jobs change by turns.
fn huge(area: &Area, turns: &Turns, device: &Device, mut random: Random) -> TestResult {
    let mirror = Mirror::new(device, &area.place)?;
    let mut copy = mirror.scatter(random.next());
    let done = |what: &str, job: &mut dyn FnMut() -> TestResult<End>| match area.job(turns, job)? {
        (End::Done, _) => Ok(()),
        (other, _) => Err(Outcome::Fail(format!("{what}: {other:?}"))),
    };
    let mut steps = 0;
    while !turns.over() {
        hammer::step(&done, &mirror, &area.place, &mut copy, &mut random)
            .map_err(|outcome| at(outcome, "the huge page", steps))?;
        steps += 1;
    }
    mirror.agrees("in the end")?;
    check_eq!(area.place.to_vec(0, HUGE), copy, "our view in the end");
    Ok(())
}

/// Pages of each of the two parts that are replaced.
const PART: usize = 16;

/// Which content pages of a part may have.
#[derive(Default)]
struct Version {
    /// The one that all pages had last, and the one that they get next, or else the same.
    complete: AtomicU64,
    latest: AtomicU64,
}

/// Pages that one thread replaces while jobs of another one use them.
///
/// Each page begins with the version of its part. Pages of the first part are never thrown away:
/// they are moved to where what jobs have added to them can be counted.
struct Zone {
    area: Area,
    parts: [Version; 2],
    /// What was added to pages of the first part that have been moved away.
    moved: [AtomicU64; PART],
    /// Jobs that were carried out, and those of them that met a change.
    done: AtomicU64,
    through: AtomicU64,
}

/// Where in a page jobs add 1.
const SUM: usize = 8;

impl Zone {
    fn new() -> TestResult<Self> {
        let zone = Self {
            area: Area::new(Place::base(2 * PART * PAGE)?),
            parts: Default::default(),
            moved: Default::default(),
            done: AtomicU64::new(0),
            through: AtomicU64::new(0),
        };
        zone.replace(0, || Ok(()))?;
        zone.replace(1, || Ok(()))?;
        Ok(zone)
    }

    /// Has `change` put empty pages in the place of those of a part, and makes them the next
    /// version.
    fn replace(&self, part: usize, change: impl FnOnce() -> TestResult) -> TestResult {
        let version = &self.parts[part];
        let next = version.latest.fetch_add(1, SeqCst) + 1;
        change()?;
        for page in part * PART..(part + 1) * PART {
            self.area.place.write_u64(page * PAGE, next);
        }
        version.complete.store(next, SeqCst);
        Ok(())
    }

    /// The first part's pages become others, and what they hold is looked at elsewhere.
    fn remap(&self) -> TestResult {
        let spare = Place::reserve(Pages::Base, PART * PAGE)?;
        let version = self.parts[0].complete.load(SeqCst);
        self.replace(0, || {
            self.area.place.move_to(0, PART * PAGE, &spare, 0, 0)?;
            self.area.place.map(0, PART * PAGE)
        })?;
        for (page, moved) in self.moved.iter().enumerate() {
            check_eq!(
                spare.read_u64(page * PAGE),
                version,
                "page {page}, which was moved away"
            );
            moved.fetch_add(spare.read_u32(page * PAGE + SUM).into(), SeqCst);
        }
        Ok(())
    }

    fn changes(&self, turns: &Turns, mut random: Random) -> TestResult {
        let (place, second) = (&self.area.place, PART * PAGE);
        while !turns.over() {
            for _ in 0..=random.below(BURST / 2) {
                let kind = CHANGES[random.below(CHANGES.len() as u64) as usize];
                happen(&[&self.area], kind, || {
                    match kind {
                        Remap => self.remap()?,
                        Replace => self.replace(1, || {
                            if random.below(2) == 0 {
                                place.unmap(second, PART * PAGE)?;
                            }
                            place.map(second, PART * PAGE)
                        })?,
                        Discard => self.replace(1, || {
                            place.advise(second, PART * PAGE, libc::MADV_DONTNEED)
                        })?,
                        _ => {
                            let at = random.below(2 * PART as u64) as usize * PAGE;
                            place.protect(at, PAGE, READ)?;
                            place.protect(at, PAGE, RW)?;
                        }
                    }
                    Ok(true)
                })?;
            }
            turns.wait_for_job();
        }
        Ok(())
    }

    fn jobs(&self, turns: &Turns, device: &Device) -> TestResult {
        let mirror = Mirror::with(device, &self.area.place, WHOLE)?;
        let mut stream = mirror.reading_words();
        for page in 0..2 * PART {
            stream.add_u32(mirror.userptr.at((page * PAGE + SUM) as u64), 4, 1);
        }
        let mut refused = 0;
        while !turns.over() {
            mirror.forget_words();
            let mut complete = [0; 2];
            let (end, met) = self.area.job(turns, || {
                complete = [0, 1].map(|part| self.parts[part].complete.load(SeqCst));
                mirror.end(&stream)
            })?;
            let latest = [0, 1].map(|part| self.parts[part].latest.load(SeqCst));
            let changed = met.iter().any(|kind| CHANGES.contains(kind));
            match end {
                End::Done => {}
                // Something was not there, or not writable, for a moment.
                End::Refused(Errno::FAULT | Errno::PERM) if changed => {
                    refused += 1;
                    continue;
                }
                other => {
                    return Err(Outcome::Fail(format!(
                        "a job on pages that are replaced: {other:?}, with {met:?}"
                    )))
                }
            }
            self.done.fetch_add(1, SeqCst);
            self.through.fetch_add(u64::from(changed), SeqCst);
            for page in 0..2 * PART {
                let (seen, part) = (mirror.word(page), page / PART);
                let (from, to) = (complete[part], latest[part]);
                check!(
                    (from..=to).contains(&seen) || (seen == 0 && from != to),
                    "a job has seen version {seen} of page {page}, which had {from} to {to} meanwhile"
                );
            }
        }
        let (done, through) = (self.done.load(SeqCst), self.through.load(SeqCst));
        println!(
            "    # of the jobs on pages that are replaced {refused} were refused, {done} carried out, \
             {through} of these during a change"
        );
        Ok(())
    }

    /// What was added is what jobs were carried out, on each page that was never thrown away.
    fn check(&self) -> TestResult {
        let done = self.done.load(SeqCst);
        for (page, moved) in self.moved.iter().enumerate() {
            let here = u64::from(self.area.place.read_u32(page * PAGE + SUM));
            check_eq!(
                moved.load(SeqCst) + here,
                done,
                "additions to page {page}, and jobs"
            );
        }
        Ok(())
    }
}

/// Which events can be had here.
struct Offer {
    two_nodes: bool,
    collapse: bool,
}

impl Offer {
    fn has(&self, kind: Event) -> bool {
        match kind {
            MovePages => self.two_nodes,
            Collapse => self.collapse,
            _ => true,
        }
    }
}

fn is_mapped_huge(place: &Place) -> TestResult<bool> {
    Ok(procfs::smaps(place.address(0), "AnonHugePages:")? == HUGE as u64)
}

/// What leaves the content alone, on `areas`, of which the second is a huge page.
fn events(areas: [&Area; 3], turns: &Turns, offer: &Offer, mut random: Random) -> TestResult {
    let huge = areas[1];
    while !turns.over() {
        for _ in 0..=random.below(BURST) {
            let kind = HARMLESS[random.below(HARMLESS.len() as u64) as usize];
            let area = areas[random.below(areas.len() as u64) as usize];
            if !offer.has(kind) {
                continue;
            }
            let number = random.next();
            match kind {
                PageOut => happen(&[area], kind, || {
                    let pages = area.place.len() / PAGE;
                    let first = number as usize % pages;
                    let count = 1 + (number >> 32) as usize % (pages - first);
                    // ENOMEM says that not all of it is mapped.
                    drop(
                        area.place
                            .advise(first * PAGE, count * PAGE, libc::MADV_PAGEOUT),
                    );
                    Ok(true)
                }),
                MovePages => happen(&[area], kind, || {
                    let node = number as i32 & 1;
                    Ok(numa::move_to(&area.place, node)?.contains(&node))
                }),
                Collapse => happen(&[huge], kind, || {
                    let before = is_mapped_huge(&huge.place)?;
                    // Pages that are in use elsewhere for a moment keep it from happening.
                    drop(huge.place.advise(0, HUGE, libc::MADV_COLLAPSE));
                    Ok(!before && is_mapped_huge(&huge.place)?)
                }),
                Split => happen(&[huge], kind, || {
                    let before = is_mapped_huge(&huge.place)?;
                    thp::split(&huge.place)?;
                    Ok(before)
                }),
                Fork => happen(&areas, kind, || {
                    hammer::fork_once(&huge.place, number)?;
                    Ok(true)
                }),
                SoftDirty => happen(&areas, kind, || {
                    fs::write("/proc/self/clear_refs", "4")?;
                    Ok(true)
                }),
                _ => happen(&areas, kind, || {
                    fs::write("/proc/sys/vm/compact_memory", "1")?;
                    Ok(true)
                }),
            }?;
        }
        turns.wait_for_job();
    }
    Ok(())
}

fn at(outcome: Outcome, what: &str, number: u64) -> Outcome {
    match outcome {
        Outcome::Fail(reason) => Outcome::Fail(format!("{what}, step {number}: {reason}")),
        skip => skip,
    }
}

/// What a process does until the time is over, and each kind of event has happened during a job.
fn process(env: &Env, seed: u64, until: Instant, offer: &Offer) -> TestResult {
    let device = open(env)?;
    let mut random = Random(seed);
    let mut next = || Random(random.next());
    let areas = [
        Area::new(Place::base(stress::SIZE)?),
        Area::new(Place::new(Pages::Huge, HUGE)?),
    ];
    let zone = Zone::new()?;
    let all = [&areas[0], &areas[1], &zone.area];
    let turns = Turns::default();
    let sum = |kind, of: fn(&Count) -> &AtomicU64| -> u64 {
        all.iter().map(|area| of(area.of(kind)).load(SeqCst)).sum()
    };
    let kinds = || {
        HARMLESS
            .into_iter()
            .chain(CHANGES)
            .filter(|kind| offer.has(*kind))
    };
    let latest = until + pace::limit(PATIENCE);
    let enough = || {
        Instant::now() >= latest
            || Instant::now() >= until
                && zone.through.load(SeqCst) > 0
                && kinds().all(|kind| sum(kind, |of| &of.done) > 0 && sum(kind, |of| &of.met) > 0)
    };
    std::thread::scope(|scope| {
        let (one, two, three, four) = (next(), next(), next(), next());
        let (turns, device, zone, areas) = (&turns, &device, &zone, &areas);
        let threads = [
            scope.spawn(move || turns.run(|| small(&areas[0], turns, device, one))),
            scope.spawn(move || turns.run(|| huge(&areas[1], turns, device, two))),
            scope.spawn(move || turns.run(|| zone.jobs(turns, device))),
            scope.spawn(move || turns.run(|| zone.changes(turns, three))),
            scope.spawn(move || turns.run(|| events(all, turns, offer, four))),
        ];
        turns.wait_until(enough);
        turns.end();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    zone.check()?;
    check!(
        zone.through.load(SeqCst) > 0,
        "no job was carried out while pages were replaced"
    );
    let jobs: u64 = all.iter().map(|area| area.jobs.load(SeqCst)).sum();
    println!("    # seed {seed}: {jobs} jobs");
    for kind in kinds() {
        let (done, met) = (sum(kind, |of| &of.done), sum(kind, |of| &of.met));
        println!("    # {kind:?}: {done} times, {met} jobs met one");
        check!(done > 0, "{kind:?} has never happened");
        check!(met > 0, "no job has met {kind:?}");
    }
    Ok(())
}

pub(super) fn threads(env: &Env) -> TestResult {
    drop(open(env)?);
    swap::enable()?;
    let offer = Offer {
        two_nodes: numa::two_nodes().is_ok(),
        collapse: thp::can_collapse().is_ok(),
    };
    let (seed, seconds) = (seed(), stress::seconds());
    println!("    # {PROCESSES} processes of 5 threads, {seconds} s");
    let before = procfs::vmstat("pswpout")?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let children = (0..PROCESSES)
        .map(|index| child::spawn(|| process(env, seed * 1000 + 500 + index, until, &offer)))
        .collect::<TestResult<Vec<_>>>()?;
    let ends: Vec<TestResult> = children.into_iter().map(child::Child::join).collect();
    ends.into_iter().collect::<TestResult>()?;
    let swapped = procfs::vmstat("pswpout")? - before;
    println!("    # {swapped} pages were swapped out");
    check!(swapped > 0, "no page was swapped out");
    stress::works_afterwards(env)
}
