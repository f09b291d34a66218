// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Mappings that change: munmap, MAP_FIXED, mremap, MADV_DONTNEED, mprotect.

use std::time::Instant;

use virtgpu_client::protocol::uapi::{self, svm_access};
use virtgpu_client::{compute, Bytes, Memfd, Memory};

use super::{additions, SIZE};
use crate::ktap::TestResult;
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::{bounded, eventually, job, pace, Env, HUGE, PAGE};
use crate::svm::support::{
    at, bad_access, bad_address, each_kind, on_each_kind, open, open_with, End, Svm, USUAL,
};
use crate::{check, check_eq};

/// munmap waits for no job; what is mapped there next is not touched by those of before.
pub(super) fn unmap_under_job(env: &Env) -> TestResult {
    on_each_kind(env, 4 * HUGE, |svm, place| {
        let mut stream = compute::Stream::new();
        for _ in 0..2000 {
            stream.add_u32(at(place.address(0)), place.len() as u64, 1);
        }
        svm.submit(0, &stream)?;
        check!(
            eventually(job::LIMIT, || place.read_u32(place.len() - 4) > 0),
            "the job does not begin"
        );
        bounded("munmap", || place.unmap(0, place.len()))?;
        check_eq!(svm.finish(0)?, End::Lost, "the job");
        place.map(0, place.len())?;
        let query = svm.count()?;
        check_eq!(
            query.reason,
            uapi::svm_reason::BAD_ADDRESS,
            "why the context is lost"
        );
        let (start, end) = (place.address(0), place.address(place.len()));
        check!(
            (start..end).contains(&query.addr),
            "{:#x} is not in {start:#x} to {end:#x}",
            query.addr
        );
        for offset in (0..place.len()).step_by(PAGE) {
            check_eq!(place.read_u64(offset), 0, "new memory at {offset:#x}");
        }
        Ok(())
    })
}

pub(super) fn remap_new_data(env: &Env) -> TestResult {
    on_each_kind(env, 2 * HUGE, |svm, place| {
        for round in 0..5_u64 {
            Svm::scatter(place, round);
            svm.loses("MAP_FIXED over it", place, place.len(), || {
                place.map(0, place.len())
            })?;
            check_eq!(svm.peek(place.address(PAGE))?, 0, "new memory");
            svm.coherent_all_over("new memory", place)?;
        }
        Ok(())
    })
}

/// Each half is replaced by turns, as a whole: the device never sees what was before it.
pub(super) fn replaced_while_the_device_writes(env: &Env) -> TestResult {
    let svm = open(env)?;
    let (place, other) = (Place::base(SIZE)?, Place::base(SIZE)?);
    let replaced = |round: u64| -> TestResult {
        let half = (round % 2) as usize * SIZE / 2;
        place.map(half, SIZE / 2)
    };
    // What is counted lies beside what is replaced.
    let noise = Svm::adding(&place);
    additions(&svm, &other, env.rounds(60), |round| {
        replaced(round)?;
        svm.run_on(1, "a job on what is replaced", &noise)
    })?;
    place.map(0, SIZE)?;
    check_eq!(svm.peek(place.address(SIZE / 2))?, 0, "new memory");
    svm.coherent_all_over("in the end", &place)
}

/// Memory is replaced when a fault on it has just been resolved. The device's write is in the old
/// memory before that is gone, or in the new one.
pub(super) fn replaced_when_just_mapped(env: &Env) -> TestResult {
    let svm = open_with(env, USUAL.exact())?;
    let place = Place::reserve(Pages::Base, PAGE)?;
    let (mut in_old, mut in_new) = (0, 0);
    for round in 0..env.rounds(200) {
        let memfd = Memfd::new(PAGE as u64)?;
        let old = memfd.map()?;
        place.map_file(0, PAGE, &memfd, 0, [RW, libc::MAP_SHARED])?;
        svm.submit(0, &Svm::writing(place.address(0), 7))?;
        // Half of the time as soon as it is known that the device has it.
        if round % 2 == 0 {
            let mapped = eventually_at_once(|| Ok(svm.count()?.mapped_bytes > 0))?;
            check!(mapped, "the page is not mapped");
        }
        place.map(0, PAGE)?;
        let written = old.read_u64(0);
        check_eq!(svm.finish(0)?, End::Done, "the job of round {round}");
        check_eq!(
            old.read_u64(0),
            written,
            "round {round}: memory that the device has lost"
        );
        let now = place.read_u64(0);
        check!(
            written == 7 || now == 7,
            "round {round}: the write is lost: {written} in the old memory, {now} in the new"
        );
        in_old += u64::from(written == 7);
        in_new += u64::from(now == 7);
        place.unmap(0, PAGE)?;
    }
    println!("    # {in_old} writes to the old memory, {in_new} to the new");
    Ok(())
}

