// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device whose atomic accesses are not coherent with the processors': it loads, pauses and
//! stores. Nothing is lost as long as the page is its own meanwhile, and everybody else has it back
//! at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi::{svm_access, svm_reason};
use virtgpu_client::{compute, Bytes, Memfd, Memory};

use super::support::{
    at, bad_access, bad_address, device, each_kind, family, open, others_work, Cause, End, Svm,
    RINGS,
};
use crate::ktap::{reap, Family, TestResult};
use crate::support::debugfs::Knobs;
use crate::support::memcg::Group;
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::uffd::{Uffd, MISSING};
use crate::support::{child, eventually, job, numa, procfs, raced, swap, Env, Random, HUGE, PAGE};
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
    ..family("svm_exclusive_crowded", cases![beside_prefetches: 300])
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

/// Jobs count on all rings in the word at the start of `place`, and a thread with them, while
/// another calls `disturb` with the number of the call. Nothing is lost.
fn additions(
    svm: &Svm,
    place: &Place,
    rounds: u64,
    mut disturb: impl FnMut(u64) -> TestResult + Send,
) -> TestResult {
    const TIMES: u64 = 50;
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut jobs, mut ours) = (0, 0);
    let start = word(place, 0).load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let disturber = scope.spawn(|| -> TestResult {
            while !stop.load(Ordering::SeqCst) {
                disturb(count.fetch_add(1, Ordering::SeqCst))?;
            }
            Ok(())
        });
        let adding = counting(place.address(0), TIMES);
        let mut work = || -> TestResult {
            while jobs < rounds || count.load(Ordering::SeqCst) < rounds {
                if disturber.is_finished() {
                    break;
                }
                for ring in 0..RINGS {
                    svm.submit(ring, &adding)?;
                }
                for _ in 0..TIMES {
                    word(place, 0).fetch_add(1, Ordering::SeqCst);
                    ours += 1;
                }
                for ring in 0..RINGS {
                    check_eq!(svm.finish(ring)?, End::Done, "a job of ring {ring}");
                }
                jobs += 1;
            }
            Ok(())
        };
        let worked = work();
        stop.store(true, Ordering::SeqCst);
        let disturbed = disturber.join().expect("no panic");
        worked.and(disturbed)
    })?;
    check_eq!(
        word(place, 0).load(Ordering::SeqCst) - start,
        ours + jobs * u64::from(RINGS) * TIMES,
        "what both have counted"
    );
    println!("    # {} pages given to the device", given(svm)?);
    raced("disturbances", count.into_inner())
}

/// Both count in the same word at the same time, which is where a device that is not coherent loses
/// what a processor counts, or the processor what the device does.
fn counter_with_cpu(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    let (stop, ours) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut jobs = 0_u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                word(&place, 0).fetch_add(1, Ordering::SeqCst);
                ours.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut work = || -> TestResult {
            for _ in 0..env.rounds(100) {
                let before = ours.load(Ordering::SeqCst);
                svm.run("counting", &counting(place.address(0), 100))?;
                jobs += 1;
                check!(
                    eventually(job::LIMIT, || ours.load(Ordering::SeqCst) > before),
                    "the processor does not get the page back"
                );
            }
            Ok(())
        };
        let result = work();
        stop.store(true, Ordering::SeqCst);
        result
    })?;
    let (turns, ours) = (given(&svm)?, ours.into_inner());
    println!(
        "    # {ours} by the processor, {} by the device, in {turns} turns",
        jobs * 100
    );
    check_eq!(
        word(&place, 0).load(Ordering::SeqCst),
        ours + jobs * 100,
        "what both have counted"
    );
    check!(turns >= jobs / 2, "the device had the page {turns} times");
    Ok(())
}

