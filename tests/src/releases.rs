// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The end of registrations: when it is over for whoever closes them, and what is left of them
//! meanwhile.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::Scope;
use std::time::{Duration, Instant};

use virtgpu_client::{compute, Device, Errno, Exec, Memory, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};
use crate::mirrored::open_mirrored;
use crate::support::debugfs::Knobs;
use crate::support::memory::small_pages;
use crate::support::place::{Pages, Place};
use crate::support::{child, eventually, gpu, job, procfs, Env, P, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = Family {
    name: "releases",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        charge_is_back_after_close: 120,
        closed_faster_than_released: 120,
        held_by_another_process: 180,
    ],
};

/// Whoever has waited for a job and then closes the registration may use the whole limit again.
fn charge_is_back_after_close(env: &Env) -> TestResult {
    const PAGES: u64 = 16;
    let rounds = env.iterations(400);
    child::run(|| {
        child::limit_memlock(PAGES * P)?;
        child::drop_privileges()?;
        let device = env.compute()?;
        let memory = small_pages(PAGES as usize * PAGE)?;
        let mut refused = 0;
        for round in 0..rounds {
            let userptr = match device.register(&memory, RegisterOptions::pinned()) {
                Ok(userptr) => userptr,
                Err(Errno::NOMEM) => {
                    refused += 1;
                    continue;
                }
                Err(error) => return Err(Outcome::from(error)),
            };
            let mut stream = compute::Stream::new();
            stream.add_u32(userptr.at(0), memory.len() as u64, 1);
            let fence = Exec::new(stream.as_bytes())
                .ring(round as u32 % 4)
                .buffers(&[userptr.handle()])
                .submit_with_fence(&device)?;
            if round % 2 == 0 {
                fence.wait(Some(job::LIMIT))?;
            } else {
                device.wait(userptr.handle())?;
            }
            userptr.close()?;
        }
        check_eq!(refused, 0, "registrations refused in {rounds} rounds");
        Ok(())
    })
}

/// A job that takes `microseconds` and keeps `handle` so long.
fn keep(device: &Device, handle: u32, ring: u32, microseconds: u64) -> TestResult {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    Ok(Exec::new(stream.as_bytes())
        .ring(ring)
        .buffers(&[handle])
        .submit(device)?)
}

