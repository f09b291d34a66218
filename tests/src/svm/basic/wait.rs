// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! SVM_WAIT, events of rings, and the order of jobs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{AddressSpace, Comparison, Deadline, Errno, Event, Job, Output, SpaceOptions};

use super::delay;
use crate::ktap::TestResult;
use crate::support::place::{Pages, Place};
use crate::support::{job, raw, Env, PAGE};
use crate::svm::support::{device, open, End, Svm, RINGS};
use crate::{check, check_eq, check_err};

pub(super) fn wait_ops(env: &Env) -> TestResult {
    use Comparison::*;
    let svm = open(env)?;
    let word = AtomicU64::new(5);
    let wait = |comparison, value, mask| {
        svm.space
            .wait_value(&word, comparison, value, mask, Deadline::Now)
    };
    for (comparison, value, holds) in [
        (Equal, 5, true),
        (Equal, 4, false),
        (NotEqual, 4, true),
        (NotEqual, 5, false),
        (Greater, 4, true),
        (Greater, 5, false),
        (GreaterOrEqual, 5, true),
        (GreaterOrEqual, 6, false),
        (Less, 6, true),
        (Less, 5, false),
        (LessOrEqual, 5, true),
        (LessOrEqual, 4, false),
        // Unsigned.
        (Less, 1 << 63, true),
    ] {
        let expected = if holds { Ok(()) } else { Err(Errno::TIME) };
        check_eq!(
            wait(comparison, value, u64::MAX),
            expected,
            "5 {comparison:?} {value:#x}"
        );
    }
    word.store(0xff05, Ordering::SeqCst);
    check_eq!(wait(Equal, 5, 0xff), Ok(()), "the low bits of 0xff05");
    check_eq!(wait(Equal, 5, u64::MAX), Err(Errno::TIME), "all of them");

    // Jobs write it: each wait ends, and not before.
    word.store(0, Ordering::SeqCst);
    svm.space.scope(|scope| {
        for round in 1..=3 {
            let mut job = Job::new();
            job.delay(50_000).store(&word, round);
            scope.submit(0, &job)?;
        }
        for round in 1..=3 {
            let deadline = Deadline::after(job::LIMIT);
            svm.space
                .wait_value(&word, GreaterOrEqual, round, u64::MAX, deadline)?;
            if word.load(Ordering::SeqCst) < round {
                return Err(Errno::PROTO);
            }
        }
        Ok(())
    })??;

    // Deadlines.
    svm.run("a job", &delay(1))?;
    check_eq!(
        svm.space.wait_ring(0, Deadline::Now),
        Ok(()),
        "a ring that is idle"
    );
    check_eq!(
        svm.space.wait_ring(3, Deadline::Never),
        Ok(()),
        "a ring that was never used"
    );
    svm.submit(1, &delay(2_000_000))?;
    check_eq!(
        svm.space.wait_ring(1, Deadline::Now),
        Err(Errno::TIME),
        "a ring with a job"
    );
    let (since, time) = (Instant::now(), Duration::from_millis(200));
    check_eq!(
        svm.space.wait_ring(1, Deadline::after(time)),
        Err(Errno::TIME),
        "a ring with a job, for a while"
    );
    check!(
        since.elapsed() >= time,
        "a deadline after {time:?} has come after {:?}",
        since.elapsed()
    );
    svm.space.wait_ring(1, Deadline::Never)?;
    Ok(())
}

pub(super) fn wait_errors(env: &Env) -> TestResult {
    let svm = open(env)?;
    let word = AtomicU64::new(1);
    let good = uapi::SvmWait {
        addr: word.as_ptr() as u64,
        value: 1,
        mask: u64::MAX,
        op: uapi::svm_wait::EQ,
        ..Default::default()
    };
    let call = |argument: uapi::SvmWait| {
        let mut argument = argument;
        raw::call(svm.device(), uapi::nr::SVM_WAIT, &mut argument).map(drop)
    };
    call(good)?;
    let of_ring = uapi::SvmWait::default();
    call(of_ring)?;
    for (what, argument) in [
        ("an unknown operation", uapi::SvmWait { op: 7, ..good }),
        ("flags", uapi::SvmWait { flags: 1, ..good }),
        ("padding", uapi::SvmWait { pad: 1, ..good }),
        (
            "an odd address",
            uapi::SvmWait {
                addr: good.addr + 4,
                ..good
            },
        ),
        (
            "a comparison with a ring",
            uapi::SvmWait { ring: 1, ..good },
        ),
        (
            "a ring that there is not",
            uapi::SvmWait {
                ring: RINGS,
                ..of_ring
            },
        ),
        (
            "a ring with an address",
            uapi::SvmWait {
                addr: good.addr,
                ..of_ring
            },
        ),
    ] {
        check_err!(call(argument), Errno::INVAL, "{what}");
    }
    let place = Place::reserve(Pages::Base, PAGE)?;
    check_err!(
        call(uapi::SvmWait {
            addr: place.address(0),
            ..good
        }),
        Errno::FAULT,
        "an address without memory"
    );
    Ok(())
}

