// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The cases of the kernel's hmm-tests that a device without memory of its own can have, by their
//! names. Those with a second driver need its test_hmm module.

use std::sync::atomic::{AtomicBool, Ordering};

use virtgpu_client::{compute, Bytes, Device, Errno, Memfd};

use super::support::{
    each_kind, family, on_each_kind, open, End, Mirror, READ_ONLY, SPARSE, WHOLE,
};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::dmirror::Dmirror;
use crate::support::place::{Pages, Place, NONE, READ, RW};
use crate::support::uffd::{Fault, Uffd};
use crate::support::{child, ext4, Env, Random, HUGE, P, PAGE};
use crate::{cases, check, check_eq, check_err};

pub(crate) const FAMILY: Family = family(
    "hmm_tests",
    cases![
        open_close,
        anon_read,
        anon_read_prot,
        anon_write,
        anon_write_prot,
        anon_write_child,
        anon_write_child_shared,
        anon_write_huge,
        anon_write_hugetlbfs,
        file_read,
        file_write,
        anon_read_multiple,
        anon_teardown: 300,
        mixedmap,
        snapshot,
        compound,
        double_map,
        exclusive,
        exclusive_mprotect,
        exclusive_cow,
        device_private,
        partial_unmap,
        remap_before_and_after: 300,
        userfaultfd_read,
    ],
);

/// The size of most buffers of hmm-tests.
const SIZE: usize = 64 * PAGE;

fn open_close(env: &Env) -> TestResult {
    for _ in 0..10 {
        let device = open(env)?;
        let place = Place::base(SIZE)?;
        drop(Mirror::new(&device, &place)?);
    }
    Ok(())
}

/// Two pages that no one has touched, and data.
fn anon_read(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let data = Random(1).bytes(SIZE - 2 * PAGE);
    place.write(2 * PAGE, &data);
    place.protect(0, SIZE, READ)?;
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    check_eq!(mirror.read(0, 2 * PAGE)?, vec![0; 2 * PAGE], "zero pages");
    check_eq!(mirror.read(2 * PAGE, data.len())?, data, "data");
    check!(mirror.count()?.faults >= 2, "two pages were faulted in");
    Ok(())
}

fn anon_read_prot(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    let data = mirror.scatter(2);
    place.protect(0, SIZE, NONE)?;
    mirror.refused("PROT_NONE", Errno::FAULT)?;
    place.protect(0, SIZE, READ)?;
    check_eq!(place.to_vec(0, SIZE), data, "the memory");
    check_eq!(mirror.read(0, SIZE)?, data, "the device's view");
    Ok(())
}

fn anon_write(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = Random(3).bytes(SIZE);
    mirror.write(0, &data)?;
    check_eq!(place.to_vec(0, SIZE), data, "the memory");
    Ok(())
}

fn anon_write_prot(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    place.protect(0, SIZE, READ)?;
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    check_eq!(reader.peek(PAGE)?, 0, "reading one zero page");
    let writer = Mirror::new(&device, &place)?;
    check_eq!(
        writer.end(&writer.writing(0, 1))?,
        End::Refused(Errno::PERM),
        "writing"
    );
    check_eq!(place.to_vec(0, SIZE), vec![0; SIZE], "the memory");
    place.protect(0, SIZE, RW)?;
    let data = Random(4).bytes(SIZE);
    writer.write(0, &data)?;
    check_eq!(
        place.to_vec(0, SIZE),
        data,
        "the memory, once it is writable"
    );
    check_eq!(reader.read(0, SIZE)?, data, "the reader's view");
    Ok(())
}

/// The child's device writes to the child's copy.
fn anon_write_child(env: &Env) -> TestResult {
    on_each_kind(env, HUGE, |device, place| {
        let mirror = Mirror::new(device, place)?;
        let data = mirror.scatter(5);
        mirror.agrees("before")?;
        child::run(|| {
            check_eq!(place.to_vec(0, HUGE), data, "the child's copy");
            let own = Device::open()?;
            own.context_init_compute(4)?;
            let inner = Mirror::new(&own, place)?;
            let other = Random(6).bytes(HUGE);
            inner.write(0, &other)?;
            check_eq!(place.to_vec(0, HUGE), other, "the child's memory");
            Ok(())
        })?;
        check_eq!(place.to_vec(0, HUGE), data, "the parent's memory");
        mirror.agrees("the parent's device")
    })
}

fn anon_write_child_shared(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_with(0, SIZE, RW, libc::MAP_SHARED)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(7);
    mirror.agrees("before")?;
    let data = Random(8).bytes(SIZE);
    child::run(|| {
        let own = open(env)?;
        let inner = Mirror::new(&own, &place)?;
        inner.write(0, &data)
    })?;
    check_eq!(place.to_vec(0, SIZE), data, "the parent's memory");
    mirror.agrees("the parent's device")
}

