// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Processes that are killed while the driver faults their memory in: they stop at once. What they
//! took after the signal would be taken from others, who may be what the kernel has killed them
//! for.

use std::fs;
use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, Device, Errno, Exec};

use super::support::{family, open, Mirror, SPARSE, WHOLE};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::debugfs::Knobs;
use crate::support::memcg::Group;
use crate::support::place::{Pages, Place};
use crate::support::{child, swap, Env, HUGE, PAGE};
use crate::{cases, check};

pub(crate) const FAMILY: Family = family(
    "mm_kill",
    cases![
        killed_in_prefetch: 300,
        killed_in_register: 300,
        killed_in_execbuffer: 300,
        killed_at_the_limit: 300,
    ],
);

/// A device that is soon full and takes its time to make room.
pub(crate) const EVICTING: Family = Family {
    device: "--mirror-mappings 600 --adversary slow:50 --adversary-on INVALIDATE",
    ..family("mm_kill_evicting", cases![killed_while_making_room: 300])
};

/// What is faulted in if nothing ends it.
const SIZE: usize = 512 << 20;
/// What is there when the process is killed.
const BEGUN: u64 = 16 << 20;
/// What may be added after that.
const MORE: u64 = 4 << 20;
/// How long a machine may take on which a job takes [`ROUND_TRIP`].
const LIMIT: Duration = Duration::from_millis(300);
const ROUND_TRIP: Duration = Duration::from_micros(200);

/// Bytes of process `pid` that are in memory; 0 once it has given them up.
fn resident(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0u64) * PAGE as u64
}

/// How long a killed process may take here.
fn limit(env: &Env) -> TestResult<Duration> {
    let device = open(env)?;
    let place = Place::base(PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.run("the first job", &mirror.idle())?;
    let jobs = 32;
    let since = Instant::now();
    for _ in 0..jobs {
        mirror.run("a job", &mirror.idle())?;
    }
    let round_trip = since.elapsed() / jobs;
    let factor = (round_trip.as_secs_f32() / ROUND_TRIP.as_secs_f32()).clamp(1.0, 10.0);
    println!("    # a job takes {round_trip:?}");
    Ok(LIMIT.mul_f32(factor))
}

/// Kills a child in the middle of `work`, when `begun`. It must be gone within `limit`, if any.
fn kill_in(
    limit: Option<Duration>,
    work: impl FnOnce() -> TestResult,
    begun: impl Fn(i32) -> TestResult<bool>,
) -> TestResult {
    let child = child::spawn(|| {
        work()?;
        Err(Outcome::Fail("it has come to its end".into()))
    })?;
    while !begun(child.pid)? {
        if child.is_finished()? {
            return child.join();
        }
    }
    // SAFETY: A signal to our own child.
    unsafe { libc::kill(child.pid, libc::SIGKILL) };
    let since = Instant::now();
    let before = resident(child.pid);
    let mut most = before;
    while !child.is_finished()? {
        most = most.max(resident(child.pid));
    }
    let took = since.elapsed();
    child.kill()?;
    println!(
        "    # {} KiB more after the signal, gone after {took:?}",
        (most - before) >> 10
    );
    check!(
        most - before <= MORE,
        "a killed process has {} KiB more in memory than when it was killed",
        (most - before) >> 10
    );
    if let Some(limit) = limit {
        check!(
            took <= limit,
            "a killed process has lived for {took:?}, {limit:?} are allowed"
        );
    }
    Ok(())
}

fn kill_beyond(env: &Env, work: fn(&Device, &Place) -> TestResult) -> TestResult {
    let start = || -> TestResult {
        let device = open(env)?;
        let place = Place::new(Pages::Base, SIZE)?;
        work(&device, &place)
    };
    kill_in(Some(limit(env)?), start, |pid| Ok(resident(pid) > BEGUN))
}

fn killed_in_prefetch(env: &Env) -> TestResult {
    kill_beyond(env, |device, place| {
        let userptr = device.register(place, SPARSE)?;
        userptr.prefetch(0, SIZE as u64)?;
        Ok(())
    })
}

fn killed_in_register(env: &Env) -> TestResult {
    kill_beyond(env, |device, place| {
        device.register(place, WHOLE.flag(uapi::USERPTR_PREFAULT))?;
        Ok(())
    })
}

fn killed_in_execbuffer(env: &Env) -> TestResult {
    kill_beyond(env, |device, place| {
        let userptr = device.register(place, WHOLE)?;
        let mut stream = compute::Stream::new();
        stream.delay(1);
        Exec::new(stream.as_bytes())
            .buffers(&[userptr.handle()])
            .submit(device)?;
        Ok(())
    })
}

/// Where each page more makes the kernel take another away.
fn killed_at_the_limit(env: &Env) -> TestResult {
    const ROOM: usize = 32 << 20;
    swap::enable()?;
    let group = Group::new("kill", ROOM as u64)?;
    let hits = || group.number("memory.events", "max ");
    let start = || -> TestResult {
        group.enter()?;
        let device = open(env)?;
        let place = Place::base(2 * ROOM)?;
        let userptr = device.register(&place, SPARSE)?;
        // What has been evicted again is looked for again, without an end.
        loop {
            match userptr.prefetch(0, 2 * ROOM as u64) {
                // Pages that go as fast as they come are busy after a second.
                Ok(_) | Err(Errno::BUSY) => (),
                Err(error) => return Err(error.into()),
            }
        }
    };
    kill_in(Some(limit(env)?), start, |_| Ok(hits()? > 100))
}

/// Each granule of two megabytes that is invalidated is a round trip to the device.
fn killed_while_making_room(env: &Env) -> TestResult {
    const GRANULES: usize = 120;
    const MORE: usize = 400;
    let knobs = Knobs::open(env)?;
    let acknowledged = || knobs.counters()?.get("acknowledgements");
    let before = acknowledged()?;
    let start = || -> TestResult {
        let device = open(env)?;
        let first = Place::base(GRANULES * HUGE)?;
        let old = device.register(&first, SPARSE)?;
        for granule in 0..GRANULES {
            old.prefetch((granule * HUGE) as u64, PAGE as u64)?;
        }
        // So many runs that all has to go for them.
        let second = Place::scattered(MORE)?;
        let new = device.register(&second, SPARSE)?;
        let _ = new.prefetch(0, (MORE * PAGE) as u64);
        Ok(())
    };
    // How far it got says more than the time, most of which the device sleeps.
    kill_in(None, start, |_| Ok(acknowledged()? >= before + 5))?;
    let done = acknowledged()? - before;
    println!("    # {done} of {GRANULES} acknowledgements when it was gone");
    check!(
        done < GRANULES as u64 * 3 / 4,
        "a killed process has made room to the end"
    );
    Ok(())
}
