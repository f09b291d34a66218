// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device with room for few pages.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Barrier;

use virtgpu_client::{compute, Bytes, Memory};

use super::support::{at, family, open, open_with, others_work, End, Svm, USUAL};
use crate::ktap::{Case, Family, TestResult};
use crate::support::place::Place;
use crate::support::{gpu, Env, HUGE, PAGE};
use crate::{cases, check, check_eq};

/// A device with room for fewer pages than a fault asks for.
pub(crate) const FEW: Family = on_device(
    "svm_room_for_few",
    "--mirror-mappings 12",
    cases![asks_for_one_in_the_end],
);

/// A device that is soon full.
pub(crate) const FULL: Family = on_device(
    "svm_room_for_some",
    "--mirror-mappings 200",
    cases![one_makes_room_for_all: 300],
);

/// A device with room for one page, which it wants to have alone.
pub(crate) const ONE: Family = on_device(
    "svm_room_for_one",
    "--exclusive-atomics --mirror-mappings 8",
    cases![beside_a_slice: 300],
);

const fn on_device(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        device,
        ..family(name, cases)
    }
}

/// A fault that asks for more pages than the device will ever have room for, with nothing to evict,
/// is not out of memory before it has asked for one.
fn asks_for_one_in_the_end(env: &Env) -> TestResult {
    // What one thread undoes is room for another.
    let svm = open_with(env, USUAL.workers(1))?;
    let (first, place) = (Place::scattered(16)?, Place::scattered(16)?);
    // The first MAP is refused; from then on it is awaited.
    svm.run("writing a word", &Svm::writing(first.address(0), 7))?;
    check!(svm.count()?.faults > 1, "the device had room");
    first.unmap(0, first.len())?;
    check_eq!(svm.count()?.mapped_bytes, 0, "bytes mapped");
    // A ring that has had no fault yet asks for several pages.
    svm.run_on(1, "on another ring", &Svm::writing(place.address(0), 7))?;
    check_eq!(place.read_u64(0), 7, "the word");
    check_eq!(svm.count()?.evictions, 0, "evictions");
    drop(svm);
    others_work(env, "a device that has little room")
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

/// A page that a processor wants back, and which stays with the device for the rest of its slice,
/// takes room until then. Who needs that room has it at once.
fn beside_a_slice(env: &Env) -> TestResult {
    const TIMES: u64 = 10;
    gpu::reload(env, c"exclusive_slice_us=10000")?;
    let svm = open(env)?;
    let (counted, other) = (Place::base(PAGE)?, Place::base(PAGE)?);
    counted.write_u64(0, 0);
    // SAFETY: The place is mapped as long as the word is used, which is aligned.
    let word = unsafe { AtomicU64::from_ptr(counted.as_ptr().cast()) };
    let mut stream = compute::Stream::new();
    for _ in 0..TIMES {
        stream
            .atomic_add(at(counted.address(0)), 1, 1)
            .add_u32(at(other.address(0)), 4, 1);
    }
    let (stop, ours) = (AtomicBool::new(false), AtomicU64::new(0));
    let rounds = env.iterations(20);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                word.fetch_add(1, Ordering::SeqCst);
                ours.fetch_add(1, Ordering::SeqCst);
            }
        });
        let work = || -> TestResult {
            for round in 0..rounds {
                let end = svm.end(&stream)?;
                check_eq!(end, End::Done, "round {round}: {:x?}", svm.count());
            }
            Ok(())
        };
        let result = work();
        stop.store(true, Ordering::SeqCst);
        result
    })?;
    let count = svm.count()?;
    println!(
        "    # {} turns, {} evictions",
        count.exclusive, count.evictions
    );
    check!(count.evictions > 0, "nothing was evicted");
    check_eq!(
        word.load(Ordering::SeqCst),
        ours.into_inner() + rounds * TIMES,
        "what both have counted"
    );
    check_eq!(
        u64::from(other.read_u32(0)),
        rounds * TIMES,
        "what the device has added"
    );
    Ok(())
}
