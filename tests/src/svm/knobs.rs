// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What comes between the lookup of a page and its MAP, which a knob of the driver makes long.

use std::time::Duration;

use virtgpu_client::{compute, Bytes};

use super::silent::SIZE;
use super::support::{at, family, open, others_work, End, Svm};
use crate::ktap::{Family, TestResult};
use crate::support::debugfs::Knobs;
use crate::support::place::{Place, READ, RW};
use crate::support::{bounded, eventually, job, Env, HUGE, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "svm_knobs",
    cases![
        replaced_while_looked_up: 300,
        protected_while_looked_up: 300,
        closed_while_looked_up: 300,
        closed_some_time_later: 300,
        nothing_ahead_of_what_has_changed,
    ],
);

/// How long a page that was looked up is kept before it is looked at whether it still is that one.
const LONG: u32 = 300;

/// A job has a fault, whose page is being looked up when `event` happens, which gets the context.
fn in_a_lookup<T>(
    svm: Svm,
    knobs: &Knobs,
    address: u64,
    event: impl FnOnce(Svm) -> TestResult<T>,
) -> TestResult<T> {
    let before = svm.count()?.faults;
    knobs.set("delay_map_ms", LONG)?;
    svm.submit(0, &Svm::writing(address, 7))?;
    let begun = eventually(job::LIMIT, || {
        svm.count().is_ok_and(|query| query.faults > before)
    });
    let happened = event(svm);
    knobs.set("delay_map_ms", 0)?;
    check!(begun, "there is no fault");
    happened
}

/// Memory that has gone since it was looked up is not mapped.
fn replaced_while_looked_up(env: &Env) -> TestResult {
    let (mut svm, knobs) = (open(env)?, Knobs::open(env)?);
    let place = Place::base(SIZE)?;
    for round in 0..6_u64 {
        place.fill(1);
        let address = place.address(PAGE);
        svm = in_a_lookup(svm, &knobs, address, |svm| {
            match round % 3 {
                0 => place.advise(0, SIZE, libc::MADV_DONTNEED)?,
                1 => place.map(0, SIZE)?,
                _ => {
                    let elsewhere = Place::reserve(place.pages(), SIZE)?;
                    place.move_to(0, SIZE, &elsewhere, 0, 0)?;
                    place.map(0, SIZE)?;
                }
            }
            place.write_u64(PAGE + 8, round);
            Ok(svm)
        })?;
        check_eq!(svm.finish(0)?, End::Done, "the job of round {round}");
        check_eq!(place.read_u64(PAGE + 8), round, "beside the job's write");
        svm.coherent("afterwards", &place, PAGE)?;
        check_eq!(svm.peek(address + 8)?, round, "the device's view of ours");
        place.map(0, SIZE)?;
    }
    let retries = svm.count()?.retries;
    println!("    # {retries} lookups were stale");
    check!(retries > 0, "no lookup was stale");
    Ok(())
}

/// Rights that have gone since the lookup are not given.
fn protected_while_looked_up(env: &Env) -> TestResult {
    let knobs = Knobs::open(env)?;
    for _ in 0..3 {
        let svm = open(env)?;
        let place = Place::base(SIZE)?;
        place.fill(1);
        let svm = in_a_lookup(svm, &knobs, place.address(PAGE), |svm| {
            place.protect(0, SIZE, READ)?;
            Ok(svm)
        })?;
        let end = svm.finish(0)?;
        // Either it has been before, or it is a write to what may not be written.
        let now = place.read_u64(PAGE);
        check!(
            now == if end == End::Done {
                7
            } else {
                0x0101_0101_0101_0101
            },
            "the job's end is {end:?}, and the word {now:#x}"
        );
        place.protect(0, SIZE, RW)?;
        others_work(env, "memory that was protected")?;
    }
    Ok(())
}

fn close(svm: Svm) -> TestResult {
    bounded("closing", || {
        drop(svm);
        Ok(())
    })
}

/// The file was closed: jobs of its space write nothing more to the page at [`PAGE`].
fn writes_nothing_more(env: &Env, place: &Place, when: &str) -> TestResult {
    let written = place.read_u64(PAGE);
    others_work(env, "a file that was closed")?;
    check_eq!(
        place.read_u64(PAGE),
        written,
        "{when}: what was written when the file was closed"
    );
    Ok(())
}

/// Nothing is mapped into a space that has ended.
fn closed_while_looked_up(env: &Env) -> TestResult {
    let knobs = Knobs::open(env)?;
    for round in 0..5 {
        let svm = open(env)?;
        let place = Place::base(SIZE)?;
        in_a_lookup(svm, &knobs, place.address(PAGE), close)?;
        writes_nothing_more(env, &place, &format!("round {round}"))?;
    }
    Ok(())
}

/// The same some time after the fault has come, when its page may be about to be mapped.
fn closed_some_time_later(env: &Env) -> TestResult {
    for milliseconds in [0, 1, 2, 5, 10, 20, 50, 100] {
        let svm = open(env)?;
        let place = Place::base(SIZE)?;
        svm.submit(0, &Svm::writing(place.address(PAGE), 7))?;
        let begun = eventually(job::LIMIT, || {
            svm.count().is_ok_and(|query| query.faults > 0)
        });
        check!(begun, "there is no fault");
        std::thread::sleep(Duration::from_millis(milliseconds));
        close(svm)?;
        writes_nothing_more(env, &place, &format!("after {milliseconds} ms"))?;
    }
    Ok(())
}

/// What a job has mapped when nothing is being mapped ahead of it any more, in bytes.
fn mapped(svm: &Svm) -> TestResult<u64> {
    let mut before = None;
    loop {
        let now = svm.count()?.mapped_bytes;
        if before == Some(now) {
            return Ok(now);
        }
        before = Some(now);
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A fault whose pages change while they are looked up maps one page, and nothing is mapped ahead
/// of it: that would be of those that have just changed.
fn nothing_ahead_of_what_has_changed(env: &Env) -> TestResult {
    let (svm, knobs) = (open(env)?, Knobs::open(env)?);
    let place = Place::base(16 * HUGE)?;
    let mut stream = compute::Stream::new();
    stream.fill(at(place.address(0)), 4 * HUGE as u64, 1);
    svm.run("filling in order", &stream)?;
    let before = mapped(&svm)?;
    let pages = svm.count()?.pages;
    knobs.set("force_retries", 1)?;
    // The stream goes on behind what was mapped ahead.
    svm.poke(place.address(before as usize), 7)?;
    let after = mapped(&svm)?;
    check_eq!(
        knobs.get("force_retries")?,
        0,
        "lookups that are to be stale"
    );
    check_eq!(after - before, PAGE as u64, "bytes mapped");
    check_eq!(svm.count()?.pages - pages, 1, "pages mapped");
    svm.coherent("afterwards", &place, before as usize)
}
