// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Addresses at which a device finds nothing, or must not: the job fails without a byte read or
//! written, its context is lost, one event says what happened, and no one else notices.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use virtgpu_client::protocol::uapi::{self, svm_access::WRITE, svm_reason};
use virtgpu_client::{compute, BlobOptions, Bytes, Errno, Memfd};

use super::support::{
    at, bad_access, bad_address, family, open, others_work, Cause, End, Svm, RINGS,
};
use crate::bad_memory::secret;
use crate::ktap::{parts, Family, Outcome, TestResult};
use crate::support::exporter;
use crate::support::place::{Pages, Place, NONE, READ, RW};
use crate::support::uffd::{feature, Uffd, MISSING};
use crate::support::{job, Env, Random, PAGE};
use crate::{cases, check, check_eq, check_err};

pub(crate) const FAMILY: Family = family(
    "svm_bad",
    cases![
        hole,
        noncanonical,
        guard,
        below_stack,
        beyond_the_end_of_a_file,
        gem_mmap,
        memory_without_pages,
        secretmem,
        secretmem_put_there_during_a_fault,
        prot_none_and_exec_only,
        shadow_stack,
        read_only_write,
        poisoned,
        user_mode_only,
        what_came_before_is_done,
        no_byte_is_touched,
        every_ring_is_told,
        no_event_unless_asked_for,
        others_go_on,
    ],
);

/// Four pages.
const SIZE: usize = 4 * PAGE;

/// The device reads, writes or adds to a word at `address`: each costs a context of its own.
fn each_access(env: &Env, what: &str, address: u64, cause: fn(u32, u64) -> Cause) -> TestResult {
    read_and_write(env, what, address, cause)?;
    let svm = open(env)?;
    let mut adding = compute::Stream::new();
    adding.atomic_add(at(address), 1, 1);
    // The device's atomics are coherent, so that they need what a write needs.
    svm.fails(
        &format!("{what}, atomically"),
        &adding,
        cause(WRITE, address),
    )
}

fn read_and_write(env: &Env, what: &str, address: u64, cause: fn(u32, u64) -> Cause) -> TestResult {
    let svm = open(env)?;
    svm.fails(
        &format!("{what}, read"),
        &svm.reading(address),
        cause(READ_ACCESS, address),
    )?;
    let svm = open(env)?;
    svm.fails(
        &format!("{what}, written"),
        &Svm::writing(address, 1),
        cause(WRITE, address),
    )?;
    others_work(env, what)
}

/// `READ` is a protection here.
const READ_ACCESS: u32 = uapi::svm_access::READ;

fn hole(env: &Env) -> TestResult {
    let place = Place::base(SIZE)?;
    place.fill(1);
    place.unmap(PAGE, PAGE)?;
    each_access(env, "a hole", place.address(PAGE), bad_address)?;
    each_access(env, "address 0", 0, bad_address)?;
    // Both pages beside it can be used.
    let svm = open(env)?;
    svm.coherent("before the hole", &place, 0)?;
    svm.coherent("behind the hole", &place, 2 * PAGE)
}

/// The device fails these itself: they are outside of the space, and no fault is reported.
fn noncanonical(env: &Env) -> TestResult {
    let end = open(env)?.space.va_end();
    let list = [
        ("end", end),
        ("hole", 1 << 62),
        ("kernel", 0xffff_8000_0000_0000),
        ("last", u64::MAX - 7),
        ("tagged", 0x3f00_7000_0000_0000),
    ];
    parts(list, |address| {
        for write in [false, true] {
            let svm = open(env)?;
            let stream = match write {
                false => svm.reading(address),
                true => Svm::writing(address, 1),
            };
            check_eq!(svm.end(&stream)?, End::Lost, "the job");
            let query = svm.count()?;
            check_eq!(query.state, uapi::svm_state::LOST, "the state");
            check_eq!(
                svm.submit(0, &stream),
                Err(Errno::IO),
                "a later job of the same context"
            );
        }
        others_work(env, "addresses that there are not")
    })
}

