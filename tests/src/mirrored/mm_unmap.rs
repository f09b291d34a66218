// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that goes away: munmap, MAP_FIXED, mremap, MADV_DONTNEED, guard pages, holes punched into
//! files, files cut off. Nothing of the old memory is used afterwards, and what comes next is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use virtgpu_client::{compute, Bytes, Device, Errno, Memfd, Memory};

use super::support::{each_kind, family, on_each_kind, open, End, Mirror, SPARSE, WHOLE};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::file::punch;
use crate::support::place::{Pages, Place, RW};
use crate::support::{eventually, job, procfs, Env, HUGE, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = family(
    "mm_unmap",
    cases![
        unmap_half,
        unmap_at_three_offsets,
        unmap_sparse,
        unmap_while_the_device_reads: 300,
        unmap_shared_memory,
        map_fixed_over,
        map_file_over,
        move_away,
        move_over_another,
        move_half_of_a_huge_page,
        move_and_leave_empty,
        shrink_and_grow,
        dontneed,
        dontneed_part,
        guard_pages,
        hole_in_memfd,
        hole_in_hugetlb_memfd,
        remove_advice,
        truncate_memfd,
    ],
);

/// Bytes of a test on each kind of pages.
const SIZE: usize = 4 * HUGE;

fn unmap_half(env: &Env) -> TestResult {
    on_each_kind(env, SIZE, |device, place| {
        let all = Mirror::new(device, place)?;
        let upper = Mirror::part(device, place, SIZE / 2, SIZE / 2, WHOLE)?;
        all.scatter(1);
        upper.keeps("the upper half", || {
            all.loses("munmap of the lower half", SIZE / 2, || {
                place.unmap(0, SIZE / 2)
            })
        })?;
        all.refused("half of it is not mapped", Errno::FAULT)?;
        upper.agrees("the upper half")?;
        upper.coherent_all_over("the upper half")?;
        place.map(0, SIZE / 2)?;
        check_eq!(all.peek(8)?, 0, "new memory");
        all.agrees("mapped again")?;
        all.coherent_all_over("mapped again")
    })
}

fn unmap_at_three_offsets(env: &Env) -> TestResult {
    on_each_kind(env, SIZE, |device, place| {
        let unit = place.unit();
        let mirror = Mirror::new(device, place)?;
        for (what, offset) in [
            ("start", 0),
            ("middle", SIZE / 2 - unit),
            ("end", SIZE - unit),
        ] {
            let data = mirror.scatter(offset as u64);
            mirror.agrees(what)?;
            mirror.loses(what, unit, || place.unmap(offset, unit))?;
            mirror.refused(what, Errno::FAULT)?;
            place.map(offset, unit)?;
            check_eq!(mirror.peek(offset)?, 0, "new memory at the {what}");
            let mut expected = data;
            expected[offset..offset + unit].fill(0);
            check_eq!(
                mirror.csum(0, SIZE)?,
                compute::crc32c(0, &expected),
                "CRC32C with a hole at the {what} filled"
            );
        }
        mirror.coherent_all_over("in the end")
    })
}

/// What was unmapped has to be prefetched again; the rest goes on.
fn unmap_sparse(env: &Env) -> TestResult {
    on_each_kind(env, SIZE, |device, place| {
        let mirror = Mirror::with(device, place, SPARSE)?;
        mirror.scatter(2);
        mirror.prefetch(0, SIZE)?;
        mirror.agrees("prefetched")?;
        mirror.loses("munmap", SIZE / 2, || place.unmap(0, SIZE / 2))?;
        mirror.agrees_at("the rest", SIZE / 2, SIZE / 2)?;
        place.map(0, SIZE / 2)?;
        // Nothing is made resident that was not asked for.
        check_eq!(mirror.end(&mirror.idle())?, End::Done, "a job");
        check_eq!(
            mirror
                .count_both("the half that stays")?
                .driver
                .mapped_bytes,
            SIZE as u64 / 2,
            "bytes mapped after a job"
        );
        mirror.prefetch(0, SIZE / 2)?;
        mirror.coherent("prefetched again", 0)?;
        mirror.loses("munmap", SIZE / 2, || place.unmap(0, SIZE / 2))?;
        mirror.fails("what is not mapped", &mirror.writing(0, 1))
    })
}

/// Two halves, of which each is replaced by turns, by memory with a number in each page that counts
/// the times.
#[derive(Default)]
struct Halves {
    /// The number of the memory that is being unmapped, and so may or may not be there.
    going: [AtomicU64; 2],
    /// The least that can be there: what had less has been unmapped.
    least: [AtomicU64; 2],
    /// Jobs that were done.
    done: AtomicU64,
    /// A job is on its way.
    running: AtomicBool,
    stop: AtomicBool,
}

impl Halves {
    const PAGES: usize = 32;
    const SIZE: usize = Self::PAGES * PAGE;

    fn load(numbers: &[AtomicU64; 2]) -> [u64; 2] {
        [0, 1].map(|half: usize| numbers[half].load(Ordering::SeqCst))
    }

    /// Memory with `number` in each page.
    fn number(place: &Place, offset: usize, number: u64) {
        for page in 0..Self::PAGES {
            place.write_u64(offset + page * PAGE, number);
        }
    }

    /// Runs jobs; each is refused, or finds one number in all of a half, which was there while it
    /// was on its way.
    fn read(&self, mirror: &Mirror<'_>) -> TestResult<[u64; 3]> {
        let mut counts = [0, 0, 0];
        let reading = mirror.reading_words();
        while !self.stop.load(Ordering::SeqCst) {
            mirror.forget_words();
            let least = Self::load(&self.least);
            self.running.store(true, Ordering::SeqCst);
            let end = mirror.end(&reading);
            self.running.store(false, Ordering::SeqCst);
            // What is mapped next has one more than what goes.
            let most = Self::load(&self.going).map(|going| going + 1);
            match end? {
                End::Done => counts[0] += 1,
                End::Refused(Errno::FAULT) => {
                    counts[1] += 1;
                    continue;
                }
                End::Refused(Errno::BUSY) => {
                    counts[2] += 1;
                    continue;
                }
                other => return Err(Outcome::Fail(format!("a job: {other:?}"))),
            }
            self.done.store(counts[0], Ordering::SeqCst);
            for half in [0, 1] {
                let first = mirror.word(half * Self::PAGES);
                check!(
                    (least[half]..=most[half]).contains(&first),
                    "a job has read {first:#x} in half {half}, where {} to {} can be",
                    least[half],
                    most[half]
                );
                for page in 0..Self::PAGES {
                    check_eq!(
                        mirror.word(half * Self::PAGES + page),
                        first,
                        "what a job has read in page {page} of half {half}"
                    );
                }
            }
        }
        Ok(counts)
    }
}

/// The core race: each job either sees all of the old memory, or all of the new, or is refused.
fn unmap_while_the_device_reads(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(2 * Halves::SIZE)?;
    let spare = Place::base(Halves::SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let halves = Halves::default();
    for half in [0, 1] {
        halves.least[half].store(1, Ordering::SeqCst);
        Halves::number(&place, half * Halves::SIZE, 1);
    }
    let rounds = env.rounds(80);
    let met = std::thread::scope(|scope| {
        let reader = scope.spawn(|| halves.read(&mirror));
        let change = || -> TestResult<u64> {
            let mut met = 0;
            for round in 0..rounds {
                let (half, number) = (round as usize % 2, round / 2 + 1);
                let offset = half * Halves::SIZE;
                Halves::number(&spare, 0, number + 1);
                let done = halves.done.load(Ordering::SeqCst);
                let running = halves.running.load(Ordering::SeqCst);
                halves.going[half].store(number, Ordering::SeqCst);
                place.unmap(offset, Halves::SIZE)?;
                halves.least[half].store(number + 1, Ordering::SeqCst);
                met += u64::from(running || halves.running.load(Ordering::SeqCst));
                spare.move_to(0, Halves::SIZE, &place, offset, 0)?;
                spare.map(0, Halves::SIZE)?;
                // The next munmap comes while jobs run again.
                let more = || halves.done.load(Ordering::SeqCst) > done || reader.is_finished();
                check!(eventually(job::LIMIT, more), "no job gets through");
                if reader.is_finished() {
                    break;
                }
            }
            Ok(met)
        };
        let changed = change();
        halves.stop.store(true, Ordering::SeqCst);
        let [done, refused, busy] = reader.join().expect("no panic")?;
        println!("    # {done} jobs done, {refused} refused, {busy} busy");
        changed
    })?;
    println!("    # {met} of {rounds} munmaps during jobs");
    check!(met > 0, "no job was on its way at any munmap");
    mirror.coherent_all_over("in the end")
}

/// Another mapping of the same pages keeps them; the device must go all the same.
fn unmap_shared_memory(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = Memfd::new(16 * PAGE as u64)?;
    let other = memfd.map()?;
    let place = Place::reserve(Pages::Base, 16 * PAGE)?;
    place.map_file(0, 16 * PAGE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(7)?;
    mirror.loses("munmap", 16 * PAGE, || place.unmap(0, 16 * PAGE))?;
    check_eq!(other.read_u64(5 * PAGE), 7, "the file");
    mirror.refused("nothing mapped", Errno::FAULT)?;
    place.map(0, 16 * PAGE)?;
    mirror.fill(8)?;
    check_eq!(
        other.read_u64(5 * PAGE),
        7,
        "the file, which is not mapped there"
    );
    Ok(())
}

fn map_fixed_over(env: &Env) -> TestResult {
    on_each_kind(env, SIZE, |device, place| {
        let mirror = Mirror::new(device, place)?;
        mirror.scatter(3);
        mirror.agrees("before")?;
        mirror.loses("MAP_FIXED", SIZE / 2, || {
            place.map(SIZE / 4, SIZE / 2)?;
            place.write_u64(SIZE / 2, 99);
            Ok(())
        })?;
        check_eq!(mirror.peek(SIZE / 2)?, 99, "what replaces it");
        mirror.agrees("after")?;
        mirror.coherent_all_over("after")
    })
}

fn map_file_over(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let memfd = Memfd::new(16 * PAGE as u64)?;
    let file = memfd.map()?;
    file.fill(0x44);
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(1)?;
    mirror.loses("MAP_FIXED of a file", 8 * PAGE, || {
        place.map_file(4 * PAGE, 8 * PAGE, &memfd, 0, [RW, libc::MAP_SHARED])
    })?;
    check_eq!(
        mirror.peek(4 * PAGE)?,
        0x4444_4444_4444_4444,
        "the file's data"
    );
    mirror.poke(5 * PAGE, 5)?;
    check_eq!(file.read_u64(PAGE), 5, "the device's write, in the file");
    mirror.agrees("file and memory side by side")
}

/// Two places of the same kind.
fn pair<'a>(device: &'a Device, place: &'a Place, other: &'a Place) -> TestResult<[Mirror<'a>; 2]> {
    Ok([Mirror::new(device, place)?, Mirror::new(device, other)?])
}

fn move_away(env: &Env) -> TestResult {
    on_each_kind(env, SIZE, |device, place| {
        let other = Place::reserve(place.pages(), SIZE)?;
        let mirror = Mirror::new(device, place)?;
        let data = mirror.scatter(4);
        mirror.loses("mremap", SIZE, || place.move_to(0, SIZE, &other, 0, 0))?;
        mirror.refused("the old place", Errno::FAULT)?;
        let moved = Mirror::new(device, &other)?;
        check_eq!(
            moved.csum(0, SIZE)?,
            compute::crc32c(0, &data),
            "the new place"
        );
        moved.coherent_all_over("the new place")?;
        place.map(0, SIZE)?;
        mirror.coherent_all_over("the old place, mapped again")?;
        moved.agrees("the new place, in the end")
    })
}

/// Both ranges are registered: one loses its memory, the other gets it.
fn move_over_another(env: &Env) -> TestResult {
    on_each_kind(env, SIZE, |device, place| {
        let other = Place::new(place.pages(), SIZE)?;
        let [from, to] = pair(device, place, &other)?;
        let data = from.scatter(5);
        to.scatter(6);
        to.agrees("the target, before")?;
        to.loses("being moved over", SIZE, || {
            from.loses("moving", SIZE, || place.move_to(0, SIZE, &other, 0, 0))
        })?;
        check_eq!(to.csum(0, SIZE)?, compute::crc32c(0, &data), "the target");
        to.coherent_all_over("the target")?;
        from.refused("the source", Errno::FAULT)
    })
}

fn move_half_of_a_huge_page(env: &Env) -> TestResult {
    let device = open(env)?;
    let (place, other) = (
        Place::new(Pages::Huge, 2 * HUGE)?,
        Place::new(Pages::Huge, 2 * HUGE)?,
    );
    let [from, to] = pair(&device, &place, &other)?;
    let (mut ours, mut theirs) = (from.scatter(7), to.scatter(8));
    from.agrees("before")?;
    to.agrees("before")?;
    if !place.is_huge(0)? {
        println!("    # the kernel gave small pages");
    }
    from.loses("moving", HUGE / 2, || {
        place.move_to(HUGE / 2, HUGE / 2, &other, HUGE, 0)
    })?;
    place.map(HUGE / 2, HUGE / 2)?;
    theirs[HUGE..HUGE + HUGE / 2].copy_from_slice(&ours[HUGE / 2..HUGE]);
    ours[HUGE / 2..HUGE].fill(0);
    for (what, mirror, data) in [("source", &from, ours), ("target", &to, theirs)] {
        check_eq!(
            mirror.csum(0, 2 * HUGE)?,
            compute::crc32c(0, &data),
            "CRC32C of the {what}"
        );
        mirror.coherent_all_over(what)?;
    }
    Ok(())
}

fn move_and_leave_empty(env: &Env) -> TestResult {
    on_each_kind(env, SIZE, |device, place| {
        if place.pages() == Pages::Hugetlb {
            skip!("mremap cannot leave hugetlb memory behind");
        }
        let other = Place::reserve(place.pages(), SIZE)?;
        let mirror = Mirror::new(device, place)?;
        let data = mirror.scatter(9);
        mirror.loses("MREMAP_DONTUNMAP", SIZE, || {
            place.move_to(0, SIZE, &other, 0, libc::MREMAP_DONTUNMAP)
        })?;
        check_eq!(mirror.peek(PAGE)?, 0, "the old place, empty now");
        mirror.coherent_all_over("the old place")?;
        let moved = Mirror::new(device, &other)?;
        check_eq!(
            moved.csum(0, SIZE)?,
            compute::crc32c(0, &data),
            "the new place"
        );
        moved.coherent_all_over("the new place")
    })
}

fn shrink_and_grow(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(10);
    let resize = |from: usize, to: usize| -> TestResult {
        // SAFETY: Our own range, which stays where it is.
        let result = unsafe { libc::mremap(place.as_ptr().cast(), from, to, 0) };
        check!(
            result == place.as_ptr().cast(),
            "mremap from {from:#x} to {to:#x}: {}",
            std::io::Error::last_os_error()
        );
        Ok(())
    };
    mirror.loses("shrinking", SIZE / 2, || resize(SIZE, SIZE / 2))?;
    mirror.refused("cut off", Errno::FAULT)?;
    resize(SIZE / 2, SIZE)?;
    let mut expected = data;
    expected[SIZE / 2..].fill(0);
    check_eq!(
        mirror.csum(0, SIZE)?,
        compute::crc32c(0, &expected),
        "CRC32C after growing"
    );
    mirror.coherent_all_over("after growing")
}

fn dontneed(env: &Env) -> TestResult {
    on_each_kind(env, SIZE, |device, place| {
        let mirror = Mirror::new(device, place)?;
        for round in 0..3 {
            mirror.scatter(round);
            mirror.agrees("before")?;
            mirror.loses("MADV_DONTNEED", SIZE, || {
                place.advise(0, SIZE, libc::MADV_DONTNEED)
            })?;
            check_eq!(mirror.peek(SIZE / 2)?, 0, "the device's view");
            check_eq!(place.read_u64(SIZE / 2), 0, "our view");
        }
        mirror.coherent_all_over("in the end")
    })
}

/// One page of a huge page, which the kernel then splits.
fn dontneed_part(env: &Env) -> TestResult {
    on_each_kind(env, SIZE, |device, place| {
        let unit = place.unit();
        let mirror = Mirror::new(device, place)?;
        let mut expected = mirror.scatter(11);
        mirror.agrees("before")?;
        for offset in [0, HUGE + HUGE / 2, SIZE - unit] {
            let offset = offset / unit * unit;
            mirror.loses("MADV_DONTNEED", unit, || {
                place.advise(offset, unit, libc::MADV_DONTNEED)
            })?;
            expected[offset..offset + unit].fill(0);
            check_eq!(
                mirror.csum(0, SIZE)?,
                compute::crc32c(0, &expected),
                "CRC32C without {offset:#x}"
            );
        }
        mirror.coherent_all_over("in the end")
    })
}

fn guard_pages(env: &Env) -> TestResult {
    const MADV_GUARD_INSTALL: i32 = 102;
    const MADV_GUARD_REMOVE: i32 = 103;
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        let device = open(env)?;
        let place = Place::new(pages, SIZE)?;
        let mirror = Mirror::new(&device, &place)?;
        mirror.scatter(12);
        mirror.loses("MADV_GUARD_INSTALL", PAGE, || {
            place.try_advise(HUGE + PAGE, PAGE, MADV_GUARD_INSTALL, "MADV_GUARD_INSTALL")
        })?;
        mirror.refused("a guard page", Errno::FAULT)?;
        place.advise(HUGE + PAGE, PAGE, MADV_GUARD_REMOVE)?;
        check_eq!(mirror.peek(HUGE + PAGE)?, 0, "where the guard page was");
        mirror.agrees("no guard page any more")?;
        mirror.coherent_all_over("no guard page any more")?;
        Ok(())
    })
}

