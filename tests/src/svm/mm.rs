// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the kernel does to memory while a device uses it by pointer: both sides see the same bytes at
//! every moment, and nothing is held.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi::{self, svm_access};
use virtgpu_client::{compute, Bytes, Deadline, Device, Errno, Memfd, Memory};

use super::support::{
    at, bad_access, bad_address, device, each_kind, family, on_each_kind, open, End, Svm,
};
use crate::ktap::{pidfd, reap, Family, Outcome, TestResult};
use crate::support::compaction::Fragmented;
use crate::support::file::{fill_disk, punch};
use crate::support::ksm::{all_one, equal_pages, Merging};
use crate::support::memcg::Group;
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::reaper::{kill_and_reap, pausing_threads, Reaped};
use crate::support::swap::page_out;
use crate::support::uffd::{feature, Fault, Uffd, MINOR, MISSING, WP};
use crate::support::{
    bounded, child, eventually, ext4, job, numa, procfs, raced, raw, soft_dirty, swap, thp, Env,
    Random, HUGE, PAGE, ROUNDS,
};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = family(
    "svm_mm",
    cases![
        unmap_under_job: 300,
        remap_new_data,
        replaced_while_the_device_writes: 300,
        moved_away,
        dontneed,
        mprotect_toggle: 300,
        fork_both_sides,
        forks_while_the_device_writes: 300,
        child_and_passed_fd_refused,
        child_has_its_own,
        exec,
        exit_with_jobs: 300,
        kill_at_random: 1200,
        stop_and_continue,
        paged_out,
        paged_out_while_the_device_writes: 300,
        swap_twice_the_limit: 600,
        free_lazily_then_written,
        migrate: 300,
        migrate_while_the_device_writes: 300,
        compaction: 300,
        huge_split_collapse: 300,
        ksm,
        soft_dirty,
        writeback_enospc,
        hugetlb_punch,
        truncated,
        uffd_all_modes,
        memcg_oom_ends: 300,
        mrelease: 300,
        va_churn_is_collected: 300,
    ],
);

/// Bytes of a small test.
const SIZE: usize = 32 * PAGE;

/// Jobs that add 1 to each word of `place`, which holds zeros, while a thread calls `disturb` with the
/// number of the call: in the end each word has the number of jobs.
fn additions(
    svm: &Svm,
    place: &Place,
    rounds: u64,
    mut disturb: impl FnMut(u64) -> TestResult + Send,
) -> TestResult {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut jobs = 0;
    std::thread::scope(|scope| {
        let disturber = scope.spawn(|| -> TestResult {
            while !stop.load(Ordering::SeqCst) {
                disturb(count.fetch_add(1, Ordering::SeqCst))?;
            }
            Ok(())
        });
        let adding = Svm::adding(place);
        let mut work = || -> TestResult {
            while jobs < rounds || count.load(Ordering::SeqCst) < ROUNDS {
                if disturber.is_finished() {
                    break;
                }
                svm.run("adding", &adding)?;
                jobs += 1;
            }
            Ok(())
        };
        let worked = work();
        stop.store(true, Ordering::SeqCst);
        let disturbed = disturber.join().expect("no panic");
        worked.and(disturbed)
    })?;
    for offset in (0..place.len()).step_by(4) {
        check_eq!(
            u64::from(place.read_u32(offset)),
            jobs,
            "additions to the word at {offset:#x}"
        );
    }
    raced("disturbances", count.into_inner())
}