fn written_by_the_device(env: &Env, pages: Pages) -> TestResult {
    let device = open(env)?;
    let place = Place::new(pages, 2 * HUGE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = Random(9).bytes(2 * HUGE);
    mirror.write(0, &data)?;
    check_eq!(place.to_vec(0, 2 * HUGE), data, "the memory");
    Ok(())
}

fn anon_write_huge(env: &Env) -> TestResult {
    written_by_the_device(env, Pages::Huge)
}

fn anon_write_hugetlbfs(env: &Env) -> TestResult {
    written_by_the_device(env, Pages::Hugetlb)
}

/// Files of a file system in memory and of one on a disk.
fn files() -> TestResult<Vec<(&'static str, std::fs::File)>> {
    let mut files = Vec::new();
    let mut add = |what, path: std::path::PathBuf| -> TestResult {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        file.set_len(SIZE as u64)?;
        std::fs::remove_file(path)?;
        files.push((what, file));
        Ok(())
    };
    add("tmpfs", "/dev/shm/virtgpu-tests-hmm".into())?;
    match ext4::folder() {
        Ok(folder) => add("ext4", folder.join("hmm"))?,
        Err(Outcome::Skip(reason)) => println!("    # ext4: not tested, {reason}"),
        Err(error) => return Err(error),
    }
    Ok(files)
}

fn file_read(env: &Env) -> TestResult {
    use std::os::unix::fs::FileExt;
    let device = open(env)?;
    for (what, file) in files()? {
        let data = Random(10).bytes(SIZE);
        file.write_all_at(&data, 0)?;
        let place = Place::reserve(Pages::Base, SIZE)?;
        place.map_file(0, SIZE, &file, 0, [READ, libc::MAP_SHARED])?;
        let mirror = Mirror::with(&device, &place, READ_ONLY)?;
        check_eq!(mirror.read(0, SIZE)?, data, "the device's view of {what}");
    }
    Ok(())
}

fn file_write(env: &Env) -> TestResult {
    use std::os::unix::fs::FileExt;
    let device = open(env)?;
    for (what, file) in files()? {
        let place = Place::reserve(Pages::Base, SIZE)?;
        place.map_file(0, SIZE, &file, 0, [RW, libc::MAP_SHARED])?;
        let mirror = Mirror::new(&device, &place)?;
        let data = Random(11).bytes(SIZE);
        mirror.write(0, &data)?;
        let mut read = vec![0; SIZE];
        file.read_exact_at(&mut read, 0)?;
        check_eq!(read, data, "the file on {what}");
    }
    Ok(())
}

/// Again and again at the same address; no data of the time before.
fn anon_read_multiple(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let lasting = Mirror::with(&device, &place, READ_ONLY)?;
    for round in 0..env.iterations(32) {
        place.map(0, SIZE)?;
        let mirror = Mirror::with(&device, &place, READ_ONLY)?;
        let data = mirror.scatter(round);
        check_eq!(mirror.read(0, SIZE)?, data, "round {round}");
        lasting.agrees("the registration that stays")?;
    }
    Ok(())
}

/// Half of the memory goes away while the device reads it.
fn anon_teardown(env: &Env) -> TestResult {
    let device = open(env)?;
    for round in 0..env.iterations(32) {
        let place = Place::base(SIZE)?;
        place.fill(0x77);
        let mirror = Mirror::with(&device, &place, READ_ONLY)?;
        let expected = compute::crc32c(0, &vec![0x77; SIZE]);
        let going = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| -> TestResult {
                loop {
                    let last = !going.load(Ordering::Acquire);
                    match mirror.end(&mirror.reading())? {
                        End::Done => {
                            check!(!last, "a job on what was unmapped before");
                            check_eq!(mirror.result(), expected, "what a job has read");
                        }
                        End::Refused(Errno::FAULT) => return Ok(()),
                        End::Refused(Errno::BUSY) => {}
                        other => return Err(Outcome::Fail(format!("a job: {other:?}"))),
                    }
                }
            });
            place.unmap(round as usize % 2 * SIZE / 2, SIZE / 2)?;
            going.store(false, Ordering::Release);
            reader.join().expect("no panic")
        })?;
    }
    Ok(())
}

/// Pages that a driver has put into the page table one by one.
fn mixedmap(env: &Env) -> TestResult {
    let other = Dmirror::open()?;
    let device = open(env)?;
    let place = Place::reserve(Pages::Base, PAGE)?;
    place.map_file(0, PAGE, &other, 0, [READ, libc::MAP_PRIVATE])?;
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    check_eq!(mirror.read(0, PAGE)?, vec![0; PAGE], "the device's view");
    Ok(())
}