/// Neither keeps the page from the other.
fn progress_both(env: &Env) -> TestResult {
    const LEAST: u64 = 20;
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    let (stop, ours) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut jobs = 0_u64;
    let since = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                word(&place, 0).fetch_add(1, Ordering::SeqCst);
                ours.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut work = || -> TestResult {
            let both = |jobs: u64| jobs >= LEAST && ours.load(Ordering::SeqCst) >= LEAST;
            let time = Duration::from_secs(2);
            while since.elapsed() < time || !both(jobs) {
                svm.run("counting", &counting(place.address(0), 10))?;
                jobs += 1;
                check!(
                    since.elapsed() < crate::support::pace::limit(job::LIMIT),
                    "{jobs} jobs and {} additions of ours in {:?}",
                    ours.load(Ordering::SeqCst),
                    since.elapsed()
                );
            }
            Ok(())
        };
        let result = work();
        stop.store(true, Ordering::SeqCst);
        result
    })?;
    let ours = ours.into_inner();
    println!(
        "    # in {:?}: {} by the device, {ours} by the processor, in {} turns",
        since.elapsed(),
        jobs * 10,
        given(&svm)?
    );
    check_eq!(
        word(&place, 0).load(Ordering::SeqCst),
        ours + jobs * 10,
        "what both have counted"
    );
    Ok(())
}

/// Two spaces of one process take the page from each other.
fn two_files_one_counter(env: &Env) -> TestResult {
    let (one, other) = (open(env)?, open(env)?);
    let place = Place::base(PAGE)?;
    for (what, this, that) in [("the first", &one, &other), ("the second", &other, &one)] {
        this.poke(place.address(0), 0)?;
        let told = this.count()?.invalidations;
        that.run("counting", &counting(place.address(0), 1))?;
        check!(
            this.count()?.invalidations > told,
            "{what} space still has the page that the other one has alone"
        );
    }
    place.write_u64(0, 0);
    let adding = counting(place.address(0), 40);
    let rounds = env.rounds(100);
    for _ in 0..rounds {
        one.submit(0, &adding)?;
        other.submit(0, &adding)?;
        word(&place, 0).fetch_add(1, Ordering::SeqCst);
        check_eq!(one.finish(0)?, End::Done, "a job of the first");
        check_eq!(other.finish(0)?, End::Done, "a job of the second");
    }
    println!("    # {} and {} turns", given(&one)?, given(&other)?);
    check_eq!(
        word(&place, 0).load(Ordering::SeqCst),
        rounds * 81,
        "what all have counted"
    );
    one.coherent("the first", &place, 8)?;
    other.coherent("the second", &place, 16)
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

/// A page that is the device's loses the rights of the memory as any other.
fn mprotect(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    for round in 1..=5_u64 {
        svm.run("counting", &counting(place.address(0), 1))?;
        place.protect(0, PAGE, READ)?;
        check_eq!(
            svm.peek(place.address(0))?,
            round,
            "read-only: the device's view"
        );
        check_eq!(place.read_u64(0), round, "read-only: our view");
        place.protect(0, PAGE, RW)?;
    }
    check_eq!(given(&svm)?, 5, "pages given to the device");
    place.protect(0, PAGE, READ)?;
    svm.fails(
        "counting at last",
        &counting(place.address(0), 1),
        bad_access(svm_access::ATOMIC, place.address(0)),
    )?;
    check_eq!(place.read_u64(0), 5, "the memory");
    Ok(())
}

/// A child has a copy, and each side goes on with its own.
fn cow(env: &Env) -> TestResult {
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        let svm = open(env)?;
        let place = Place::new(pages, HUGE)?;
        place.fill(0);
        for round in 0..env.rounds(60) {
            let value = round * 4;
            svm.run("before", &counting(place.address(PAGE), 1))?;
            let child = child::hold(|| {
                check_eq!(place.read_u64(PAGE), value + 1, "the child's copy");
                place.write_u64(PAGE, 0xcc);
                Ok(())
            })?;
            svm.run("beside the child", &counting(place.address(PAGE), 2))?;
            child.release()?;
            svm.run("after the child", &counting(place.address(PAGE), 1))?;
            check_eq!(place.read_u64(PAGE), value + 4, "our view");
        }
        svm.coherent_all_over("in the end", &place)
    })
}