/// A job queue as userspace drivers have it: rings order each other by values that jobs write.
pub(super) fn wait_for_a_value_of_another_ring(env: &Env) -> TestResult {
    const ROUNDS: u64 = 20;
    let svm = open(env)?;
    let fence = AtomicU64::new(0);
    let mut numbers = vec![0_u32; 5000];
    let to = Output::from(&mut numbers[..]);
    svm.space.scope(|scope| {
        for round in 0..ROUNDS {
            let ring = round as u32 % 2;
            let mut job = Job::new();
            job.spin_until(&fence, round, 60_000_000)
                .add_u32(to, 1)
                .store(&fence, round + 1);
            scope.submit(ring, &job)?;
        }
        let deadline = Deadline::after(job::LIMIT);
        svm.space
            .wait_value(&fence, Comparison::Equal, ROUNDS, u64::MAX, deadline)
    })??;
    check!(
        numbers.iter().all(|number| u64::from(*number) == ROUNDS),
        "additions by {ROUNDS} jobs of two rings"
    );
    Ok(())
}

/// Shared virtual memory with events of some rings.
fn polled(env: &Env, mask: u64) -> TestResult<Svm> {
    use uapi::context_param::*;
    drop(device(env)?);
    let device = env.open()?;
    let params = [
        (CAPSET_ID, u64::from(wire::CAPSET_ID)),
        (NUM_RINGS, u64::from(RINGS)),
        (POLL_RINGS_MASK, mask),
    ]
    .map(|(param, value)| uapi::ContextSetParam { param, value });
    // SAFETY: No parameter is an address.
    unsafe { device.context_init(&params)? };
    Svm::new(AddressSpace::enable(device, SpaceOptions::new())?)
}

pub(super) fn ring_events(env: &Env) -> TestResult {
    let svm = polled(env, 0b0101)?;
    svm.quiet("at first")?;
    for count in [1, 5, 30] {
        for _ in 0..count {
            svm.submit(2, &delay(100))?;
            svm.run_on(1, "a job of a ring without events", &delay(1))?;
        }
        let mut seen = 0;
        while seen < count {
            for event in svm.space.events(job::LIMIT)? {
                check!(
                    matches!(event, Event::FenceSignaled),
                    "event {seen} is {event:?}"
                );
                seen += 1;
            }
        }
        check_eq!(seen, count, "events");
        check_eq!(svm.finish(2)?, End::Done, "the ring");
        svm.quiet("after the last")?;
    }
    // Not before the end of the job, and its writes are there.
    let word = AtomicU64::new(0);
    svm.space.scope(|scope| {
        let mut job = Job::new();
        job.delay(200_000).store(&word, 3);
        scope.submit(0, &job)?;
        if svm.space.wait_for_event(Duration::ZERO)? {
            return Err(Errno::PROTO);
        }
        svm.space.events(job::LIMIT)?;
        match word.load(Ordering::SeqCst) {
            3 => Ok(()),
            _ => Err(Errno::STALE),
        }
    })??;
    Ok(())
}

pub(super) fn jobs_end_in_order(env: &Env) -> TestResult {
    const JOBS: u64 = 50;
    let svm = open(env)?;
    let words: Vec<AtomicU64> = (0..JOBS).map(|_| AtomicU64::new(0)).collect();
    let last = AtomicU64::new(0);
    svm.space.scope(|scope| {
        for (index, word) in words.iter().enumerate() {
            let mut job = Job::new();
            // The first ones take longest.
            job.delay(5000 / (index as u64 + 1))
                .atomic_add(&last, 1, 1)
                .store(word, index as u64 + 1);
            scope.submit(0, &job)?;
        }
        for (index, word) in words.iter().enumerate().step_by(7) {
            let deadline = Deadline::after(job::LIMIT);
            svm.space
                .wait_value(word, Comparison::NotEqual, 0, u64::MAX, deadline)?;
            if last.load(Ordering::SeqCst) <= index as u64 {
                return Err(Errno::PROTO);
            }
        }
        Ok(())
    })??;
    check_eq!(last.load(Ordering::SeqCst), JOBS, "jobs");
    Ok(())
}
