// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Processes that end, at any point, with memory of theirs in the device. What is left behind, the
//! harness looks at after each case.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, Errno, Exec};

use super::support::{family, open, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::ktap::{Family, TestResult};
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::{child, job, raced, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "mm_exit",
    cases![
        killed_anywhere: 900,
        exit_with_jobs_in_flight: 300,
        exit_of_a_thread_group: 300,
        exec_with_memory_mapped,
        exec_closes,
    ],
);

const SIZE: usize = 64 * PAGE;

/// The endless work of a child that is going to be killed.
fn work(env: &Env, seed: u64) -> TestResult {
    let mut random = Random(seed);
    loop {
        let device = open(env)?;
        let pages = if random.below(2) == 0 {
            Pages::Base
        } else {
            Pages::Huge
        };
        let place = Place::new(pages, HUGE)?;
        for _ in 0..10 {
            let options = match random.below(3) {
                0 => WHOLE.events(seed),
                1 => SPARSE,
                _ => READ_ONLY,
            };
            place.map(0, HUGE)?;
            let userptr = device.register_range(&place, 0, SIZE, options)?;
            userptr.prefetch(0, SIZE as u64 / 2)?;
            let mut stream = compute::Stream::new();
            stream
                .stride_read(userptr.at(0), userptr.at(0), PAGE as u64, 8)
                .delay(random.below(2000));
            // Where the device may only read, the context is lost by it, which is as good a state
            // to be killed in as any.
            let job = Exec::new(stream.as_bytes())
                .ring(random.below(4) as u32)
                .buffers(&[userptr.handle()])
                .submit_with_fence(&device);
            match random.below(5) {
                0 => place.protect(0, SIZE / 4, READ)?,
                1 => place.advise(0, SIZE, libc::MADV_DONTNEED)?,
                2 => place.unmap(SIZE / 2, SIZE)?,
                3 => child::run(|| Ok(()))?,
                _ => {}
            }
            if let Ok(fence) = job {
                let _ = fence.wait(Some(job::LIMIT));
            }
            place.protect(0, SIZE / 4, RW)?;
        }
    }
}

/// SIGKILL at random points of register, fault, job, invalidation, unregister and close.
fn killed_anywhere(env: &Env) -> TestResult {
    drop(open(env)?);
    let mut random = Random(31);
    let rounds = env.rounds(60);
    for round in 0..rounds {
        let child = child::spawn(|| work(env, round))?;
        // Not synchronisation: the point at which the child dies.
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        child.kill()?;
    }
    raced("processes killed", rounds)
}

fn exit_with_jobs_in_flight(env: &Env) -> TestResult {
    drop(open(env)?);
    let rounds = env.rounds(60).next_multiple_of(3);
    for round in 0..rounds {
        child::run(|| {
            let device = open(env)?;
            let place = Place::base(SIZE)?;
            let userptr = device.register(&place, WHOLE)?;
            let mut stream = compute::Stream::new();
            stream.delay(30_000).add_u32(userptr.at(0), SIZE as u64, 1);
            for ring in 0..4 {
                Exec::new(stream.as_bytes())
                    .ring(ring)
                    .buffers(&[userptr.handle()])
                    .submit(&device)?;
            }
            match round % 3 {
                // The memory first, the handle first, or the file with all of it.
                0 => place.unmap(0, SIZE)?,
                1 => userptr.close()?,
                _ => std::mem::forget(userptr),
            }
            Ok(())
        })?;
    }
    raced("exits, in three orders", rounds)
}

/// One thread ends the process while others submit and move memory.
fn exit_of_a_thread_group(env: &Env) -> TestResult {
    drop(open(env)?);
    let rounds = env.rounds(50);
    for round in 0..rounds {
        let child = child::spawn(|| {
            let device = Box::leak(Box::new(open(env)?));
            let place: &'static Place = Box::leak(Box::new(Place::base(SIZE)?));
            let mirror = Mirror::new(device, place)?;
            mirror.fill(1)?;
            std::thread::spawn(move || loop {
                let _ = place.advise(0, SIZE, libc::MADV_DONTNEED);
            });
            // Each may take a second, which is how long the driver tries.
            if round % 5 == 0 {
                let _ = mirror.end(&mirror.reading())?;
            }
            std::thread::spawn(move || loop {
                let _ = mirror.end(&mirror.reading());
            });
            std::thread::sleep(Duration::from_micros(round % 10 * 700));
            // SAFETY: Ends the child, with its threads wherever they are.
            unsafe { libc::_exit(7) }
        })?;
        child.exits_with(7)?;
    }
    raced("exits", rounds)
}

/// Replaces a child's program, with the file inherited or not.
fn exec(env: &Env, inherit: bool) -> TestResult {
    let device = open(env)?;
    let own = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &own)?;
    mirror.scatter(1);
    mirror.agrees("before")?;
    let child = child::spawn(|| {
        let inner = open(env)?;
        let place = Place::base(SIZE)?;
        for device in [&inner, &device] {
            let mirror = Mirror::new(device, &place)?;
            mirror.coherent_all_over("in the child")?;
            // Stays, like the job below.
            std::mem::forget(mirror);
            if inherit {
                // SAFETY: An own file.
                unsafe { libc::fcntl(device.as_fd().as_raw_fd(), libc::F_SETFD, 0) };
            }
        }
        let mut stream = compute::Stream::new();
        stream.delay(20_000);
        Exec::new(stream.as_bytes()).submit(&inner)?;
        child::exec()
    })?;
    child.exits_with(0)?;
    mirror.coherent_all_over("the parent")?;
    // What the child has registered on the parent's file belongs to no one any more.
    let handle = mirror.userptr.handle();
    let orphans: Vec<u32> = (1..64)
        .filter(|other| *other != handle)
        .filter(|other| {
            device
                .query(*other)
                .is_ok_and(|query| query.flags & uapi::USERPTR_MIRRORED != 0)
        })
        .collect();
    check_eq!(orphans.len(), 1, "registrations that the child has left");
    let stream = mirror.idle();
    let result = Exec::new(stream.as_bytes())
        .buffers(&orphans)
        .submit(&device);
    check!(
        result == Err(Errno::ACCESS),
        "a job on memory of a program that is gone: {}",
        crate::support::errno::describe(&result)
    );
    device.gem_close(orphans[0])?;
    mirror.agrees("the parent, in the end")
}

fn exec_with_memory_mapped(env: &Env) -> TestResult {
    exec(env, true)
}

fn exec_closes(env: &Env) -> TestResult {
    exec(env, false)
}
