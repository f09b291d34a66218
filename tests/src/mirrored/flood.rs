// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Processes that have more MAPs sent than the device can carry out, and others that need little of
//! it: the queue is one for all, and memory reclaim waits for what is at its end.

use std::sync::atomic::{AtomicBool, Ordering};

use virtgpu_client::protocol::compute::Stat;
use virtgpu_client::{Bytes, Device, Memory};

use super::support::{family as well_behaved, open, SPARSE};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::child::{self, drop_privileges, Child};
use crate::support::debugfs::Knobs;
use crate::support::place::Place;
use crate::support::stat::{self, Oracle};
use crate::support::{eventually, job, Env, PAGE};
use crate::{cases, check, check_eq};

/// A device that takes its time for a MAP, so that the ring is always full.
pub(crate) const FAMILY: Family = Family {
    device: "--adversary slow:8 --adversary-on MAP",
    ..well_behaved(
        "mirrored_flood",
        cases![
            reclaim_waits_for_a_share_of_the_ring: 300,
            a_large_request_has_its_turn: 400,
            a_file_with_all_of_its_share_goes_on: 300,
        ],
    )
};

/// Descriptors that MAP must leave, and those that one takes.
const KEPT: u64 = 32;
const MAP: u64 = 3;

/// Most MAPs of a file that may be in the ring at a time, as `docs/internals.md` says.
fn share(counts: &Stat) -> u64 {
    (counts.mirror_ring.get() - KEPT) / 4 / MAP
}

/// Has all of `place` mapped, and unmapped by the end of the registration. A change of the memory
/// itself would keep all threads of the process from looking up pages until the device has
/// acknowledged it. Returns the number of MAPs.
fn once(device: &Device, place: &Place) -> TestResult<u64> {
    let userptr = device.register(place, SPARSE)?;
    let done = userptr.prefetch(0, place.len() as u64)?;
    check_eq!(done, place.len() as u64, "bytes prefetched");
    Ok(userptr.query()?.maps)
}

/// Has `pages` scattered pages mapped by each of `threads` threads of a process of its own, and
/// taken away, again and again until it is killed.
fn flood(env: &Env, threads: usize, pages: usize) -> TestResult<Child> {
    child::spawn(|| {
        drop_privileges()?;
        let device = open(env)?;
        let again = |place: &Place| -> TestResult {
            loop {
                once(&device, place)?;
            }
        };
        let places = (0..threads)
            .map(|_| Place::scattered(pages))
            .collect::<TestResult<Vec<_>>>()?;
        std::thread::scope(|scope| {
            let threads: Vec<_> = places
                .iter()
                .map(|place| scope.spawn(|| again(place)))
                .collect();
            let ended = threads.into_iter().map(|thread| thread.join());
            for outcome in ended {
                outcome.map_err(|_| Outcome::Fail("a thread panicked".into()))??;
            }
            Ok(())
        })
    })
}

/// Waits until all are at work, and looks whether they are still when `test` is over.
fn amid(env: &Env, floods: Vec<Child>, test: impl FnOnce(&Device) -> TestResult) -> TestResult {
    let device = open(env)?;
    let oracle = Oracle::new(&device)?;
    let before = oracle.read()?.maps.get();
    let begun = eventually(job::LIMIT, || {
        oracle
            .read()
            .is_ok_and(|now| now.maps.get() >= before + 300)
    });
    check!(begun, "no flood of MAPs");
    test(&device)?;
    for flood in floods {
        if flood.is_finished()? {
            return flood.join();
        }
        flood.kill()?;
    }
    Ok(())
}

/// An INVALIDATE has before it what the share of another file allows, and no more.
fn reclaim_waits_for_a_share_of_the_ring(env: &Env) -> TestResult {
    let floods = vec![flood(env, 32, 768)?];
    amid(env, floods, |device| {
        let place = Place::base(4 * PAGE)?;
        let userptr = device.register(&place, SPARSE)?;
        for round in 0..12 {
            place.write_u64(0, round);
            let done = userptr.prefetch(0, PAGE as u64)?;
            check_eq!(done, PAGE as u64, "bytes prefetched");
            if round % 2 == 0 {
                place.advise(0, PAGE, libc::MADV_DONTNEED)?;
            } else {
                place.unmap(0, PAGE)?;
                place.map(0, PAGE)?;
            }
            check_eq!(place.read_u64(0), 0, "new memory");
        }
        let counts = stat::read(device)?;
        let (ahead, share) = (counts.maps_ahead.get(), share(&counts));
        println!("    # {ahead} MAPs before an INVALIDATE, {share} allowed");
        check!(
            ahead <= share,
            "{ahead} MAPs of one file before an INVALIDATE of another"
        );
        check!(ahead >= share / 4, "the ring was not full: {ahead} MAPs");
        Ok(())
    })
}

/// One that takes a good part of a share all at once gets it, although smaller ones come all the
/// time.
fn a_large_request_has_its_turn(env: &Env) -> TestResult {
    let floods = (0..5)
        .map(|_| flood(env, 24, 1))
        .collect::<TestResult<Vec<_>>>()?;
    amid(env, floods, |device| {
        // Nine MAPs: 27 descriptors.
        let place = Place::scattered(2048)?;
        for _ in 0..4 {
            let maps = once(device, &place)?;
            check!(maps >= 8, "it was no large request: {maps} MAPs");
        }
        Ok(())
    })
}

/// Threads of one file get its share one after the other, those with large requests, too.
fn a_file_with_all_of_its_share_goes_on(env: &Env) -> TestResult {
    let device = open(env)?;
    let over = AtomicBool::new(false);
    let again = |place: &Place, rounds: usize| -> TestResult {
        for _ in 0..rounds {
            once(&device, place)?;
            if over.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    };
    let large = Place::scattered(2048)?;
    let small = (0..24)
        .map(|_| Place::scattered(1))
        .collect::<TestResult<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let small: Vec<_> = small
            .iter()
            .map(|place| scope.spawn(|| again(place, usize::MAX)))
            .collect();
        let outcome = again(&large, 3);
        over.store(true, Ordering::Relaxed);
        for thread in small {
            let small = thread.join();
            small.map_err(|_| Outcome::Fail("a thread panicked".into()))??;
        }
        outcome
    })?;
    // Those that were killed before may have left some to a worker.
    let knobs = Knobs::open(env)?;
    let spaces = || knobs.counters()?.get("spaces_now");
    check!(
        eventually(job::LIMIT, || spaces().is_ok_and(|spaces| spaces == 0)),
        "{:?} spaces are left",
        spaces()
    );
    Ok(())
}
