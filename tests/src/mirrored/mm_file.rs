// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Files: what the device writes reaches the file, file systems know of every write, and no one
//! writes through a device what he could not write himself.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use rustix::fs::SealFlags;
use virtgpu_client::{compute, Bytes, Errno, Memfd, Memory};

use super::race::additions;
use super::support::{family, open, End, Mirror, READ_ONLY, WHOLE};
use crate::bad_memory::open_read_only;
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::file::fill_disk;
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::{child, ext4, Env, Random, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = family(
    "mm_file",
    cases![
        written_back,
        written_back_while_the_device_writes: 300,
        synced_by_msync,
        no_space,
        truncated,
        hole_punched,
        written_by_write,
        private_mapping,
        another_process_unmaps,
        mapped_twice,
        caches_dropped,
        file_of_root,
        memfd_sealed,
    ],
);

const PAGES: usize = 32;
const SIZE: usize = PAGES * PAGE;

/// A file on ext4, which wants to know of each write to a page.
fn file(name: &str, size: usize) -> TestResult<(PathBuf, File)> {
    let path = ext4::folder()?.join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    file.set_len(size as u64)?;
    Ok((path, file))
}

fn map(file: &File, prot: i32, flags: i32) -> TestResult<Place> {
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, file, 0, [prot, flags])?;
    Ok(place)
}

/// Forgets what is in memory of files that no one uses.
fn drop_caches() -> TestResult {
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// Each round writes other data; what is on the disk in the end is what the device wrote last.
fn written_back(env: &Env) -> TestResult {
    let device = open(env)?;
    let (path, file) = file("written-back", SIZE)?;
    let mut data = Vec::new();
    {
        let place = map(&file, RW, libc::MAP_SHARED)?;
        let mirror = Mirror::new(&device, &place)?;
        for round in 0..5 {
            data = Random(round).bytes(SIZE);
            mirror.write(0, &data)?;
            mirror.loses("writing back", SIZE, || Ok(file.sync_all()?))?;
            mirror.agrees("written back")?;
        }
        mirror.write(0, &data[..PAGE])?;
    }
    file.sync_all()?;
    drop(file);
    drop_caches()?;
    check_eq!(fs::read(&path)?, data, "the file");
    fs::remove_file(path)?;
    Ok(())
}

fn written_back_while_the_device_writes(env: &Env) -> TestResult {
    let device = open(env)?;
    let (path, file) = file("flushed", SIZE)?;
    let jobs = {
        let place = map(&file, RW, libc::MAP_SHARED)?;
        let mirror = Mirror::new(&device, &place)?;
        additions(&mirror, SIZE, env.rounds(60), |_| Ok(file.sync_data()?))?
    };
    file.sync_all()?;
    drop(file);
    drop_caches()?;
    for (index, word) in fs::read(&path)?.chunks_exact(4).enumerate() {
        check_eq!(
            u32::from_le_bytes(word.try_into().expect("4 bytes")),
            jobs,
            "additions to word {index} of the file"
        );
    }
    fs::remove_file(path)?;
    Ok(())
}

fn synced_by_msync(env: &Env) -> TestResult {
    let device = open(env)?;
    let (path, file) = file("msync", SIZE)?;
    let place = map(&file, RW, libc::MAP_SHARED)?;
    let mirror = Mirror::new(&device, &place)?;
    for round in 1..4_u64 {
        mirror.fill(round)?;
        mirror.loses("msync", SIZE, || {
            // SAFETY: Our own mapping; no content changes.
            let result = unsafe { libc::msync(place.as_ptr().cast(), SIZE, libc::MS_SYNC) };
            check_eq!(result, 0, "msync");
            Ok(())
        })?;
        let mut word = [0; 8];
        file.read_exact_at(&mut word, (SIZE - 8) as u64)?;
        check_eq!(u64::from_le_bytes(word), round, "the file");
        mirror.coherent_all_over("after msync")?;
    }
    fs::remove_file(path)?;
    Ok(())
}

/// A page of a file for which the disk has no room cannot be written, also not by a device.
fn no_space(env: &Env) -> TestResult {
    let device = open(env)?;
    let (path, file) = file("sparse", SIZE)?;
    let (filler_path, filler) = self::file("filler", 0)?;
    let place = map(&file, RW, libc::MAP_SHARED)?;
    let mirror = Mirror::new(&device, &place)?;
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    fill_disk(&filler)?;
    reader.agrees("a hole, which may be read")?;
    let result = mirror.end(&mirror.writing(0, 1));
    drop(filler);
    fs::remove_file(filler_path)?;
    // The room comes back when the file system has written that down.
    // SAFETY: Takes nothing.
    unsafe { libc::sync() };
    check_eq!(
        result?,
        End::Refused(Errno::FAULT),
        "a job with the disk full"
    );
    mirror.coherent_all_over("with room on the disk again")?;
    drop((mirror, reader));
    drop(place);
    fs::remove_file(path)?;
    Ok(())
}

fn truncated(env: &Env) -> TestResult {
    let device = open(env)?;
    let (path, file) = file("truncated", SIZE)?;
    let place = map(&file, RW, libc::MAP_SHARED)?;
    let mirror = Mirror::new(&device, &place)?;
    let lower = Mirror::part(&device, &place, 0, SIZE / 2, WHOLE)?;
    mirror.scatter(2);
    mirror.loses("ftruncate", SIZE / 2, || Ok(file.set_len(SIZE as u64 / 2)?))?;
    mirror.refused("behind the end", Errno::FAULT)?;
    lower.coherent_all_over("before the end")?;
    file.set_len(SIZE as u64)?;
    check_eq!(mirror.peek(SIZE - PAGE)?, 0, "the file has grown");
    mirror.coherent_all_over("the file has grown")?;
    fs::remove_file(path)?;
    Ok(())
}

fn hole_punched(env: &Env) -> TestResult {
    let device = open(env)?;
    let (path, file) = file("hole", SIZE)?;
    let place = map(&file, RW, libc::MAP_SHARED)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(3);
    mirror.agrees("before")?;
    mirror.loses("a hole", 2 * PAGE, || {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(
            &file,
            flags,
            4 * PAGE as u64,
            2 * PAGE as u64,
        )?)
    })?;
    check_eq!(mirror.peek(5 * PAGE)?, 0, "the hole");
    mirror.agrees("after")?;
    mirror.coherent("the hole, filled", 4 * PAGE)?;
    fs::remove_file(path)?;
    Ok(())
}

