// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Both sides want the page at the same time: nothing is lost, and neither waits for ever.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::{Bytes, Memory};

use super::super::support::{device, open, End, Svm, RINGS};
use super::{counting, given, word};
use crate::isolation;
use crate::ktap::TestResult;
use crate::support::place::{Place, READ, RW};
use crate::support::{child, eventually, job, raced, Env, PAGE};
use crate::{check, check_eq};

/// Jobs count on all rings in the word at the start of `place`, and a thread with them, while
/// another calls `disturb` with the number of the call. Nothing is lost.
pub(super) fn additions(
    svm: &Svm,
    place: &Place,
    rounds: u64,
    mut disturb: impl FnMut(u64) -> TestResult + Send,
) -> TestResult {
    const TIMES: u64 = 50;
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut jobs, mut ours) = (0, 0);
    let start = word(place, 0).load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let disturber = scope.spawn(|| -> TestResult {
            while !stop.load(Ordering::SeqCst) {
                disturb(count.fetch_add(1, Ordering::SeqCst))?;
            }
            Ok(())
        });
        let adding = counting(place.address(0), TIMES);
        let mut work = || -> TestResult {
            while jobs < rounds || count.load(Ordering::SeqCst) < rounds {
                if disturber.is_finished() {
                    break;
                }
                for ring in 0..RINGS {
                    svm.submit(ring, &adding)?;
                }
                for _ in 0..TIMES {
                    word(place, 0).fetch_add(1, Ordering::SeqCst);
                    ours += 1;
                }
                for ring in 0..RINGS {
                    check_eq!(svm.finish(ring)?, End::Done, "a job of ring {ring}");
                }
                jobs += 1;
            }
            Ok(())
        };
        let worked = work();
        stop.store(true, Ordering::SeqCst);
        let disturbed = disturber.join().expect("no panic");
        worked.and(disturbed)
    })?;
    check_eq!(
        word(place, 0).load(Ordering::SeqCst) - start,
        ours + jobs * u64::from(RINGS) * TIMES,
        "what both have counted"
    );
    println!("    # {} pages given to the device", given(svm)?);
    raced("disturbances", count.into_inner())
}

/// Both count in the same word at the same time, which is where a device that is not coherent loses
/// what a processor counts, or the processor what the device does.
pub(super) fn counter_with_cpu(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    let (stop, ours) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut jobs = 0_u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                word(&place, 0).fetch_add(1, Ordering::SeqCst);
                ours.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut work = || -> TestResult {
            for _ in 0..env.rounds(100) {
                let before = ours.load(Ordering::SeqCst);
                svm.run("counting", &counting(place.address(0), 100))?;
                jobs += 1;
                check!(
                    eventually(job::LIMIT, || ours.load(Ordering::SeqCst) > before),
                    "the processor does not get the page back"
                );
            }
            Ok(())
        };
        let result = work();
        stop.store(true, Ordering::SeqCst);
        result
    })?;
    let (turns, ours) = (given(&svm)?, ours.into_inner());
    println!(
        "    # {ours} by the processor, {} by the device, in {turns} turns",
        jobs * 100
    );
    check_eq!(
        word(&place, 0).load(Ordering::SeqCst),
        ours + jobs * 100,
        "what both have counted"
    );
    check!(turns >= jobs / 2, "the device had the page {turns} times");
    Ok(())
}

/// Neither keeps the page from the other.
pub(super) fn progress_both(env: &Env) -> TestResult {
    const LEAST: u64 = 20;
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    let (stop, ours) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut jobs = 0_u64;
    let since = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                word(&place, 0).fetch_add(1, Ordering::SeqCst);
                ours.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut work = || -> TestResult {
            let both = |jobs: u64| jobs >= LEAST && ours.load(Ordering::SeqCst) >= LEAST;
            let time = Duration::from_secs(2);
            while since.elapsed() < time || !both(jobs) {
                svm.run("counting", &counting(place.address(0), 10))?;
                jobs += 1;
                check!(
                    since.elapsed() < crate::support::pace::limit(job::LIMIT),
                    "{jobs} jobs and {} additions of ours in {:?}",
                    ours.load(Ordering::SeqCst),
                    since.elapsed()
                );
            }
            Ok(())
        };
        let result = work();
        stop.store(true, Ordering::SeqCst);
        result
    })?;
    let ours = ours.into_inner();
    println!(
        "    # in {:?}: {} by the device, {ours} by the processor, in {} turns",
        since.elapsed(),
        jobs * 10,
        given(&svm)?
    );
    check_eq!(
        word(&place, 0).load(Ordering::SeqCst),
        ours + jobs * 10,
        "what both have counted"
    );
    Ok(())
}

