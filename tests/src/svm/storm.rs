// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Many faults at once: of many jobs on one page, of all rings at random beside everything that the
//! kernel does to memory, and of two processes, of which none starves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::{compute, Bytes, Memory};

use super::support::{at, device, family, open, open_with, End, Svm, RINGS, USUAL};
use crate::ktap::{Family, TestResult};
use crate::support::place::{Pages, Place, RW};
use crate::support::{child, eventually, job, pace, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "svm_storm",
    cases![
        same_page_one_fault,
        rings_random: 600,
        chases_beside_everything: 600,
        first_touch_from_all_rings,
        two_processes_fair: 300,
    ],
);

/// Has the kernel do all sorts of things to memory, which stays what it is, until it is told to
/// stop. Returns how many.
fn disturb(place: &Place, stop: &AtomicBool) -> TestResult<u64> {
    let mut random = Random(5);
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        let at = random.below((place.len() / PAGE) as u64) as usize * PAGE;
        let length = (random.below(64) as usize * PAGE + PAGE).min(place.len() - at);
        match random.below(6) {
            0 => place.advise(at, length, libc::MADV_PAGEOUT)?,
            1 => place.protect(at, length, RW)?,
            2 => place.advise(at, length, libc::MADV_NOHUGEPAGE)?,
            3 => place.advise(at, length, libc::MADV_HUGEPAGE)?,
            4 => drop(place.advise(at / HUGE * HUGE, HUGE, libc::MADV_COLLAPSE)),
            _ => {
                // SAFETY: The child does nothing but end, which any thread's child may.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    // SAFETY: Ends the child.
                    unsafe { libc::_exit(0) }
                }
                crate::ktap::reap(pid)?;
            }
        }
        count += 1;
    }
    Ok(count)
}

/// Lists of pointers are followed on each ring, and cut and joined by us in between, while the
/// memory that they are in is moved, forked, paged out and protected.
fn chases_beside_everything(env: &Env) -> TestResult {
    const NODE: usize = 192;
    const NODES: usize = 2 * HUGE / NODE;
    const STEPS: u64 = 300;
    let svm = open(env)?;
    let place = Place::new(Pages::Huge, 2 * HUGE)?;
    let stop = AtomicBool::new(false);
    // Each node has the address of the next, in a random order, and the last that of the first.
    let mut order: Vec<_> = (0..NODES).collect();
    let mut random = Random(6);
    for last in (1..NODES).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    let link = |order: &[usize], from: usize| {
        let next = order[(from + 1) % NODES];
        place.write_u64(order[from] * NODE, place.address(next * NODE));
    };
    (0..NODES).for_each(|from| link(&order, from));
    let ends = Place::base(RINGS as usize * PAGE)?;
    std::thread::scope(|scope| {
        let disturber = scope.spawn(|| disturb(&place, &stop));
        let mut work = || -> TestResult {
            for round in 0..env.iterations(40) {
                // Two nodes change places.
                let (one, other) = (random.below(NODES as u64), random.below(NODES as u64));
                let (one, other) = (one as usize, other as usize);
                order.swap(one, other);
                for at in [one, other] {
                    link(&order, (at + NODES - 1) % NODES);
                    link(&order, at);
                }
                for ring in 0..RINGS {
                    let first = (one + ring as usize * NODES / RINGS as usize) % NODES;
                    let mut stream = compute::Stream::new();
                    let end = at(ends.address(ring as usize * PAGE));
                    stream.pointer_chase(end, at(place.address(order[first] * NODE)), STEPS);
                    svm.submit(ring, &stream)?;
                }
                for ring in 0..RINGS {
                    check_eq!(svm.finish(ring)?, End::Done, "ring {ring} in round {round}");
                    let first = (one + ring as usize * NODES / RINGS as usize) % NODES;
                    check_eq!(
                        ends.read_u64(ring as usize * PAGE),
                        place.address(order[(first + STEPS as usize) % NODES] * NODE),
                        "where ring {ring} has come to in round {round}"
                    );
                }
            }
            Ok(())
        };
        let worked = work();
        stop.store(true, Ordering::SeqCst);
        let count = disturber.join().expect("no panic")?;
        println!("    # {count} disturbances");
        check!(count > 0, "no disturbance");
        worked
    })?;
    let query = svm.count()?;
    println!(
        "    # {} faults, {} pages, {} INVALIDATEs, {} retries",
        query.faults, query.pages, query.invalidations, query.retries
    );
    check!(
        query.invalidations > 0,
        "nothing was taken from the device meanwhile"
    );
    Ok(())
}

