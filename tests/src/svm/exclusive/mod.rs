// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device whose atomic accesses are not coherent with the processors': it loads, pauses and
//! stores. Nothing is lost as long as the page is its own meanwhile, and everybody else has it back
//! at once.

mod changes;
mod contention;

use std::sync::atomic::{AtomicU64, Ordering};

use virtgpu_client::protocol::uapi::{svm_access, svm_reason};
use virtgpu_client::{compute, Bytes, Memfd, Memory};

use self::changes::{
    cow, forks_while_the_device_counts, huge_pages, kill_at_random,
    migrate_while_the_device_counts, moved_away, mprotect, paged_out_while_the_device_counts,
    swap_twice_the_limit, unmap_under_job, userfaultfd,
};
use self::contention::{
    beside_other_clients, beside_prefetches, counter_with_cpu, progress_both, two_files_one_counter,
};
use super::support::{at, bad_access, bad_address, family, open, others_work, Cause, Svm};
use crate::ktap::{Family, TestResult};
use crate::support::debugfs::Knobs;
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::{procfs, Env, HUGE, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = Family {
    device: "--exclusive-atomics",
    ..family(
        "svm_exclusive",
        cases![
            given_and_taken_back,
            other_accesses_keep_it,
            what_it_could_write_before,
            counter_with_cpu: 300,
            progress_both: 300,
            two_files_one_counter: 300,
            file_refused,
            private_file,
            bad_accesses,
            mprotect,
            cow: 300,
            forks_while_the_device_counts: 300,
            huge_pages,
            swap_twice_the_limit: 600,
            paged_out_while_the_device_counts: 300,
            migrate_while_the_device_counts: 300,
            moved_away,
            userfaultfd,
            unmap_under_job: 300,
            kill_at_random: 600,
        ],
    )
};

/// The same with little room in the queue of MAPs.
pub(crate) const CROWDED: Family = Family {
    device: "--exclusive-atomics --queue-size 64",
    ..family(
        "svm_exclusive_crowded",
        cases![beside_prefetches: 300, beside_other_clients: 300],
    )
};

/// Bytes of a small test.
const SIZE: usize = 32 * PAGE;

/// A job that adds 1 to the u64 at an address.
fn counting(address: u64, times: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.atomic_add(at(address), 1, times);
    stream
}

/// A job that counts at an address for half a second, one at a time: the device writes down each.
fn counting_long(address: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    for _ in 0..2000 {
        stream.atomic_add(at(address), 1, 1).delay(250);
    }
    stream
}

/// The u64 at `offset`, as a processor counts in it.
fn word(place: &Place, offset: usize) -> &AtomicU64 {
    // SAFETY: The place is mapped there, for as long as it is borrowed, and the word is aligned.
    unsafe { AtomicU64::from_ptr(place.as_ptr().wrapping_add(offset).cast()) }
}

/// An atomic access that is refused.
fn no_atomic(address: u64) -> Cause {
    Cause {
        reason: svm_reason::NO_ATOMIC,
        ..bad_access(svm_access::ATOMIC, address)
    }
}

/// Pages that the device has had alone so far.
fn given(svm: &Svm) -> TestResult<u64> {
    Ok(svm.count()?.exclusive)
}

fn given_and_taken_back(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    let address = place.address(3 * PAGE + 8);
    let before = svm.stat()?.exclusive_maps.get();
    for round in 1..=5_u64 {
        svm.run("counting", &counting(address, 10))?;
        check_eq!(given(&svm)?, round, "pages given to the device");
        // It still has the page.
        svm.run("counting on", &counting(address, 1))?;
        check_eq!(given(&svm)?, round, "pages given for the second time");
        let told = svm.count()?.invalidations;
        check_eq!(
            word(&place, 3 * PAGE + 8).fetch_add(1, Ordering::SeqCst),
            round * 12 - 1,
            "our view"
        );
        check!(
            svm.count()?.invalidations > told,
            "the device was not told that we have touched the page"
        );
    }
    check_eq!(
        svm.stat()?.exclusive_maps.get() - before,
        5,
        "MAPs of such pages, as the device counts them"
    );
    svm.coherent_all_over("in the end", &place)
}

/// A page that the device could write before, of which no processor knows when it is to be the
/// device's alone: it was taken from the page tables, and that came to nothing.
fn what_it_could_write_before(env: &Env) -> TestResult {
    let (svm, knobs) = (open(env)?, Knobs::open(env)?);
    let place = Place::base(SIZE)?;
    let address = place.address(2 * PAGE);
    svm.poke(address, 5)?;
    knobs.set("force_retries", 1)?;
    svm.run("counting", &counting(address, 1))?;
    check_eq!(given(&svm)?, 1, "pages given to the device");
    check_eq!(place.read_u64(2 * PAGE), 6, "what the device has counted");
    svm.coherent_all_over("in the end", &place)
}

/// What the device reads and writes otherwise, and what is mapped around it, takes nothing from it.
fn other_accesses_keep_it(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(0);
    let address = place.address(5 * PAGE);
    svm.run("counting", &counting(address, 1))?;
    let faults = svm.count()?.faults;
    svm.poke(address + 8, 7)?;
    check_eq!(svm.peek(address)?, 1, "the device's view");
    // The result of reading has a page of its own.
    svm.peek(address + 8)?;
    check!(
        svm.count()?.faults <= faults + 1,
        "other accesses to the page are faults"
    );
    svm.csum(place.address(0), SIZE)?;
    svm.run("adding all over", &Svm::adding(&place))?;
    let address_of = |page: usize| place.address(page * PAGE);
    let prefetched = svm.space.prefetch_for_writing(address_of(0), SIZE as u64)?;
    check_eq!(prefetched, SIZE as u64, "bytes prefetched");
    svm.run("counting on", &counting(address, 1))?;
    check_eq!(given(&svm)?, 1, "pages given to the device");
    check_eq!(
        word(&place, 5 * PAGE).load(Ordering::SeqCst),
        1 + 1 + 1 + (1 << 32),
        "our view"
    );
    svm.coherent_all_over("in the end", &place)
}

/// Memory that others may have cannot be the device's alone, and is left as it is.
fn file_refused(env: &Env) -> TestResult {
    let memfd = Memfd::new(SIZE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let refused = |what: &str, place: &Place| -> TestResult {
        let mut data = Svm::scatter(place, 1);
        let svm = open(env)?;
        svm.agrees(what, place)?;
        svm.coherent(what, place, PAGE)?;
        data[PAGE..2 * PAGE].copy_from_slice(&place.to_vec(PAGE, PAGE));
        let address = place.address(2 * PAGE);
        svm.fails(what, &counting(address, 1), no_atomic(address))?;
        check!(place.to_vec(0, place.len()) == data, "{what}: the memory");
        check_eq!(given(&svm)?, 0, "{what}: pages given to the device");
        Ok(())
    };
    refused("a file", &place)?;
    place.map_with(0, SIZE, RW, libc::MAP_SHARED)?;
    refused("shared memory", &place)?;
    if procfs::reserve_hugepages(1)? {
        refused("hugetlb pages", &Place::new(Pages::Hugetlb, HUGE)?)?;
    }
    others_work(env, "an atomic access that is refused")
}

/// A page of a private mapping is the process's own once it is written.
fn private_file(env: &Env) -> TestResult {
    let svm = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_PRIVATE])?;
    svm.agrees("before", &place)?;
    svm.run("counting", &counting(place.address(PAGE), 3))?;
    check_eq!(given(&svm)?, 1, "pages given to the device");
    check_eq!(place.read_u64(PAGE), 3, "our view");
    check_eq!(memfd.map()?.read_u64(PAGE), 0, "the file");
    svm.coherent_all_over("in the end", &place)
}

/// An atomic access is as a write to what it finds.
fn bad_accesses(env: &Env) -> TestResult {
    const ATOMIC: u32 = svm_access::ATOMIC;
    let place = Place::base(SIZE)?;
    let data = Svm::scatter(&place, 2);
    place.protect(0, PAGE, READ)?;
    let svm = open(env)?;
    let address = place.address(8);
    svm.fails(
        "read-only",
        &counting(address, 1),
        bad_access(ATOMIC, address),
    )?;
    check!(place.to_vec(0, SIZE) == data, "the memory");
    place.unmap(PAGE, PAGE)?;
    let address = place.address(PAGE);
    open(env)?.fails(
        "a hole",
        &counting(address, 1),
        bad_address(ATOMIC, address),
    )?;
    others_work(env, "atomic accesses that are not allowed")
}
