// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Copies on write: fork, the zero page. The device belongs to the process that registered: it sees
//! that process's copy and never writes to another one's.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use virtgpu_client::{compute, Bytes, Device, Errno, Memory};

use super::support::{across_tables, each_kind, family, open, Mirror, READ_ONLY, SPARSE};
use crate::ktap::{reap, Family, TestResult};
use crate::support::place::{Pages, Place, RW};
use crate::support::{child, raced, Env, HUGE, PAGE, ROUNDS};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = family(
    "mm_fork",
    cases![
        child_writes,
        device_writes_while_a_child_shares,
        device_reads_while_a_child_shares,
        child_exits_first,
        child_unmaps,
        child_of_a_child,
        child_is_refused,
        child_registers_itself,
        child_closes_the_handle,
        shared_memory,
        not_inherited,
        wiped_in_the_child,
        other_programs_start,
        zero_page,
        huge_zero_page,
        many_forks: 300,
        forks_while_the_device_writes: 300,
    ],
);

/// A page in the middle.
fn middle(place: &Place) -> usize {
    place.len() / 2 / PAGE * PAGE
}

fn child_writes(env: &Env) -> TestResult {
    across_tables(env, |device, place| {
        let mirror = Mirror::new(device, place)?;
        let data = mirror.scatter(1);
        let child = mirror.loses("fork", place.len(), || {
            child::hold(|| {
                check_eq!(place.to_vec(0, place.len()), data, "the child's copy");
                place.fill(0xcc);
                Ok(())
            })
        })?;
        child.release()?;
        check_eq!(
            mirror.csum(0, place.len())?,
            compute::crc32c(0, &data),
            "the device's view after the child's writes"
        );
        mirror.coherent_all_over("after the child")
    })
}

/// The device's write makes the copy, and the child keeps what it had.
fn device_writes_while_a_child_shares(env: &Env) -> TestResult {
    across_tables(env, |device, place| {
        let mirror = Mirror::new(device, place)?;
        let data = mirror.scatter(2);
        mirror.agrees("before")?;
        let child = child::hold(|| {
            check_eq!(place.to_vec(0, place.len()), data, "the child's copy");
            Ok(())
        })?;
        mirror.coherent_all_over("while the child shares")?;
        mirror.fill(0x7777_7777_7777_7777)?;
        check_eq!(
            place.read_u64(place.len() - 8),
            0x7777_7777_7777_7777,
            "our view"
        );
        child.release()
    })
}

/// Reading alone copies nothing, until one of the two writes.
fn device_reads_while_a_child_shares(env: &Env) -> TestResult {
    across_tables(env, |device, place| {
        let mirror = Mirror::with(device, place, READ_ONLY)?;
        let data = mirror.scatter(3);
        mirror.agrees("before")?;
        let child = child::hold(|| {
            check_eq!(place.to_vec(0, place.len()), data, "the child's copy");
            Ok(())
        })?;
        mirror.agrees("while the child shares")?;
        mirror.loses("our write", PAGE, || {
            place.write_u64(middle(place), 42);
            Ok(())
        })?;
        check_eq!(
            mirror.peek(middle(place))?,
            42,
            "the device's view of our write"
        );
        mirror.agrees("after our write")?;
        child.release()
    })
}

fn child_exits_first(env: &Env) -> TestResult {
    across_tables(env, |device, place| {
        let mirror = Mirror::new(device, place)?;
        mirror.scatter(4);
        mirror.agrees("before")?;
        for _ in 0..3 {
            child::run(|| Ok(()))?;
            // The pages are ours alone again, and may be written without a copy.
            place.write_u64(PAGE, 5);
            check_eq!(mirror.peek(PAGE)?, 5, "the device's view");
            mirror.agrees("after the child")?;
        }
        mirror.coherent_all_over("in the end")
    })
}

/// What others do with their mapping of the same pages is nothing to this process's device.
fn child_unmaps(env: &Env) -> TestResult {
    across_tables(env, |device, place| {
        let mirror = Mirror::with(device, place, READ_ONLY)?;
        mirror.scatter(5);
        let child = child::hold(|| {
            place.unmap(0, place.len())?;
            place.map(0, place.len())?;
            place.fill(1);
            Ok(())
        })?;
        mirror.keeps("the child's munmap", || child.release())?;
        mirror.agrees("after the child")
    })
}

fn child_of_a_child(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(6);
    mirror.agrees("before")?;
    child::run(|| {
        place.write_u64(0, 1);
        child::run(|| {
            check_eq!(place.read_u64(0), 1, "the child's write in its child");
            place.fill(2);
            Ok(())
        })?;
        check_eq!(place.read_u64(0), 1, "the child's write");
        Ok(())
    })?;
    check_eq!(
        mirror.csum(0, data.len())?,
        compute::crc32c(0, &data),
        "the device's view"
    );
    mirror.coherent_all_over("in the end")
}