fn guard(env: &Env) -> TestResult {
    const MADV_GUARD_INSTALL: i32 = 102;
    const MADV_GUARD_REMOVE: i32 = 103;
    let place = Place::base(SIZE)?;
    place.fill(1);
    place.try_advise(PAGE, PAGE, MADV_GUARD_INSTALL, "MADV_GUARD_INSTALL")?;
    each_access(env, "a guard page", place.address(PAGE), bad_address)?;
    let svm = open(env)?;
    svm.coherent("before it", &place, 0)?;
    svm.coherent("behind it", &place, 2 * PAGE)?;
    place.advise(PAGE, PAGE, MADV_GUARD_REMOVE)?;
    check_eq!(svm.peek(place.address(PAGE))?, 0, "what it was");
    svm.coherent("no guard any more", &place, PAGE)
}

/// A device never makes the stack grow: what is below it is no one's.
fn below_stack(env: &Env) -> TestResult {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let line = maps.lines().find(|line| line.ends_with("[stack]"));
    let start = line
        .and_then(|line| u64::from_str_radix(line.split('-').next()?, 16).ok())
        .ok_or_else(|| Outcome::Fail("no [stack]".into()))?;
    // Far enough that this process does not get there by itself.
    let below = start - 64 * PAGE as u64;
    read_and_write(env, "below the stack", below, bad_address)?;
    let svm = open(env)?;
    let word = 5_u64;
    check_eq!(svm.peek((&raw const word) as u64)?, 5, "in the stack");
    let after = fs::read_to_string("/proc/self/maps")?;
    check!(
        after.lines().any(|line| line.ends_with("[stack]")
            && line
                .split('-')
                .next()
                .and_then(|at| u64::from_str_radix(at, 16).ok())
                > Some(below)),
        "the stack has grown to {below:#x}"
    );
    Ok(())
}

fn beyond_the_end_of_a_file(env: &Env) -> TestResult {
    let memfd = Memfd::new(PAGE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    read_and_write(env, "behind the file", place.address(PAGE), bad_address)?;
    let svm = open(env)?;
    svm.coherent("the file's page", &place, 0)
}

fn gem_mmap(env: &Env) -> TestResult {
    let svm = open(env)?;
    let blob = svm.device().create_blob(&BlobOptions::guest(SIZE as u64))?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    let offset = blob.map_offset()?;
    place.map_file(0, SIZE, svm.fd(), offset, [RW, libc::MAP_SHARED])?;
    read_and_write(env, "a buffer's mapping", place.address(0), bad_address)?;
    place.write_u64(0, 1);
    read_and_write(env, "one that was touched", place.address(0), bad_address)?;
    if svm.device().getparam(uapi::param::HOST_VISIBLE)? != 0 {
        let host = svm
            .device()
            .create_blob(&BlobOptions::host3d(SIZE as u64, 1))?;
        let place = Place::reserve(Pages::Base, SIZE)?;
        let offset = host.map_offset()?;
        place.map_file(0, SIZE, svm.fd(), offset, [RW, libc::MAP_SHARED])?;
        place.write_u64(0, 1);
        read_and_write(env, "host memory's mapping", place.address(0), bad_address)?;
    }
    Ok(())
}

/// A driver has mapped memory that is no page. A processor may use it, so that the kernel has no
/// more to do for an access; but it is not to be had.
fn memory_without_pages(env: &Env) -> TestResult {
    let exporter = exporter::load()?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, exporter.fd(), 0, [RW, libc::MAP_SHARED])?;
    place.write_u64(0, 1);
    read_and_write(env, "a driver's memory", place.address(0), bad_address)?;
    let svm = open(env)?;
    check_err!(
        svm.space.prefetch(place.address(0), PAGE as u64),
        Errno::FAULT,
        "PREFETCH"
    );
    check_eq!(svm.count()?.state, uapi::svm_state::ACTIVE, "the state");
    Ok(())
}

/// Not even the kernel has it mapped.
fn secretmem(env: &Env) -> TestResult {
    let fd = secret(SIZE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &fd, 0, [RW, libc::MAP_SHARED])?;
    each_access(
        env,
        "secret memory that no one has touched",
        place.address(0),
        bad_address,
    )?;
    place.write_u64(0, 1);
    each_access(env, "secret memory", place.address(0), bad_address)?;
    check_eq!(place.read_u64(0), 1, "its content");
    Ok(())
}