/// Jobs of all rings touch the same untouched pages at the same time: each page is faulted in once,
/// and no addition is lost.
fn same_page_one_fault(env: &Env) -> TestResult {
    let svm = open_with(env, USUAL.exact())?;
    let rounds = env.iterations(50);
    let go = AtomicU64::new(0);
    let place = Place::base(rounds as usize * PAGE)?;
    svm.run("the word", &Svm::writing(go.as_ptr() as u64, 0))?;
    let before = svm.count()?;
    for round in 0..rounds {
        let address = place.address(round as usize * PAGE);
        let mut stream = compute::Stream::new();
        stream
            .spin_until(at(go.as_ptr() as u64), round + 1, 60_000_000)
            .atomic_add(at(address), 1, 10);
        for ring in 0..RINGS {
            svm.submit(ring, &stream)?;
        }
        go.store(round + 1, Ordering::SeqCst);
        for ring in 0..RINGS {
            check_eq!(svm.finish(ring)?, End::Done, "ring {ring}");
        }
        check_eq!(
            place.read_u64(round as usize * PAGE),
            u64::from(RINGS) * 10,
            "additions in round {round}"
        );
    }
    let after = svm.count()?;
    check_eq!(
        after.mapped_bytes - before.mapped_bytes,
        rounds * PAGE as u64,
        "bytes mapped"
    );
    check_eq!(
        after.faults - before.faults - (after.coalesced - before.coalesced),
        rounds,
        "faults that were not told twice"
    );
    Ok(())
}

/// Jobs on each ring add 1 to random words, while the memory is moved, forked, paged out and
/// protected; every addition arrives.
fn rings_random(env: &Env) -> TestResult {
    const PARTS: usize = RINGS as usize;
    let svm = open(env)?;
    let place = Place::new(Pages::Huge, PARTS * HUGE)?;
    let stop = AtomicBool::new(false);
    let rounds = env.iterations(400);
    let expected = std::thread::scope(|scope| {
        let disturber = scope.spawn(|| disturb(&place, &stop));
        let workers: Vec<_> = (0..PARTS)
            .map(|part| {
                let (svm, place) = (&svm, &place);
                scope.spawn(move || -> TestResult<Vec<u32>> {
                    let mut random = Random(part as u64 + 100);
                    let mut expected = vec![0_u32; HUGE / 64];
                    for round in 0..rounds {
                        let mut stream = compute::Stream::new();
                        // After a fork each of them is a fault.
                        for _ in 0..16 {
                            let word = random.below(expected.len() as u64) as usize;
                            let address = place.address(part * HUGE + word * 64);
                            stream.add_u32(at(address), 4, word as u32 | 1);
                            expected[word] = expected[word].wrapping_add(word as u32 | 1);
                        }
                        svm.run_on(part as u32, &format!("round {round}"), &stream)?;
                    }
                    Ok(expected)
                })
            })
            .collect();
        let results: Vec<_> = workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .collect();
        stop.store(true, Ordering::SeqCst);
        let count = disturber.join().expect("no panic")?;
        println!("    # {count} disturbances");
        check!(count > 0, "no disturbance");
        results.into_iter().collect::<TestResult<Vec<_>>>()
    })?;
    for (part, expected) in expected.iter().enumerate() {
        for (word, expected) in expected.iter().enumerate() {
            check_eq!(
                place.read_u32(part * HUGE + word * 64),
                *expected,
                "word {word} of part {part}"
            );
        }
    }
    let query = svm.count()?;
    println!(
        "    # {} faults, {} told twice, {} pages, {} INVALIDATEs, {} retries",
        query.faults, query.coalesced, query.pages, query.invalidations, query.retries
    );
    Ok(())
}

