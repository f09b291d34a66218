// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The machine sleeps: it may, if no one uses the device, and else it stays awake and nothing has
//! changed. What is tested is all that concerns devices (`/sys/power/pm_test`); the machine itself
//! does not go to sleep.

use std::fs;
use std::path::Path;

use virtgpu_client::{BlobOptions, Bytes, Device, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};
use crate::support::memory::small_pages;
use crate::support::place::Place;
use crate::support::{eventually, job, Env, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = Family {
    name: "sleep",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    // The device forgets what it has counted.
    leak_check: false,
    cases: cases![
        unused: 300,
        opened_only: 300,
        again_and_again: 600,
        in_use: 300,
    ],
};

/// Has the devices sleep and wake up.
fn sleep(kind: &str) -> TestResult<std::io::Result<()>> {
    const TEST: &str = "/sys/power/pm_test";
    let kinds = fs::read_to_string("/sys/power/state").unwrap_or_default();
    if !kinds.split_whitespace().any(|other| other == kind) || !Path::new(TEST).exists() {
        skip!("the kernel cannot test sleeping ({kind})");
    }
    fs::write(TEST, "devices")?;
    let result = fs::write("/sys/power/state", kind);
    fs::write(TEST, "none")?;
    Ok(result)
}

pub(crate) fn sleeps(kind: &str) -> TestResult {
    // What was closed a moment ago may still be known to the host.
    let mut last = Ok(Ok(()));
    eventually(job::LIMIT, || {
        last = sleep(kind);
        !matches!(last, Ok(Err(_)))
    });
    last?.map_err(|error| Outcome::Fail(format!("sleeping ({kind}): {error}")))
}

/// Everything works: jobs, memory of both kinds, memory of the host.
fn works(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(4 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    job::add(&device, userptr.at(0), 4 * PAGE as u64, 1, userptr.handle())?;
    check_eq!(memory.read_u32(PAGE), 1, "a job's result");
    let host = device.create_blob(&BlobOptions::host3d(PAGE as u64, 0))?;
    let map = host.map()?;
    job::poke(&device, host.at(8), 0x77, host.handle())?;
    check_eq!(map.read_u64(8), 0x77, "memory of the host");
    mirrors(&device)
}

fn mirrors(device: &Device) -> TestResult {
    let place = Place::base(4 * PAGE)?;
    let userptr = device.register(&place, RegisterOptions::mirrored())?;
    for round in 1..4 {
        job::poke(device, userptr.at(PAGE as u64), round, userptr.handle())?;
        check_eq!(place.read_u64(PAGE), round, "mirrored memory");
        place.unmap(0, 4 * PAGE)?;
        place.map(0, 4 * PAGE)?;
    }
    Ok(())
}

fn unused(env: &Env) -> TestResult {
    works(env)?;
    for kind in ["mem", "freeze"] {
        sleeps(kind)?;
        works(env)?;
    }
    Ok(())
}

/// An open file without anything on the host is not in the way, and can be used afterwards.
fn opened_only(env: &Env) -> TestResult {
    let device = env.open()?;
    sleeps("mem")?;
    device.context_init_compute(2)?;
    mirrors(&device)?;
    drop(device);
    works(env)
}

fn again_and_again(env: &Env) -> TestResult {
    for _ in 0..env.iterations(10) {
        sleeps("mem")?;
        works(env)?;
    }
    Ok(())
}

fn in_use(env: &Env) -> TestResult {
    let device = env.compute()?;
    let refused = |what: &str| -> TestResult {
        let result = sleep("mem")?;
        let error = result.err().and_then(|error| error.raw_os_error());
        check_eq!(error, Some(libc::EBUSY), "sleeping with {what}");
        Ok(())
    };
    refused("a context")?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let map = blob.map()?;
    map.write_u64(0, 5);
    refused("a blob")?;
    check_eq!(
        job::peek(&device, blob.at(0), blob.handle())?,
        5,
        "the blob"
    );
    let memory = small_pages(PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    refused("user memory")?;
    job::poke(&device, userptr.at(0), 6, userptr.handle())?;
    check_eq!(memory.read_u64(0), 6, "the user memory");
    mirrors(&device)?;
    drop((userptr, blob, map));
    check!(sleep("mem")?.is_err(), "slept with a context");
    drop(device);
    sleeps("mem")?;
    works(env)
}
