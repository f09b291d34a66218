// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The control ring: how much of it a file gets, and commands that find no room although they have
//! it.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::protocol::compute::Operand;
use virtgpu_client::{compute, BlobOptions, Bytes, Device, Errno, Exec, Mapping, RegisterOptions};

use crate::greedy::Greedy;
use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};
use crate::support::debugfs::Knobs;
use crate::support::gpu;
use crate::support::memory::small_pages;
use crate::support::{eventually, procfs, Env, PAGE};
use crate::{cases, check, check_eq, check_err};

pub(crate) const FAMILY: Family = Family {
    name: "ring",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        small_jobs_in_flight,
        in_order_without_room: 120,
        closed_without_room: 120,
        lost_without_room: 200,
        no_room_is_not_silence: 120,
        teardown_in_a_full_ring: 120,
    ],
};

/// A device that takes its time to detach a resource, so that what is to be ended waits for
/// descriptors.
pub(crate) const TEARDOWN: Family = Family {
    name: "ring_teardown",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "--adversary slow:40 --adversary-on CTX_DETACH_RESOURCE",
    leak_check: true,
    cases: cases![attached_again: 120],
};

/// A device without indirect descriptors: each part of a command takes one.
pub(crate) const DIRECT: Family = Family {
    name: "ring_direct",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "--no-indirect",
    leak_check: true,
    cases: cases![
        large_among_small: 200,
        in_order_without_room: 120,
        teardown_in_a_full_ring: 120,
    ],
};

/// A quarter of the device's ring of 256.
const QUARTER: usize = 64;
/// Longer than anything takes that ends.
const LIMIT: Duration = Duration::from_secs(60);

fn delay(time: Duration) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(time.as_micros() as u64);
    stream
}

/// A job takes one descriptor, however many parts it has: a file has a quarter of the ring of them
/// queued, and does not wait until the first one ends.
fn small_jobs_in_flight(env: &Env) -> TestResult {
    let device = env.compute()?;
    let long = Duration::from_secs(20);
    let start = Instant::now();
    let (first, next) = (delay(long), delay(Duration::from_micros(1)));
    let first = Exec::new(first.as_bytes())
        .ring(0)
        .submit_with_fence(&device)?;
    let mut last = None;
    for _ in 1..QUARTER {
        last = Some(
            Exec::new(next.as_bytes())
                .ring(0)
                .submit_with_fence(&device)?,
        );
    }
    let took = start.elapsed();
    println!("    # {QUARTER} jobs queued in {took:?}");
    check!(took < long, "EXECBUFFER has waited for the first job");
    check_err!(
        first.wait(Some(Duration::ZERO)),
        Errno::TIMEDOUT,
        "the first job, after {took:?}"
    );
    first.wait(Some(LIMIT))?;
    last.map_or(Ok(()), |last| last.wait(Some(LIMIT)))?;
    Ok(())
}

