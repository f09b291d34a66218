// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What only a driver or a device that breaks the contract in one place gets wrong; see suite
//! `mutants`. Each test is an ordinary one for those that keep it.

use std::time::{Duration, Instant};

use virtgpu_client::{compute, Bytes, Errno, Exec};

use super::support::{family as well_behaved, open, End, Mirror, SPARSE, WHOLE};
use crate::ktap::{Case, Family, Outcome, TestResult};
use crate::support::debugfs::Knobs;
use crate::support::place::{Place, READ, RW};
use crate::support::{eventually, job, Env, Random, PAGE};
use crate::{cases, check, check_eq, check_err};

pub(crate) const RACES: Family = family(
    "mirrored_races",
    "",
    cases![
        lookup_meets_change: 300,
        every_page_goes,
        replaced_memory_is_not_wanted,
        closed_memory_is_out_of_reach,
    ],
);
pub(crate) const HAMMERED: Family = family(
    "mirrored_hammered",
    "--hammer",
    cases![unmapped_memory_is_left_alone],
);
pub(crate) const SLOW: Family = family(
    "mirrored_slow_acknowledgement",
    "--adversary delay:1000 --adversary-on INVALIDATE",
    cases![acknowledgement_is_waited_for],
);

const fn family(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        device,
        ..well_behaved(name, cases)
    }
}

const SIZE: usize = 16 * PAGE;
/// Marks a host object whose pages the device rewrites, see `virtgpu-device --hammer`.
const HAMMER: u64 = 1 << 63;

/// Rounds in which that must have happened.
const MET: u64 = 5;

/// Pages are replaced between the lookup that brings them and their MAP: the device gets those that
/// stay.
fn lookup_meets_change(env: &Env) -> TestResult {
    let device = open(env)?;
    let knobs = Knobs::open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    knobs.set("delay_map_ms", 200)?;
    let least = env.iterations(50).clamp(8, 25);
    let (mut rounds, mut met) = (0, 0);
    // On a busy machine this thread may come too late.
    while rounds < least || (met < MET && rounds < 50) {
        let round = rounds;
        rounds += 1;
        let before = mirror.count()?.retries;
        place.map(0, SIZE)?;
        std::thread::scope(|scope| -> TestResult {
            let prefetching = scope.spawn(|| mirror.prefetch(0, SIZE));
            let found = || prefetching.is_finished() || place.resident().is_ok_and(|b| b > 0);
            check!(eventually(job::LIMIT, found), "nothing is looked up");
            place.advise(0, SIZE, libc::MADV_DONTNEED)?;
            prefetching.join().expect("no panic")
        })?;
        place.write(0, &Random(round).bytes(SIZE));
        mirror.agrees(&format!("in round {round}"))?;
        met += u64::from(mirror.count()?.retries > before);
    }
    println!("    # in {met} of {rounds} rounds a lookup was repeated");
    check!(
        met >= MET,
        "in {met} of {rounds} rounds only pages were replaced between lookup and MAP"
    );
    Ok(())
}

/// Not only the ends of what is unmapped.
fn every_page_goes(env: &Env) -> TestResult {
    for page in [0, 1, 5, 11, 15] {
        // A job that fails ends its context.
        let device = open(env)?;
        let place = Place::base(SIZE)?;
        let mirror = Mirror::with(&device, &place, SPARSE)?;
        mirror.prefetch(0, SIZE)?;
        mirror.coherent("before", page * PAGE)?;
        place.unmap(0, SIZE)?;
        mirror.fails(
            &format!("page {page} is not mapped"),
            &mirror.writing(page * PAGE, 1),
        )?;
    }
    Ok(())
}

/// With SPARSE jobs bring nothing that was not asked for since it was unmapped.
fn replaced_memory_is_not_wanted(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    mirror.prefetch(0, SIZE)?;
    place.map(0, SIZE / 2)?;
    check_eq!(mirror.end(&mirror.idle())?, End::Done, "a job");
    check_eq!(
        mirror.stat()?.space_pages.get(),
        (SIZE / PAGE) as u64 / 2,
        "pages mapped in the device"
    );
    check_eq!(place.resident()?, SIZE / 2, "bytes in memory");
    Ok(())
}

/// Memory that the process has just got keeps what is written to it.
fn keeps_its_content() -> TestResult {
    let memory = Place::base(16 * SIZE)?;
    let data = Random(3).bytes(16 * SIZE);
    memory.write(0, &data);
    for look in 0..20 {
        check_eq!(
            memory.to_vec(0, data.len()) == data,
            true,
            "what was written to new memory is there at look {look}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The device rewrites pages as long as it can.
fn unmapped_memory_is_left_alone(env: &Env) -> TestResult {
    let device = open(env)?;
    for round in 0..5 {
        let place = Place::base(SIZE)?;
        place.write(0, &Random(round).bytes(SIZE));
        let mirror = Mirror::with(&device, &place, WHOLE.host3d_guest(HAMMER | 1))?;
        mirror.prefetch(0, SIZE)?;
        place.unmap(0, SIZE)?;
        keeps_its_content()?;
    }
    Ok(())
}

/// The host forgets the resource when its last job is over; the memory is out of reach before.
fn closed_memory_is_out_of_reach(env: &Env) -> TestResult {
    // However long it takes to close.
    for delay in [500_000, 2_000_000, 8_000_000] {
        let device = open(env)?;
        let place = Place::base(SIZE)?;
        let userptr = device.register(&place, WHOLE)?;
        let mapped = userptr.prefetch(0, SIZE as u64)?;
        check_eq!(mapped, SIZE as u64, "bytes prefetched");
        let mut stream = compute::Stream::new();
        stream.delay(delay).fill(userptr.at(0), 8, 1);
        // A job that does not say what it uses is not waited for.
        let fence = Exec::new(stream.as_bytes())
            .ring(1)
            .submit_with_fence(&device)?;
        userptr.close()?;
        match fence.wait(Some(job::LIMIT)) {
            Ok(()) => println!("    # written {delay} us after the job was queued"),
            other => {
                check_err!(other, Errno::IO, "a job on closed memory");
                check_eq!(place.read_u64(0), 0, "the memory");
                return Ok(());
            }
        }
    }
    Err(Outcome::Fail(
        "closed memory is written as long as a job runs".into(),
    ))
}

/// Whoever invalidates memory returns when the device has said that it uses it no more.
fn acknowledgement_is_waited_for(env: &Env) -> TestResult {
    // What the device takes is a second; the clocks of guest and host may differ a little.
    const LEAST: Duration = Duration::from_millis(900);
    type Event = fn(&Place) -> TestResult;
    let events: [(&str, Event); 4] = [
        ("MADV_DONTNEED", |place| {
            place.advise(0, SIZE, libc::MADV_DONTNEED)
        }),
        ("mprotect", |place| place.protect(0, SIZE, READ)),
        ("MAP_FIXED", |place| place.map(0, SIZE)),
        ("munmap", |place| place.unmap(0, SIZE)),
    ];
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    for (what, event) in events {
        place.protect(0, SIZE, RW)?;
        mirror.fill(1)?;
        let start = Instant::now();
        event(&place)?;
        let time = start.elapsed();
        check!(time >= LEAST, "{what} returned after {time:?}");
    }
    Ok(())
}
