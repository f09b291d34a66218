// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Huge pages of files: of a disk, of a tmpfs, of a memfd; and hugetlb pages of a file that two
//! mappings reach by the same page table.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use virtgpu_client::{compute, Bytes, Device, Errno, Memfd};

use super::support::{family, open, Mirror, READ_ONLY, WHOLE};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::file::punch;
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::setting::Setting;
use crate::support::{child, ext4, procfs, program, thp, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = family(
    "mm_huge_file",
    cases![
        of_a_disk: 300,
        of_a_memfd,
        of_a_tmpfs,
        table_of_two_mappings,
        table_of_two_processes,
    ],
);

/// A file on ext4 that is made of small pages, and its mapping.
fn on_disk(name: &str, data: &[u8]) -> TestResult<(PathBuf, File, Place)> {
    let path = ext4::folder()?.join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    // What is written at once may be a huge page at once.
    for (page, bytes) in data.chunks(PAGE).enumerate() {
        file.write_all_at(bytes, (page * PAGE) as u64)?;
    }
    // Only clean pages become one.
    file.sync_all()?;
    let place = Place::reserve(Pages::Base, data.len())?;
    place.map_file(0, data.len(), &file, 0, [RW, libc::MAP_SHARED])?;
    Ok((path, file, place))
}

/// Pages of a file on a disk become huge ones, which are read by a device like any other. A write,
/// by whomever, takes them apart, and what was written reaches the file.
fn of_a_disk(env: &Env) -> TestResult {
    const SIZE: usize = 2 * HUGE;
    let device = open(env)?;
    let mut expected = Random(8).bytes(SIZE);
    {
        // Where no device has the pages, either: then it is not the device's fault.
        let (path, _, control) = on_disk("control", &expected)?;
        control.to_vec(0, SIZE);
        let collapsed = thp::collapse(&control);
        fs::remove_file(path)?;
        if let Err(Outcome::Fail(reason)) = collapsed {
            skip!("no collapse here: {reason}");
        }
        collapsed?;
    }
    let (path, file, place) = on_disk("huge", &expected)?;
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    reader.agrees("small pages")?;
    reader.loses("MADV_COLLAPSE", SIZE, || thp::collapse(&place))?;
    place.to_vec(0, SIZE);
    check_eq!(
        procfs::smaps(place.address(0), "FilePmdMapped:")?,
        SIZE as u64,
        "bytes mapped as huge pages after MADV_COLLAPSE"
    );
    check!(
        place.is_huge(0)? && place.is_huge(HUGE)?,
        "pages mapped as huge ones are small"
    );
    let check = |what: &str, expected: &[u8]| -> TestResult {
        check_eq!(
            reader.csum(0, SIZE)?,
            compute::crc32c(0, expected),
            "CRC32C {what}"
        );
        Ok(())
    };
    let before = reader.count()?.entries;
    check("of huge pages", &expected)?;
    let entries = reader.count()?.entries - before;
    check!(entries <= 2, "{entries} entries for two huge pages");
    file.write_all_at(&[7; PAGE], 5 * PAGE as u64)?;
    expected[5 * PAGE..6 * PAGE].fill(7);
    check("after write(2)", &expected)?;
    let writer = Mirror::new(&device, &place)?;
    reader.loses("the device's write", SIZE, || writer.poke(HUGE + PAGE, 9))?;
    expected[HUGE + PAGE..][..8].copy_from_slice(&9_u64.to_ne_bytes());
    check("after the device's write", &expected)?;
    writer.loses("a hole", PAGE, || {
        reader.loses("a hole", PAGE, || punch(&file, HUGE + 3 * PAGE, PAGE))
    })?;
    expected[HUGE + 3 * PAGE..][..PAGE].fill(0);
    check("with a hole", &expected)?;
    file.sync_all()?;
    check!(fs::read(&path)? == expected, "the file has other bytes");
    writer.coherent_all_over("in the end")?;
    drop((reader, writer));
    fs::remove_file(path)?;
    Ok(())
}

/// Huge pages of a file in memory, which a hole is made in.
fn in_memory(env: &Env, file: impl AsFd, advice: Option<i32>) -> TestResult {
    let device = open(env)?;
    let place = Place::reserve(Pages::Base, 2 * HUGE)?;
    place.map_file(0, 2 * HUGE, &file, 0, [RW, libc::MAP_SHARED])?;
    if let Some(advice) = advice {
        place.try_advise(0, 2 * HUGE, advice, "MADV_HUGEPAGE")?;
    }
    place.fill(1);
    if procfs::smaps(place.address(0), "ShmemPmdMapped:")? < 2 * HUGE as u64 {
        skip!("the kernel gave small pages");
    }
    let mirror = Mirror::new(&device, &place)?;
    let mut expected = mirror.scatter(7);
    mirror.agrees("huge pages of shared memory")?;
    let entries = mirror.count()?.entries;
    check!(entries <= 2, "{entries} entries for two huge pages");
    mirror.loses("a hole", PAGE, || punch(&file, HUGE + 3 * PAGE, PAGE))?;
    expected[HUGE + 3 * PAGE..HUGE + 4 * PAGE].fill(0);
    check_eq!(
        mirror.csum(0, 2 * HUGE)?,
        compute::crc32c(0, &expected),
        "CRC32C with a hole"
    );
    mirror.coherent_all_over("in the end")
}

fn of_a_memfd(env: &Env) -> TestResult {
    let _on = Setting::new(
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "advise",
    )?;
    let memfd = Memfd::new(2 * HUGE as u64)?;
    in_memory(env, &memfd, Some(libc::MADV_HUGEPAGE))
}

/// Of a file system that gives huge pages unasked.
fn of_a_tmpfs(env: &Env) -> TestResult {
    const FOLDER: &str = "/tmp/virtgpu-tests-huge";
    fs::create_dir_all(FOLDER)?;
    program::run(
        "mount",
        &["-t", "tmpfs", "-o", "huge=always", "huge", FOLDER],
    )?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(Path::new(FOLDER).join("file"));
    let result = file.map_err(Into::into).and_then(|file| {
        file.set_len(2 * HUGE as u64)?;
        in_memory(env, &file, None)
    });
    let unmounted = program::run("umount", &[FOLDER]);
    result?;
    unmounted.map(drop)
}

/// What a table of hugetlb pages has addresses for: two mappings of as much of a file, at multiples
/// of it, have one table.
const TABLE: usize = 1 << 30;

/// As many pages at the beginning of the file are used.
const USED: usize = 4;

/// A file of hugetlb pages with a table of its own.
fn hugetlb_file() -> TestResult<Memfd> {
    if !procfs::reserve_hugepages(USED as u64)? {
        skip!("no room for hugetlb pages");
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    Ok(Memfd::with_flags(TABLE as u64, flags)?)
}

fn map_table(place: &Place, memfd: &Memfd) -> TestResult {
    // Most of it is never used, and nothing is reserved for it.
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    place.map_file(0, TABLE, memfd, 0, [RW, flags])
}

fn table(memfd: &Memfd) -> TestResult<Place> {
    let place = Place::reserve_at(Pages::Hugetlb, TABLE, TABLE)?;
    map_table(&place, memfd)?;
    Ok(place)
}

/// The frame of a huge page, if the table of the place has it.
fn frame(place: &Place, page: usize) -> TestResult<Option<u64>> {
    Ok(procfs::frames(place.address(page * HUGE) as usize, 1)?[0])
}

/// Registers all used pages but the first: what goes with the table goes on both sides of it.
fn registered<'a>(device: &'a Device, place: &'a Place) -> TestResult<Mirror<'a>> {
    Mirror::part(device, place, HUGE, (USED - 1) * HUGE, WHOLE)
}

/// A job on the last of the pages lets a mapping of the file share the table of another that has
/// them all: it has the others, too, which no one has touched in it.
fn share<'a>(device: &'a Device, place: &'a Place, frames: [Option<u64>; USED]) -> TestResult {
    for page in 0..USED {
        check_eq!(frame(place, page)?, None, "page {page} of a new mapping");
    }
    let last = Mirror::part(device, place, (USED - 1) * HUGE, HUGE, WHOLE)?;
    last.peek(0)?;
    for (page, before) in frames.iter().enumerate() {
        check!(before.is_some(), "page {page} has gone");
        check_eq!(
            frame(place, page)?,
            *before,
            "page {page}: the mappings have a table each"
        );
    }
    Ok(())
}

fn frames(place: &Place) -> TestResult<[Option<u64>; USED]> {
    let mut frames = [None; USED];
    for (page, entry) in frames.iter_mut().enumerate() {
        *entry = frame(place, page)?;
    }
    Ok(frames)
}

/// Two mappings of a process.
fn table_of_two_mappings(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = hugetlb_file()?;
    let (one, two) = (table(&memfd)?, table(&memfd)?);
    for page in 0..USED {
        one.write_u64(page * HUGE, page as u64);
    }
    let first = registered(&device, &one)?;
    first.scatter(10);
    first.agrees("one mapping")?;
    share(&device, &two, frames(&one)?)?;
    let second = registered(&device, &two)?;
    second.agrees("the other mapping")?;
    first.poke(PAGE, 3)?;
    check_eq!(second.peek(PAGE)?, 3, "through the other mapping");
    let all = (USED - 1) * HUGE;
    first.keeps("the other's munmap", || {
        second.loses("munmap", all, || two.unmap(0, TABLE))
    })?;
    second.refused("munmap", Errno::FAULT)?;
    first.coherent_all_over("the other is gone")?;

    map_table(&two, &memfd)?;
    share(&device, &two, frames(&one)?)?;
    second.agrees("mapped again")?;
    // A mapping leaves the table as a whole.
    first.keeps("the other's mprotect", || {
        second.loses("mprotect of a page", all, || {
            two.protect(2 * HUGE, HUGE, READ)
        })
    })?;
    second.refused("a part that may only be read", Errno::PERM)?;
    first.coherent_all_over("beside a table of another")?;

    map_table(&two, &memfd)?;
    share(&device, &two, frames(&one)?)?;
    second.agrees("mapped a third time")?;
    first.loses("a hole, the one", all, || {
        second.loses("a hole, the other", all, || punch(&memfd, 2 * HUGE, HUGE))
    })?;
    check_eq!(first.peek(HUGE)?, 0, "the hole");
    second.agrees("with a hole")?;
    second.coherent_all_over("in the end")?;
    first.agrees("in the end")
}

/// A mapping each of two processes.
fn table_of_two_processes(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = hugetlb_file()?;
    let place = table(&memfd)?;
    for page in 0..USED {
        place.write_u64(page * HUGE, page as u64);
    }
    let mirror = registered(&device, &place)?;
    mirror.scatter(11);
    mirror.agrees("one process")?;
    let all = (USED - 1) * HUGE;
    // What a child has inherited is the mapping, not the table.
    let before = frames(&place)?;
    let child = child::hold(|| {
        let own = open(env)?;
        share(&own, &place, before)?;
        let inner = registered(&own, &place)?;
        inner.agrees("the child's device")?;
        inner.poke(PAGE, 6)?;
        inner.loses("the child's munmap", all, || place.unmap(0, TABLE))
    })?;
    mirror.keeps("another process's munmap", || child.release())?;
    check_eq!(mirror.peek(PAGE)?, 6, "the other device's write");
    mirror.coherent_all_over("the child is gone")?;

    let before = frames(&place)?;
    let child = child::hold(|| {
        let own = open(env)?;
        share(&own, &place, before)?;
        let inner = registered(&own, &place)?;
        inner.loses("a hole, the child", all, || punch(&memfd, 2 * HUGE, HUGE))?;
        check_eq!(inner.peek(HUGE)?, 0, "the child's view of the hole");
        inner.coherent_all_over("the child")
    })?;
    mirror.loses("a hole that another process makes", all, || child.release())?;
    check_eq!(mirror.peek(HUGE)?, 0, "the hole");
    mirror.agrees("in the end")?;
    mirror.coherent_all_over("in the end")
}