/// The kernel refuses a fork while a page is just being made the device's: that is not often.
fn forks_while_the_device_counts(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(0);
    let (mut forked, mut refused) = (0, 0);
    additions(&svm, &place, env.rounds(60), |_| {
        // SAFETY: The child does nothing but end, which any thread's child may.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: Ends the child.
            unsafe { libc::_exit(0) }
        }
        if pid < 0 {
            let error = std::io::Error::last_os_error();
            check_eq!(error.raw_os_error(), Some(libc::ENOMEM), "fork: {error}");
            refused += 1;
            return Ok(());
        }
        forked += 1;
        reap(pid).map(drop)
    })?;
    println!("    # {forked} forks, {refused} refused");
    check!(forked > refused, "{forked} forks, {refused} refused");
    Ok(())
}

/// A huge page is mapped in parts then, of which one is the device's.
fn huge_pages(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::new(Pages::Huge, 2 * HUGE)?;
    place.fill(0);
    for round in 1..=5_u64 {
        svm.agrees("before", &place)?;
        for offset in [0, HUGE - PAGE, HUGE + 8 * PAGE] {
            svm.run("counting", &counting(place.address(offset), 2))?;
        }
        for offset in [0, HUGE - PAGE, HUGE + 8 * PAGE] {
            check_eq!(place.read_u64(offset), 2 * round, "our view at {offset:#x}");
        }
        check_eq!(given(&svm)?, 3 * round, "pages given to the device");
        svm.agrees("after", &place)?;
        let _ = place.advise(0, HUGE, libc::MADV_COLLAPSE);
    }
    svm.coherent_all_over("in the end", &place)
}

/// What the device has counted goes to swap with the page, which the kernel takes from it for that.
fn swap_twice_the_limit(env: &Env) -> TestResult {
    const LIMIT: usize = 8 << 20;
    swap::prepare()?;
    child::run(|| {
        let group = Group::new("svm-exclusive", LIMIT as u64)?;
        // The group goes when this process has left it.
        child::run(|| {
            group.enter()?;
            let svm = open(env)?;
            let place = Place::base(2 * LIMIT)?;
            for _ in 0..2 {
                // Each access is a fault, and a job has a minute.
                for part in (0..place.len()).step_by(LIMIT / 4) {
                    let mut stream = compute::Stream::new();
                    for offset in (part..part + LIMIT / 4).step_by(2 * PAGE) {
                        stream.atomic_add(at(place.address(offset)), 1, 1);
                    }
                    svm.run("counting", &stream)?;
                }
            }
            let hits = group.number("memory.events", "max ")?;
            check!(hits > 0, "the limit was never hit");
            for offset in (0..place.len()).step_by(2 * PAGE) {
                check_eq!(place.read_u64(offset), 2, "our view at {offset:#x}");
            }
            svm.coherent_all_over("in the end", &place)
        })
    })
}

fn paged_out_while_the_device_counts(env: &Env) -> TestResult {
    swap::prepare()?;
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(0);
    additions(&svm, &place, env.rounds(60), |_| {
        place.advise(0, SIZE, libc::MADV_PAGEOUT)
    })
}

fn migrate_while_the_device_counts(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(0);
    additions(&svm, &place, env.rounds(60), |number| {
        // A page that is just being faulted in may be busy.
        numa::move_to(&place, number as i32 % 2).map(drop)
    })
}

/// The page goes to another address, with what the device has counted.
fn moved_away(env: &Env) -> TestResult {
    let svm = open(env)?;
    let (from, to) = (Place::base(SIZE)?, Place::base(SIZE)?);
    from.fill(0);
    svm.run("counting", &counting(from.address(0), 5))?;
    from.move_to(0, PAGE, &to, 0, 0)?;
    svm.run("counting where it is now", &counting(to.address(0), 2))?;
    check_eq!(to.read_u64(0), 7, "our view");
    svm.fails(
        "counting where it was",
        &counting(from.address(0), 1),
        bad_address(svm_access::ATOMIC, from.address(0)),
    )
}