/// Page by page: what may be read and what may be written.
fn snapshot(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(8 * PAGE)?;
    let memfd = Memfd::new(P)?;
    place.unmap(0, PAGE)?;
    check_eq!(place.read_u64(PAGE), 0, "a zero page");
    place.write_u64(2 * PAGE, 2);
    place.protect(2 * PAGE, PAGE, READ)?;
    place.write_u64(3 * PAGE, 3);
    place.protect(4 * PAGE, PAGE, NONE)?;
    place.map_file(5 * PAGE, PAGE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    place.map_file(6 * PAGE, PAGE, &memfd, 0, [READ, libc::MAP_PRIVATE])?;
    let reader = Mirror::with(&device, &place, READ_ONLY.sparse())?;
    let writer = Mirror::with(&device, &place, SPARSE)?;
    let (fault, perm) = (Err(Errno::FAULT), Err(Errno::PERM));
    let pages = [
        ("a hole", fault, fault),
        ("a zero page", Ok(P), Ok(P)),
        ("a page that may be read", Ok(P), perm),
        ("a page that may be written", Ok(P), Ok(P)),
        ("a page without access", fault, fault),
        ("a shared page of a file", Ok(P), Ok(P)),
        ("a private page of a file", Ok(P), perm),
        ("a page that no one has touched", Ok(P), Ok(P)),
    ];
    for (page, (what, read, _)) in pages.into_iter().enumerate() {
        let result = reader.userptr.prefetch(page as u64 * P, P);
        check_eq!(result, read, "{what}, reading");
    }
    check_eq!(reader.count()?.mapped_bytes, 6 * P, "bytes to read");
    for (page, (what, _, write)) in pages.into_iter().enumerate() {
        let result = writer.userptr.prefetch(page as u64 * P, P);
        check_eq!(result, write, "{what}, writing");
    }
    check_eq!(writer.count()?.mapped_bytes, 4 * P, "bytes to write");
    check_eq!(reader.peek(2 * PAGE)?, 2, "the page that may be read");
    writer.coherent("the page that may be written", 3 * PAGE)
}

/// A huge page is one entry, whatever its rights.
fn compound(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::new(Pages::Hugetlb, HUGE)?;
    place.fill(1);
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    mirror.agrees("writable")?;
    check_eq!(mirror.count()?.entries, 1, "entries");
    mirror.loses("mprotect", HUGE, || place.protect(0, HUGE, READ))?;
    mirror.agrees("read-only")?;
    check_eq!(mirror.count()?.entries, 2, "entries after mprotect");
    Ok(())
}

fn double_map(env: &Env) -> TestResult {
    let (first, second) = (open(env)?, open(env)?);
    let place = Place::base(SIZE)?;
    let (one, two) = (
        Mirror::with(&first, &place, READ_ONLY)?,
        Mirror::with(&second, &place, READ_ONLY)?,
    );
    let data = one.scatter(12);
    check_eq!(one.read(0, SIZE)?, data, "the first device's view");
    check_eq!(two.read(0, SIZE)?, data, "the second device's view");
    one.loses("munmap, the first", SIZE, || {
        two.loses("munmap, the second", SIZE, || place.unmap(0, SIZE))
    })?;
    one.refused("the first", Errno::FAULT)?;
    two.refused("the second", Errno::FAULT)
}

/// What another device has for itself is revoked from it.
fn exclusive(env: &Env) -> TestResult {
    let other = Dmirror::open()?;
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(13);
    let (address, pages) = (place.address(0), SIZE / PAGE);
    let seen = mirror.loses("becoming exclusive", SIZE, || {
        Ok(other.make_exclusive(address, pages)?)
    })?;
    check_eq!(seen, data, "the other device's view");
    check!(
        other.is_exclusive(address, pages)?,
        "the pages are exclusive"
    );
    mirror.poke(PAGE, 14)?;
    check!(
        !other.is_exclusive(address, pages)?,
        "the pages are not exclusive after our device's write"
    );
    check_eq!(place.read_u64(PAGE), 14, "our view");
    check_eq!(
        other.read(address, pages)?,
        place.to_vec(0, SIZE),
        "the other device's view in the end"
    );
    mirror.coherent_all_over("in the end")
}

fn exclusive_mprotect(env: &Env) -> TestResult {
    let other = Dmirror::open()?;
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(15);
    other.make_exclusive(place.address(0), SIZE / PAGE)?;
    place.protect(0, SIZE, READ)?;
    mirror.refused("read-only memory", Errno::PERM)?;
    check_err!(
        other.write(place.address(0), &mut vec![1; SIZE]),
        Errno::PERM,
        "a write of the other device"
    );
    check_eq!(place.to_vec(0, SIZE), data, "the memory");
    Ok(())
}

fn exclusive_cow(env: &Env) -> TestResult {
    let other = Dmirror::open()?;
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(16);
    other.make_exclusive(place.address(0), SIZE / PAGE)?;
    let child = child::hold(|| {
        check_eq!(place.to_vec(0, SIZE), data, "the child's copy");
        place.fill(1);
        Ok(())
    })?;
    mirror.poke(PAGE, 17)?;
    child.release()?;
    check_eq!(place.read_u64(PAGE), 17, "the device's write");
    mirror.agrees("in the end")?;
    mirror.coherent_all_over("in the end")
}

/// Pages in the other device's memory come back for ours.
fn device_private(env: &Env) -> TestResult {
    let other = Dmirror::open()?;
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(18);
    let seen = mirror.loses("migrating", SIZE, || {
        Ok(other.migrate(place.address(0), SIZE / PAGE)?)
    })?;
    check_eq!(seen, data, "the other device's view");
    check_eq!(mirror.read(0, SIZE)?, data, "our device's view");
    mirror.coherent_all_over("in the end")?;
    check_eq!(
        place.to_vec(2 * PAGE, PAGE),
        data[2 * PAGE..3 * PAGE],
        "our view"
    );
    Ok(())
}

/// Parts of a huge page go, the rest stays as it was.
fn partial_unmap(env: &Env) -> TestResult {
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        for offset in [0, HUGE / 4, HUGE / 2] {
            let device = open(env)?;
            let place = Place::new(pages, HUGE)?;
            let mirror = Mirror::new(&device, &place)?;
            let mut expected = Random(offset as u64).bytes(HUGE);
            mirror.write(0, &expected)?;
            mirror.loses("munmap", HUGE / 2, || place.unmap(offset, HUGE / 2))?;
            mirror.refused("a hole", Errno::FAULT)?;
            for (start, end) in [(0, offset), (offset + HUGE / 2, HUGE)] {
                check_eq!(
                    place.to_vec(start, end - start),
                    expected[start..end],
                    "{pages:?} pages, {offset:#x} unmapped: our view of {start:#x}"
                );
            }
            place.map(offset, HUGE / 2)?;
            expected[offset..offset + HUGE / 2].fill(0);
            check_eq!(
                mirror.csum(0, HUGE)?,
                compute::crc32c(0, &expected),
                "{pages:?} pages, {offset:#x} unmapped: CRC32C"
            );
        }
        Ok(())
    })
}

