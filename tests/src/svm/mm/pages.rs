// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Pages that move, fall apart, become one, or are watched, while their addresses stay.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::Bytes;

use super::{additions, SIZE};
use crate::ktap::TestResult;
use crate::support::compaction::Fragmented;
use crate::support::ksm::{all_one, equal_pages, Merging};
use crate::support::place::Place;
use crate::support::{eventually, numa, pace, procfs, soft_dirty, thp, Env, HUGE, PAGE, ROUNDS};
use crate::svm::support::{on_each_kind, open, Svm};
use crate::{check, check_eq};

pub(super) fn migrate(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let _still = numa::without_balancing();
    on_each_kind(env, HUGE, |svm, place| {
        Svm::scatter(place, 7);
        let mut count = 0;
        for round in 0..6 {
            svm.agrees("before", place)?;
            let (before, told) = (place.frames()?, svm.count()?.invalidations);
            let status = numa::move_to(place, round % 2)?;
            check!(
                status.iter().all(|node| *node == round % 2),
                "pages are on nodes {status:?}, not {}",
                round % 2
            );
            if before != place.frames()? {
                count += 1;
                check!(
                    svm.count()?.invalidations > told,
                    "the device was not told of move {round}"
                );
            }
            svm.agrees("moved", place)?;
            svm.coherent_all_over("moved", place)?;
        }
        check!(count >= 5, "{count} moves of 6 have moved anything");
        Ok(())
    })
}

pub(super) fn migrate_while_the_device_writes(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    additions(&svm, &place, env.rounds(60), |number| {
        // A page that is just being faulted in may be busy.
        numa::move_to(&place, number as i32 % 2).map(drop)
    })
}

/// migrate_pages(2) moves all that the process has, by a list of nodes.
pub(super) fn migrated_as_a_process(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let _still = numa::without_balancing();
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(0);
    let (mut moved, mut last) = (0, place.frames()?);
    additions(&svm, &place, env.rounds(60), |number| {
        numa::migrate_to(number as i32 % 2)?;
        let now = place.frames()?;
        moved += u64::from(now != last);
        last = now;
        Ok(())
    })?;
    println!("    # {moved} times a page has moved");
    check!(moved >= ROUNDS / 2, "{moved} times a page has moved");
    check!(
        svm.count()?.invalidations > 0,
        "the device was told nothing"
    );
    Ok(())
}

/// The kernel takes pages away for a moment to see who uses them from another node, while jobs run.
pub(super) fn numa(env: &Env) -> TestResult {
    /// The kernel has looked at pages by then.
    const BALANCED: Duration = Duration::from_secs(30);
    numa::two_nodes()?;
    let svm = open(env)?;
    let place = Place::base(HUGE)?;
    place.fill(0);
    let _on = numa::balancing()?;
    let told = || -> TestResult<u64> { Ok(svm.count()?.invalidations) };
    let looked_at = || procfs::vmstat("numa_pte_updates");
    let (told_before, looked_at_before) = (told()?, looked_at()?);
    let (least, deadline) = (env.iterations(40), Instant::now() + pace::limit(BALANCED));
    let stop = AtomicBool::new(false);
    let jobs = std::thread::scope(|scope| {
        // The kernel looks at what takes time on a CPU.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for offset in (0..HUGE).step_by(PAGE) {
                    std::hint::black_box(place.read_u64(offset));
                }
            }
        });
        let work = || -> TestResult<u32> {
            let mut jobs = 0;
            while u64::from(jobs) < least || (told()? == told_before && Instant::now() < deadline) {
                svm.run("adding", &Svm::adding(&place))?;
                jobs += 1;
            }
            Ok(jobs)
        };
        let jobs = work();
        stop.store(true, Ordering::Relaxed);
        jobs
    })?;
    for offset in (0..HUGE).step_by(4) {
        check_eq!(
            place.read_u32(offset),
            jobs,
            "additions to the word at {offset:#x}"
        );
    }
    let (told, looked_at) = (told()? - told_before, looked_at()? - looked_at_before);
    println!("    # {jobs} jobs, {looked_at} pages looked at, {told} invalidations");
    check!(looked_at > 0, "the kernel has looked at no page");
    check!(told > 0, "the device was told of none of them");
    Ok(())
}

