// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The driver's counters, and its knobs: what chance brings seldom, made to happen.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::{Bytes, Device, Errno};

use super::support::{family, open, End, Mirror, READ_ONLY, SPARSE};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::debugfs::Knobs;
use crate::support::dmirror::Dmirror;
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::{child, gpu, job, raced, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "mirrored_knobs",
    cases![
        lost_races,
        lost_races_for_a_second,
        lost_races_of_mirrored_memory_only,
        no_commands_in_the_first_pass,
        no_nodes,
        no_commands_and_no_nodes,
        delayed_maps: 400,
        counts_unmap,
        counts_clear,
        counts_protection_vma,
        counts_protection_page,
        counts_soft_dirty,
        counts_release,
        counts_migrate,
        counts_exclusive,
        counts_nothing_unmapped,
        counts_maps_and_acknowledgements,
        counts_dirtied_pages,
        counts_spaces,
        lock_is_not_kept: 300,
        open_files_and_unloading: 200,
    ],
);

const PAGES: usize = 16;
const SIZE: usize = PAGES * PAGE;

/// What the kernel does to the pages of a place, and the counter that tells of it.
struct Happening {
    counter: &'static str,
    happen: fn(&Place) -> TestResult,
    undo: fn(&Place) -> TestResult,
}

fn nothing(_: &Place) -> TestResult {
    Ok(())
}

const UNMAP: Happening = Happening {
    counter: "invalidations_unmap",
    happen: |place| place.unmap(0, SIZE),
    undo: |place| place.map(0, SIZE),
};
const CLEAR: Happening = Happening {
    counter: "invalidations_clear",
    happen: |place| place.advise(0, SIZE, libc::MADV_DONTNEED),
    undo: nothing,
};
const PROTECTION_VMA: Happening = Happening {
    counter: "invalidations_protection_vma",
    happen: |place| place.protect(0, SIZE, READ),
    undo: |place| place.protect(0, SIZE, RW),
};
const PROTECTION_PAGE: Happening = Happening {
    counter: "invalidations_protection_page",
    happen: |_| child::run(|| Ok(())),
    undo: nothing,
};
const SOFT_DIRTY: Happening = Happening {
    counter: "invalidations_soft_dirty",
    happen: |_| Ok(std::fs::write("/proc/self/clear_refs", "4")?),
    undo: nothing,
};

