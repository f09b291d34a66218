// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that the kernel reclaims for others: swap, MADV_FREE, limits, the reaping of killed
//! processes. What the device has written is never lost, wherever the page has been since.

use std::time::{Duration, Instant};

use virtgpu_client::{compute, Bytes, Exec, Memfd, Memory};

use super::race::additions;
use super::support::{each_kind, family, open, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::ktap::{reap, Family, Outcome, TestResult};
use crate::support::memcg::Group;
use crate::support::place::{Pages, Place, RW};
use crate::support::reaper::{kill_and_reap, pausing_threads, Reaped};
use crate::support::swap::page_out;
use crate::support::{agree, child, cpu, eventually, job, procfs, swap, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = family(
    "mm_reclaim",
    cases![
        paged_out,
        paged_out_by_another_cpu,
        shared_memory_paged_out,
        paged_out_many_times,
        written_after_swap_in_by_reading,
        freed_lazily_then_written,
        freed_lazily_while_mapped,
        freed_lazily_read_only,
        reclaimed_while_the_device_writes: 300,
        more_than_the_limit: 600,
        compressed_before_swap,
        killed_for_want_of_memory: 300,
        killed_and_reaped: 300,
        reaped_while_unmapped: 300,
    ],
);

/// Runs `test` on memory of the kinds that can go to swap.
fn on_swappable(env: &Env, test: fn(&Mirror<'_>, &Place) -> TestResult) -> TestResult {
    swap::prepare()?;
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        let device = open(env)?;
        let place = Place::new(pages, HUGE)?;
        let mirror = Mirror::new(&device, &place)?;
        test(&mirror, &place)
    })
}

fn paged_out(env: &Env) -> TestResult {
    on_swappable(env, |mirror, place| {
        let data = Random(1).bytes(HUGE);
        mirror.write(0, &data)?;
        mirror.loses("MADV_PAGEOUT", HUGE, || page_out(place))?;
        check_eq!(mirror.stat()?.space_pages.get(), 0, "pages mapped");
        check_eq!(place.to_vec(0, HUGE), data, "our view");
        mirror.agrees("from swap, by us")?;
        page_out(place)?;
        check_eq!(
            mirror.csum(0, HUGE)?,
            compute::crc32c(0, &data),
            "from swap, by the device"
        );
        mirror.coherent_all_over("in the end")
    })
}

/// Pages that one CPU has faulted in and another one pages out, too few for the first one to have
/// put them into the kernel's lists.
fn paged_out_by_another_cpu(env: &Env) -> TestResult {
    const PAGES: usize = 8;
    swap::prepare()?;
    let device = open(env)?;
    let test = || -> TestResult {
        for round in 1..5 {
            let place = Place::base(PAGES * PAGE)?;
            let mirror = Mirror::new(&device, &place)?;
            cpu::bind(0)?;
            mirror.fill(round)?;
            cpu::bind(1)?;
            mirror.loses("paging out", PAGES * PAGE, || page_out(&place))?;
            check_eq!(mirror.peek(0)?, round, "from swap, by the device");
            mirror.coherent_all_over("back")?;
        }
        Ok(())
    };
    // A thread of its own is bound, and no other one.
    std::thread::scope(|scope| scope.spawn(test).join().expect("no panic"))
}

fn paged_out_many_times(env: &Env) -> TestResult {
    on_swappable(env, |mirror, place| {
        mirror.fill(0)?;
        let mut adding = compute::Stream::new();
        adding.add_u32(mirror.userptr.at(0), HUGE as u64, 1);
        for round in 1..=5 {
            mirror.run(&format!("the job of round {round}"), &adding)?;
            page_out(place)?;
            if round % 2 == 0 {
                check_eq!(place.read_u32(HUGE - 4), round, "our view");
            }
        }
        for offset in (0..HUGE).step_by(PAGE) {
            check_eq!(place.read_u32(offset), 5, "additions at {offset:#x}");
        }
        Ok(())
    })
}

/// Shared memory goes to swap from a file that others may have open, too.
fn shared_memory_paged_out(env: &Env) -> TestResult {
    const SIZE: usize = 64 * PAGE;
    swap::prepare()?;
    let device = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mirror = Mirror::new(&device, &place)?;
    let data = Random(4).bytes(SIZE);
    mirror.write(0, &data)?;
    let before = procfs::vmstat("pswpout")?;
    mirror.loses("MADV_PAGEOUT", SIZE, || page_out(&place))?;
    let swapped = procfs::vmstat("pswpout")? - before;
    check!(
        swapped >= (SIZE / PAGE) as u64,
        "{swapped} pages were swapped out"
    );
    check_eq!(
        mirror.csum(0, SIZE)?,
        compute::crc32c(0, &data),
        "from swap, by the device"
    );
    check_eq!(place.to_vec(0, SIZE), data, "our view");
    mirror.coherent_all_over("in the end")
}

/// Such a page is writable and clean: only the driver knows that the device has written to it.
fn written_after_swap_in_by_reading(env: &Env) -> TestResult {
    on_swappable(env, |mirror, place| {
        mirror.scatter(2);
        mirror.agrees("before")?;
        for round in 0..3_u64 {
            page_out(place)?;
            for offset in (0..HUGE).step_by(PAGE) {
                place.read_u64(offset);
            }
            mirror.fill(round + 100)?;
            page_out(place)?;
            for offset in (0..HUGE).step_by(PAGE) {
                check_eq!(
                    place.read_u64(offset),
                    round + 100,
                    "what the device wrote at {offset:#x} in round {round}"
                );
            }
        }
        Ok(())
    })
}

/// The kernel drops such pages unless they are written again, also by a device.
fn freed_lazily_then_written(env: &Env) -> TestResult {
    on_swappable(env, |mirror, place| {
        for round in 0..3_u64 {
            place.fill(0x11);
            place.advise(0, HUGE, libc::MADV_FREE)?;
            mirror.fill(round + 200)?;
            page_out(place)?;
            for offset in (0..HUGE).step_by(PAGE) {
                check_eq!(
                    place.read_u64(offset),
                    round + 200,
                    "what the device wrote at {offset:#x} in round {round}"
                );
            }
        }
        mirror.coherent_all_over("in the end")
    })
}

fn freed_lazily_while_mapped(env: &Env) -> TestResult {
    on_swappable(env, |mirror, place| {
        mirror.scatter(3);
        mirror.loses("MADV_FREE", HUGE, || place.advise(0, HUGE, libc::MADV_FREE))?;
        let data = Random(4).bytes(HUGE);
        mirror.write(0, &data)?;
        page_out(place)?;
        check_eq!(place.to_vec(0, HUGE), data, "our view");
        mirror.agrees("in the end")
    })
}

/// Either the old bytes or zeros, but the same on both sides.
fn freed_lazily_read_only(env: &Env) -> TestResult {
    swap::prepare()?;
    let device = open(env)?;
    let place = Place::base(HUGE)?;
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    mirror.scatter(5);
    mirror.agrees("before")?;
    mirror.loses("MADV_FREE", HUGE, || place.advise(0, HUGE, libc::MADV_FREE))?;
    mirror.agrees("freed")?;
    page_out(&place)?;
    mirror.agrees("dropped")?;
    check_eq!(mirror.peek(HUGE / 2)?, 0, "what no one has written since");
    Ok(())
}

fn reclaimed_while_the_device_writes(env: &Env) -> TestResult {
    swap::prepare()?;
    let device = open(env)?;
    let place = Place::base(64 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(0)?;
    let jobs = additions(&mirror, 64 * PAGE, env.rounds(80), |_| {
        place.advise(0, 64 * PAGE, libc::MADV_PAGEOUT)
    })?;
    agree::added(&place, jobs)?;
    Ok(())
}

/// Buffers of twice what the group may have in memory.
fn more_than_the_limit(env: &Env) -> TestResult {
    const LIMIT: usize = 8 << 20;
    const PART: usize = 64 * PAGE;
    swap::prepare()?;
    let rounds = env.iterations(120);
    child::run(|| {
        let group = Group::new("limit", LIMIT as u64)?;
        // The group goes when this process has left it.
        child::run(|| {
            group.enter()?;
            let device = open(env)?;
            let place = Place::base(2 * LIMIT)?;
            let mirror = Mirror::with(&device, &place, SPARSE)?;
            let mut random = Random(6);
            let parts = place.len() / PART;
            let mut expected = vec![0_u32; parts];
            let hits = || group.number("memory.events", "max ");
            let mut round = 0;
            // All parts together are twice the limit: some time it must be hit.
            while round < rounds || (hits()? == 0 && round < 64 * parts as u64) {
                round += 1;
                let part = random.below(parts as u64) as usize;
                // No more than this part: what the job does not need may be out.
                let at = part * PART;
                let one = Mirror::part(&device, &place, at, PART, WHOLE)?;
                let mut adding = compute::Stream::new();
                adding.add_u32(one.userptr.at(0), PART as u64, part as u32 + 1);
                one.run(&format!("the job of round {round}"), &adding)?;
                expected[part] += part as u32 + 1;
                if round % 4 == 0 {
                    one.agrees("a part")?;
                }
                if round % 16 == 0 {
                    mirror.prefetch(at, PAGE)?;
                }
            }
            for (part, expected) in expected.iter().enumerate() {
                for offset in (0..PART).step_by(PAGE) {
                    check_eq!(
                        place.read_u32(part * PART + offset),
                        *expected,
                        "part {part} at {offset:#x}"
                    );
                }
            }
            let events = hits()?;
            println!("    # the limit was hit {events} times in {round} rounds");
            check!(events > 0, "the limit was never hit");
            Ok(())
        })
    })
}

/// Through the compressed cache in front of the swap device.
fn compressed_before_swap(env: &Env) -> TestResult {
    const SWITCH: &str = "/sys/module/zswap/parameters/enabled";
    const STORED: &str = "/sys/kernel/debug/zswap/stored_pages";
    swap::prepare()?;
    let Ok(before) = std::fs::read_to_string(SWITCH) else {
        skip!("the kernel has no zswap");
    };
    std::fs::write(SWITCH, "Y")?;
    let test = || -> TestResult {
        let stored = || -> TestResult<u64> {
            let text = std::fs::read_to_string(STORED)?;
            text.trim()
                .parse()
                .map_err(|_| Outcome::Fail(format!("{STORED} is {text:?}")))
        };
        let device = open(env)?;
        let place = Place::base(64 * PAGE)?;
        let mirror = Mirror::new(&device, &place)?;
        for round in 1..5 {
            // What compresses, but is not empty, for which nothing is stored.
            mirror.fill(round)?;
            mirror.loses("paging out", 64 * PAGE, || page_out(&place))?;
            check!(stored()? >= 64, "{} pages are stored, not 64", stored()?);
            check_eq!(
                mirror.csum(0, 64 * PAGE)?,
                compute::crc32c(0, &round.to_le_bytes().repeat(64 * PAGE / 8)),
                "the device's view of what comes back"
            );
            mirror.coherent_all_over("back")?;
        }
        Ok(())
    };
    let result = test();
    std::fs::write(SWITCH, before.trim())?;
    result
}

/// A process that the kernel kills because its group needs too much, while the device works on its
/// memory; whoever has the device open beside it notices nothing.
fn killed_for_want_of_memory(env: &Env) -> TestResult {
    const LIMIT: u64 = 24 << 20;
    let device = open(env)?;
    let place = Place::base(HUGE)?;
    let mirror = Mirror::new(&device, &place)?;
    let rounds = env.iterations(10);
    for round in 0..rounds {
        mirror.fill(round)?;
        let group = Group::new("oom", LIMIT)?;
        group.forbid_swap()?;
        let start = Instant::now();
        let child = child::spawn(|| {
            group.enter()?;
            let device = open(env)?;
            let small = Place::base(HUGE)?;
            let mirror = Mirror::new(&device, &small)?;
            let large = Place::base(2 * LIMIT as usize)?;
            std::thread::scope(|scope| {
                scope.spawn(|| while mirror.fill(1).is_ok() {});
                loop {
                    large.fill(1);
                }
            })
        })?;
        child.join_killed()?;
        check_eq!(
            group.number("memory.events", "oom_kill ")?,
            1,
            "processes killed for want of memory"
        );
        check!(
            start.elapsed() < job::LIMIT,
            "the child has ended after {:?}",
            start.elapsed()
        );
        mirror.agrees("beside the killed process")?;
    }
    mirror.coherent_all_over("in the end")
}

/// Starts a child whose device works on memory of it, and returns when it does.
fn busy_child(env: &Env) -> TestResult<child::Child> {
    let flag = Place::shared_page()?;
    let child = child::spawn(|| {
        let device = open(env)?;
        let place = Place::new(Pages::Base, 8 * HUGE)?;
        let mirror = Mirror::new(&device, &place)?;
        let mut stream = compute::Stream::new();
        stream.add_u32(mirror.userptr.at(0), 8 * HUGE as u64, 1);
        pausing_threads();
        loop {
            Exec::new(stream.as_bytes())
                .buffers(&[mirror.userptr.handle()])
                .submit_with_fence(&device)?
                .wait(Some(job::LIMIT))?;
            flag.write_u64(0, flag.read_u64(0) + 1);
        }
    })?;
    let works = eventually(job::LIMIT, || flag.read_u64(0) > 1);
    if !works {
        child.kill()?;
        return Err(Outcome::Fail("the child's device does not work".into()));
    }
    Ok(child)
}

/// The reaper may not wait for a device: it is turned away as long as one is in there.
fn killed_and_reaped(env: &Env) -> TestResult {
    drop(open(env)?);
    let mut outcomes = Vec::new();
    let rounds = env.iterations(10).max(4) as usize;
    // On a busy machine a child may have ended before it is looked at.
    while outcomes.len() < rounds
        || (!outcomes.contains(&Reaped::TurnedAway) && outcomes.len() < 10 * rounds)
    {
        let child = busy_child(env)?;
        let start = Instant::now();
        outcomes.extend(kill_and_reap(child.pid, 1)?);
        check!(
            start.elapsed() < Duration::from_secs(20),
            "process_mrelease took {:?}",
            start.elapsed()
        );
        reap(child.pid)?;
        check!(
            start.elapsed() < job::LIMIT,
            "the killed child ended after {:?}",
            start.elapsed()
        );
    }
    println!("    # {outcomes:?}");
    // The call also succeeds where the exit has just taken the memory; a reaper that gets it is
    // never turned away.
    check!(
        outcomes.contains(&Reaped::TurnedAway),
        "the reaper has never met the device"
    );
    Ok(())
}

/// Starts a child with memory that is registered, and not mapped in the device.
fn idle_child(env: &Env) -> TestResult<child::Child> {
    let flag = Place::shared_page()?;
    let child = child::spawn(|| {
        let device = open(env)?;
        let place = Place::new(Pages::Base, 8 * HUGE)?;
        place.fill(1);
        let _mirror = Mirror::new(&device, &place)?;
        pausing_threads();
        flag.write_u64(0, 1);
        loop {
            // SAFETY: Takes nothing.
            unsafe { libc::pause() };
        }
    })?;
    check!(
        eventually(job::LIMIT, || flag.read_u64(0) == 1),
        "the child does not come up"
    );
    Ok(child)
}

/// With nothing mapped in the device the reaper gets all the memory.
fn reaped_while_unmapped(env: &Env) -> TestResult {
    drop(open(env)?);
    let mut outcomes = Vec::new();
    for _ in 0..env.iterations(10).max(4) {
        let child = idle_child(env)?;
        outcomes.extend(kill_and_reap(child.pid, 1)?);
        reap(child.pid)?;
    }
    println!("    # {outcomes:?}");
    check!(
        !outcomes.contains(&Reaped::TurnedAway),
        "the reaper was turned away, and the device has no memory"
    );
    check!(
        outcomes.contains(&Reaped::All),
        "the reaper has never had any memory"
    );
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.coherent_all_over("afterwards")
}