/// The device uses memory before or after it has moved.
fn remap_before_and_after(env: &Env) -> TestResult {
    let device = open(env)?;
    each_kind(&[Pages::Base, Pages::Huge], |pages| {
        for flags in [0, libc::MREMAP_DONTUNMAP] {
            for offset in [0, HUGE / 4, HUGE / 2] {
                for before in [false, true] {
                    let what = format!("{pages:?} pages, flags {flags}, {offset:#x}, {before}");
                    let place = Place::new(pages, HUGE)?;
                    let target = Place::reserve(pages, 2 * HUGE)?;
                    let old = Mirror::new(&device, &place)?;
                    let data = old.scatter(offset as u64);
                    if before {
                        place.move_to(0, HUGE, &target, offset, flags)?;
                    } else {
                        old.agrees(&what)?;
                        old.loses(&what, HUGE, || {
                            place.move_to(0, HUGE, &target, offset, flags)
                        })?;
                    }
                    let new = Mirror::part(&device, &target, offset, HUGE, WHOLE)?;
                    check_eq!(
                        new.csum(0, HUGE)?,
                        compute::crc32c(0, &data),
                        "{what}: the new place"
                    );
                    new.coherent_all_over(&what)?;
                    if flags == 0 {
                        old.refused(&what, Errno::FAULT)?;
                    } else {
                        check_eq!(old.peek(PAGE)?, 0, "{what}: the old place");
                        old.coherent_all_over(&what)?;
                    }
                }
            }
        }
        Ok(())
    })
}

fn userfaultfd_read(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let uffd = Uffd::missing(&place)?;
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    let data = Random(19).bytes(SIZE);
    let fill = |uffd: &Uffd, fault: Fault| {
        let at = (fault.address - place.address(0)) as usize;
        uffd.copy(fault.address, &data[at..at + PAGE])
    };
    let faults = uffd.resolving(fill, || {
        check_eq!(mirror.read(0, SIZE)?, data, "the device's view");
        Ok(())
    })?;
    check_eq!(faults, (SIZE / PAGE) as u64, "faults resolved");
    check_eq!(place.to_vec(0, SIZE), data, "our view");
    Ok(())
}