/// munmap waits for no job; what is mapped there next is not touched by those of before.
fn unmap_under_job(env: &Env) -> TestResult {
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

fn remap_new_data(env: &Env) -> TestResult {
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
fn replaced_while_the_device_writes(env: &Env) -> TestResult {
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

/// The pages go to other addresses, and the device finds them there, and nothing where they were.
fn moved_away(env: &Env) -> TestResult {
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

fn dontneed(env: &Env) -> TestResult {
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
fn mprotect_toggle(env: &Env) -> TestResult {
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

/// Each side's writes are its own, whoever is first.
fn fork_both_sides(env: &Env) -> TestResult {
    on_each_kind(env, 2 * HUGE, |svm, place| {
        let data = Svm::scatter(place, 4);
        svm.poke(place.address(8), 1)?;
        place.write(8, &data[8..16]);
        let child = svm.loses("fork", place, place.unit(), || {
            child::hold(|| {
                check!(place.to_vec(0, place.len()) == data, "the child's copy");
                place.fill(0xcc);
                Ok(())
            })
        })?;
        // We are first here, the child is there.
        svm.poke(place.address(HUGE), 0x1234)?;
        child.release()?;
        let mut expected = data;
        expected[HUGE..HUGE + 8].copy_from_slice(&0x1234_u64.to_le_bytes());
        svm.sees("after the child's writes", place, &expected)?;
        check!(place.to_vec(0, place.len()) == expected, "our view");
        svm.coherent_all_over("after the child", place)
    })
}

fn forks_while_the_device_writes(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(0);
    additions(&svm, &place, env.rounds(60), |_| {
        // SAFETY: The child does nothing but end, which any thread's child may.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: Ends the child.
            unsafe { libc::_exit(0) }
        }
        check!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        reap(pid).map(drop)
    })
}

/// Each ioctl that is about the memory is refused to another process, and changes nothing.
fn refused_to_others(device: &Device, address: u64) -> TestResult {
    let mut idle = compute::Stream::new();
    idle.delay(1);
    let job = virtgpu_client::Exec::new(idle.as_bytes())
        .ring(0)
        .submit(device);
    check_err!(job, Errno::ACCESS, "EXECBUFFER");
    for (what, result) in [
        (
            "SVM_QUERY",
            raw::call(device, uapi::nr::SVM_QUERY, &mut uapi::SvmQuery::default()),
        ),
        (
            "SVM_WAIT",
            raw::call(device, uapi::nr::SVM_WAIT, &mut uapi::SvmWait::default()),
        ),
        (
            "SVM_PREFETCH",
            raw::call(
                device,
                uapi::nr::SVM_PREFETCH,
                &mut uapi::SvmPrefetch {
                    addr: address,
                    length: PAGE as u64,
                    ..Default::default()
                },
            ),
        ),
    ] {
        check_err!(result, Errno::ACCESS, "{what}");
    }
    let again = raw::call(
        device,
        uapi::nr::SVM_ENABLE,
        &mut uapi::SvmEnable::default(),
    );
    check!(
        matches!(again, Err(Errno::EXIST | Errno::ACCESS)),
        "SVM_ENABLE: {}",
        crate::support::errno::describe(&again)
    );
    Ok(())
}

fn child_and_passed_fd_refused(env: &Env) -> TestResult {
    drop(device(env)?);
    let number = Place::shared_page()?;
    // One that gets the file from us, and was there before it.
    let (parent, number) = (std::process::id() as i32, &number);
    let stranger = child::hold(|| {
        let pid = pidfd(parent)?;
        let fd = number.read_u64(0) as i32;
        // SAFETY: Takes integers.
        let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pid.as_raw_fd(), fd, 0) };
        check!(got >= 0, "pidfd_getfd: {}", std::io::Error::last_os_error());
        // SAFETY: The kernel has just given us this file descriptor.
        let device = Device::from_fd(unsafe { OwnedFd::from_raw_fd(got as i32) });
        refused_to_others(&device, number.address(0))
    })?;
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    let data = Svm::scatter(&place, 5);
    svm.agrees("before", &place)?;
    number.write_u64(0, svm.fd().as_raw_fd() as u64);
    stranger.release()?;
    svm.sees("after the stranger", &place, &data)?;
    child::run(|| refused_to_others(svm.device(), place.address(0)))?;
    svm.sees("after the child", &place, &data)?;
    check_eq!(svm.count()?.state, uapi::svm_state::ACTIVE, "the state");
    svm.coherent_all_over("in the end", &place)
}

/// A child opens the device for itself, and uses the same addresses, which are other memory there.
fn child_has_its_own(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    let data = Svm::scatter(&place, 6);
    svm.agrees("before", &place)?;
    child::run(|| {
        let own = open(env)?;
        own.sees("the child's copy", &place, &data)?;
        own.fill(&place, 0x6666)?;
        check_eq!(place.read_u64(PAGE), 0x6666, "the child's view");
        Ok(())
    })?;
    svm.sees("after the child", &place, &data)?;
    check!(place.to_vec(0, SIZE) == data, "our view");
    Ok(())
}

/// A job that does not end by itself in the time of a test.
fn endless(place: &Place) -> compute::Stream {
    let mut stream = compute::Stream::new();
    for _ in 0..3000 {
        stream.add_u32(at(place.address(0)), place.len() as u64, 1);
    }
    stream
}

/// The new program has the file, and the old one's memory is gone with its threads.
fn exec(env: &Env) -> TestResult {
    drop(device(env)?);
    for inherit in [false, true] {
        let child = child::spawn(|| {
            let svm = open(env)?;
            let place = Place::base(HUGE)?;
            svm.coherent_all_over("in the child", &place)?;
            svm.submit(0, &endless(&place))?;
            if inherit {
                // SAFETY: An own file.
                unsafe { libc::fcntl(svm.fd().as_raw_fd(), libc::F_SETFD, 0) };
            }
            child::exec()
        })?;
        bounded("the new program", || child.exits_with(0))?;
        super::support::others_work(env, "a program that is gone")?;
    }
    Ok(())
}

fn exit_with_jobs(env: &Env) -> TestResult {
    drop(device(env)?);
    let rounds = env.rounds(60).next_multiple_of(3);
    for round in 0..rounds {
        child::run(|| {
            let svm = open(env)?;
            let place = Place::base(HUGE)?;
            for ring in 0..4 {
                svm.submit(ring, &endless(&place))?;
            }
            match round % 3 {
                // The memory first, the file first, or both by the exit.
                0 => place.unmap(0, HUGE)?,
                1 => drop(svm),
                _ => std::mem::forget(svm),
            }
            Ok(())
        })?;
    }
    raced("exits, in three orders", rounds)
}

/// The endless work of a child that is going to be killed.
fn work(env: &Env, seed: u64) -> TestResult {
    let mut random = Random(seed);
    loop {
        let svm = open(env)?;
        let pages = match random.below(2) {
            0 => Pages::Base,
            _ => Pages::Huge,
        };
        let place = Place::new(pages, HUGE)?;
        for _ in 0..10 {
            place.map(0, HUGE)?;
            for ring in 0..1 + random.below(4) as u32 {
                svm.submit(ring, &Svm::adding(&place))?;
            }
            match random.below(6) {
                0 => place.advise(0, HUGE, libc::MADV_DONTNEED)?,
                1 => place.map(0, HUGE / 2)?,
                2 => child::run(|| Ok(()))?,
                3 => drop(
                    svm.space
                        .prefetch_for_writing(place.address(0), HUGE as u64)?,
                ),
                _ => {}
            }
            let _ = svm.space.wait_ring(0, Deadline::after(job::LIMIT));
        }
        if random.below(4) == 0 {
            // Lost by a bad address, which is as good a state to be killed in as any.
            let _ = svm.end(&Svm::writing(0, 1));
        }
    }
}

/// SIGKILL at random points of enabling, faults, invalidations, waits and the end.
fn kill_at_random(env: &Env) -> TestResult {
    drop(device(env)?);
    let mut random = Random(31);
    let rounds = env.rounds(1000);
    for round in 0..rounds {
        let child = child::spawn(|| work(env, round))?;
        // Not synchronisation: the point at which the child dies.
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        bounded("the end of a killed process", || child.kill())?;
    }
    raced("processes killed", rounds)
}

/// A stopped process serves no faults, and nobody but its own jobs waits for that.
fn stop_and_continue(env: &Env) -> TestResult {
    let svm = open(env)?;
    let flag = Place::shared_page()?;
    let child = child::spawn(|| {
        let own = open(env)?;
        loop {
            // A fault each.
            let place = Place::base(PAGE)?;
            own.poke(place.address(0), 5)?;
            check_eq!(place.read_u64(0), 5, "the child's view");
            flag.write_u64(0, flag.read_u64(0) + 1);
        }
    })?;
    let test = || -> TestResult {
        for round in 0..5 {
            let before = flag.read_u64(0);
            check!(
                eventually(job::LIMIT, || flag.read_u64(0) > before),
                "no progress in round {round}"
            );
            // SAFETY: A signal to our own child.
            unsafe { libc::kill(child.pid, libc::SIGSTOP) };
            let stopped = || {
                let file = format!("/proc/{}/stat", child.pid);
                fs::read_to_string(file)
                    .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T')))
            };
            check!(eventually(job::LIMIT, stopped), "the child does not stop");
            let place = Place::base(SIZE)?;
            bounded("another process", || {
                svm.coherent_all_over("beside a stopped process", &place)?;
                place.unmap(0, SIZE)
            })?;
            // SAFETY: A signal to our own child.
            unsafe { libc::kill(child.pid, libc::SIGCONT) };
        }
        Ok(())
    };
    let result = test();
    child.kill()?;
    result
}

/// What the device has written is marked dirty before the page goes, and it comes back by its fault.
fn paged_out(env: &Env) -> TestResult {
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

fn paged_out_while_the_device_writes(env: &Env) -> TestResult {
    swap::prepare()?;
    let svm = open(env)?;
    let place = Place::base(2 * SIZE)?;
    additions(&svm, &place, env.rounds(80), |_| {
        place.advise(0, 2 * SIZE, libc::MADV_PAGEOUT)
    })
}

/// Jobs on twice what the group may have in memory.
fn swap_twice_the_limit(env: &Env) -> TestResult {
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
fn free_lazily_then_written(env: &Env) -> TestResult {
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

fn migrate(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let _still = numa::unbalanced();
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

fn migrate_while_the_device_writes(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    additions(&svm, &place, env.rounds(60), |number| {
        // A page that is just being faulted in may be busy.
        numa::move_to(&place, number as i32 % 2).map(drop)
    })
}

fn compaction(env: &Env) -> TestResult {
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
fn huge_split_collapse(env: &Env) -> TestResult {
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
fn ksm(env: &Env) -> TestResult {
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
fn soft_dirty(env: &Env) -> TestResult {
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

/// A write to a hole of a file on a full disk is refused, as to a CPU.
fn writeback_enospc(env: &Env) -> TestResult {
    let svm = open(env)?;
    let folder = ext4::folder()?;
    let (path, filler_path) = (folder.join("svm-sparse"), folder.join("svm-filler"));
    let options = || {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        options
    };
    let file = options().open(&path)?;
    file.set_len(SIZE as u64)?;
    let filler = options().open(&filler_path)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &file, 0, [RW, libc::MAP_SHARED])?;
    fill_disk(&filler)?;
    let read = svm.agrees("a hole, which may be read", &place);
    let written = svm.end(&Svm::writing(place.address(0), 1));
    drop(filler);
    fs::remove_file(filler_path)?;
    // The room comes back when the file system has written that down.
    // SAFETY: Takes nothing.
    unsafe { libc::sync() };
    read?;
    check_eq!(written?, End::Lost, "a job with the disk full");
    svm.is_lost(
        "a full disk",
        bad_address(svm_access::WRITE, place.address(0)),
    )?;
    open(env)?.coherent_all_over("with room on the disk again", &place)?;
    drop(place);
    fs::remove_file(path)?;
    Ok(())
}

fn hugetlb_punch(env: &Env) -> TestResult {
    use rustix::fs::MemfdFlags;
    let svm = open(env)?;
    if !procfs::reserve_hugepages(4)? {
        skip!("no room for hugetlb pages");
    }
    let memfd = Memfd::with_flags(2 * HUGE as u64, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB)?;
    let place = Place::reserve(Pages::Hugetlb, 2 * HUGE)?;
    place.map_file(0, 2 * HUGE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mut expected = Svm::scatter(&place, 9);
    svm.loses("a hole", &place, HUGE, || punch(&memfd, HUGE, HUGE))?;
    expected[HUGE..].fill(0);
    svm.sees("with the hole", &place, &expected)?;
    svm.coherent_all_over("in the end", &place)
}

/// What is behind the end of a file is gone, and comes back empty.
fn truncated(env: &Env) -> TestResult {
    let svm = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mut expected = Svm::scatter(&place, 10);
    let half = SIZE / 2;
    svm.loses("ftruncate", &place, half, || {
        Ok(rustix::fs::ftruncate(&memfd, half as u64)?)
    })?;
    svm.sees("before the end", &place, &expected[..half])?;
    rustix::fs::ftruncate(&memfd, SIZE as u64)?;
    expected[half..].fill(0);
    svm.sees("long again", &place, &expected)?;
    rustix::fs::ftruncate(&memfd, half as u64)?;
    svm.fails(
        "behind the end",
        &svm.reading(place.address(half)),
        bad_address(svm_access::READ, place.address(half)),
    )
}

/// A fault of the device is a fault of the process: MISSING, MINOR, write protection, and MOVE.
fn uffd_all_modes(env: &Env) -> TestResult {
    let svm = open(env)?;
    let data = Random(11).bytes(SIZE);

    let place = Place::base(SIZE)?;
    let uffd = Uffd::missing(&place)?;
    let fill = |uffd: &Uffd, fault: Fault| {
        let at = (fault.address - place.address(0)) as usize;
        uffd.copy(fault.address, &data[at..at + PAGE])
    };
    let count = uffd.resolving(fill, || svm.sees("MISSING", &place, &data))?;
    check_eq!(count, (SIZE / PAGE) as u64, "faults");
    let count = uffd.resolving(fill, || {
        place.advise(3 * PAGE, PAGE, libc::MADV_DONTNEED)?;
        svm.sees("MISSING again", &place, &data)
    })?;
    check_eq!(count, 1, "faults for one page");
    drop(uffd);
    svm.coherent_all_over("without it", &place)?;

    let memfd = Memfd::new(SIZE as u64)?;
    memfd.map()?.write(0, &data);
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let uffd = Uffd::open(feature::MINOR_SHMEM)?;
    uffd.register(place.address(0), SIZE, MINOR)?;
    let proceed = |uffd: &Uffd, fault: Fault| uffd.proceed(fault.address, PAGE);
    let count = uffd.resolving(proceed, || svm.sees("MINOR", &place, &data))?;
    check_eq!(count, (SIZE / PAGE) as u64, "faults");
    drop(uffd);

    let place = Place::base(SIZE)?;
    place.write(0, &data);
    svm.fill(&place, 1)?;
    place.write(0, &data);
    let uffd = Uffd::open(feature::PAGEFAULT_FLAG_WP)?;
    uffd.register(place.address(0), SIZE, WP)?;
    uffd.protect(place.address(0), SIZE, true)?;
    let allow = |uffd: &Uffd, fault: Fault| {
        check!(
            fault.protected,
            "a fault on what is not protected: {fault:?}"
        );
        let at = (fault.address - place.address(0)) as usize;
        check!(
            place.to_vec(at, PAGE) == data[at..at + PAGE],
            "the page before it may be written"
        );
        uffd.protect(fault.address, PAGE, false)
    };
    let count = uffd.resolving(allow, || {
        svm.sees("write-protected", &place, &data)?;
        svm.fill(&place, 2)
    })?;
    check_eq!(count, (SIZE / PAGE) as u64, "faults of writes");
    check_eq!(place.read_u64(SIZE - 8), 2, "our view");
    drop(uffd);

    let (from, to) = (Place::base(SIZE)?, Place::base(SIZE)?);
    from.write(0, &data);
    svm.agrees("the source", &from)?;
    let uffd = Uffd::open(feature::MOVE)?;
    uffd.register(to.address(0), SIZE, MISSING)?;
    uffd.take(to.address(0), from.address(0), SIZE)?;
    svm.sees("moved", &to, &data)?;
    svm.sees("the source, moved away", &from, &[0; SIZE])?;
    svm.coherent_all_over("the target", &to)
}

/// A process that the kernel kills because its group needs too much, while the device faults its memory
/// in; whoever has the device open beside it notices nothing.
fn memcg_oom_ends(env: &Env) -> TestResult {
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
        bounded("the end of a process without memory", || child.is_killed())?;
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
fn mrelease(env: &Env) -> TestResult {
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

/// A process that maps memory at ever other addresses: nothing of what is gone stays with the driver.
fn va_churn_is_collected(env: &Env) -> TestResult {
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
