// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that the kernel wants back: swap, limits, the reaper.

use std::time::{Duration, Instant};

use virtgpu_client::{compute, Bytes, Memory};

use super::{additions, SIZE};
use crate::ktap::{reap, Outcome, TestResult};
use crate::support::memcg::Group;
use crate::support::place::{Pages, Place};
use crate::support::reaper::{kill_and_reap, pausing_threads, Reaped};
use crate::support::swap::page_out;
use crate::support::{bounded, child, eventually, job, swap, Env, Random, HUGE, PAGE};
use crate::svm::support::{at, device, each_kind, open, Svm};
use crate::{check, check_eq};

/// What the device has written is marked dirty before the page goes, and it comes back by its
/// fault.
pub(super) fn paged_out(env: &Env) -> TestResult {
    swap::prepare()?;
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        let svm = open(env)?;
        let place = Place::new(pages, HUGE)?;
        for round in 0..3 {
            let data = Random(round).bytes(HUGE);
            svm.write(place.address(0), &data)?;
            svm.loses("MADV_PAGEOUT", &place, HUGE, || page_out(&place))?;
            svm.sees("from swap, by the device", &place, &data)?;
            page_out(&place)?;
            check!(place.to_vec(0, HUGE) == data, "from swap, by us");
        }
        svm.coherent_all_over("in the end", &place)
    })
}

pub(super) fn paged_out_while_the_device_writes(env: &Env) -> TestResult {
    swap::prepare()?;
    let svm = open(env)?;
    let place = Place::base(2 * SIZE)?;
    additions(&svm, &place, env.rounds(80), |_| {
        place.advise(0, 2 * SIZE, libc::MADV_PAGEOUT)
    })
}

/// Jobs on twice what the group may have in memory.
pub(super) fn swap_twice_the_limit(env: &Env) -> TestResult {
    const LIMIT: usize = 8 << 20;
    const PART: usize = 1 << 20;
    swap::prepare()?;
    child::run(|| {
        let group = Group::new("svm-limit", LIMIT as u64)?;
        // The group goes when this process has left it.
        child::run(|| {
            group.enter()?;
            let svm = open(env)?;
            let place = Place::base(2 * LIMIT)?;
            let mut rounds = 0;
            while rounds < 2 {
                // Not in one job, which would take long where each page goes out and comes in.
                for part in 0..place.len() / PART {
                    let mut adding = compute::Stream::new();
                    adding.add_u32(at(place.address(part * PART)), PART as u64, 1);
                    svm.run("adding to a part of it", &adding)?;
                }
                rounds += 1;
            }
            let hits = group.number("memory.events", "max ")?;
            check!(hits > 0, "the limit was never hit");
            for offset in (0..place.len()).step_by(PAGE) {
                check_eq!(place.read_u32(offset), rounds, "additions at {offset:#x}");
            }
            svm.coherent_all_over("in the end", &place)
        })
    })
}

/// The kernel drops such pages unless they are written again, also by a device.
pub(super) fn free_lazily_then_written(env: &Env) -> TestResult {
    swap::prepare()?;
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        let svm = open(env)?;
        let place = Place::new(pages, HUGE)?;
        for round in 0..3_u64 {
            place.fill(0x11);
            svm.agrees("before", &place)?;
            place.advise(0, HUGE, libc::MADV_FREE)?;
            svm.fill(&place, round + 200)?;
            page_out(&place)?;
            for offset in (0..HUGE).step_by(PAGE) {
                check_eq!(
                    place.read_u64(offset),
                    round + 200,
                    "what the device wrote at {offset:#x} in round {round}"
                );
            }
        }
        Ok(())
    })
}

/// A process that the kernel kills because its group needs too much, while the device faults its
/// memory in; whoever has the device open beside it notices nothing.
pub(super) fn memcg_oom_ends(env: &Env) -> TestResult {
    const LIMIT: u64 = 24 << 20;
    let svm = open(env)?;
    let place = Place::base(HUGE)?;
    for round in 0..env.iterations(10) {
        svm.fill(&place, round)?;
        let group = Group::new("svm-oom", LIMIT)?;
        group.forbid_swap()?;
        let child = child::spawn(|| {
            group.enter()?;
            let own = open(env)?;
            let large = Place::base(4 * LIMIT as usize)?;
            // Only the device touches it.
            own.fill(&large, 1)?;
            Err(Outcome::Fail("there was memory for all of it".into()))
        })?;
        bounded("the end of a process without memory", || {
            child.join_killed()
        })?;
        check_eq!(
            group.number("memory.events", "oom_kill ")?,
            1,
            "processes killed for want of memory"
        );
        svm.agrees("beside the killed process", &place)?;
    }
    svm.coherent_all_over("in the end", &place)
}

/// The reaper may find the memory in use by a device; in one of its tries it gets it.
pub(super) fn mrelease(env: &Env) -> TestResult {
    drop(device(env)?);
    for _ in 0..env.iterations(10).max(4) {
        let flag = Place::shared_page()?;
        let child = child::spawn(|| {
            let svm = open(env)?;
            let place = Place::base(8 * HUGE)?;
            pausing_threads();
            loop {
                svm.run("adding", &Svm::adding(&place))?;
                flag.write_u64(0, flag.read_u64(0) + 1);
            }
        })?;
        let works = eventually(job::LIMIT, || flag.read_u64(0) > 1);
        let since = Instant::now();
        // The kernel's own reaper tries ten times, too.
        let results = kill_and_reap(child.pid, 10)?;
        reap(child.pid)?;
        check!(works, "the child's device does not work");
        check!(
            matches!(results.last(), Some(Reaped::All | Reaped::Gone)),
            "process_mrelease: {results:?}"
        );
        check!(
            since.elapsed() < Duration::from_secs(20),
            "the killed child ended after {:?}",
            since.elapsed()
        );
    }
    Ok(())
}