pub(super) fn compaction(env: &Env) -> TestResult {
    let svm = open(env)?;
    let fragmented = Fragmented::new()?;
    let place = &fragmented.place;
    Svm::scatter(place, 8);
    svm.agrees("before", place)?;
    fragmented.compact(|| {
        svm.agrees("compacted", place)?;
        svm.coherent_all_over("compacted", place)
    })
}

/// The frames stay or change; each time the device is told, and has the right ones next.
pub(super) fn huge_split_collapse(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = thp::huge()?;
    // Where results go is mapped by this.
    svm.agrees("another page", &Place::base(PAGE)?)?;
    let before = svm.count()?.entries;
    svm.agrees("a huge page", &place)?;
    let entries = svm.count()?.entries - before;
    check_eq!(entries, 1, "entries for a huge page");
    for round in 0..3 {
        let data = Svm::scatter(&place, round);
        svm.agrees("a huge page", &place)?;
        svm.loses("splitting", &place, HUGE, || thp::split(&place))?;
        svm.sees("after splitting", &place, &data)?;
        svm.coherent("after splitting", &place, HUGE - PAGE)?;
        svm.loses("collapsing", &place, HUGE, || thp::collapse(&place))?;
        check!(place.is_huge(0)?, "the pages are small");
        svm.agrees("after collapsing", &place)?;
        svm.coherent_all_over("after collapsing", &place)?;
    }
    place.fill(0);
    additions(&svm, &place, env.rounds(50), |_| {
        thp::split(&place)?;
        // A page that is just being faulted in keeps the pages from becoming one.
        let _ = place.advise(0, HUGE, libc::MADV_COLLAPSE);
        Ok(())
    })
}

/// Reading leaves equal pages one; writing takes one out, and no other page changes.
pub(super) fn ksm(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = equal_pages()?;
    svm.agrees("before", &place)?;
    let told = svm.count()?.invalidations;
    let merging = Merging::start()?;
    check!(
        eventually(Duration::from_secs(60), || all_one(&place)),
        "pages that a device reads are not merged"
    );
    check!(
        svm.count()?.invalidations > told,
        "the device was not told of the merging"
    );
    svm.agrees("merged", &place)?;
    check!(all_one(&place), "reading has taken the pages apart");
    svm.poke(place.address(5 * PAGE), 2)?;
    for page in 0..16 {
        let expected = if page == 5 { 2 } else { 0x3c3c_3c3c_3c3c_3c3c };
        check_eq!(place.read_u64(page * PAGE), expected, "page {page}");
    }
    for round in 0..env.iterations(20) {
        svm.poke(place.address(6 * PAGE + 8), round)?;
        check_eq!(place.read_u64(6 * PAGE + 8), round, "our view");
        check_eq!(
            svm.peek(place.address(7 * PAGE))?,
            0x3c3c_3c3c_3c3c_3c3c,
            "its view"
        );
    }
    drop(merging);
    svm.coherent_all_over("taken apart", &place)
}

/// Who watches writes sees the device's, and none where it only reads.
pub(super) fn soft_dirty(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(16 * PAGE)?;
    place.fill(1);
    soft_dirty::is_tracked(&place)?;
    svm.fill(&place, 3)?;
    soft_dirty::clear()?;
    soft_dirty::is_clean(&place)?;
    svm.agrees("read", &place)?;
    check!(
        !soft_dirty::is_dirty(&place, 12)?,
        "a page that the device has read is dirty"
    );
    svm.poke(place.address(3 * PAGE), 4)?;
    check!(
        soft_dirty::is_dirty(&place, 3)?,
        "the page that the device has written is clean"
    );
    check_eq!(place.read_u64(3 * PAGE), 4, "our view");
    Ok(())
}
