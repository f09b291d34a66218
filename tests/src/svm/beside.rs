// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Faults while the process's memory is being changed, which may take long: for as long as a job of
//! another file may use mirrored memory that is taken. A fault waits for changes of its own page
//! only.

use std::sync::atomic::{AtomicU64, Ordering};

use virtgpu_client::{compute, Bytes, Deadline, Device, Errno, SyncStatus};

use super::support::{at, family, open, End, Svm};
use crate::ktap::{Family, TestResult};
use crate::mirrored::fences::{patient, running, waits, Gate};
use crate::mirrored::support::{open as open_mirrored, Mirror, WHOLE};
use crate::support::place::Place;
use crate::support::{eventually, job, Env, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "svm_beside",
    cases![
        another_change: 200,
        the_page_beside_it: 200,
        its_own_change: 200,
        the_end_of_its_own_change: 200,
        more_changes_than_places: 300,
    ],
);

/// Memory of a job that does not end before its gate is opened.
const SIZE: usize = 4 * PAGE;

/// Calls `test` in the middle of MADV_DONTNEED of the start of `place`, which waits for a job that
/// does so until the gate is opened. Then that job must not be over.
fn in_the_middle_of_a_change(
    device: &Device,
    place: &Place,
    test: impl FnOnce() -> TestResult,
) -> TestResult {
    let mirror = Mirror::part(device, place, 0, SIZE, WHOLE)?;
    let gate = Gate::new(device)?;
    mirror.fill(0)?;
    let fence = gate.submit(0, &mirror, 0)?;
    running(place, 0)?;
    waits(
        "MADV_DONTNEED",
        || place.advise(0, SIZE, libc::MADV_DONTNEED),
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
        in_the_middle_of_a_change(&device, &place, || svm.run("beside a change", &adding))?;
        check_eq!(elsewhere.read_u32(0), 1, "what the job has added");
        svm.coherent_all_over("afterwards", &place)
    })
}

/// Nor does the page next to what is being changed, in the same huge page of addresses, although
/// usually all that is there is mapped together.
fn the_page_beside_it(env: &Env) -> TestResult {
    patient(env, || {
        let (device, svm) = (open_mirrored(env)?, open(env)?);
        let whole = Place::base(2 * SIZE)?;
        let mut stream = compute::Stream::new();
        stream.add_u32(at(whole.address(SIZE)), 4, 1);
        in_the_middle_of_a_change(&device, &whole, || svm.run("beside a change", &stream))?;
        check_eq!(whole.read_u32(SIZE), 1, "what the job has added");
        svm.agrees("afterwards", &whole)
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
        in_the_middle_of_a_change(&device, &place, || {
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

/// More threads change memory than the driver keeps account of: what a job touches is right at
/// every moment all the same.
fn more_changes_than_places(env: &Env) -> TestResult {
    const THREADS: usize = 24;
    let svm = open(env)?;
    let place = Place::base(THREADS * PAGE)?;
    let (stop, changes) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut adding = compute::Stream::new();
    for page in 0..THREADS {
        adding.add_u32(at(place.address(page * PAGE)), 4, 1);
    }
    std::thread::scope(|scope| {
        let churning: Vec<_> = (0..THREADS)
            .map(|number| {
                let (place, stop, changes) = (&place, &stop, &changes);
                scope.spawn(move || -> TestResult {
                    while stop.load(Ordering::SeqCst) == 0 {
                        place.advise(number * PAGE, PAGE, libc::MADV_DONTNEED)?;
                        changes.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
            })
            .collect();
        let work = || -> TestResult {
            for round in 0..20 {
                let before = changes.load(Ordering::SeqCst);
                svm.run("while memory goes", &adding)?;
                check!(
                    eventually(job::LIMIT, || changes.load(Ordering::SeqCst) > before),
                    "nothing changes in round {round}"
                );
            }
            Ok(())
        };
        let worked = work();
        stop.store(1, Ordering::SeqCst);
        for thread in churning {
            thread.join().expect("no panic")?;
        }
        worked
    })?;
    svm.agrees("afterwards", &place)?;
    svm.coherent_all_over("afterwards", &place)
}
