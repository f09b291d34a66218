// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Pages that become one and pages that fall apart: collapse and split of huge pages, merging of
//! equal ones.

use std::time::Duration;

use virtgpu_client::{compute, Bytes};

use super::race::additions;
use super::support::{family, open, Mirror, READ_ONLY};
use crate::ktap::{Family, TestResult};
use crate::support::ksm::{all_one, equal_pages, Merging};
use crate::support::place::{Pages, Place};
use crate::support::procfs::{self, kernel_page};
use crate::support::setting::Setting;
use crate::support::{agree, eventually, thp, Env, HUGE, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = family(
    "mm_huge",
    cases![
        collapse,
        collapse_read_only,
        split_by_the_kernel,
        split_by_a_part,
        collapse_and_split_while_the_device_writes: 300,
        by_khugepaged: 300,
        of_64_kib,
        merged,
        merged_and_written_by_the_device,
        hugetlb_pages,
    ],
);

fn collapse(env: &Env) -> TestResult {
    thp::can_collapse()?;
    let device = open(env)?;
    let place = thp::small(2 * HUGE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(1);
    mirror.agrees("small pages")?;
    mirror.loses("MADV_COLLAPSE", 2 * HUGE, || thp::collapse(&place))?;
    check!(
        place.is_huge(0)? && place.is_huge(HUGE)?,
        "MADV_COLLAPSE has succeeded, but the pages are small"
    );
    let before = mirror.count()?.entries;
    check_eq!(
        mirror.csum(0, 2 * HUGE)?,
        compute::crc32c(0, &data),
        "CRC32C of huge pages"
    );
    let entries = mirror.count()?.entries - before;
    check!(entries <= 2, "{entries} entries for two huge pages");
    mirror.coherent_all_over("huge pages")
}

fn collapse_read_only(env: &Env) -> TestResult {
    thp::can_collapse()?;
    let device = open(env)?;
    let place = Place::base(HUGE)?;
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    mirror.agrees("zero pages")?;
    place.write_u64(17 * PAGE, 2);
    mirror.agrees("zero pages and another")?;
    thp::collapse(&place)?;
    check_eq!(mirror.peek(17 * PAGE)?, 2, "the device's view");
    place.write_u64(18 * PAGE, 3);
    check_eq!(
        mirror.peek(18 * PAGE)?,
        3,
        "the device's view of a later write"
    );
    mirror.agrees("in the end")
}

const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// The kernel's thread makes pages one, which the device has, and no one has asked for.
fn by_khugepaged(env: &Env) -> TestResult {
    thp::can_collapse()?;
    let _eager = [
        Setting::new(format!("{SETTINGS}/khugepaged/scan_sleep_millisecs"), "10")?,
        Setting::new(format!("{SETTINGS}/khugepaged/alloc_sleep_millisecs"), "10")?,
        Setting::new(format!("{SETTINGS}/khugepaged/pages_to_scan"), "8192")?,
    ];
    let device = open(env)?;
    let place = thp::small(HUGE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(5);
    mirror.agrees("small pages")?;
    let told = mirror.stat()?.space_invalidates;
    place.advise(0, HUGE, libc::MADV_HUGEPAGE)?;
    let mut last = Ok(());
    let done = eventually(Duration::from_secs(60), || {
        last = mirror.agrees("while khugepaged looks");
        last.is_err() || place.is_huge(0) == Ok(true)
    });
    last?;
    if !done {
        skip!("the kernel gave small pages");
    }
    check!(
        mirror.stat()?.space_invalidates > told,
        "the device was not told"
    );
    check_eq!(
        mirror.csum(0, HUGE)?,
        compute::crc32c(0, &data),
        "CRC32C of the huge page"
    );
    mirror.coherent_all_over("a huge page")
}

/// Pages of a size in between.
fn of_64_kib(env: &Env) -> TestResult {
    const LARGE: usize = 64 << 10;
    const SIZE: usize = 8 * LARGE;
    let _on = Setting::new(format!("{SETTINGS}/hugepages-64kB/enabled"), "madvise")?;
    let device = open(env)?;
    let place = Place::new(Pages::Huge, SIZE)?;
    place.fill(1);
    let frames: Option<Vec<u64>> = place.frames()?.into_iter().collect();
    let frames = frames.unwrap_or_default();
    let large = frames.chunks(LARGE / PAGE).all(|chunk| {
        chunk[0] % (LARGE / PAGE) as u64 == 0 && chunk.windows(2).all(|two| two[0] + 1 == two[1])
    });
    let flags = procfs::page_flags(&frames)?;
    let heads = flags
        .iter()
        .filter(|flags| **flags & kernel_page::COMPOUND_HEAD != 0);
    if !large || heads.count() != SIZE / LARGE {
        skip!("the kernel gave small pages");
    }
    let mirror = Mirror::new(&device, &place)?;
    let mut expected = mirror.scatter(6);
    mirror.agrees("pages of 64 KiB")?;
    let entries = mirror.count()?.entries;
    check!(
        entries <= (SIZE / LARGE) as u64,
        "{entries} entries for {} pages",
        SIZE / LARGE
    );
    // Half of one, and across two.
    for (at, length) in [(LARGE, LARGE / 2), (4 * LARGE - PAGE, 2 * PAGE)] {
        mirror.loses("MADV_DONTNEED of a part", length, || {
            place.advise(at, length, libc::MADV_DONTNEED)
        })?;
        expected[at..at + length].fill(0);
        check_eq!(
            mirror.csum(0, SIZE)?,
            compute::crc32c(0, &expected),
            "CRC32C without {length:#x} bytes at {at:#x}"
        );
    }
    mirror.coherent_all_over("in the end")
}

/// The frames stay the same, and yet the device has to be told.
fn split_by_the_kernel(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = thp::huge()?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(2);
    mirror.agrees("a huge page")?;
    mirror.loses("splitting", HUGE, || thp::split(&place))?;
    check_eq!(
        mirror.csum(0, HUGE)?,
        compute::crc32c(0, &data),
        "CRC32C after splitting"
    );
    mirror.coherent_all_over("after splitting")
}

fn split_by_a_part(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = thp::huge()?;
    let mirror = Mirror::new(&device, &place)?;
    let mut expected = mirror.scatter(3);
    for page in [0, 77, 511] {
        mirror.loses("MADV_DONTNEED of a page", PAGE, || {
            place.advise(page * PAGE, PAGE, libc::MADV_DONTNEED)
        })?;
        expected[page * PAGE..(page + 1) * PAGE].fill(0);
        check_eq!(
            mirror.csum(0, HUGE)?,
            compute::crc32c(0, &expected),
            "CRC32C without page {page}"
        );
    }
    mirror.coherent_all_over("in the end")
}

fn collapse_and_split_while_the_device_writes(env: &Env) -> TestResult {
    thp::can_collapse()?;
    let device = open(env)?;
    let place = thp::huge()?;
    place.fill(0);
    let mirror = Mirror::new(&device, &place)?;
    let mut collapsed = 0;
    let jobs = additions(&mirror, HUGE, env.rounds(50), |_| {
        thp::split(&place)?;
        // A page that is just being faulted in keeps the pages from becoming one.
        collapsed += u32::from(place.advise(0, HUGE, libc::MADV_COLLAPSE).is_ok());
        Ok(())
    })?;
    println!("    # collapsed {collapsed} times");
    agree::added(&place, jobs)?;
    mirror.coherent_all_over("in the end")
}

/// Reading merged pages does not take them apart; our own write does, and only that page.
fn merged(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = equal_pages()?;
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    mirror.agrees("before")?;
    // The device has the pages mapped: merging has to invalidate them.
    let before = mirror.stat()?.space_invalidates;
    let _merging = Merging::start()?;
    check!(
        eventually(Duration::from_secs(60), || all_one(&place)),
        "pages that a device reads are not merged"
    );
    check!(
        mirror.stat()?.space_invalidates > before,
        "the device was not told of the merging"
    );
    mirror.agrees("merged")?;
    check!(all_one(&place), "reading has taken the pages apart");
    mirror.loses("our write", PAGE, || {
        place.write_u64(5 * PAGE, 1);
        Ok(())
    })?;
    check_eq!(mirror.peek(5 * PAGE)?, 1, "the device's view of our write");
    mirror.agrees("in the end")
}

fn merged_and_written_by_the_device(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = equal_pages()?;
    let merging = Merging::start()?;
    check!(
        eventually(Duration::from_secs(60), || all_one(&place)),
        "pages that no one uses are not merged"
    );
    let mirror = Mirror::new(&device, &place)?;
    mirror.poke(5 * PAGE, 2)?;
    for page in 0..16 {
        let expected = if page == 5 { 2 } else { 0x3c3c_3c3c_3c3c_3c3c };
        check_eq!(place.read_u64(page * PAGE), expected, "page {page}");
    }
    // The other 15 are equal still, and merged again sooner or later; the device does not mind.
    for round in 0..env.iterations(20) {
        mirror.poke(6 * PAGE + 8, round)?;
        check_eq!(place.read_u64(6 * PAGE + 8), round, "our view");
        check_eq!(mirror.peek(7 * PAGE)?, 0x3c3c_3c3c_3c3c_3c3c, "its view");
    }
    drop(merging);
    mirror.agrees("taken apart")?;
    mirror.coherent_all_over("taken apart")
}

/// hugetlb pages come and go as a whole.
fn hugetlb_pages(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::new(Pages::Hugetlb, 2 * HUGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(4);
    mirror.agrees("before")?;
    let count = mirror.count()?;
    check!(
        count.entries <= 2,
        "{} entries for two pages",
        count.entries
    );
    mirror.loses("MADV_DONTNEED", HUGE, || {
        place.advise(HUGE, HUGE, libc::MADV_DONTNEED)
    })?;
    check_eq!(mirror.peek(HUGE + PAGE)?, 0, "a new page");
    mirror.agrees("after")?;
    mirror.coherent_all_over("after")
}