/// The file is inherited, the memory is not: the addresses mean something else there.
fn child_is_refused(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let (whole, sparse) = (
        Mirror::new(&device, &place)?,
        Mirror::with(&device, &place, SPARSE)?,
    );
    let data = whole.scatter(7);
    whole.agrees("before")?;
    child::run(|| {
        for mirror in [&whole, &sparse] {
            mirror.refused("in the child", Errno::ACCESS)?;
            check_err!(
                mirror.userptr.prefetch(0, PAGE as u64),
                Errno::ACCESS,
                "PREFETCH in the child"
            );
            // Looking is allowed.
            check_eq!(mirror.count()?.addr, place.address(0), "address");
        }
        // With the same addresses, registered by the child: its own memory.
        let own = Mirror::new(&device, &place)?;
        own.fill(8)?;
        check_eq!(place.read_u64(PAGE), 8, "the child's memory");
        Ok(())
    })?;
    check_eq!(
        whole.csum(0, data.len())?,
        compute::crc32c(0, &data),
        "the device's view"
    );
    whole.coherent_all_over("after the child")
}

/// On a file of its own the child's device works on the child's copy.
fn child_registers_itself(env: &Env) -> TestResult {
    across_tables(env, |device, place| {
        let mirror = Mirror::new(device, place)?;
        let data = mirror.scatter(8);
        mirror.agrees("before")?;
        child::run(|| {
            let own = Device::open()?;
            own.context_init_compute(4)?;
            let inner = Mirror::new(&own, place)?;
            check_eq!(
                inner.csum(0, place.len())?,
                compute::crc32c(0, &data),
                "what the child's device sees first"
            );
            inner.fill(9)?;
            check_eq!(place.read_u64(place.len() - PAGE), 9, "the child's view");
            inner.coherent_all_over("in the child")
        })?;
        check_eq!(
            mirror.csum(0, place.len())?,
            compute::crc32c(0, &data),
            "the parent's device, afterwards"
        );
        mirror.coherent_all_over("after the child")
    })
}

/// Whoever has the file may close its handles.
fn child_closes_the_handle(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(9);
    mirror.agrees("before")?;
    child::run(|| Ok(device.gem_close(mirror.userptr.handle())?))?;
    check_err!(
        device.query(mirror.userptr.handle()),
        Errno::NOENT,
        "the handle"
    );
    // The memory can be given away as ever.
    place.unmap(0, 16 * PAGE)?;
    place.map(0, 16 * PAGE)?;
    let again = Mirror::new(&device, &place)?;
    again.coherent_all_over("registered again")?;
    // The first one's number may be the second one's by now: it is closed once only.
    std::mem::forget(mirror);
    Ok(())
}

/// Shared memory stays shared, and fork takes nothing from the device.
fn shared_memory(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::reserve(Pages::Base, 16 * PAGE)?;
    place.map_with(0, 16 * PAGE, RW, libc::MAP_SHARED)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(10);
    let child = mirror.keeps("fork", || {
        child::hold(|| {
            check_eq!(place.read_u64(PAGE), 11, "the device's write in the child");
            place.write_u64(2 * PAGE, 12);
            Ok(())
        })
    })?;
    mirror.poke(PAGE, 11)?;
    child.release()?;
    check_eq!(mirror.peek(2 * PAGE)?, 12, "the child's write");
    mirror.coherent_all_over("in the end")
}

fn not_inherited(env: &Env) -> TestResult {
    across_tables(env, |device, place| {
        let mirror = Mirror::new(device, place)?;
        place.advise(0, place.len(), libc::MADV_DONTFORK)?;
        mirror.scatter(11);
        let child = mirror.keeps("fork", || child::hold(|| Ok(())))?;
        mirror.coherent_all_over("while there is a child")?;
        child.release()
    })
}

fn wiped_in_the_child(env: &Env) -> TestResult {
    let device = open(env)?;
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        let place = Place::new(pages, HUGE + 2 * PAGE)?;
        let mirror = Mirror::new(&device, &place)?;
        place.try_advise(0, place.len(), libc::MADV_WIPEONFORK, "MADV_WIPEONFORK")?;
        mirror.scatter(12);
        let child = mirror.keeps("fork", || {
            child::hold(|| {
                check_eq!(place.read_u64(PAGE), 0, "the child's memory");
                place.fill(1);
                Ok(())
            })
        })?;
        child.release()?;
        mirror.agrees("after the child")?;
        mirror.coherent_all_over("after the child")?;
        Ok(())
    })
}

