// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Faults that a program resolves: the device waits for that like anyone else, and only what
//! needs the page waits.

use std::time::Duration;

use virtgpu_client::{Bytes, Device, Errno, Memfd};

use super::support::{family, open, End, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::ktap::{reap, Family, TestResult};
use crate::support::place::{Pages, Place, RW};
use crate::support::uffd::{feature, Fault, Uffd, MINOR, MISSING, WP};
use crate::support::{bounded, child, eventually, job, procfs, Env, Random, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = family(
    "mm_userfaultfd",
    cases![
        missing,
        missing_with_zeros,
        missing_while_prefetching,
        missing_in_a_file,
        minor,
        write_protected,
        write_protected_for_readers,
        write_protected_asynchronously,
        scanned_and_protected,
        moved,
        poisoned,
        user_mode_only,
        unresolved_others_go_on,
        unresolved_unmap,
        unresolved_handle_closed,
        unresolved_kill,
        unresolved_exit,
        resolved_once_then_exit: 300,
    ],
);

const PAGES: usize = 16;
const SIZE: usize = PAGES * PAGE;

fn missing(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::missing(&place)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = Random(1).bytes(SIZE);
    let fill = |uffd: &Uffd, fault: Fault| {
        let at = (fault.address - place.address(0)) as usize;
        uffd.copy(fault.address, &data[at..at + PAGE])
    };
    let count = uffd.resolving(fill, || {
        check_eq!(mirror.read(0, SIZE)?, data, "the device's view");
        mirror.coherent_all_over("resolved")
    })?;
    check_eq!(count, PAGES as u64, "faults");
    // Gone, and asked for again.
    let count = uffd.resolving(fill, || {
        mirror.loses("MADV_DONTNEED", PAGE, || {
            place.advise(3 * PAGE, PAGE, libc::MADV_DONTNEED)
        })?;
        let seen = mirror.read(3 * PAGE, PAGE)?;
        check_eq!(seen, data[3 * PAGE..4 * PAGE], "the device's view again");
        Ok(())
    })?;
    check_eq!(count, 1, "faults for one page");
    Ok(())
}

fn missing_with_zeros(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::missing(&place)?;
    let mirror = Mirror::new(&device, &place)?;
    uffd.resolving(
        |uffd, fault| uffd.zero(fault.address, PAGE),
        || {
            check_eq!(mirror.peek(PAGE)?, 0, "the device's view");
            mirror.fill(2)?;
            check_eq!(place.read_u64(5 * PAGE), 2, "our view");
            mirror.coherent_all_over("resolved with zeros")
        },
    )?;
    Ok(())
}

/// Only what is prefetched is asked for.
fn missing_while_prefetching(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::missing(&place)?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    let count = uffd.resolving(
        |uffd, fault| uffd.copy(fault.address, &[3; PAGE]),
        || {
            mirror.prefetch(4 * PAGE, 3 * PAGE)?;
            check_eq!(mirror.peek(6 * PAGE)?, 0x0303_0303_0303_0303, "prefetched");
            check_eq!(mirror.end(&mirror.idle())?, End::Done, "a job");
            Ok(())
        },
    )?;
    check_eq!(count, 3, "faults");
    check_eq!(place.resident()?, 3 * PAGE, "bytes in memory");
    Ok(())
}

fn shared(memfd: &Memfd) -> TestResult<Place> {
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, memfd, 0, [RW, libc::MAP_SHARED])?;
    Ok(place)
}

fn missing_in_a_file(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let (place, other) = (shared(&memfd)?, shared(&memfd)?);
    let uffd = Uffd::open(feature::MISSING_SHMEM)?;
    uffd.register(place.address(0), SIZE, MISSING)?;
    let mirror = Mirror::new(&device, &place)?;
    let count = uffd.resolving(
        |uffd, fault| uffd.copy(fault.address, &[4; PAGE]),
        || mirror.coherent_all_over("a file"),
    )?;
    check_eq!(count, PAGES as u64, "faults");
    check_eq!(other.read_u64(PAGE), 0x0404_0404_0404_0404, "the file");
    Ok(())
}

/// The file has the pages; the program says when they may be used.
fn minor(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let (place, other) = (shared(&memfd)?, shared(&memfd)?);
    other.write(0, &Random(5).bytes(SIZE));
    let uffd = Uffd::open(feature::MINOR_SHMEM)?;
    uffd.register(place.address(0), SIZE, MINOR)?;
    let mirror = Mirror::new(&device, &place)?;
    let count = uffd.resolving(
        |uffd, fault| uffd.proceed(fault.address, PAGE),
        || {
            check_eq!(mirror.read(0, SIZE)?, other.to_vec(0, SIZE), "the file");
            mirror.coherent_all_over("a file")
        },
    )?;
    check_eq!(count, PAGES as u64, "faults");
    Ok(())
}

fn write_protected(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::open(feature::PAGEFAULT_FLAG_WP)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(6);
    mirror.agrees("before")?;
    uffd.register(place.address(0), SIZE, WP)?;
    mirror.loses("UFFDIO_WRITEPROTECT", SIZE, || {
        uffd.protect(place.address(0), SIZE, true)
    })?;
    let before = place.to_vec(0, SIZE);
    let count = uffd.resolving(
        |uffd, fault| {
            check!(
                fault.protected,
                "a fault on what is not protected: {fault:?}"
            );
            let at = (fault.address - place.address(0)) as usize;
            check_eq!(
                place.to_vec(at, PAGE),
                before[at..at + PAGE],
                "the page before it may be written"
            );
            uffd.protect(fault.address, PAGE, false)
        },
        || mirror.fill(7),
    )?;
    check_eq!(count, PAGES as u64, "faults");
    check_eq!(place.read_u64(SIZE - 8), 7, "our view");
    mirror.coherent_all_over("in the end")
}

/// Reading waits for no one.
fn write_protected_for_readers(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::open(feature::PAGEFAULT_FLAG_WP)?;
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    mirror.scatter(8);
    uffd.register(place.address(0), SIZE, WP)?;
    uffd.protect(place.address(0), SIZE, true)?;
    mirror.agrees("protected")?;
    check!(
        uffd.next(Duration::ZERO)?.is_none(),
        "a fault for a device that only reads"
    );
    Ok(())
}

/// The kernel itself lifts the protection, and remembers that it did.
fn write_protected_asynchronously(env: &Env) -> TestResult {
    const PROTECTED: u64 = 1 << 57;
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(1);
    let uffd = Uffd::open(feature::WP_ASYNC | feature::WP_UNPOPULATED)?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    mirror.prefetch(0, SIZE / 2)?;
    mirror.poke(PAGE, 9)?;
    uffd.register(place.address(0), SIZE, WP)?;
    mirror.loses("UFFDIO_WRITEPROTECT", SIZE / 2, || {
        uffd.protect(place.address(0), SIZE, true)
    })?;
    let protected = || -> TestResult<Vec<bool>> {
        let entries = procfs::pagemap(place.address(0) as usize, PAGES)?;
        Ok(entries.iter().map(|entry| entry & PROTECTED != 0).collect())
    };
    check_eq!(protected()?, vec![true; PAGES], "pages protected");
    mirror.poke(PAGE, 10)?;
    let after = protected()?;
    check!(
        !after[1],
        "the device has written a page that is still protected"
    );
    check!(
        after[PAGES - 1],
        "a page that no one has written is not protected"
    );
    check_eq!(place.read_u64(PAGE), 10, "our view");
    Ok(())
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Protects what was written, and returns how many pages that were: PAGEMAP_SCAN as those use it
/// who copy a running process.
fn scan(place: &Place) -> TestResult<u64> {
    const NUMBER: u32 = 16;
    const WP_MATCHING: u64 = 1;
    const CHECK_WPASYNC: u64 = 2;
    const WRITTEN: u64 = 1 << 1;
    let mut ranges = [[0_u64; 3]; PAGES];
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        flags: WP_MATCHING | CHECK_WPASYNC,
        start: place.address(0),
        end: place.address(SIZE),
        vec: ranges.as_mut_ptr() as u64,
        vec_len: PAGES as u64,
        category_mask: WRITTEN,
        return_mask: WRITTEN,
        ..Default::default()
    };
    let file = std::fs::File::open("/proc/self/pagemap")?;
    let number = virtgpu_client::ioctl::iowr(b'f', NUMBER, size_of::<Scan>());
    // SAFETY: The structure is that of PAGEMAP_SCAN, with room for `vec_len` ranges.
    let found = unsafe { virtgpu_client::ioctl::call(&file, number, (&raw mut scan).cast()) };
    let found = match found {
        Err(Errno::NOTTY) => skip!("the kernel has no PAGEMAP_SCAN"),
        other => other? as usize,
    };
    Ok(ranges[..found]
        .iter()
        .map(|[start, end, _]| (end - start) / PAGE as u64)
        .sum())
}

fn scanned_and_protected(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(1);
    let uffd = Uffd::open(feature::WP_ASYNC | feature::WP_UNPOPULATED)?;
    uffd.register(place.address(0), SIZE, WP)?;
    scan(&place)?;
    check_eq!(scan(&place)?, 0, "pages written since the first scan");
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    for round in 0..3 {
        mirror.prefetch(PAGE, 4 * PAGE)?;
        mirror.poke(2 * PAGE, round)?;
        let written = mirror.loses("PAGEMAP_SCAN", 4 * PAGE, || scan(&place))?;
        check!(
            (1..=4).contains(&written),
            "{written} pages were written in round {round}"
        );
        check_eq!(place.read_u64(2 * PAGE), round, "our view");
        check_eq!(scan(&place)?, 0, "pages written since");
    }
    Ok(())
}

/// A page moves from one registered range into another.
fn moved(env: &Env) -> TestResult {
    let device = open(env)?;
    let (from, to) = (Place::base(SIZE)?, Place::base(SIZE)?);
    let uffd = Uffd::open(feature::MOVE)?;
    uffd.register(to.address(0), SIZE, MISSING)?;
    let (source, target) = (Mirror::new(&device, &from)?, Mirror::new(&device, &to)?);
    let data = source.scatter(11);
    source.agrees("the source, before")?;
    source.loses("UFFDIO_MOVE", SIZE, || {
        uffd.take(to.address(0), from.address(0), SIZE)
    })?;
    check_eq!(target.read(0, SIZE)?, data, "the target");
    check_eq!(source.peek(PAGE)?, 0, "the source");
    target.coherent_all_over("the target")?;
    source.coherent_all_over("the source")
}

fn poisoned(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::open(feature::POISON)?;
    uffd.register(place.address(0), SIZE, MISSING)?;
    uffd.poison(place.address(3 * PAGE), PAGE)?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    let result = mirror.userptr.prefetch(3 * PAGE as u64, PAGE as u64);
    check_eq!(result, Err(Errno::FAULT), "prefetching a poisoned page");
    uffd.resolving(
        |uffd, fault| uffd.zero(fault.address, PAGE),
        || {
            mirror.prefetch(0, 2 * PAGE)?;
            mirror.coherent("beside it", PAGE)
        },
    )?;
    Ok(())
}

/// A device's access is not one of the process's own.
fn user_mode_only(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::user_mode_only(0)?;
    uffd.register(place.address(0), SIZE, MISSING)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.refused("no one can resolve it", Errno::FAULT)?;
    uffd.unregister(place.address(0), SIZE)?;
    mirror.coherent_all_over("not needed any more")
}

/// Runs `meanwhile` while a job waits for a page that no one gives it, then ends the waiting by
/// closing; returns how EXECBUFFER ended.
fn unresolved(
    mirror: &Mirror<'_>,
    uffd: Uffd,
    meanwhile: impl FnOnce(&Uffd) -> TestResult,
) -> TestResult<End> {
    std::thread::scope(|scope| {
        let submitter = scope.spawn(|| mirror.end(&mirror.idle()));
        let result = uffd.asked().and_then(|_| meanwhile(&uffd));
        let waited = !submitter.is_finished();
        drop(uffd);
        let end = submitter.join().expect("no panic")?;
        result?;
        check!(waited, "EXECBUFFER has not waited for the page: {end:?}");
        Ok(end)
    })
}

/// Those who need no page: other files, other registrations of the same file, other queries.
fn unresolved_others_go_on(env: &Env) -> TestResult {
    let (device, other) = (open(env)?, open(env)?);
    let (place, free) = (Place::base(SIZE)?, Place::base(SIZE)?);
    let uffd = Uffd::missing(&place)?;
    let mirror = Mirror::new(&device, &place)?;
    let same_file = Mirror::new(&device, &free)?;
    let other_file = Mirror::new(&other, &free)?;
    let end = unresolved(&mirror, uffd, |_| {
        bounded("another file", || {
            other_file.coherent_all_over("another file")
        })?;
        bounded("the same file", || {
            same_file.coherent_all_over("the same file")
        })?;
        bounded("munmap elsewhere", || free.map(0, SIZE))?;
        bounded("BO_QUERY", || mirror.count().map(drop))?;
        bounded("registering", || {
            Mirror::new(&device, &free)?.coherent_all_over("registered meanwhile")
        })
    })?;
    check_eq!(end, End::Done, "the job, when the userfaultfd is closed");
    mirror.coherent_all_over("in the end")
}

fn unresolved_unmap(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::missing(&place)?;
    let mirror = Mirror::new(&device, &place)?;
    let end = unresolved(&mirror, uffd, |_| {
        bounded("munmap", || place.unmap(0, SIZE))
    })?;
    check_eq!(end, End::Refused(Errno::FAULT), "the job");
    place.map(0, SIZE)?;
    mirror.coherent_all_over("mapped again")
}

fn unresolved_handle_closed(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::missing(&place)?;
    let mirror = Mirror::new(&device, &place)?;
    let handle = mirror.userptr.handle();
    let end = unresolved(&mirror, uffd, |_| {
        bounded("GEM_CLOSE", || Ok(device.gem_close(handle)?))
    })?;
    // It had not been queued.
    check!(
        matches!(end, End::Done | End::Refused(Errno::IO | Errno::NOENT)),
        "the job: {end:?}"
    );
    // The number was closed above.
    std::mem::forget(mirror);
    let again = Mirror::new(&device, &place)?;
    again.coherent_all_over("registered again")
}

/// A child in which a job waits for a page; it says so in `flag`, and then does `then`.
fn stuck_child(
    env: &Env,
    flag: &Place,
    then: fn(&Uffd, Fault) -> TestResult,
) -> TestResult<child::Child> {
    child::spawn(|| {
        let device: &'static Device = Box::leak(Box::new(open(env)?));
        let place: &'static Place = Box::leak(Box::new(Place::base(SIZE)?));
        let uffd = Uffd::missing(place)?;
        let mirror = Mirror::with(device, place, WHOLE)?;
        std::thread::spawn(move || mirror.end(&mirror.idle()));
        let fault = uffd.asked()?;
        flag.write_u64(0, 1);
        then(&uffd, fault)
    })
}

fn unresolved_kill(env: &Env) -> TestResult {
    let device = open(env)?;
    let flag = Place::shared_page()?;
    let child = stuck_child(env, &flag, |_, _| loop {
        // SAFETY: Takes nothing.
        unsafe { libc::pause() };
    })?;
    let stuck = eventually(job::LIMIT, || flag.read_u64(0) == 1);
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let works = mirror.coherent_all_over("while another process waits");
    bounded("the end of the killed process", || child.kill())?;
    check!(stuck, "the child's job has not waited");
    works?;
    mirror.coherent_all_over("in the end")
}

/// The thread that would resolve the fault ends the process instead.
fn unresolved_exit(env: &Env) -> TestResult {
    let flag = Place::shared_page()?;
    let child = stuck_child(env, &flag, |_, _| {
        // SAFETY: Ends the child, the waiting thread with it.
        unsafe { libc::_exit(3) }
    })?;
    bounded("the end of the process", || child.exits_with(3))?;
    check_eq!(flag.read_u64(0), 1, "the child's job has waited");
    Ok(())
}

/// The job gets a page, and has hardly begun to ask for the next page when the process ends.
fn resolved_once_then_exit(env: &Env) -> TestResult {
    let flag = Place::shared_page()?;
    for _ in 0..env.iterations(20) {
        let child = stuck_child(env, &flag, |uffd, fault| {
            uffd.zero(fault.address, PAGE)?;
            // SAFETY: Ends the child, the thread of the job with it.
            unsafe { libc::_exit(0) }
        })?;
        bounded("the end of the process", || reap(child.pid).map(drop))?;
    }
    Ok(())
}
