// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Files: without room, with holes, cut off.

use std::fs::{self, File};

use virtgpu_client::protocol::uapi::svm_access;
use virtgpu_client::{Bytes, Memfd};

use super::SIZE;
use crate::ktap::TestResult;
use crate::support::file::{fill_disk, punch};
use crate::support::place::{Pages, Place, RW};
use crate::support::{ext4, procfs, Env, HUGE, PAGE};
use crate::svm::support::{bad_address, open, open_with, End, Svm, USUAL};
use crate::{check_eq, skip};

/// Pages of a file that the device has only read need not be written anywhere, although the process
/// may write them without a fault.
pub(super) fn reading_dirties_no_file(env: &Env) -> TestResult {
    let svm = open_with(env, USUAL.exact())?;
    let memfd = Memfd::new(SIZE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    svm.sees("a hole", &place, &[0; SIZE])?;
    let frames: Vec<u64> = place.frames()?.into_iter().flatten().collect();
    check_eq!(frames.len(), SIZE / PAGE, "pages in memory");
    let dirty = || -> TestResult<usize> {
        let flags = procfs::page_flags(&frames)?;
        let is_dirty = |flags: &&u64| **flags & procfs::kernel_page::DIRTY != 0;
        Ok(flags.iter().filter(is_dirty).count())
    };
    check_eq!(dirty()?, 0, "dirty pages, of which the device has read all");
    place.advise(0, SIZE, libc::MADV_DONTNEED)?;
    check_eq!(dirty()?, 0, "dirty pages that the device has lost");
    svm.poke(place.address(3 * PAGE), 4)?;
    place.advise(0, SIZE, libc::MADV_DONTNEED)?;
    check_eq!(dirty()?, 1, "dirty pages, of which it has written one");
    check_eq!(place.read_u64(3 * PAGE), 4, "what it has written");
    Ok(())
}

/// A write to a hole of a file on a full disk is refused, as to a CPU.
pub(super) fn writeback_enospc(env: &Env) -> TestResult {
    let svm = open(env)?;
    let folder = ext4::folder()?;
    let (path, filler_path) = (folder.join("svm-sparse"), folder.join("svm-filler"));
    let options = || {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        options
    };
    let file = options().open(&path)?;
    file.set_len(SIZE as u64)?;
    let filler = options().open(&filler_path)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &file, 0, [RW, libc::MAP_SHARED])?;
    fill_disk(&filler)?;
    let read = svm.agrees("a hole, which may be read", &place);
    let written = svm.end(&Svm::writing(place.address(0), 1));
    drop(filler);
    fs::remove_file(filler_path)?;
    // The room comes back when the file system has written that down.
    // SAFETY: Takes nothing.
    unsafe { libc::sync() };
    read?;
    check_eq!(written?, End::Lost, "a job with the disk full");
    svm.is_lost(
        "a full disk",
        bad_address(svm_access::WRITE, place.address(0)),
    )?;
    open(env)?.coherent_all_over("with room on the disk again", &place)?;
    drop(place);
    fs::remove_file(path)?;
    Ok(())
}

pub(super) fn hugetlb_punch(env: &Env) -> TestResult {
    use rustix::fs::MemfdFlags;
    let svm = open(env)?;
    if !procfs::reserve_hugepages(4)? {
        skip!("no room for hugetlb pages");
    }
    let memfd = Memfd::with_flags(2 * HUGE as u64, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB)?;
    let place = Place::reserve(Pages::Hugetlb, 2 * HUGE)?;
    place.map_file(0, 2 * HUGE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mut expected = Svm::scatter(&place, 9);
    svm.loses("a hole", &place, HUGE, || punch(&memfd, HUGE, HUGE))?;
    expected[HUGE..].fill(0);
    svm.sees("with the hole", &place, &expected)?;
    svm.coherent_all_over("in the end", &place)
}

/// What is behind the end of a file is gone, and comes back empty.
pub(super) fn truncated(env: &Env) -> TestResult {
    let svm = open(env)?;
    let memfd = Memfd::new(SIZE as u64)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let mut expected = Svm::scatter(&place, 10);
    let half = SIZE / 2;
    svm.loses("ftruncate", &place, half, || {
        Ok(rustix::fs::ftruncate(&memfd, half as u64)?)
    })?;
    svm.sees("before the end", &place, &expected[..half])?;
    rustix::fs::ftruncate(&memfd, SIZE as u64)?;
    expected[half..].fill(0);
    svm.sees("long again", &place, &expected)?;
    rustix::fs::ftruncate(&memfd, half as u64)?;
    svm.fails(
        "behind the end",
        &svm.reading(place.address(half)),
        bad_address(svm_access::READ, place.address(half)),
    )
}
