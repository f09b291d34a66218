// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the kernel does to memory that a device has alone.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi::svm_access;
use virtgpu_client::{compute, Bytes, Memory};

use super::super::support::{at, bad_access, bad_address, device, each_kind, open, End, RINGS};
use super::contention::additions;
use super::{counting, counting_long, given, word, SIZE};
use crate::ktap::{reap, TestResult};
use crate::support::memcg::Group;
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::uffd::{Uffd, MISSING};
use crate::support::{child, eventually, job, numa, raced, swap, Env, Random, HUGE, PAGE};
use crate::{check, check_eq};

/// A page that is the device's loses the rights of the memory as any other.
pub(super) fn mprotect(env: &Env) -> TestResult {
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
pub(super) fn cow(env: &Env) -> TestResult {
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
pub(super) fn forks_while_the_device_counts(env: &Env) -> TestResult {
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
pub(super) fn huge_pages(env: &Env) -> TestResult {
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
pub(super) fn swap_twice_the_limit(env: &Env) -> TestResult {
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

pub(super) fn paged_out_while_the_device_counts(env: &Env) -> TestResult {
    swap::prepare()?;
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(0);
    additions(&svm, &place, env.rounds(60), |_| {
        place.advise(0, SIZE, libc::MADV_PAGEOUT)
    })
}

pub(super) fn migrate_while_the_device_counts(env: &Env) -> TestResult {
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
pub(super) fn moved_away(env: &Env) -> TestResult {
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
pub(super) fn userfaultfd(env: &Env) -> TestResult {
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
pub(super) fn unmap_under_job(env: &Env) -> TestResult {
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
pub(super) fn kill_at_random(env: &Env) -> TestResult {
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
