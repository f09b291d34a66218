// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device with room for few pages.

use std::sync::Barrier;

use super::support::{family, open};
use crate::ktap::{Case, Family, TestResult};
use crate::support::place::Place;
use crate::support::{Env, HUGE, PAGE};
use crate::{cases, check, check_eq};

/// A device that is soon full.
pub(crate) const FULL: Family = on_device(
    "svm_room_for_some",
    "--mirror-mappings 200",
    cases![one_makes_room_for_all: 300],
);

const fn on_device(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        device,
        ..family(name, cases)
    }
}

/// Threads that want room at the same time, in a device that is full: what one of them evicts is
/// room for all, and no other evicts any more.
fn one_makes_room_for_all(env: &Env) -> TestResult {
    const THREADS: usize = 4;
    const GRANULES: usize = 120;
    let svm = open(env)?;
    // Pages that are no neighbours, and a granule each.
    let place = Place::base((GRANULES + THREADS) * HUGE)?;
    let map = |granule: usize| -> TestResult {
        let address = place.address(granule * HUGE);
        let done = svm.space.prefetch_for_writing(address, PAGE as u64)?;
        check_eq!(done, PAGE as u64, "bytes prefetched");
        Ok(())
    };
    let (mut granule, mut full) = (0, 0);
    while svm.count()?.evictions == 0 {
        check!(granule < GRANULES, "the device has room for all");
        full = svm.count()?.mapped_bytes;
        map(granule)?;
        granule += 1;
    }
    let rounds = env.rounds(100);
    for round in 0..rounds {
        for granule in 0..GRANULES {
            if svm.count()?.mapped_bytes == full {
                break;
            }
            map(granule)?;
        }
        let before = svm.count()?;
        check_eq!(before.mapped_bytes, full, "bytes mapped in round {round}");
        // What the threads want is not there.
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (GRANULES..GRANULES + THREADS)
                .map(|granule| {
                    let (barrier, map) = (&barrier, &map);
                    scope.spawn(move || {
                        barrier.wait();
                        map(granule)
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        let evictions = svm.count()?.evictions - before.evictions;
        check_eq!(evictions, 1, "evictions in round {round}");
        place.advise(GRANULES * HUGE, THREADS * HUGE, libc::MADV_DONTNEED)?;
    }
    Ok(())
}
