// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Faults while the process's memory is being changed, which may take long: for as long as a job of
//! another file may use mirrored memory that is taken. A fault waits for changes of its own page
//! only.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use virtgpu_client::{compute, Bytes, Deadline, Device, Errno, Memory, SyncStatus};

use super::support::{at, family, open, End, Svm};
use crate::ktap::{Family, TestResult};
use crate::mirrored::fences::{patient, running, waits, Gate};
use crate::mirrored::support::{open as open_mirrored, Mirror, WHOLE};
use crate::support::debugfs::Knobs;
use crate::support::place::{Pages, Place, NONE, RW};
use crate::support::{eventually, job, procfs, Env, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "svm_beside",
    cases![
        another_change: 200,
        the_page_behind_it: 200,
        the_page_before_it: 200,
        the_page_before_it_in_a_file: 200,
        its_own_change: 200,
        the_end_of_its_own_change: 200,
        more_changes_than_places: 300,
        an_area_that_grows: 200,
        prefetch_in_an_area_that_grows: 200,
    ],
);

/// Memory of a job that does not end before its gate is opened.
const SIZE: usize = 4 * PAGE;

/// Calls `test` in the middle of MADV_DONTNEED of [`SIZE`] bytes of `place` from `offset` on, which
/// waits for a job that does so until the gate is opened. Then that job must not be over.
fn in_the_middle_of_a_change(
    device: &Device,
    place: &Place,
    offset: usize,
    test: impl FnOnce() -> TestResult,
) -> TestResult {
    let mirror = Mirror::part(device, place, offset, SIZE, WHOLE)?;
    let gate = Gate::new(device)?;
    mirror.fill(0)?;
    let fence = gate.submit(0, &mirror, 0)?;
    running(place, offset)?;
    waits(
        "MADV_DONTNEED",
        || place.advise(offset, SIZE, libc::MADV_DONTNEED),
        || {
            test()?;
            check_eq!(
                fence.status()?,
                SyncStatus::Active,
                "the job for which the change waits"
            );
            gate.open();
            Ok(())
        },
    )
}

/// What a job does in windows that it has not touched before does not wait for a change elsewhere.
fn another_change(env: &Env) -> TestResult {
    patient(env, || {
        let (device, svm) = (open_mirrored(env)?, open(env)?);
        let (place, elsewhere) = (Place::base(SIZE)?, Place::base(SIZE)?);
        let adding = Svm::adding(&elsewhere);
        in_the_middle_of_a_change(&device, &place, 0, || svm.run("beside a change", &adding))?;
        check_eq!(elsewhere.read_u32(0), 1, "what the job has added");
        svm.coherent_all_over("afterwards", &place)
    })
}

/// Nor does the page next to what is being changed, in the same huge page of addresses, although
/// usually all that is there is mapped together.
fn the_page_behind_it(env: &Env) -> TestResult {
    used_beside_a_change(env, SIZE, |_| Ok(()))
}

/// Nor the page before it, by which the pages that are changed would be mapped ahead.
fn the_page_before_it(env: &Env) -> TestResult {
    used_beside_a_change(env, 0, |_| Ok(()))
}

/// The same where a program says that it will use all in order.
fn the_page_before_it_in_a_file(env: &Env) -> TestResult {
    used_beside_a_change(env, 0, |place| {
        place.advise(0, place.len(), libc::MADV_SEQUENTIAL)
    })
}

/// A job writes to the page at `offset` of memory, of which [`SIZE`] bytes next to that page are
/// being changed.
fn used_beside_a_change(
    env: &Env,
    offset: usize,
    prepare: impl Fn(&Place) -> TestResult,
) -> TestResult {
    patient(env, || {
        let (device, svm) = (open_mirrored(env)?, open(env)?);
        let place = Place::base(2 * SIZE)?;
        prepare(&place)?;
        let changed = if offset == 0 { PAGE } else { 0 };
        // A write at once: a read would be followed by a fault of the page alone.
        let writing = Svm::writing(place.address(offset), 7);
        in_the_middle_of_a_change(&device, &place, changed, || {
            svm.run("beside a change", &writing)
        })?;
        check_eq!(place.read_u64(offset), 7, "what the job has written");
        svm.agrees("afterwards", &place)
    })
}

/// A job that uses what is being changed goes on when the change is over, with the new page.
fn its_own_change(env: &Env) -> TestResult {
    used_and_changed(env, 0)
}

/// The same with the last of the pages.
fn the_end_of_its_own_change(env: &Env) -> TestResult {
    used_and_changed(env, SIZE - PAGE)
}

/// A job on ring 0 uses the page at `offset` of memory that is being changed.
fn used_and_changed(env: &Env, offset: usize) -> TestResult {
    patient(env, || {
        let (device, svm) = (open_mirrored(env)?, open(env)?);
        let (place, elsewhere) = (Place::base(SIZE)?, Place::base(SIZE)?);
        let mut stream = compute::Stream::new();
        stream.add_u32(at(place.address(offset)), PAGE as u64, 1);
        let adding = Svm::adding(&elsewhere);
        in_the_middle_of_a_change(&device, &place, 0, || {
            svm.submit(0, &stream)?;
            // Twenty times what it would take.
            for _ in 0..20 {
                elsewhere.advise(0, SIZE, libc::MADV_DONTNEED)?;
                svm.run_on(1, "beside a change", &adding)?;
            }
            let early = svm.space.wait_ring(0, Deadline::Now);
            check_eq!(early, Err(Errno::TIME), "the job on what is being changed");
            Ok(())
        })?;
        check_eq!(svm.finish(0)?, End::Done, "the job on what was changed");
        // The page from before is gone, with what the mirrored job has written.
        check_eq!(place.read_u32(offset), 1, "what the job has added");
        svm.agrees("afterwards", &place)
    })
}

