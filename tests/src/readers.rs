// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Those who read of a device's users in `/proc` and debugfs: they release nothing for others.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use virtgpu_client::{Device, Errno, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};
use crate::mirrored::open_mirrored;
use crate::releases::LongChanges;
use crate::support::memory::small_pages;
use crate::support::place::{Pages, Place};
use crate::support::{child, cpu, debugfs, procfs, Env, P, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = Family {
    name: "readers",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        charge_is_back_beside_readers: 120,
        keep_no_one_from_opening: 180,
    ],
};

/// Reads a file from its beginning, over and over, until `stop`; returns the longest time of one
/// reading.
fn read_on(file: &File, stop: &AtomicBool) -> std::io::Result<Duration> {
    let mut longest = Duration::ZERO;
    while !stop.load(Relaxed) {
        let begun = Instant::now();
        file.read_at(&mut [0; 4096], 0)?;
        longest = longest.max(begun.elapsed());
    }
    Ok(longest)
}

/// How long readers have the CPU, until they are interrupted wherever they are.
const TURN: Duration = Duration::from_micros(500);

/// What is closed is not charged any more, whoever looks at the file's memory meanwhile.
fn charge_is_back_beside_readers(env: &Env) -> TestResult {
    const REGISTRATIONS: usize = 16;

    let rounds = env.rounds(200);
    child::run(|| {
        let device = env.open()?;
        let memory = small_pages(REGISTRATIONS * PAGE)?;
        let file = File::open(format!("/proc/self/fdinfo/{}", device.as_fd().as_raw_fd()))?;
        let stop = AtomicBool::new(false);
        cpu::bind(0)?;
        cpu::go_first()?;
        let charged = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_on(&file, &stop));
            let round = || -> TestResult<u32> {
                let options = RegisterOptions::pinned();
                let registrations = (0..REGISTRATIONS)
                    .map(|page| device.register_range(&memory, page * PAGE, PAGE, options))
                    .collect::<Result<Vec<_>, _>>()?;
                let mut charged = 0;
                for (index, registration) in registrations.into_iter().enumerate() {
                    std::thread::sleep(TURN);
                    registration.close()?;
                    // The reader has not had the CPU since.
                    let open = (REGISTRATIONS - index - 1) as u64 * P;
                    charged += u32::from(procfs::vm_pin()? != open);
                }
                Ok(charged)
            };
            let charged = (0..rounds).try_fold(0, |charged, _| TestResult::Ok(charged + round()?));
            stop.store(true, Relaxed);
            reader.join().expect("no panic")?;
            charged
        })?;
        check_eq!(charged, 0, "closed registrations that were still charged");
        Ok(())
    })
}

/// Closes registrations while no notifier of the process can be removed. Says so when that has
/// begun, with the number of the file.
fn close_slowly(env: &Env, mut ready: UnixStream) -> TestResult {
    const REGISTRATIONS: usize = 128;

    let device = open_mirrored(env)?;
    let changes = LongChanges::new(env)?;
    let place = Place::new(Pages::Base, REGISTRATIONS * PAGE)?;
    // Before the changes begin: what is registered while they are under way goes without a wait.
    let registrations = (0..REGISTRATIONS)
        .map(|page| device.register_range(&place, page * PAGE, PAGE, RegisterOptions::mirrored()))
        .collect::<Result<Vec<_>, Errno>>()?;
    cpu::bind(0)?;
    std::thread::scope(|scope| {
        changes.begin(scope);
        ready.write_all(&device.as_fd().as_raw_fd().to_ne_bytes())?;
        for registration in registrations {
            // It waits until the changes are over, if it releases the registration.
            scope.spawn(move || -> TestResult {
                cpu::go_first()?;
                std::thread::sleep(TURN);
                Ok(registration.close()?)
            });
            std::thread::sleep(4 * TURN);
        }
        Ok(())
    })
}

/// A process whose notifiers cannot be removed keeps neither readers nor those who open and close
/// the device.
fn keep_no_one_from_opening(env: &Env) -> TestResult {
    const LIMIT: Duration = Duration::from_secs(5);

    drop(open_mirrored(env)?);
    let node = env
        .node()
        .ok_or_else(|| Outcome::Fail("there is no render node of virtio_gpu".into()))?;
    let registrations = File::open(debugfs::folder(env)?.join("userptr"))?;
    let (mut ready, theirs) = UnixStream::pair()?;
    let holder = child::spawn(|| close_slowly(env, theirs))?;
    let mut fd = [0; 4];
    ready.read_exact(&mut fd)?;
    let fd = i32::from_ne_bytes(fd);
    let memory = File::open(format!("/proc/{}/fdinfo/{fd}", holder.pid))?;

    let stop = AtomicBool::new(false);
    let (opening, reading) = std::thread::scope(|scope| {
        let readers = [&registrations, &memory].map(|file| scope.spawn(|| read_on(file, &stop)));
        let mut longest: Result<_, Errno> = Ok(Duration::ZERO);
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            let begun = Instant::now();
            let opened = Device::open_path(&node);
            longest = longest.and_then(|longest| {
                drop(opened?);
                Ok(begun.elapsed().max(longest))
            });
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Relaxed);
        let reading = readers.map(|reader| reader.join().expect("no panic"));
        TestResult::Ok((longest?, reading))
    })?;
    let held = !holder.is_finished()?;
    holder.join()?;
    let [registrations, memory] = reading;
    let (registrations, memory) = (registrations?, memory?);
    println!("    # opening: {opening:?}; debugfs: {registrations:?}; fdinfo: {memory:?}");
    check!(opening < LIMIT, "opening the device took {opening:?}");
    check!(
        registrations < LIMIT,
        "reading debugfs took {registrations:?}"
    );
    check!(memory < LIMIT, "reading fdinfo took {memory:?}");
    check!(held, "the other process was not done before");
    Ok(())
}