/// write(2) and the device meet in the same pages.
fn written_by_write(env: &Env) -> TestResult {
    let device = open(env)?;
    let (path, file) = file("write", SIZE)?;
    let place = map(&file, RW, libc::MAP_SHARED)?;
    let mirror = Mirror::new(&device, &place)?;
    for round in 0..10 {
        let data = Random(round).bytes(SIZE);
        file.write_all_at(&data, 0)?;
        check_eq!(
            mirror.csum(0, SIZE)?,
            compute::crc32c(0, &data),
            "the device's view of round {round}"
        );
        mirror.poke(3 * PAGE, round)?;
        let mut word = [0; 8];
        file.read_exact_at(&mut word, 3 * PAGE as u64)?;
        check_eq!(
            u64::from_le_bytes(word),
            round,
            "read(2) of the device's write"
        );
    }
    fs::remove_file(path)?;
    Ok(())
}

/// Reading sees the file, writing makes copies.
fn private_mapping(env: &Env) -> TestResult {
    let device = open(env)?;
    let (path, file) = file("private", SIZE)?;
    let data = Random(4).bytes(SIZE);
    file.write_all_at(&data, 0)?;
    let place = map(&file, RW, libc::MAP_PRIVATE)?;
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    check_eq!(reader.csum(0, SIZE)?, compute::crc32c(0, &data), "the file");
    file.write_all_at(&[7; 8], PAGE as u64)?;
    check_eq!(
        reader.peek(PAGE)?,
        0x0707_0707_0707_0707,
        "write(2) to the file"
    );
    // The copies take the file's pages away from the reader.
    let writer = Mirror::new(&device, &place)?;
    reader.loses("the device's write", SIZE, || writer.poke(PAGE, 8))?;
    check_eq!(reader.peek(PAGE)?, 8, "the copy");
    file.write_all_at(&[9; 8], PAGE as u64)?;
    check_eq!(
        reader.peek(PAGE)?,
        8,
        "the copy, after write(2) to the file"
    );
    let mut word = [0; 8];
    file.read_exact_at(&mut word, PAGE as u64)?;
    check_eq!(word, [9; 8], "the file");
    writer.coherent_all_over("the copy")?;
    fs::remove_file(path)?;
    Ok(())
}