/// What programs do all the time with the memory of theirs registered.
fn other_programs_start(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(64 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    for round in 0..5 {
        mirror.scatter(round);
        let status = Command::new("/bin/true").status();
        match status {
            Ok(status) => check!(status.success(), "/bin/true: {status}"),
            Err(error) => skip!("/bin/true: {error}"),
        }
        mirror.agrees("after another program")?;
    }
    mirror.coherent_all_over("in the end")
}

/// The zero page is read, and never written.
fn zero_page(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    for page in 0..16 {
        check_eq!(place.read_u64(page * PAGE), 0, "page {page}");
    }
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    reader.agrees("zero pages")?;
    check_eq!(place.resident()?, 16 * PAGE, "bytes in memory");
    reader.loses("our write", PAGE, || {
        place.write_u64(3 * PAGE, 1);
        Ok(())
    })?;
    check_eq!(reader.peek(3 * PAGE)?, 1, "the device's view of our write");
    let writer = Mirror::new(&device, &place)?;
    writer.fill(2)?;
    check_eq!(reader.peek(5 * PAGE)?, 2, "the device's view of its own");
    let other = Place::base(PAGE)?;
    check_eq!(other.read_u64(0), 0, "the zero page, elsewhere");
    Ok(())
}

fn huge_zero_page(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::new(Pages::Huge, HUGE)?;
    check_eq!(place.read_u64(0), 0, "the first word");
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    reader.agrees("the huge zero page")?;
    place.write_u64(5 * PAGE, 1);
    check_eq!(reader.peek(5 * PAGE)?, 1, "the device's view of our write");
    reader.agrees("after our write")?;
    let writer = Mirror::new(&device, &place)?;
    writer.coherent_all_over("written by the device")?;
    reader.agrees("in the end")
}

fn many_forks(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(32 * PAGE)?;
    place.fill(0);
    let mirror = Mirror::new(&device, &place)?;
    let mut adding = compute::Stream::new();
    adding.add_u32(mirror.userptr.at(0), 32 * PAGE as u64, 1);
    let rounds = env.rounds(100);
    for round in 0..rounds {
        let child = child::hold(|| {
            let page = round as usize % 32;
            check_eq!(
                u64::from(place.read_u32(page * PAGE)),
                round,
                "the child's copy"
            );
            place.fill(0xee);
            Ok(())
        })?;
        mirror
            .submit(&adding)?
            .wait(Some(crate::support::job::LIMIT))?;
        child.release()?;
    }
    for page in 0..32 {
        check_eq!(
            u64::from(place.read_u32(page * PAGE)),
            rounds,
            "additions to page {page}"
        );
    }
    raced("forks", rounds)
}

/// A thread submits; the main thread forks, without looking when.
fn forks_while_the_device_writes(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(32 * PAGE)?;
    place.fill(0);
    let mirror = Mirror::new(&device, &place)?;
    let mut adding = compute::Stream::new();
    adding.add_u32(mirror.userptr.at(0), 32 * PAGE as u64, 1);
    let least = env.rounds(200);
    let forks = AtomicU64::new(0);
    let (page, words) = (place.address(0) as *mut u32, 32 * PAGE / 4);
    let jobs = std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> TestResult<u64> {
            let mut jobs = 0;
            while jobs < least || forks.load(Ordering::Relaxed) < ROUNDS {
                mirror
                    .submit(&adding)?
                    .wait(Some(crate::support::job::LIMIT))?;
                jobs += 1;
            }
            Ok(jobs)
        });
        while !writer.is_finished() {
            // SAFETY: The child of a process with threads may call little; this one writes to its
            // memory and ends.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                for word in (0..words).step_by(64) {
                    // SAFETY: Inside of the place, which the child has a copy of.
                    unsafe { page.add(word).write_volatile(0xeeee_eeee) };
                }
                // SAFETY: Ends the child.
                unsafe { libc::_exit(0) }
            }
            if pid < 0 {
                let error = std::io::Error::last_os_error();
                // The writer need not wait for more of them.
                forks.store(u64::MAX, Ordering::Relaxed);
                return Err(error.into());
            }
            reap(pid)?;
            forks.fetch_add(1, Ordering::Relaxed);
        }
        writer.join().expect("no panic")
    })?;
    raced("jobs", jobs)?;
    raced("forks during them", forks.into_inner())?;
    for page in 0..32 {
        check_eq!(
            u64::from(place.read_u32(page * PAGE)),
            jobs,
            "additions to page {page}"
        );
    }
    Ok(())
}