/// The same untouched range by four jobs at once, a page more each.
fn first_touch_from_all_rings(env: &Env) -> TestResult {
    let svm = open(env)?;
    for round in 0..env.iterations(10) {
        let place = Place::base(4 * HUGE)?;
        let mut stream = compute::Stream::new();
        for page in 0..place.len() / PAGE {
            stream.atomic_add(at(place.address(page * PAGE + 8)), round + 1, 1);
        }
        for ring in 0..RINGS {
            svm.submit(ring, &stream)?;
        }
        for ring in 0..RINGS {
            check_eq!(svm.finish(ring)?, End::Done, "ring {ring}");
        }
        for offset in (0..place.len()).step_by(PAGE) {
            check_eq!(
                place.read_u64(offset + 8),
                (round + 1) * u64::from(RINGS),
                "additions at {offset:#x}"
            );
        }
    }
    Ok(())
}

/// Untouched memory of a job in [`two_processes_fair`].
const SHARE: usize = 16 * PAGE;

/// A process that faults without an end, on all rings and with all the threads that there can be,
/// leaves one with a ring its share, and that one leaves the other the rest.
fn two_processes_fair(env: &Env) -> TestResult {
    /// How many times as many jobs either may have. The one has four jobs on the way for the
    /// other's one, and four times as many threads.
    const MOST: u64 = 16;
    drop(device(env)?);
    let flag = Place::reserve(Pages::Base, PAGE)?;
    flag.map_with(0, PAGE, RW, libc::MAP_SHARED)?;
    let hog = child::spawn(|| {
        let svm = open_with(env, USUAL.workers(8))?;
        loop {
            let places = (0..RINGS)
                .map(|_| Place::base(SHARE))
                .collect::<TestResult<Vec<_>>>()?;
            for (ring, place) in places.iter().enumerate() {
                svm.submit(ring as u32, &Svm::adding(place))?;
            }
            for (ring, place) in places.iter().enumerate() {
                check_eq!(svm.finish(ring as u32)?, End::Done, "the other's job");
                check_eq!(place.read_u32(SHARE - 4), 1, "the other's addition");
            }
            flag.write_u64(0, flag.read_u64(0) + u64::from(RINGS));
        }
    })?;
    let test = || -> TestResult {
        check!(
            eventually(job::LIMIT, || flag.read_u64(0) > 0),
            "the other process does not begin"
        );
        let svm = open(env)?;
        let rounds = env.rounds(200);
        let (before, mut ours, mut times) = (flag.read_u64(0), 0, Vec::new());
        let theirs = || flag.read_u64(0) - before;
        let end = Instant::now() + pace::limit(Duration::from_secs(200));
        while ours < rounds || theirs() < rounds {
            check!(
                Instant::now() < end,
                "we had {ours} jobs, the other process had {}",
                theirs()
            );
            let place = Place::base(SHARE)?;
            let since = Instant::now();
            svm.run("a job of ours", &Svm::adding(&place))?;
            times.push(since.elapsed());
            check_eq!(place.read_u32(SHARE - 4), 1, "our addition");
            ours += 1;
        }
        let theirs = theirs();
        times.sort();
        let longest = times[times.len() - 1];
        println!(
            "    # {ours} jobs, median {:?}, longest {longest:?}; the other process had {theirs}",
            times[times.len() / 2],
        );
        check!(
            ours <= theirs * MOST && theirs <= ours * MOST,
            "we had {ours} jobs, the other process had {theirs}"
        );
        check!(
            longest < pace::limit(Duration::from_secs(5)),
            "one of our jobs took {longest:?}"
        );
        Ok(())
    };
    let result = test();
    check!(
        !hog.is_finished()?,
        "the other process has ended: {:?}",
        hog.join()
    );
    hog.kill()?;
    result
}