/// Two spaces of one process take the page from each other.
pub(super) fn two_files_one_counter(env: &Env) -> TestResult {
    let (one, other) = (open(env)?, open(env)?);
    let place = Place::base(PAGE)?;
    for (what, this, that) in [("the first", &one, &other), ("the second", &other, &one)] {
        this.poke(place.address(0), 0)?;
        let told = this.count()?.invalidations;
        that.run("counting", &counting(place.address(0), 1))?;
        check!(
            this.count()?.invalidations > told,
            "{what} space still has the page that the other one has alone"
        );
    }
    place.write_u64(0, 0);
    let adding = counting(place.address(0), 40);
    let rounds = env.rounds(100);
    for _ in 0..rounds {
        one.submit(0, &adding)?;
        other.submit(0, &adding)?;
        word(&place, 0).fetch_add(1, Ordering::SeqCst);
        check_eq!(one.finish(0)?, End::Done, "a job of the first");
        check_eq!(other.finish(0)?, End::Done, "a job of the second");
    }
    println!("    # {} and {} turns", given(&one)?, given(&other)?);
    check_eq!(
        word(&place, 0).load(Ordering::SeqCst),
        rounds * 81,
        "what all have counted"
    );
    one.coherent("the first", &place, 8)?;
    other.coherent("the second", &place, 16)
}

/// Rounds of [`takes_turns`].
const TURNS: u64 = 20;

/// Maps memory all the time, in `threads` threads, until it is told to stop; counts how often.
fn maps_all_the_time(
    svm: &Svm,
    threads: usize,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> TestResult {
    let places: Vec<_> = (0..threads)
        .map(|_| Place::scattered(128))
        .collect::<TestResult<_>>()?;
    let maps = |place: &Place| -> TestResult {
        while !stop.load(Ordering::Relaxed) {
            place.protect(0, place.len(), READ)?;
            place.protect(0, place.len(), RW)?;
            let length = place.len() as u64;
            let done = svm.space.prefetch_for_writing(place.address(0), length)?;
            check_eq!(done, length, "bytes prefetched");
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = places
            .iter()
            .map(|place| scope.spawn(|| maps(place)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })
}

/// The device and this thread count in turns, while others map memory, who count in `others`.
fn takes_turns(svm: &Svm, others: &AtomicU64) -> TestResult {
    let place = Place::base(PAGE)?;
    check!(
        eventually(job::LIMIT, || others.load(Ordering::Relaxed) > 0),
        "no one maps anything"
    );
    let (start, before) = (Instant::now(), others.load(Ordering::Relaxed));
    for round in 1..=TURNS {
        svm.run("counting", &counting(place.address(0), 1))?;
        check_eq!(
            word(&place, 0).fetch_add(1, Ordering::SeqCst),
            2 * round - 1,
            "our view"
        );
    }
    let others = others.load(Ordering::Relaxed) - before;
    println!(
        "# {TURNS} rounds, {others} prefetches, {:?}",
        start.elapsed()
    );
    check!(others > TURNS, "no one was in the way");
    Ok(())
}

/// Pages are given to the device although threads of the same process want to map something all the
/// time.
pub(super) fn beside_prefetches(env: &Env) -> TestResult {
    const THREADS: usize = 6;
    let svm = open(env)?;
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let others = scope.spawn(|| maps_all_the_time(&svm, THREADS, &stop, &count));
        let worked = takes_turns(&svm, &count);
        stop.store(true, Ordering::Relaxed);
        others.join().expect("no panic")?;
        worked
    })
}

/// The same beside other processes, which keep all of the queue busy: a file has a quarter of it.
pub(super) fn beside_other_clients(env: &Env) -> TestResult {
    const CLIENTS: usize = 6;
    const THREADS: usize = 3;
    // A skip where there is no shared virtual memory.
    drop(device(env)?);
    let words = isolation::shared(PAGE)?;
    let (count, never) = (isolation::word(&words, 0), AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| child::spawn(|| maps_all_the_time(&open(env)?, THREADS, &never, count)))
        .collect::<TestResult<_>>()?;
    let worked = open(env).and_then(|svm| takes_turns(&svm, count));
    for client in clients {
        client.kill()?;
    }
    worked
}