/// Runs `test` with memory that the device has mapped.
fn with_mirror(
    env: &Env,
    test: impl FnOnce(&Knobs, &Mirror<'_>, &Place) -> TestResult,
) -> TestResult {
    let device = open(env)?;
    let knobs = Knobs::open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(1);
    mirror.agrees("before")?;
    test(&knobs, &mirror, &place)
}

/// Jobs are queued after as many attempts as the knob says, and nothing is mapped for that.
fn lost_races(env: &Env) -> TestResult {
    with_mirror(env, |knobs, mirror, _| {
        for count in [1, 7, 100] {
            let (before, mapped) = (knobs.counters()?, mirror.count()?);
            knobs.set("force_retries", count)?;
            mirror.coherent("with races lost", PAGE)?;
            check_eq!(knobs.get("force_retries")?, 0, "races still to be lost");
            let after = knobs.counters()?;
            check_eq!(
                after.since(&before, "lost_races")?,
                count.into(),
                "races lost"
            );
            check_eq!(mirror.count()?.maps, mapped.maps, "MAPs");
        }
        mirror.agrees("in the end")
    })
}

/// After a second of lost races there is an error, and none is left of it.
fn lost_races_for_a_second(env: &Env) -> TestResult {
    with_mirror(env, |knobs, mirror, place| {
        let (before, word) = (knobs.counters()?, place.read_u64(0));
        knobs.set("force_retries", u32::MAX)?;
        let start = Instant::now();
        let end = mirror.end(&mirror.writing(0, !word))?;
        let took = start.elapsed();
        check_eq!(end, End::Refused(Errno::BUSY), "a job that loses each race");
        check!(took >= Duration::from_secs(1), "it gave up after {took:?}");
        let lost = u32::MAX - knobs.get("force_retries")?;
        let counted = knobs.counters()?.since(&before, "lost_races")?;
        check!(lost > 1, "races lost: {lost}");
        check_eq!(counted, lost.into(), "races lost, counted");
        println!("    # {lost} races lost in {took:?}");
        knobs.set("force_retries", 0)?;
        mirror.agrees("without the job")?;
        check_eq!(place.read_u64(0), word, "what the job would have written");
        mirror.coherent_all_over("afterwards")
    })
}

/// Jobs without mirrored memory have no race to lose.
fn lost_races_of_mirrored_memory_only(env: &Env) -> TestResult {
    with_mirror(env, |knobs, mirror, _| {
        knobs.set("force_retries", 3)?;
        let mut stream = virtgpu_client::compute::Stream::new();
        stream.delay(1);
        job::run(mirror.device, &stream, &[])?;
        check_eq!(knobs.get("force_retries")?, 3, "races still to be lost");
        mirror.agrees("afterwards")?;
        check_eq!(knobs.get("force_retries")?, 0, "races still to be lost");
        Ok(())
    })
}

/// Everything that can happen, with the callbacks in want of what they need.
fn exhausted(env: &Env, commands: bool, nodes: bool) -> TestResult {
    with_mirror(env, |knobs, mirror, place| {
        knobs.set("exhaust_invalidates", commands.into())?;
        knobs.set("exhaust_nodes", nodes.into())?;
        let mut random = Random(7);
        for round in 0..3 {
            for event in [UNMAP, CLEAR, PROTECTION_VMA, PROTECTION_PAGE] {
                let what = format!("{} in round {round}", event.counter);
                let (before, sent) = (knobs.counters()?, mirror.count()?.invalidations);
                mirror.loses(&what, SIZE, || (event.happen)(place))?;
                let (after, sent) = (knobs.counters()?, mirror.count()?.invalidations - sent);
                let notified: u64 = after
                    .moved(&before, "invalidations_")
                    .iter()
                    .map(|name| after.since(&before, name))
                    .sum::<TestResult<u64>>()?;
                let since = |name| after.since(&before, name);
                check!(since(event.counter)? > 0, "{what} was not counted");
                check_eq!(sent, notified, "{what}: commands and notifications");
                check_eq!(since("acknowledgements")?, sent, "{what}: acknowledged");
                let early = if commands { 0 } else { sent };
                check_eq!(since("sent_in_first_pass")?, early, "{what}: sent early");
                let ended = if nodes { notified } else { 0 };
                check_eq!(since("ended_in_first_pass")?, ended, "{what}: ended early");

                (event.undo)(place)?;
                mirror.agrees(&what)?;
                mirror.scatter(random.next());
                mirror.agrees(&what)?;
                mirror.coherent_all_over(&what)?;
            }
        }
        Ok(())
    })
}

fn no_commands_in_the_first_pass(env: &Env) -> TestResult {
    exhausted(env, true, false)
}

fn no_nodes(env: &Env) -> TestResult {
    exhausted(env, false, true)
}

fn no_commands_and_no_nodes(env: &Env) -> TestResult {
    exhausted(env, true, true)
}

/// A thread replaces pages between their lookup and their MAP.
fn delayed_maps(env: &Env) -> TestResult {
    with_mirror(env, |knobs, mirror, place| {
        knobs.set("delay_map_ms", 50)?;
        let (before, first) = (knobs.counters()?, mirror.count()?);
        let rounds = env.rounds(50);
        let mut changes = 0;
        for round in 0..rounds {
            place.advise(0, SIZE, libc::MADV_DONTNEED)?;
            mirror.scatter(round);
            let page = round as usize % PAGES * PAGE;
            let known = mirror.count()?.faults;
            let stop = AtomicBool::new(false);
            let value = std::thread::scope(|scope| -> TestResult<u64> {
                let changer = scope.spawn(|| -> TestResult<u64> {
                    let (mut known, mut value) = (known, 0);
                    // Not each time, so that the race can be won within a second.
                    while value < 3 && !stop.load(Ordering::Relaxed) {
                        let lookups = mirror.count()?.faults;
                        if lookups == known {
                            std::thread::yield_now();
                            continue;
                        }
                        known = lookups;
                        value += 1;
                        place.advise(page, PAGE, libc::MADV_DONTNEED)?;
                        place.write_u64(page, value);
                    }
                    Ok(value)
                });
                let ended = (0..60).find_map(|_| match mirror.end(&mirror.idle()) {
                    Ok(End::Refused(Errno::BUSY)) => None,
                    other => Some(other),
                });
                stop.store(true, Ordering::Relaxed);
                let value = changer.join().expect("no panic")?;
                match ended {
                    Some(Ok(End::Done)) => Ok(value),
                    other => Err(Outcome::Fail(format!("round {round}: {other:?}"))),
                }
            })?;
            changes += value;
            if value > 0 {
                check_eq!(mirror.peek(page)?, value, "round {round}: the last change");
            }
            mirror.agrees("what was looked up and replaced")?;
        }
        let (after, last) = (knobs.counters()?, mirror.count()?);
        let retries = last.retries - first.retries;
        println!("    # {changes} changes, {retries} lookups repeated");
        raced("rounds", rounds)?;
        check!(retries > 0, "no lookup was repeated");
        check_eq!(
            after.since(&before, "lookup_retries")?,
            retries,
            "lookups repeated, for the device and for the registration"
        );
        Ok(())
    })
}

/// `happen` is counted once, and as what it is.
fn counted(knobs: &Knobs, counter: &str, happen: impl FnOnce() -> TestResult) -> TestResult {
    let before = knobs.counters()?;
    happen()?;
    let after = knobs.counters()?;
    check_eq!(after.since(&before, counter)?, 1, "{counter}");
    let mut moved = after.moved(&before, "invalidations_");
    // Memory can be reclaimed or compacted at any time.
    moved.retain(|name| *name != counter && *name != CLEAR.counter);
    check!(moved.is_empty(), "{counter}: also counted: {moved:?}");
    Ok(())
}

fn counts(env: &Env, event: &Happening) -> TestResult {
    with_mirror(env, |knobs, mirror, place| {
        for _ in 0..3 {
            counted(knobs, event.counter, || {
                mirror.loses(event.counter, SIZE, || (event.happen)(place))
            })?;
            (event.undo)(place)?;
            mirror.coherent_all_over("afterwards")?;
        }
        Ok(())
    })
}

fn counts_unmap(env: &Env) -> TestResult {
    counts(env, &UNMAP)
}

fn counts_clear(env: &Env) -> TestResult {
    counts(env, &CLEAR)
}

fn counts_protection_vma(env: &Env) -> TestResult {
    counts(env, &PROTECTION_VMA)
}

fn counts_protection_page(env: &Env) -> TestResult {
    counts(env, &PROTECTION_PAGE)
}

fn counts_soft_dirty(env: &Env) -> TestResult {
    counts(env, &SOFT_DIRTY)
}

/// A process ends with its memory in the device.
fn counts_release(env: &Env) -> TestResult {
    // The child opens the device itself.
    drop(open(env)?);
    let knobs = Knobs::open(env)?;
    counted(&knobs, "invalidations_release", || {
        child::run(|| {
            let device: &Device = Box::leak(Box::new(open(env)?));
            let place: &Place = Box::leak(Box::new(Place::base(SIZE)?));
            let mirror = Mirror::new(device, place)?;
            mirror.scatter(1);
            mirror.agrees("before the end")?;
            std::mem::forget(mirror);
            Ok(())
        })
    })
}

/// Another device takes the pages into memory of its own.
fn counts_migrate(env: &Env) -> TestResult {
    let other = Dmirror::open()?;
    with_mirror(env, |knobs, mirror, place| {
        let before = knobs.counters()?;
        mirror.loses("migration", SIZE, || {
            other.migrate(place.address(0), PAGES)?;
            Ok(())
        })?;
        let moved = knobs.counters()?.since(&before, "invalidations_migrate")?;
        check!(moved > 0, "invalidations_migrate");
        mirror.agrees("after migration")
    })
}

/// Another device wants the pages for itself.
fn counts_exclusive(env: &Env) -> TestResult {
    let other = Dmirror::open()?;
    with_mirror(env, |knobs, mirror, place| {
        let before = knobs.counters()?;
        mirror.loses("exclusive access", SIZE, || {
            other.make_exclusive(place.address(0), PAGES)?;
            Ok(())
        })?;
        let moved = knobs
            .counters()?
            .since(&before, "invalidations_exclusive")?;
        check!(moved > 0, "invalidations_exclusive");
        mirror.agrees("after exclusive access")
    })
}

/// Where the device has nothing, there is nothing to count.
fn counts_nothing_unmapped(env: &Env) -> TestResult {
    let device = open(env)?;
    let knobs = Knobs::open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    place.fill(1);
    mirror.prefetch(0, SIZE / 2)?;
    let before = knobs.counters()?;
    place.advise(SIZE / 2, SIZE / 2, libc::MADV_DONTNEED)?;
    place.unmap(SIZE / 2, SIZE / 2)?;
    let after = knobs.counters()?;
    check_eq!(
        after.since(&before, UNMAP.counter)?,
        0,
        "the part without pages"
    );
    counted(&knobs, UNMAP.counter, || place.unmap(0, SIZE))
}

/// Those of the device are those of its only registration.
fn counts_maps_and_acknowledgements(env: &Env) -> TestResult {
    with_mirror(env, |knobs, mirror, place| {
        let (before, first) = (knobs.counters()?, mirror.count()?);
        for round in 0..env.iterations(10) as usize {
            place.advise(round % PAGES * PAGE, PAGE, libc::MADV_DONTNEED)?;
            mirror.agrees("with pages replaced")?;
        }
        let (after, last) = (knobs.counters()?, mirror.count()?);
        let maps = last.maps - first.maps;
        let invalidations = last.invalidations - first.invalidations;
        check!(maps > 0 && invalidations > 0, "nothing has happened");
        check_eq!(after.since(&before, "maps")?, maps, "MAPs");
        check_eq!(
            after.since(&before, "acknowledgements")?,
            invalidations,
            "INVALIDATEs acknowledged, of those sent"
        );
        Ok(())
    })
}

/// Every page that the device could write, and no other.
fn counts_dirtied_pages(env: &Env) -> TestResult {
    with_mirror(env, |knobs, mirror, place| {
        let before = knobs.counters()?;
        mirror.loses("munmap of a part", 3 * PAGE, || place.unmap(PAGE, 3 * PAGE))?;
        let after = knobs.counters()?;
        check_eq!(
            after.since(&before, "dirtied_pages")?,
            3,
            "pages of a munmap"
        );
        let read_only = Place::base(SIZE)?;
        read_only.fill(2);
        let reader = Mirror::with(mirror.device, &read_only, READ_ONLY)?;
        let before = knobs.counters()?;
        reader.loses("munmap", SIZE, || read_only.unmap(0, SIZE))?;
        let after = knobs.counters()?;
        check_eq!(after.since(&before, "dirtied_pages")?, 0, "pages only read");
        for name in ["quarantined_pages_now", "quarantined_pages_ever"] {
            check_eq!(after.get(name)?, 0, "{name}");
        }
        Ok(())
    })
}

/// As many as there are registrations.
fn counts_spaces(env: &Env) -> TestResult {
    let device = open(env)?;
    let knobs = Knobs::open(env)?;
    let place = Place::base(SIZE)?;
    let now = || knobs.counters()?.get("spaces_now");
    let before = now()?;
    let mut mirrors = Vec::new();
    for count in 1..=3 {
        mirrors.push(Mirror::new(&device, &place)?);
        check_eq!(now()?, before + count, "spaces with {count} registrations");
    }
    while mirrors.pop().is_some() {
        let left = mirrors.len() as u64;
        check_eq!(
            now()?,
            before + left,
            "spaces with {left} registrations left"
        );
    }
    Ok(())
}

/// Files that are open outlive the module: they cannot be read, and can be closed.
fn open_files_and_unloading(env: &Env) -> TestResult {
    drop(open(env)?);
    let module = gpu::module_file()?;
    let knobs = Knobs::open(env)?;
    let mut counters = File::open(knobs.folder().join("mirror"))?;
    let mut knob = File::options()
        .read(true)
        .write(true)
        .open(knobs.folder().join("force_retries"))?;
    let mut text = String::new();
    counters.read_to_string(&mut text)?;
    check!(text.contains("maps: "), "{text:?}");
    knob.write_all(b"5")?;
    check_eq!(knobs.get("force_retries")?, 5, "the knob");

    let mut unloaded = Ok(());
    crate::support::eventually(gpu::LIMIT, || {
        unloaded = gpu::unload("virtgpu_userptr");
        unloaded.is_ok()
    });
    unloaded?;
    check!(!knobs.folder().exists(), "the folder is still there");
    let mut bytes = [0; 8];
    check!(counters.read(&mut bytes).is_err(), "counters of nothing");
    check!(knob.read(&mut bytes).is_err(), "a knob of nothing");
    check!(knob.write(b"6").is_err(), "a knob of nothing was turned");
    drop((counters, knob));

    gpu::load(&module)?;
    gpu::wait_for_node(env)?;
    let values = Knobs::values(env)?;
    check!(
        values.iter().all(|(_, value)| *value == 0),
        "knobs of a new device: {values:?}"
    );
    let counters = Knobs::open(env)?.counters()?;
    check_eq!(counters.get("maps")?, 0, "MAPs of a new device");
    Ok(())
}

/// However much of a process's memory goes at once, others of the same file wait for a part of it
/// only.
fn lock_is_not_kept(env: &Env) -> TestResult {
    const SPACE: usize = 64 << 30;
    const MAPPED: usize = 4 << 30;
    /// Words that are looked at for the longest MAP, the granules they are in, and those that are
    /// passed over before.
    const MOST: u64 = 4 * (512 + 1) + 128;
    const MIDDLE: usize = 1 << 20;
    let knobs = Knobs::open(env)?;
    let device = open(env)?;
    // Read-only, so that one huge page of zeroes is all that is needed.
    let place = Place::reserve(Pages::Huge, SPACE)?;
    place.map_with(0, SPACE, READ, libc::MAP_PRIVATE)?;
    let mirror = Mirror::with(&device, &place, SPARSE.read_only())?;
    mirror.prefetch(SPACE / 2, MAPPED)?;
    // It finds all of it mapped.
    mirror.run("a job on all that is mapped", &mirror.idle())?;
    check_eq!(mirror.count()?.mapped_bytes, MAPPED as u64, "bytes mapped");
    place.advise(0, SPACE, libc::MADV_DONTNEED)?;
    check_eq!(mirror.count()?.mapped_bytes, 0, "bytes mapped afterwards");
    mirror.prefetch(SPACE / 2, MAPPED)?;
    // The longest MAP, from the middle of a granule to that of another.
    mirror.prefetch(MIDDLE, 4 * HUGE)?;
    place.unmap(0, SPACE)?;
    let longest = knobs.counters()?.get("longest_look")?;
    println!("    # {longest} words at most");
    check!(
        (1..=MOST).contains(&longest),
        "{longest} words were looked at with the lock held"
    );
    Ok(())
}
