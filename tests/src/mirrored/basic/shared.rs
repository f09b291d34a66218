// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory of several registrations, contexts or files.

use virtgpu_client::{compute, Bytes, Device, Memory, Registration};

use crate::ktap::TestResult;
use crate::mirrored::support::{on_each_kind, open, Mirror, READ_ONLY, WHOLE};
use crate::support::place::{Pages, Place, RW};
use crate::support::{job, Env, HUGE, P, PAGE};
use crate::{check, check_eq};

pub(super) fn overlapping(env: &Env) -> TestResult {
    on_each_kind(env, 4 * HUGE, |device, place| {
        let low = Mirror::part(device, place, 0, 2 * HUGE, WHOLE)?;
        let middle = Mirror::part(device, place, HUGE, 2 * HUGE, WHOLE)?;
        let high = Mirror::part(device, place, 2 * HUGE, 2 * HUGE, WHOLE)?;
        low.poke(HUGE + 8, 1)?;
        check_eq!(
            middle.peek(8)?,
            1,
            "the middle one's view of the low one's write"
        );
        high.poke(16, 2)?;
        check_eq!(middle.peek(HUGE + 16)?, 2, "and of the high one's");
        // All that have the part lose it; the others keep theirs.
        let kept = low.count()?;
        high.keeps("the high one", || {
            low.loses("the low one", HUGE, || {
                middle.loses("the middle one", HUGE, || {
                    low.agrees("before")?;
                    place.map(HUGE, HUGE)
                })
            })
        })?;
        check_eq!(low.peek(HUGE + 8)?, 0, "the new memory");
        check!(low.count()?.maps > kept.maps, "the low one had no MAP");
        middle.poke(8, 3)?;
        check_eq!(low.peek(HUGE + 8)?, 3, "a write to the new memory");
        high.coherent_all_over("the high one")
    })
}

pub(super) fn same_range_twice(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let first = Mirror::new(&device, &place)?;
    let second = Mirror::new(&device, &place)?;
    check!(
        first.userptr.handle() != second.userptr.handle(),
        "two handles"
    );
    first.fill(5)?;
    check_eq!(second.peek(9 * PAGE)?, 5, "the second one's view");
    drop(first);
    second.coherent_all_over("after the first is closed")
}

pub(super) fn read_only_and_writable(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    reader.agrees("zero pages")?;
    // The write takes the zero pages away from the reader.
    let writer = Mirror::new(&device, &place)?;
    writer.fill(6)?;
    check_eq!(reader.peek(3 * PAGE)?, 6, "the reader's view");
    writer.coherent_all_over("the writer")?;
    reader.agrees("the reader, in the end")
}

pub(super) fn two_contexts(env: &Env) -> TestResult {
    on_each_kind(env, HUGE, |device, place| {
        let other = Device::open()?;
        other.context_init_compute(4)?;
        let (first, second) = (Mirror::new(device, place)?, Mirror::new(&other, place)?);
        first.fill(1)?;
        check_eq!(second.peek(5 * PAGE)?, 1, "the second one's view");
        second.poke(5 * PAGE, 2)?;
        check_eq!(first.peek(5 * PAGE)?, 2, "the first one's view");
        first.loses("the first", HUGE, || {
            second.loses("the second", HUGE, || {
                first.agrees("before")?;
                place.map(0, HUGE)
            })
        })?;
        first.coherent_all_over("the first, after")?;
        second.agrees("the second, after")
    })
}

/// Not the same addresses, but the same pages.
pub(super) fn two_files_share_memory(env: &Env) -> TestResult {
    let (device, other) = (open(env)?, open(env)?);
    let memfd = virtgpu_client::Memfd::new(16 * P)?;
    let (here, there) = (
        Place::reserve(Pages::Base, 16 * PAGE)?,
        Place::reserve(Pages::Base, 16 * PAGE)?,
    );
    for place in [&here, &there] {
        place.map_file(0, 16 * PAGE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    }
    let (first, second) = (Mirror::new(&device, &here)?, Mirror::new(&other, &there)?);
    first.poke(3 * PAGE, 5)?;
    check_eq!(second.peek(3 * PAGE)?, 5, "through the other mapping");
    second.keeps("the other", || {
        first.loses("the one", 16 * PAGE, || here.unmap(0, 16 * PAGE))
    })?;
    second.coherent_all_over("the other mapping")
}

/// As many as one munmap can hit.
pub(super) fn many_registrations_one_unmap(env: &Env) -> TestResult {
    const COUNT: usize = 100;
    let device = open(env)?;
    let place = Place::base(COUNT * 4 * PAGE)?;
    place.fill(0x33);
    let userptrs = (0..COUNT)
        .map(|index| device.register_range(&place, index * 4 * PAGE, 4 * PAGE, WHOLE))
        .collect::<Result<Vec<_>, _>>()?;
    let handles: Vec<u32> = userptrs.iter().map(Registration::handle).collect();
    let mut stream = compute::Stream::new();
    for userptr in &userptrs {
        stream.add_u32(userptr.at(0), 4 * P, 1);
    }
    for round in 1..=3 {
        job::run(&device, &stream, &handles)?;
        for index in 0..COUNT * 4 {
            let expected = if round == 1 { 0x3333_3334 } else { 1 };
            check_eq!(
                place.read_u32(index * PAGE),
                expected,
                "page {index} in round {round}"
            );
        }
        place.unmap(0, place.len())?;
        for (index, userptr) in userptrs.iter().enumerate() {
            let count = userptr.query()?;
            check_eq!(
                count.mapped_bytes,
                0,
                "bytes mapped of registration {index}"
            );
            check!(
                count.invalidations >= round,
                "registration {index} was not told"
            );
        }
        place.map(0, place.len())?;
    }
    Ok(())
}
