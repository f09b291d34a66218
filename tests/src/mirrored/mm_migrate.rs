// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Pages that move to other frames: between nodes, by compaction, out of memory that goes offline
//! or that is broken. Nothing holds them, so the kernel can always do it, and no byte is lost.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::{compute, Bytes, Errno, Memfd};

use super::race::additions;
use super::support::{each_kind, family, on_each_kind, open, Mirror, READ_ONLY, WHOLE};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::compaction::Fragmented;
use crate::support::place::{Pages, Place, RW};
use crate::support::setting::Setting;
use crate::support::{agree, numa, pace, procfs, Env, HUGE, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = family(
    "mm_migrate",
    cases![
        between_nodes: 300,
        file_between_nodes,
        between_nodes_while_the_device_writes: 300,
        numa_balancing: 300,
        compaction: 300,
        memory_offline: 300,
        soft_offline,
        broken_page,
    ],
);

const SIZE: usize = HUGE;

fn moved(place: &Place, node: i32) -> TestResult {
    let status = numa::move_to(place, node)?;
    let count = status.iter().filter(|status| **status != node).count();
    let first = status.iter().find(|status| **status != node);
    check_eq!(count, 0, "pages not on node {node}, the first {first:?}");
    Ok(())
}

/// The kernel has looked at pages by then.
const BALANCED: Duration = Duration::from_secs(30);

fn between_nodes(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let _still = numa::without_balancing();
    on_each_kind(env, SIZE, |device, place| {
        let mirror = Mirror::new(device, place)?;
        mirror.scatter(1);
        mirror.agrees("before")?;
        let mut count = 0;
        for round in 0..6 {
            let (before, told) = (place.frames()?, mirror.stat()?.space_invalidates);
            moved(place, round % 2)?;
            if before != place.frames()? {
                count += 1;
                check!(
                    mirror.stat()?.space_invalidates > told,
                    "the device was not told of move {round}"
                );
            }
            mirror.agrees("moved")?;
            mirror.coherent_all_over("moved")?;
        }
        // The first time the pages may be there already.
        check!(count >= 5, "{count} moves of 6 have moved anything");
        Ok(())
    })
}

fn file_between_nodes(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let device = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let other = memfd.map()?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(2);
    mirror.agrees("before")?;
    drop(other);
    for round in 0..6 {
        moved(&place, round % 2)?;
        mirror.coherent_all_over("moved")?;
        mirror.agrees("moved")?;
    }
    Ok(())
}

fn between_nodes_while_the_device_writes(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let device = open(env)?;
    let place = Place::base(64 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(0)?;
    let jobs = additions(&mirror, 64 * PAGE, env.rounds(60), |number| {
        // A page that is just being faulted in may be busy.
        numa::move_to(&place, number as i32 % 2).map(drop)
    })?;
    agree::added(&place, jobs)?;
    moved(&place, 0)?;
    mirror.coherent_all_over("in the end")
}

/// The kernel looks for pages that are used from another node by unmapping them for a moment.
fn numa_balancing(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let _on = numa::balancing()?;
    let told = || -> TestResult<u64> { Ok(mirror.stat()?.space_invalidates.get()) };
    let looked_at = || procfs::vmstat("numa_pte_updates");
    let (told_before, looked_at_before) = (told()?, looked_at()?);
    let (least, deadline) = (env.iterations(40), Instant::now() + pace::limit(BALANCED));
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        // The kernel looks at what takes time on a CPU.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for offset in (0..SIZE).step_by(PAGE) {
                    std::hint::black_box(place.read_u64(offset));
                }
            }
        });
        let work = || -> TestResult<u64> {
            let mut round = 0;
            while round < least || (told()? == told_before && Instant::now() < deadline) {
                mirror.scatter(round);
                mirror.agrees("by the device")?;
                mirror.coherent_all_over("both")?;
                round += 1;
            }
            Ok(round)
        };
        let rounds = work();
        stop.store(true, Ordering::Relaxed);
        rounds
    })?;
    let invalidations = told()? - told_before;
    let looked_at = looked_at()? - looked_at_before;
    println!("    # {rounds} rounds, {looked_at} pages looked at, {invalidations} invalidations");
    check!(looked_at > 0, "the kernel has looked at no page");
    check!(invalidations > 0, "the device was told of none of them");
    Ok(())
}

fn compaction(env: &Env) -> TestResult {
    let device = open(env)?;
    let fragmented = Fragmented::new()?;
    let mirror = Mirror::new(&device, &fragmented.place)?;
    mirror.scatter(3);
    mirror.agrees("before")?;
    fragmented.compact(|| {
        mirror.agrees("compacted")?;
        mirror.coherent_all_over("compacted")
    })
}