/// More changes are under way than the driver keeps account of. What it does for want of a place
/// may take longer, and is right all the same: the page is the one after the change.
fn more_changes_than_places(env: &Env) -> TestResult {
    const THREADS: usize = 80;
    patient(env, || {
        let (device, svm) = (open_mirrored(env)?, open(env)?);
        let place = Place::base(THREADS * PAGE)?;
        let (mirror, gate) = (Mirror::new(&device, &place)?, Gate::new(&device)?);
        mirror.fill(0)?;
        let mut adding = compute::Stream::new();
        adding.add_u32(at(place.address((THREADS - 1) * PAGE)), 4, 1);
        let fence = gate.submit(0, &mirror, 0)?;
        running(&place, 0)?;
        let tids: Vec<_> = (0..THREADS).map(|_| AtomicI32::new(0)).collect();
        std::thread::scope(|scope| {
            let changing: Vec<_> = tids
                .iter()
                .enumerate()
                .map(|(number, tid)| {
                    let place = &place;
                    scope.spawn(move || {
                        // SAFETY: Takes nothing.
                        tid.store(unsafe { libc::gettid() }, Ordering::Release);
                        place.advise(number * PAGE, PAGE, libc::MADV_DONTNEED)
                    })
                })
                .collect();
            // Asleep at several looks: nothing else in there sleeps for long.
            let mut looks = 0;
            let are_asleep = eventually(job::LIMIT, || {
                let asleep = |tid: &AtomicI32| procfs::asleep(tid.load(Ordering::Acquire));
                looks = match tids.iter().all(asleep) {
                    true => looks + 1,
                    false => 0,
                };
                looks == 10
            });
            let work = || -> TestResult {
                check!(are_asleep, "not all changes wait for the job");
                svm.submit(0, &adding)?;
                check!(
                    eventually(job::LIMIT, || svm
                        .count()
                        .is_ok_and(|count| count.faults > 0)),
                    "there is no fault"
                );
                let early = svm.space.wait_ring(0, Deadline::Now);
                check_eq!(early, Err(Errno::TIME), "the job on what is being changed");
                check_eq!(
                    fence.status()?,
                    SyncStatus::Active,
                    "the job for which the changes wait"
                );
                Ok(())
            };
            let worked = work();
            gate.open();
            for thread in changing {
                thread.join().expect("no panic")?;
            }
            worked
        })?;
        check_eq!(svm.finish(0)?, End::Done, "the job on what was changed");
        check_eq!(
            place.read_u32((THREADS - 1) * PAGE),
            1,
            "what the job has added"
        );
        svm.agrees("afterwards", &place)
    })
}

/// The area that a page is in grows and shrinks all the time, at its other end.
fn in_an_area_that_grows(
    env: &Env,
    test: impl Fn(&Svm, &Place, usize) -> TestResult,
) -> TestResult {
    /// Pages that come and go.
    const PAGES: usize = 200;
    let svm = open(env)?;
    // So that there are some each time between the lookup of a page and its MAP.
    let knobs = Knobs::open(env)?;
    knobs.set("delay_map_ms", 20)?;
    let place = Place::reserve(Pages::Base, (PAGES + 1) * PAGE)?;
    let last = PAGES * PAGE;
    place.map(last, PAGE)?;
    place.write_u64(last, 0);
    let (stop, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> TestResult {
            while !stop.load(Ordering::Relaxed) {
                for page in (0..PAGES).rev() {
                    place.map_with(page * PAGE, PAGE, RW, libc::MAP_PRIVATE)?;
                    changes.fetch_add(1, Ordering::Relaxed);
                }
                place.map_with(0, last, NONE, libc::MAP_PRIVATE)?;
            }
            Ok(())
        });
        let work = || -> TestResult {
            for _ in 0..10 {
                let before = changes.load(Ordering::Relaxed);
                place.advise(last, PAGE, libc::MADV_DONTNEED)?;
                check!(
                    eventually(job::LIMIT, || changes.load(Ordering::Relaxed) != before),
                    "the other thread does nothing"
                );
                test(&svm, &place, last)?;
            }
            Ok(())
        };
        let worked = work();
        stop.store(true, Ordering::Relaxed);
        thread.join().expect("no panic")?;
        worked
    })
}

/// That is no change of the page, and not waited for.
fn an_area_that_grows(env: &Env) -> TestResult {
    in_an_area_that_grows(env, |svm, place, offset| {
        svm.poke(place.address(offset), 7)?;
        check_eq!(place.read_u64(offset), 7, "what the job has written");
        Ok(())
    })
}

/// Nor by PREFETCH.
fn prefetch_in_an_area_that_grows(env: &Env) -> TestResult {
    in_an_area_that_grows(env, |svm, place, offset| {
        let address = place.address(offset);
        let done = svm.space.prefetch_for_writing(address, PAGE as u64)?;
        check_eq!(done, PAGE as u64, "bytes prefetched");
        Ok(())
    })
}