/// The fault waits for a userfaultfd while secret memory is mapped over the page.
fn secretmem_put_there_during_a_fault(env: &Env) -> TestResult {
    let svm = open(env)?;
    let fd = secret(PAGE as u64)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::missing(&place)?;
    let address = place.address(PAGE);
    svm.submit(0, &svm.reading(address))?;
    let fault = uffd.next(job::LIMIT)?;
    check!(
        fault.is_some_and(|fault| fault.address == address),
        "the fault is {fault:?}"
    );
    place.map_file(PAGE, PAGE, &fd, 0, [RW, libc::MAP_SHARED])?;
    place.write_u64(PAGE, 42);
    // Whoever waits is woken, and looks again.
    drop(uffd);
    check_eq!(svm.finish(0)?, End::Lost, "the job");
    svm.is_lost(
        "secret memory in a fault",
        bad_address(READ_ACCESS, address),
    )
}

fn prot_none_and_exec_only(env: &Env) -> TestResult {
    let place = Place::base(SIZE)?;
    place.fill(0x77);
    let svm = open(env)?;
    svm.agrees("before", &place)?;
    for (what, protection) in [("PROT_NONE", NONE), ("PROT_EXEC", libc::PROT_EXEC)] {
        place.protect(PAGE, PAGE, protection)?;
        each_access(env, what, place.address(PAGE), bad_access)?;
        place.protect(PAGE, PAGE, RW)?;
        svm.agrees("allowed again", &place)?;
    }
    check_eq!(place.read_u64(PAGE), 0x7777_7777_7777_7777, "its content");
    // Write-only is readable on this processor, and to the device.
    place.protect(PAGE, PAGE, libc::PROT_WRITE)?;
    let cause = bad_access(READ_ACCESS, place.address(PAGE));
    svm.fails("PROT_WRITE", &svm.reading(place.address(PAGE)), cause)
}

/// Where only calls and returns may write, and the device as little as the program.
fn shadow_stack(env: &Env) -> TestResult {
    let place = Place::shadow_stack(SIZE)?;
    let svm = open(env)?;
    check_eq!(svm.peek(place.address(0))?, 0, "what it begins with");
    svm.fails(
        "a write to a shadow stack",
        &Svm::writing(place.address(0), 1),
        bad_access(WRITE, place.address(0)),
    )?;
    check_eq!(place.read_u64(0), 0, "its content");
    Ok(())
}

fn read_only_write(env: &Env) -> TestResult {
    let place = Place::base(SIZE)?;
    let data = Svm::scatter(&place, 1);
    place.protect(0, SIZE, READ)?;
    let svm = open(env)?;
    svm.sees("a page that may be read", &place, &data)?;
    svm.fails(
        "a write to it",
        &Svm::writing(place.address(PAGE), 1),
        bad_access(WRITE, place.address(PAGE)),
    )?;
    let svm = open(env)?;
    let mut adding = compute::Stream::new();
    adding.atomic_add(at(place.address(0)), 1, 1);
    svm.fails("an atomic", &adding, bad_access(WRITE, place.address(0)))?;
    // A file that is open for reading, and a constant of the program.
    let memfd = Memfd::new(SIZE as u64)?;
    memfd.map()?.write(0, &data);
    place.map_file(0, SIZE, &memfd, 0, [READ, libc::MAP_SHARED])?;
    let svm = open(env)?;
    svm.sees("a file", &place, &data)?;
    svm.fails(
        "a write to the file",
        &Svm::writing(place.address(0), 1),
        bad_access(WRITE, place.address(0)),
    )?;
    check!(place.to_vec(0, SIZE) == data, "the file");
    others_work(env, "a write that is not allowed")
}

/// A page that stands for broken memory.
fn poisoned(env: &Env) -> TestResult {
    let place = Place::base(SIZE)?;
    let uffd = Uffd::open(feature::POISON)?;
    uffd.register(place.address(0), SIZE, MISSING)?;
    uffd.poison(place.address(PAGE), PAGE)?;
    read_and_write(env, "a poisoned page", place.address(PAGE), bad_address)
}

/// A userfaultfd that takes faults of user mode only does not take the device's.
fn user_mode_only(env: &Env) -> TestResult {
    let place = Place::base(SIZE)?;
    let uffd = Uffd::user_mode_only(0)?;
    uffd.register(place.address(0), SIZE, MISSING)?;
    read_and_write(
        env,
        "a page of a userfaultfd",
        place.address(0),
        bad_address,
    )
}