/// Memory with a page in a block that can go offline, and the block.
fn in_a_block_that_goes() -> TestResult<(Place, u64)> {
    /// With twice the memory that a block has at most in a guest of this size.
    const MOST: usize = 32;
    let blocks = numa::block::movable()?;
    if blocks.is_empty() {
        skip!("no memory can go offline (boot with movablecore=)");
    }
    let mut others = Vec::new();
    while others.len() < MOST {
        let place = Place::base(4 * HUGE)?;
        place.fill(1);
        if numa::two_nodes().is_ok() {
            // With `numa=fake=2` that is where such memory is.
            numa::move_to(&place, 1)?;
        }
        for frame in place.frames()?.into_iter().flatten() {
            if let Some((block, _)) = blocks.iter().find(|(_, frames)| frames.contains(&frame)) {
                return Ok((place, *block));
            }
        }
        // So that the next one has other pages.
        others.push(place);
    }
    Err(Outcome::Fail(format!(
        "no page is in memory that can go offline: {blocks:x?}"
    )))
}

/// A block of memory goes with all buffers in it.
fn memory_offline(env: &Env) -> TestResult {
    // Otherwise the device may have lost the memory before.
    let _still = Setting::new(numa::BALANCING, "0").ok();
    let device = open(env)?;
    let (place, block) = in_a_block_that_goes()?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(4);
    mirror.agrees("before")?;
    let gone = mirror.loses("going offline", PAGE, || {
        let result = numa::block::set(block, "offline");
        match result.as_ref().map_err(std::io::Error::raw_os_error) {
            Err(Some(libc::EBUSY)) => skip!("the memory does not go offline: it is busy"),
            _ => Ok(result?),
        }
    });
    let agree = mirror.agrees("after going offline");
    let back = numa::block::set(block, "online");
    gone?;
    agree?;
    back?;
    mirror.coherent_all_over("online again")
}

/// Gives broken frames back to the system, where the kernel can.
fn unpoison(frames: impl IntoIterator<Item = u64>) {
    let _ = Command::new("modprobe").arg("hwpoison_inject").output();
    for frame in frames {
        let _ = fs::write(
            "/sys/kernel/debug/hwpoison/unpoison-pfn",
            format!("{frame:#x}"),
        );
    }
}

/// A page that may break soon is moved away.
fn soft_offline(env: &Env) -> TestResult {
    const MADV_SOFT_OFFLINE: i32 = 101;
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        let device = open(env)?;
        let place = Place::new(pages, HUGE)?;
        let mirror = Mirror::new(&device, &place)?;
        let data = mirror.scatter(5);
        mirror.agrees("before")?;
        let frame = place.frames()?[3].expect("written above");
        mirror.loses("MADV_SOFT_OFFLINE", PAGE, || {
            place.try_advise(3 * PAGE, PAGE, MADV_SOFT_OFFLINE, "MADV_SOFT_OFFLINE")
        })?;
        check!(
            place.frames()?[3].is_some_and(|now| now != frame),
            "{pages:?} pages: the page has not moved"
        );
        check_eq!(
            mirror.csum(0, HUGE)?,
            compute::crc32c(0, &data),
            "{pages:?} pages: CRC32C"
        );
        mirror.coherent_all_over("moved")?;
        drop(mirror);
        drop(place);
        unpoison([frame]);
        Ok(())
    })
}

/// A page that is broken is never handed out. It is a clean one, so that no one has to die of it.
fn broken_page(env: &Env) -> TestResult {
    const MADV_HWPOISON: i32 = 100;
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    let other = Mirror::part(&device, &place, 8 * PAGE, 8 * PAGE, WHOLE)?;
    reader.scatter(6);
    place.advise(3 * PAGE, PAGE, libc::MADV_FREE)?;
    reader.agrees("before")?;
    let frame = place.frames()?[3].expect("written above");
    reader.loses("MADV_HWPOISON", PAGE, || {
        place.try_advise(3 * PAGE, PAGE, MADV_HWPOISON, "MADV_HWPOISON")
    })?;
    reader.refused("a broken page", Errno::FAULT)?;
    other.coherent_all_over("beside it")?;
    place.map(3 * PAGE, PAGE)?;
    check_eq!(reader.peek(3 * PAGE)?, 0, "a new page in its place");
    reader.agrees("a new page in its place")?;
    unpoison([frame]);
    Ok(())
}
