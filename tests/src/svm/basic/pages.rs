// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a fault makes usable: no other page, no other rights, and files as the process has them.

use std::fs::{self, File};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, Bytes, Memory};

use crate::ktap::TestResult;
use crate::support::place::{Pages, Place, NONE, READ, RW};
use crate::support::{ext4, Env, Random, HUGE, PAGE};
use crate::svm::support::{at, open, open_with, Svm, USUAL};
use crate::{check, check_eq};

/// Reading does not make a page writable: the zero page stays what it is.
pub(super) fn read_then_write(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(8 * PAGE)?;
    for offset in (0..place.len()).step_by(PAGE) {
        check_eq!(svm.peek(place.address(offset))?, 0, "at first");
    }
    let other = Place::base(8 * PAGE)?;
    for offset in (0..place.len()).step_by(PAGE) {
        svm.poke(place.address(offset), offset as u64 + 1)?;
        check_eq!(place.read_u64(offset), offset as u64 + 1, "our view");
        check_eq!(svm.peek(place.address(offset))?, offset as u64 + 1, "its");
    }
    for offset in (0..other.len()).step_by(PAGE) {
        check_eq!(other.read_u64(offset), 0, "other memory without content");
    }
    Ok(())
}

/// What a job that goes through memory in order will touch next is mapped ahead of it: one or two
/// granules, and nothing beyond the end of the mapping. A fault maps one granule at most, so that
/// fewer faults than granules show it. That it is so each time is not promised.
pub(super) fn in_order_goes_ahead(env: &Env) -> TestResult {
    const GRANULES: usize = 8;
    const FILLED: usize = (1 + GRANULES) * HUGE;
    for (pages, length) in [
        (Pages::Base, 16 * HUGE),
        (Pages::Huge, 16 * HUGE),
        (Pages::Base, FILLED + 8 * PAGE),
    ] {
        let what = format!("{} bytes of {} pages", length, pages.name());
        let place = Place::new(pages, 16 * HUGE)?;
        place.protect(length, 16 * HUGE - length, NONE)?;
        let svm = open(env)?;
        let before = svm.count()?.mapped_bytes;
        svm.run("the first granule", &filling(place.address(0), HUGE))?;
        let begun = svm.count()?;
        let rest = filling(place.address(HUGE), FILLED - HUGE);
        svm.run("filling in order", &rest)?;
        let ended = svm.count()?;
        let served = ended.faults - begun.faults - (ended.coalesced - begun.coalesced);
        let mapped = ended.mapped_bytes - before;
        println!("    # {what}: {served} faults were served, {mapped} bytes are mapped");
        check!(
            served < GRANULES as u64,
            "{what}: {served} faults for {GRANULES} granules"
        );
        let most = (FILLED + 2 * HUGE).min(length) as u64;
        check!(mapped <= most, "{what}: {mapped} bytes are mapped");
        check_eq!(place.read_u64(FILLED - 8), PATTERN, "{what}: the end");
    }
    Ok(())
}

const PATTERN: u64 = 0x0102_0304_0506_0708;

fn filling(address: u64, length: usize) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.fill(at(address), length as u64, PATTERN);
    stream
}

/// Forgets what is in memory of files that no one uses.
fn drop_caches() -> TestResult {
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

fn file(name: &str, content: &[u8]) -> TestResult<(std::path::PathBuf, File)> {
    let path = ext4::folder()?.join(name);
    fs::write(&path, content)?;
    let file = File::options().read(true).write(true).open(&path)?;
    file.sync_all()?;
    Ok((path, file))
}

pub(super) fn file_shared_reaches_disk(env: &Env) -> TestResult {
    const SIZE: usize = 32 * PAGE;
    let svm = open(env)?;
    let (path, file) = file("svm-shared", &Random(4).bytes(SIZE))?;
    drop_caches()?;
    let mut data = Vec::new();
    {
        let place = Place::reserve(Pages::Base, SIZE)?;
        place.map_file(0, SIZE, &file, 0, [RW, libc::MAP_SHARED])?;
        // Read from the disk by the device's own fault.
        svm.sees("the file", &place, &Random(4).bytes(SIZE))?;
        for round in 5..8 {
            data = Random(round).bytes(SIZE);
            svm.write(place.address(0), &data)?;
            // A page that is being written back may be written again only after another fault.
            file.sync_all()?;
            svm.agrees("written back", &place)?;
        }
        data[..PAGE].fill(0x77);
        svm.write(place.address(0), &data[..PAGE])?;
    }
    file.sync_all()?;
    drop(file);
    drop_caches()?;
    check!(fs::read(&path)? == data, "the file on the disk");
    fs::remove_file(path)?;
    Ok(())
}

pub(super) fn file_private_stays_private(env: &Env) -> TestResult {
    const SIZE: usize = 8 * PAGE;
    let svm = open(env)?;
    let data = Random(6).bytes(SIZE);
    let (path, file) = file("svm-private", &data)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &file, 0, [RW, libc::MAP_PRIVATE])?;
    svm.sees("the file", &place, &data)?;
    svm.fill(&place, 0x11)?;
    check_eq!(place.read_u64(SIZE - 8), 0x11, "our view");
    file.sync_all()?;
    drop_caches()?;
    check!(
        fs::read(&path)? == data,
        "the file after the device's writes"
    );
    svm.coherent_all_over("in the end", &place)?;
    fs::remove_file(path)?;
    Ok(())
}

pub(super) fn exact_faults_one_page(env: &Env) -> TestResult {
    let svm = open_with(env, USUAL.exact())?;
    let place = Place::base(16 * PAGE)?;
    place.fill(1);
    for (count, page) in [5, 6, 4, 15, 0].into_iter().enumerate() {
        svm.run("a write", &Svm::writing(place.address(page * PAGE), 2))?;
        let (query, count) = (svm.count()?, count as u64 + 1);
        check_eq!(query.mapped_bytes, count * PAGE as u64, "bytes mapped");
        check_eq!(query.faults, count, "faults");
    }
    // Without it, a fault makes more usable than its own page.
    let svm = open(env)?;
    svm.run("a write", &Svm::writing(place.address(0), 3))?;
    check_eq!(
        svm.count()?.mapped_bytes,
        place.len() as u64,
        "bytes mapped around a fault"
    );
    Ok(())
}

/// What is mapped beside a fault has the same mapping; other rights are never given away.
pub(super) fn around_stays_in_vma(env: &Env) -> TestResult {
    const PART: usize = 4 * PAGE;
    let svm = open(env)?;
    let place = Place::base(3 * PART)?;
    place.fill(1);
    place.protect(PART, PART, READ)?;
    svm.run("a write", &Svm::writing(place.address(0), 2))?;
    check_eq!(
        svm.count()?.mapped_bytes,
        PART as u64,
        "bytes mapped around a write"
    );
    svm.run(
        "a write behind",
        &Svm::writing(place.address(3 * PART - 8), 2),
    )?;
    check_eq!(
        svm.count()?.mapped_bytes,
        2 * PART as u64,
        "bytes mapped around two writes"
    );
    check_eq!(
        svm.peek(place.address(PART))?,
        0x0101_0101_0101_0101,
        "read"
    );
    let cause = crate::svm::support::bad_access(uapi::svm_access::WRITE, place.address(PART));
    svm.fails(
        "a write to the middle",
        &Svm::writing(place.address(PART), 2),
        cause,
    )?;
    check_eq!(place.read_u64(PART), 0x0101_0101_0101_0101, "the middle");
    Ok(())
}