/// Polls without a pause until something is so; false if it never is.
fn eventually_at_once(mut condition: impl FnMut() -> TestResult<bool>) -> TestResult<bool> {
    let end = Instant::now() + pace::limit(job::LIMIT);
    while Instant::now() < end {
        if condition()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The pages go to other addresses, and the device finds them there, and nothing where they were.
pub(super) fn moved_away(env: &Env) -> TestResult {
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        let svm = open(env)?;
        let (from, to) = (Place::new(pages, 2 * HUGE)?, Place::new(pages, 2 * HUGE)?);
        let data = Svm::scatter(&from, 1);
        svm.agrees("before", &to)?;
        svm.loses("mremap", &from, HUGE, || from.move_to(0, HUGE, &to, 0, 0))?;
        svm.sees("moved", &to, &data[..HUGE])?;
        svm.fails(
            "where it was",
            &svm.reading(from.address(0)),
            bad_address(svm_access::READ, from.address(0)),
        )
    })
}

pub(super) fn dontneed(env: &Env) -> TestResult {
    on_each_kind(env, 2 * HUGE, |svm, place| {
        let mut expected = Svm::scatter(place, 2);
        let unit = place.unit();
        svm.loses("MADV_DONTNEED", place, unit, || {
            place.advise(HUGE, unit, libc::MADV_DONTNEED)
        })?;
        expected[HUGE..HUGE + unit].fill(0);
        svm.sees("what is left", place, &expected)?;
        svm.coherent_all_over("in the end", place)
    })
}

/// The device's rights follow those of the process, in both directions.
pub(super) fn mprotect_toggle(env: &Env) -> TestResult {
    on_each_kind(env, 2 * HUGE, |svm, place| {
        Svm::scatter(place, 3);
        for round in 0..10_u64 {
            svm.poke(place.address(HUGE), round)?;
            svm.loses("mprotect", place, place.unit(), || {
                place.protect(0, place.len(), READ)
            })?;
            svm.agrees("read-only", place)?;
            check_eq!(svm.peek(place.address(HUGE))?, round, "the last write");
            place.protect(0, place.len(), RW)?;
            svm.coherent_all_over("writable", place)?;
        }
        place.protect(0, place.len(), READ)?;
        let before = place.read_u64(0);
        svm.fails(
            "a write at last",
            &Svm::writing(place.address(0), !before),
            bad_access(svm_access::WRITE, place.address(0)),
        )?;
        check_eq!(place.read_u64(0), before, "the memory");
        Ok(())
    })
}

/// A process that maps memory at ever other addresses: nothing of what is gone stays with the
/// driver.
pub(super) fn va_churn_is_collected(env: &Env) -> TestResult {
    const WINDOW: usize = 64 << 20;
    let svm = open(env)?;
    let anchor = Place::base(PAGE)?;
    svm.coherent("at first", &anchor, 0)?;
    let before = svm.count()?.mapped_bytes;
    for round in 0..env.iterations(500) {
        let place = Place::reserve(Pages::Base, WINDOW)?;
        place.map(0, 2 * PAGE)?;
        place.map(WINDOW - PAGE, PAGE)?;
        svm.poke(place.address(0), round)?;
        svm.poke(place.address(WINDOW - 8), round)?;
        check_eq!(place.read_u64(0), round, "our view");
        check_eq!(place.read_u64(WINDOW - 8), round, "our view");
    }
    check_eq!(svm.count()?.mapped_bytes, before, "bytes mapped in the end");
    svm.coherent("in the end", &anchor, 0)
}