/// A hole of `unit` bytes in a file of four of them.
fn hole(device: &Device, place: &Place, memfd: &Memfd, unit: usize) -> TestResult {
    place.map_file(0, 4 * unit, memfd, 0, [RW, libc::MAP_SHARED])?;
    let mirror = Mirror::new(device, place)?;
    let mut expected = mirror.scatter(13);
    mirror.agrees("before")?;
    mirror.loses("a hole", unit, || punch(memfd, unit, unit))?;
    expected[unit..2 * unit].fill(0);
    check_eq!(
        mirror.csum(0, 4 * unit)?,
        compute::crc32c(0, &expected),
        "CRC32C with the hole"
    );
    mirror.coherent("the hole, filled", unit)?;
    mirror.coherent_all_over("in the end")
}

fn hole_in_memfd(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = Memfd::new(16 * PAGE as u64)?;
    let place = Place::reserve(Pages::Base, 16 * PAGE)?;
    hole(&device, &place, &memfd, 4 * PAGE)
}

/// A memfd of hugetlb pages.
fn hugetlb_memfd(pages: usize) -> TestResult<Memfd> {
    if !procfs::reserve_hugepages(pages as u64)? {
        skip!("no room for hugetlb pages");
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    match Memfd::with_flags((pages * HUGE) as u64, flags) {
        Err(Errno::NOSYS | Errno::INVAL) => skip!("the kernel has no hugetlb memfd"),
        other => Ok(other?),
    }
}

fn hole_in_hugetlb_memfd(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = hugetlb_memfd(4)?;
    let place = Place::reserve(Pages::Hugetlb, 4 * HUGE)?;
    hole(&device, &place, &memfd, HUGE)
}

fn remove_advice(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = Memfd::new(16 * PAGE as u64)?;
    let place = Place::reserve(Pages::Base, 16 * PAGE)?;
    place.map_file(0, 16 * PAGE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(14);
    mirror.agrees("before")?;
    mirror.loses("MADV_REMOVE", 2 * PAGE, || {
        place.advise(3 * PAGE, 2 * PAGE, libc::MADV_REMOVE)
    })?;
    check_eq!(mirror.peek(4 * PAGE)?, 0, "what was removed");
    mirror.agrees("after")?;
    mirror.coherent_all_over("after")
}

/// Behind the end of the file there is nothing; when it grows, zeros.
fn truncate_memfd(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = Memfd::new(16 * PAGE as u64)?;
    let place = Place::reserve(Pages::Base, 16 * PAGE)?;
    place.map_file(0, 16 * PAGE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mirror = Mirror::new(&device, &place)?;
    let lower = Mirror::part(&device, &place, 0, 4 * PAGE, WHOLE)?;
    let mut expected = mirror.scatter(15);
    lower.agrees("before")?;
    let resize =
        |pages: u64| -> TestResult { Ok(rustix::fs::ftruncate(&memfd, pages * PAGE as u64)?) };
    lower.keeps("the part that stays", || {
        mirror.loses("ftruncate", 8 * PAGE, || resize(8))
    })?;
    mirror.refused("behind the end", Errno::FAULT)?;
    lower.coherent_all_over("before the end")?;
    expected[..4 * PAGE].copy_from_slice(&place.to_vec(0, 4 * PAGE));
    expected[8 * PAGE..].fill(0);
    resize(16)?;
    check_eq!(
        mirror.csum(0, 16 * PAGE)?,
        compute::crc32c(0, &expected),
        "CRC32C after growing"
    );
    mirror.coherent_all_over("after growing")?;
    // The middle of a page: its rest reads as zeros.
    rustix::fs::ftruncate(&memfd, 100)?;
    let first = Mirror::part(&device, &place, 0, PAGE, WHOLE)?;
    first.agrees("the page in which the file ends")?;
    check_eq!(first.peek(104)?, 0, "behind the end, in the last page");
    Ok(())
}