/// Others keep the ring full of small jobs, one of which takes the room of the other. A job of many
/// parts gets its turn.
fn large_among_small(env: &Env) -> TestResult {
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let device = env.compute()?;
    std::thread::scope(|scope| {
        let small = |ring| {
            let (stop, sent) = (&stop, &sent);
            move || -> TestResult {
                let device = env.compute()?;
                let stream = delay(Duration::from_micros(200));
                while !stop.load(Ordering::Relaxed) {
                    Exec::new(stream.as_bytes()).ring(ring).submit(&device)?;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        };
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(small(n % 2))).collect();
        let result = (|| -> TestResult {
            check!(
                eventually(LIMIT, || sent.load(Ordering::Relaxed) > 500),
                "small jobs are not queued"
            );
            // Parts of 4 MiB at most. The host refuses so long a job, when it has read it.
            let bytes = vec![0; 60 << 20];
            let mut longest = Duration::ZERO;
            let before = sent.load(Ordering::Relaxed);
            for _ in 0..3 {
                let start = Instant::now();
                let exec = Exec::new(&bytes).ring(0);
                let _ = exec.submit_with_fence(&device)?.wait(Some(LIMIT));
                longest = longest.max(start.elapsed());
            }
            let others = sent.load(Ordering::Relaxed) - before;
            println!("    # {longest:?} for a large job, among {others} small ones");
            check!(longest < LIMIT / 2, "a large job takes {longest:?}");
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread
                .join()
                .map_err(|_| Outcome::Fail("a thread has panicked".into()))??;
        }
        result
    })
}

/// Jobs that add to the same words one after the other, the last one with a fence.
fn chain(device: &Device, memory: &Mapping, jobs: u32) -> TestResult {
    let userptr = device.register(memory, RegisterOptions::pinned())?;
    let mut last = None;
    for job in 0..jobs {
        let mut stream = compute::Stream::new();
        // Not commutative: only in this order the result is right.
        stream.fill(userptr.at(0), PAGE as u64, u64::from(job));
        stream.add_u32(userptr.at(0), PAGE as u64, 7);
        let handles = [userptr.handle()];
        let exec = Exec::new(stream.as_bytes()).ring(0).buffers(&handles);
        last = Some(exec.submit_with_fence(device)?);
    }
    if let Some(last) = last {
        last.wait(Some(LIMIT))?;
    }
    check_eq!(memory.read_u32(0), jobs - 1 + 7, "the last job's result");
    userptr.close()?;
    Ok(())
}

/// The driver anew, with the time limits that it has by itself: the watchdog tries once a second to
/// send what has found no room.
fn usual_limits(env: &Env) -> TestResult {
    gpu::reload(env, c"")
}

/// Commands that find no descriptors go into the ring later, in their order, and no one is told.
fn in_order_without_room(env: &Env) -> TestResult {
    usual_limits(env)?;
    let device = env.compute()?;
    let knobs = Knobs::open(env)?;
    let memory = small_pages(PAGE)?;
    for tries in [1, 2, 3, 6] {
        knobs.set("exhaust_descriptors", tries)?;
        chain(&device, &memory, 40)?;
        check_eq!(
            knobs.get("exhaust_descriptors")?,
            0,
            "attempts that are still to fail"
        );
    }
    Ok(())
}

/// What ends something does not overtake what made it.
fn closed_without_room(env: &Env) -> TestResult {
    usual_limits(env)?;
    let knobs = Knobs::open(env)?;
    for tries in 1..=8 {
        let device = env.compute()?;
        knobs.set("exhaust_descriptors", tries)?;
        let blob = device.create_blob(&BlobOptions::guest(4096))?;
        let mut stream = compute::Stream::new();
        stream.fill(blob.at(0), 4096, u64::from(tries));
        let handles = [blob.handle()];
        let fence = Exec::new(stream.as_bytes())
            .ring(0)
            .buffers(&handles)
            .submit_with_fence(&device)?;
        // The job would fail without it.
        drop(blob);
        fence.wait(Some(LIMIT))?;
        knobs.set("exhaust_descriptors", tries)?;
        drop(device);
        knobs.set("exhaust_descriptors", 0)?;
    }
    // The device complains of what it does not know.
    let memory = small_pages(PAGE)?;
    chain(&env.compute()?, &memory, 3)
}

/// A device that has nothing to respond to, as nothing finds room, does not count as one that does
/// not respond.
fn no_room_is_not_silence(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000")?;
    let knobs = Knobs::open(env)?;
    knobs.set("exhaust_descriptors", u32::MAX)?;
    for _ in 0..3 {
        check_err!(
            env.open()?.context_init_compute(1),
            Errno::BUSY,
            "a context that finds no room"
        );
    }
    knobs.set("exhaust_descriptors", 0)?;
    let memory = small_pages(PAGE)?;
    chain(&env.compute()?, &memory, 3)?;
    usual_limits(env)
}

/// Jobs of others have all of the ring that they may have, and do not end. Whoever closes what it
/// has finds the descriptors for that, and the device is not lost.
fn teardown_in_a_full_ring(env: &Env) -> TestResult {
    // More than descriptors are kept for.
    const REGISTRATIONS: usize = 40;
    usual_limits(env)?;
    // First, as they would inherit the file.
    let greedy = Greedy::start(env, 6, &delay(Duration::from_micros(1)))?;
    println!("    # {:?} jobs", greedy.wait()?);
    let memory = small_pages(PAGE)?;
    let device = env.compute()?;
    let registered = (0..REGISTRATIONS)
        .map(|_| device.register(&memory, RegisterOptions::pinned()))
        .collect::<Result<Vec<_>, _>>()?;
    let blobs = (0..REGISTRATIONS)
        .map(|_| device.create_blob(&BlobOptions::guest(PAGE as u64)))
        .collect::<Result<Vec<_>, _>>()?;
    drop(blobs);
    for userptr in registered {
        userptr.close()?;
    }
    check_eq!(procfs::vm_pin()?, 0, "bytes pinned after closing");
    drop(device);
    chain(&env.compute()?, &memory, 1)?;
    greedy.kill()?;
    chain(&env.compute()?, &memory, 3)
}

/// A buffer whose handle was closed has another one. It is attached by the second, although the
/// command that detaches it has not been in the ring by then.
fn attached_again(env: &Env) -> TestResult {
    // More than the ring has room for.
    const BUFFERS: usize = 300;
    usual_limits(env)?;
    let device = env.compute()?;
    let mut exported = Vec::new();
    for _ in 0..BUFFERS {
        let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
        exported.push((device.prime_export(blob.handle())?, blob));
    }
    let mut last = None;
    for (fd, blob) in exported.drain(..) {
        drop(blob);
        last = Some(fd);
    }
    let last = last.ok_or_else(|| Outcome::Fail("no buffer".into()))?;
    let handle = device.prime_import(last.as_fd())?;
    // Closing waits for the device, which carries out all before that.
    let memory = small_pages(PAGE)?;
    chain(&device, &memory, 3)?;
    let resource = device.resource_info(handle)?.res_handle;
    let mut stream = compute::Stream::new();
    stream.fill(Operand::resource(resource, 0), PAGE as u64, 5);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[handle])
        .submit_with_fence(&device)?
        .wait(Some(LIMIT))?;
    Ok(())
}

/// What never finds room is given back when the device goes.
fn lost_without_room(env: &Env) -> TestResult {
    usual_limits(env)?;
    let device = env.compute()?;
    let knobs = Knobs::open(env)?;
    let memory = small_pages(4 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let mut stream = compute::Stream::new();
    stream.add_u32(userptr.at(0), 4 * PAGE as u64, 3);
    let handles = [userptr.handle()];
    knobs.set("exhaust_descriptors", u32::MAX)?;
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&handles)
        .submit_with_fence(&device)?;
    check_err!(
        fence.wait(Some(Duration::from_secs(3))),
        Errno::TIMEDOUT,
        "a job that finds no room"
    );
    let gpu = gpu::find()?;
    gpu.unbind()?;
    check_err!(fence.wait(Some(LIMIT)), Errno::NODEV, "the job's fence");
    check_eq!(memory.read_u32(0), 0, "what the job would have written");
    drop(userptr);
    drop(device);
    gpu.bind()?;
    gpu::wait_for_node(env)?;
    chain(&env.compute()?, &memory, 3)
}