fn another_process_unmaps(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(5)?;
    let child = child::hold(|| {
        let own = open(env)?;
        let inner = Mirror::new(&own, &place)?;
        check_eq!(inner.peek(PAGE)?, 5, "the child's device");
        inner.poke(PAGE, 6)?;
        inner.loses("the child's munmap", SIZE, || place.unmap(0, SIZE))
    })?;
    mirror.keeps("what another process does", || child.release())?;
    check_eq!(place.read_u64(PAGE), 6, "the other device's write");
    mirror.agrees("in the end")
}

fn mapped_twice(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let (one, two) = (
        Place::reserve(Pages::Base, SIZE)?,
        Place::reserve(Pages::Base, SIZE)?,
    );
    one.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    two.map_file(0, SIZE, &memfd, 0, [READ, libc::MAP_SHARED])?;
    let (writer, reader) = (
        Mirror::new(&device, &one)?,
        Mirror::with(&device, &two, READ_ONLY)?,
    );
    for round in 0..5_u64 {
        writer.fill(round)?;
        check_eq!(reader.peek(7 * PAGE)?, round, "through the other mapping");
        check_eq!(
            two.read_u64(7 * PAGE),
            round,
            "our view of the other mapping"
        );
    }
    // The file's pages go for both.
    writer.loses("a hole, the one", PAGE, || {
        reader.loses("a hole, the other", PAGE, || {
            let flags =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(&memfd, flags, 0, PAGE as u64)?)
        })
    })?;
    check_eq!(reader.peek(0)?, 0, "the hole");
    Ok(())
}

fn caches_dropped(env: &Env) -> TestResult {
    let device = open(env)?;
    let (path, file) = file("caches", SIZE)?;
    let place = map(&file, RW, libc::MAP_SHARED)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = Random(6).bytes(SIZE);
    mirror.write(0, &data)?;
    for _ in 0..3 {
        file.sync_all()?;
        // Out of the page table, then out of memory.
        place.advise(0, SIZE, libc::MADV_DONTNEED)?;
        drop_caches()?;
        check_eq!(
            mirror.csum(0, SIZE)?,
            compute::crc32c(0, &data),
            "read from the disk by the device"
        );
    }
    mirror.coherent_all_over("in the end")?;
    fs::remove_file(path)?;
    Ok(())
}

/// Everyone may read it: the device may too, and no more.
fn file_of_root(env: &Env) -> TestResult {
    drop(open(env)?);
    let folder = match ext4::folder() {
        Ok(folder) => folder,
        Err(Outcome::Skip(reason)) => skip!("{reason}"),
        Err(error) => return Err(error),
    };
    for path in [
        PathBuf::from("/dev/shm/virtgpu-tests-mirrored"),
        folder.join("root"),
    ] {
        fs::write(&path, vec![0x52; SIZE])?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        child::run(|| {
            child::drop_privileges()?;
            let device = open(env)?;
            let fd = open_read_only(path.to_str().expect("plain text"))?;
            let place = Place::reserve(Pages::Base, SIZE)?;
            place.map_file(0, SIZE, &fd, 0, [READ, libc::MAP_SHARED])?;
            let reader = Mirror::with(&device, &place, READ_ONLY)?;
            reader.agrees("the file")?;
            let writer = Mirror::new(&device, &place)?;
            writer.refused("a writable registration", Errno::PERM)?;
            reader.fails("a write", &reader.writing(PAGE, 0))
        })?;
        check!(
            fs::read(&path)?.iter().all(|byte| *byte == 0x52),
            "{} was changed through the device",
            path.display()
        );
        fs::remove_file(path)?;
    }
    Ok(())
}

fn memfd_sealed(env: &Env) -> TestResult {
    let device = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let before = memfd.map()?;
    before.fill(0x53);
    memfd.seal(SealFlags::FUTURE_WRITE)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [READ, libc::MAP_SHARED])?;
    let writer = Mirror::new(&device, &place)?;
    writer.refused("a writable registration", Errno::PERM)?;
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    reader.agrees("the file")?;
    before.write_u64(PAGE, 1);
    check_eq!(reader.peek(PAGE)?, 1, "a write through the older mapping");
    reader.fails("a write", &reader.writing(2 * PAGE, 0))?;
    check_eq!(before.read_u64(2 * PAGE), 0x5353_5353_5353_5353, "the file");
    Ok(())
}