/// Whoever handles the memory is asked for the page as for any other fault.
fn userfaultfd(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::open(0)?;
    uffd.register(place.address(0), SIZE, MISSING)?;
    let data = Random(3).bytes(PAGE);
    let value = u64::from_le_bytes(data[..8].try_into().expect("8 bytes"));
    for page in 0..4 {
        svm.submit(0, &counting(place.address(page * PAGE), 9))?;
        let fault = uffd.next(job::LIMIT)?;
        check_eq!(
            fault.map(|fault| fault.address),
            Some(place.address(page * PAGE)),
            "the page that is asked for"
        );
        uffd.copy(place.address(page * PAGE), &data)?;
        check_eq!(svm.finish(0)?, End::Done, "the job");
        check_eq!(
            place.read_u64(page * PAGE),
            value.wrapping_add(9),
            "our view"
        );
    }
    drop(uffd);
    svm.coherent_all_over("without it", &place)
}

/// munmap waits for no job that counts, and what is mapped there next is not touched.
fn unmap_under_job(env: &Env) -> TestResult {
    for _ in 0..env.rounds(60) {
        let svm = open(env)?;
        let place = Place::base(PAGE)?;
        svm.submit(0, &counting_long(place.address(0)))?;
        check!(
            eventually(job::LIMIT, || place.read_u64(0) > 0),
            "the job does not begin"
        );
        let since = Instant::now();
        place.unmap(0, PAGE)?;
        check!(
            since.elapsed() < Duration::from_secs(15),
            "munmap took {:?}",
            since.elapsed()
        );
        check_eq!(svm.finish(0)?, End::Lost, "the job");
        place.map(0, PAGE)?;
        check_eq!(place.read_u64(0), 0, "new memory");
    }
    Ok(())
}

/// SIGKILL while a device and a processor take a page from each other.
fn kill_at_random(env: &Env) -> TestResult {
    drop(device(env)?);
    let mut random = Random(41);
    let rounds = env.rounds(300);
    for round in 0..rounds {
        let child = child::spawn(|| {
            let svm = open(env)?;
            let place = Place::base(4 * PAGE)?;
            for ring in 0..RINGS {
                let address = place.address(ring as usize % 2 * PAGE);
                svm.submit(ring, &counting_long(address))?;
            }
            let mut random = Random(round);
            loop {
                let page = random.below(3) as usize;
                word(&place, page * PAGE).fetch_add(1, Ordering::SeqCst);
                if random.below(50) == 0 {
                    place.advise(0, 2 * PAGE, libc::MADV_DONTNEED)?;
                }
            }
        })?;
        // Not synchronisation: the point at which the child dies.
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        let since = Instant::now();
        child.kill()?;
        check!(
            since.elapsed() < Duration::from_secs(15),
            "the end of a killed process took {:?}",
            since.elapsed()
        );
    }
    raced("processes killed", rounds)
}

/// Pages are given to the device although others want to map something all the time.
fn beside_prefetches(env: &Env) -> TestResult {
    const THREADS: usize = 6;
    const ROUNDS: u64 = 20;
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    let (stop, prefetched) = (AtomicBool::new(false), AtomicU64::new(0));
    let others: Vec<_> = (0..THREADS)
        .map(|_| Place::scattered(128))
        .collect::<TestResult<_>>()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = others
            .iter()
            .map(|other| {
                let (svm, stop, prefetched) = (&svm, &stop, &prefetched);
                scope.spawn(move || -> TestResult {
                    while !stop.load(Ordering::Relaxed) {
                        other.protect(0, other.len(), READ)?;
                        other.protect(0, other.len(), RW)?;
                        let length = other.len() as u64;
                        let done = svm.space.prefetch_for_writing(other.address(0), length)?;
                        check_eq!(done, length, "bytes prefetched");
                        prefetched.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let work = || -> TestResult {
            let start = Instant::now();
            for round in 1..=ROUNDS {
                svm.run("counting", &counting(place.address(0), 1))?;
                check_eq!(
                    word(&place, 0).fetch_add(1, Ordering::SeqCst),
                    2 * round - 1,
                    "our view"
                );
            }
            let others = prefetched.load(Ordering::Relaxed);
            println!(
                "# {ROUNDS} rounds, {others} prefetches, {:?}",
                start.elapsed()
            );
            check!(others > ROUNDS, "no one was in the way");
            Ok(())
        };
        let worked = work();
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("no panic")?;
        }
        worked
    })
}