/// Threads that register, queue a job and close, without ever waiting for one: what is closed and
/// not released stays within a bound, and is gone soon after the last close.
fn closed_faster_than_released(env: &Env) -> TestResult {
    const THREADS: usize = 8;
    /// 64 that are being released, those that the jobs of a quarter of the ring hold, and what is
    /// open.
    const BOUND: u64 = 64 + 64 + THREADS as u64;

    let knobs = Knobs::open(env)?;
    let spaces = || -> TestResult<u64> { knobs.counters()?.get("spaces_now") };
    let device = open_mirrored(env)?;
    let places = (0..THREADS)
        .map(|_| Place::new(Pages::Base, 4 * PAGE))
        .collect::<TestResult<Vec<_>>>()?;
    let before = spaces()?;
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let most = std::thread::scope(|scope| {
        let threads: Vec<_> = places
            .iter()
            .enumerate()
            .map(|(thread, place)| {
                let (device, stop, rounds) = (&device, &stop, &rounds);
                scope.spawn(move || -> TestResult {
                    while !stop.load(Relaxed) {
                        let userptr = device.register(place, RegisterOptions::mirrored())?;
                        keep(device, userptr.handle(), thread as u32 % 4, 0)?;
                        userptr.close()?;
                        rounds.fetch_add(1, Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let end = Instant::now() + Duration::from_millis(30 * env.iterations(100));
        let mut most = Ok(0);
        while Instant::now() < end && most.is_ok() {
            most = most.and_then(|most| Ok(u64::max(most, spaces()? - before)));
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Relaxed);
        let mut outcome = Ok(());
        for thread in threads {
            outcome = outcome.and(thread.join().expect("no panic"));
        }
        outcome.and(most)
    })?;
    let closed = Instant::now();
    let gone = eventually(job::LIMIT, || spaces() == Ok(before));
    println!(
        "    # {} registrations, at most {most} spaces at a time; all gone after {:?}",
        rounds.load(Relaxed),
        closed.elapsed()
    );
    check!(gone, "all spaces end");
    check!(most <= BOUND, "{most} spaces at a time, more than {BOUND}");
    Ok(())
}

/// Changes of memory of this process that are under way for 12 seconds and more, as each has to
/// wait for a job of a file of its own: as long as there is one, the kernel removes no notifier of
/// the process.
pub(crate) struct LongChanges {
    _devices: Vec<Device>,
    memory: Place,
}

impl LongChanges {
    const COUNT: usize = 9;

    /// Prepares them.
    pub(crate) fn new(env: &Env) -> TestResult<Self> {
        let devices = (0..Self::COUNT)
            .map(|_| open_mirrored(env))
            .collect::<TestResult<Vec<_>>>()?;
        let memory = Place::new(Pages::Base, Self::COUNT * PAGE)?;
        let options = RegisterOptions::mirrored();
        for (page, device) in devices.iter().enumerate() {
            let userptr = device.register_range(&memory, page * PAGE, PAGE, options)?;
            userptr.prefetch(0, PAGE as u64)?;
            keep(device, userptr.handle(), 0, 60_000_000)?;
            std::mem::forget(userptr);
        }
        Ok(Self {
            _devices: devices,
            memory,
        })
    }

    /// Begins them, in threads of `scope`.
    pub(crate) fn begin<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        for page in 0..Self::COUNT {
            scope.spawn(move || {
                // Each begins before the one ahead ends, which takes the 2 s of `job_grace_ms`.
                std::thread::sleep(Duration::from_millis(1500 * page as u64));
                self.memory.advise(page * PAGE, PAGE, libc::MADV_DONTNEED)
            });
        }
    }
}

/// Leaves the end of registrations to jobs, while no notifier of the process can be removed. Says
/// so when that has begun.
fn hold_notifiers(env: &Env, mut ready: UnixStream) -> TestResult {
    const REGISTRATIONS: usize = 4;

    let device = open_mirrored(env)?;
    let changes = LongChanges::new(env)?;
    let place = Place::new(Pages::Base, REGISTRATIONS * PAGE)?;
    let options = RegisterOptions::mirrored();
    let registrations = (0..REGISTRATIONS)
        .map(|page| {
            let userptr = device.register_range(&place, page * PAGE, PAGE, options)?;
            userptr.prefetch(0, PAGE as u64)?;
            Ok(userptr)
        })
        .collect::<Result<Vec<_>, Errno>>()?;
    std::thread::scope(|scope| {
        changes.begin(scope);
        for (ring, userptr) in registrations.into_iter().enumerate() {
            keep(&device, userptr.handle(), ring as u32, 500_000)?;
            userptr.close()?;
            // Behind it.
            Exec::new(compute::Stream::new().delay(0).as_bytes())
                .ring(ring as u32)
                .submit_with_fence(&device)?
                .wait(Some(job::LIMIT))?;
        }
        ready.write_all(&[1])?;
        Ok(())
    })
}

/// A process whose notifiers cannot be removed holds up neither what others release, nor the loss
/// of the device and the end of the driver.
fn held_by_another_process(env: &Env) -> TestResult {
    const LIMIT: Duration = Duration::from_secs(5);

    let gpu = gpu::find()?;
    drop(open_mirrored(env)?);
    let (mut ready, theirs) = UnixStream::pair()?;
    let holder = child::spawn(|| hold_notifiers(env, theirs))?;
    ready.read_exact(&mut [0])?;

    let device = env.compute()?;
    let memory = small_pages(16 * PAGE)?;
    let started = Instant::now();
    for round in 0..20 {
        let userptr = device.register(&memory, RegisterOptions::pinned())?;
        job::add(
            &device,
            userptr.at(0),
            memory.len() as u64,
            1,
            userptr.handle(),
        )?;
        userptr.close()?;
        check_eq!(procfs::vm_pin()?, 0, "VmPin after close {round}");
    }
    let others = started.elapsed();
    let started = Instant::now();
    gpu.unbind()?;
    let unbinding = started.elapsed();
    check!(!holder.is_finished()?, "the other process goes on");
    holder.kill()?;
    drop(device);
    gpu.bind()?;
    println!("    # 20 registrations of another: {others:?}; unbinding: {unbinding:?}");
    check!(others < LIMIT, "registrations of another took {others:?}");
    check!(unbinding < LIMIT, "unbinding took {unbinding:?}");
    gpu::wait_for_node(env)
}