/// Operations before the bad one have their effect, those behind it have none, nor do later jobs.
fn what_came_before_is_done(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    place.unmap(PAGE, PAGE)?;
    let mut stream = compute::Stream::new();
    stream
        .fill(at(place.address(0)), 8, 1)
        .fill(at(place.address(PAGE)), 8, 2)
        .fill(at(place.address(2 * PAGE)), 8, 3);
    svm.fails("a hole", &stream, bad_address(WRITE, place.address(PAGE)))?;
    check_eq!(place.read_u64(0), 1, "before the hole");
    check_eq!(place.read_u64(2 * PAGE), 0, "behind it");
    Ok(())
}

/// A copy that runs into a hole writes nothing for what is not there.
fn no_byte_is_touched(env: &Env) -> TestResult {
    let data = Random(3).bytes(2 * PAGE);
    let (from, to) = (Place::base(2 * PAGE)?, Place::base(3 * PAGE)?);
    from.write(0, &data);
    to.fill(0x99);
    from.unmap(PAGE, PAGE)?;
    let svm = open(env)?;
    let mut stream = compute::Stream::new();
    stream.copy(at(to.address(0)), at(from.address(0)), 2 * PAGE as u64);
    svm.fails(
        "a copy from a hole",
        &stream,
        bad_address(READ_ACCESS, from.address(PAGE)),
    )?;
    check!(
        to.to_vec(PAGE, 2 * PAGE).iter().all(|byte| *byte == 0x99),
        "what was not there to copy"
    );
    Ok(())
}

/// Jobs that run on other rings of the context, or wait there, end, too.
fn every_ring_is_told(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    let mut spinning = compute::Stream::new();
    // No one ever writes the value.
    spinning.spin_until(at(place.address(0)), 1, 100_000_000);
    for ring in 1..RINGS {
        svm.submit(ring, &spinning)?;
        svm.submit(ring, &Svm::writing(place.address(8), 1))?;
    }
    let cause = bad_address(WRITE, 0x1000);
    svm.submit(0, &Svm::writing(0x1000, 1))?;
    for ring in 0..RINGS {
        check_eq!(svm.finish(ring)?, End::Lost, "ring {ring}");
    }
    check_eq!(
        place.read_u64(8),
        0,
        "what jobs behind those that were running would have written"
    );
    svm.is_lost("ring 0", cause)
}

fn no_event_unless_asked_for(env: &Env) -> TestResult {
    let svm = super::support::open_with(env, virtgpu_client::SpaceOptions::new())?;
    check_eq!(svm.end(&Svm::writing(0, 1))?, End::Lost, "the job");
    let query = svm.count()?;
    check_eq!(
        (query.state, query.reason, query.access, query.ring),
        (uapi::svm_state::LOST, svm_reason::BAD_ADDRESS, WRITE, 0),
        "what QUERY says"
    );
    svm.quiet("without EVENT")
}

/// Contexts of the same process and of the same memory notice nothing.
fn others_go_on(env: &Env) -> TestResult {
    let good = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(0);
    let stop = AtomicBool::new(false);
    let mut jobs = 0_u32;
    std::thread::scope(|scope| {
        let bad = scope.spawn(|| -> TestResult {
            let test = || {
                for round in 0..20_u32 {
                    let svm = open(env)?;
                    svm.coherent("a context that is lost later", &place, 2 * PAGE)?;
                    let ring = round % RINGS;
                    let cause = Cause {
                        ring,
                        ..bad_address(WRITE, 0x1000)
                    };
                    svm.fails("address 0x1000", &Svm::writing(0x1000, 1), cause)?;
                }
                Ok(())
            };
            let result = test();
            stop.store(true, Ordering::SeqCst);
            result
        });
        let mut adding = compute::Stream::new();
        adding.add_u32(at(place.address(0)), PAGE as u64, 1);
        let mut work = || -> TestResult {
            while !stop.load(Ordering::SeqCst) {
                good.run("the other context", &adding)?;
                jobs += 1;
            }
            Ok(())
        };
        work()?;
        bad.join().expect("no panic")
    })?;
    check_eq!(place.read_u32(PAGE - 4), jobs, "additions");
    check!(jobs > 0, "the other context had no job");
    check_eq!(good.count()?.state, uapi::svm_state::ACTIVE, "its state");
    good.quiet("the other context")
}
