// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Several registrations, of one file and of two, and what they are charged with.

use virtgpu_client::{compute, Bytes, Errno, Memory, RegisterOptions};

use super::exercise;
use crate::ktap::TestResult;
use crate::support::memory::{small_pages, Malloc};
use crate::support::{job, procfs, Env, PAGE};
use crate::{check, check_eq, check_err};

pub(super) fn host3d_guest(env: &Env) -> TestResult {
    let device = env.compute()?;
    exercise(
        &device,
        &Malloc::new(16 * PAGE),
        RegisterOptions::pinned().host3d_guest(1),
    )
}

pub(super) fn overlap(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(16 * PAGE)?;
    let length = 10 * PAGE;
    let first = device.register_range(&memory, 0, length, RegisterOptions::pinned())?;
    let second = device.register_range(&memory, 6 * PAGE, length, RegisterOptions::pinned())?;
    check!(first.handle() != second.handle(), "two handles");
    check!(first.resource() != second.resource(), "two resources");
    let length = length as u64;
    job::add(&device, first.at(0), length, 1, first.handle())?;
    job::add(&device, second.at(0), length, 10, second.handle())?;
    for page in 0..16 {
        let expected = u32::from(page < 10) + 10 * u32::from(page >= 6);
        check_eq!(memory.read_u32(page * PAGE), expected, "page {page}");
    }
    // Ending one does not end the other.
    drop(first);
    job::add(&device, second.at(0), length, 100, second.handle())?;
    check_eq!(memory.read_u32(8 * PAGE), 111, "page 8");
    Ok(())
}

pub(super) fn same_range_twice(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(8 * PAGE)?;
    let registrations = (0..10)
        .map(|_| device.register(&memory, RegisterOptions::pinned()))
        .collect::<Result<Vec<_>, _>>()?;
    check_eq!(procfs::vm_pin()?, 10 * 8 * PAGE as u64, "VmPin counts each");
    for userptr in &registrations {
        job::add(
            &device,
            userptr.at(0),
            memory.len() as u64,
            1,
            userptr.handle(),
        )?;
    }
    check_eq!(memory.read_u32(7 * PAGE), 10, "all of them added");
    Ok(())
}

pub(super) fn two_files(env: &Env) -> TestResult {
    let (first, second) = (env.compute()?, env.compute()?);
    let memory = small_pages(8 * PAGE)?;
    let one = first.register(&memory, RegisterOptions::pinned())?;
    let two = second.register(&memory, RegisterOptions::pinned())?;
    job::add(&first, one.at(0), memory.len() as u64, 1, one.handle())?;
    job::add(&second, two.at(0), memory.len() as u64, 2, two.handle())?;
    check_eq!(memory.read_u32(0), 3, "both added");
    Ok(())
}

/// As with CREATE_BLOB, a context is made for a file that has none.
pub(super) fn before_context_init(env: &Env) -> TestResult {
    let device = env.open()?;
    let memory = small_pages(4 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    check_eq!(userptr.query()?.size, memory.len() as u64, "size");
    check_err!(
        device.context_init_compute(1),
        Errno::EXIST,
        "CONTEXT_INIT afterwards"
    );
    Ok(())
}

pub(super) fn accounting(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(100 * PAGE)?;
    let system = procfs::pinned_pages()?;
    check_eq!(procfs::vm_pin()?, 0, "VmPin before");
    let first = device.register_range(&memory, 0, 60 * PAGE, RegisterOptions::pinned())?;
    check_eq!(procfs::vm_pin()?, 60 * PAGE as u64, "VmPin with one");
    check_eq!(
        procfs::pinned_pages()?,
        system + 60,
        "pages pinned in the system"
    );
    let second = device.register(&memory, RegisterOptions::pinned().read_only())?;
    check_eq!(procfs::vm_pin()?, 160 * PAGE as u64, "VmPin with two");
    drop(first);
    let expected = Ok(100 * PAGE as u64);
    check!(
        crate::support::eventually(job::LIMIT, || procfs::vm_pin() == expected),
        "VmPin after the first is closed"
    );
    drop(second);
    check!(
        crate::support::eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)
            && procfs::pinned_pages() == Ok(system)),
        "nothing is pinned after the second is closed"
    );
    Ok(())
}

pub(super) fn many_registrations(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(1000 * PAGE)?;
    let registrations = (0..1000)
        .map(|page| device.register_range(&memory, page * PAGE, PAGE, RegisterOptions::pinned()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut stream = compute::Stream::new();
    for userptr in registrations.iter().step_by(5) {
        stream.add_u32(userptr.at(0), PAGE as u64, 1);
    }
    let handles: Vec<_> = registrations
        .iter()
        .map(|userptr| userptr.handle())
        .collect();
    job::run(&device, &stream, &handles)?;
    for page in 0..1000 {
        check_eq!(
            memory.read_u32(page * PAGE),
            u32::from(page % 5 == 0),
            "page {page}"
        );
    }
    Ok(())
}
