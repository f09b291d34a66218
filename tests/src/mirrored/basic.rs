// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Registering, using and closing: nothing is held before it is used, what changes is sent and
//! nothing else, and a registration outlives what is mapped in it.

use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::uapi::{self, bo_state, memory_model};
use virtgpu_client::{
    compute, BlobOptions, Bytes, Device, Errno, Exec, Mapping, Memory, RegisterOptions,
    Registration,
};

use super::support::{
    each_kind, family, on_each_kind, open, End, Mirror, READ_ONLY, SPARSE, WHOLE,
};
use crate::ktap::{Family, TestResult};
use crate::support::memory::Malloc;
use crate::support::place::{Pages, Place, NONE, READ, RW};
use crate::support::{eventually, job, procfs, raw, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = family(
    "mirrored_basic",
    cases![
        open_close,
        both_sides_see_the_same,
        both_sides_at_the_same_time,
        registering_touches_nothing,
        only_prefetched_pages_appear,
        prefault_flag,
        sixty_four_gib,
        read_only_reads,
        read_only_write_fails_alone,
        unlisted_fails_alone,
        unmapped_part_fails_alone,
        commands_of_blobs_are_jobs,
        one_page_changes,
        one_page_changes_in_each_huge_page,
        nothing_changes_nothing_sent,
        entries_of_a_huge_page,
        overlapping,
        same_range_twice,
        read_only_and_writable,
        two_contexts,
        two_files_share_memory,
        many_registrations_one_unmap,
        prefetch_arguments,
        prefetch_stops_at_a_hole,
        prefetch_without_sparse,
        query,
        nothing_mapped,
        partly_mapped,
        remap_after_unmap,
        malloc_and_free_again,
        malloc_left_registered,
        closed_while_busy,
        file_closed_first,
        memory_unmapped_first,
        no_other_uses,
        host3d_guest,
        large,
    ],
);

const P: u64 = PAGE as u64;

fn open_close(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    for options in [WHOLE, SPARSE, READ_ONLY, WHOLE.events(7)] {
        let userptr = device.register(&place, options)?;
        check_eq!(
            userptr.memory_model(),
            memory_model::DYNAMIC,
            "memory model"
        );
        check_eq!(userptr.size(), 16 * P, "size");
        userptr.close()?;
    }
    check_eq!(procfs::vm_pin()?, 0, "VmPin");
    Ok(())
}

fn both_sides_see_the_same(env: &Env) -> TestResult {
    on_each_kind(env, 2 * HUGE, |device, place| {
        let mirror = Mirror::new(device, place)?;
        mirror.coherent_all_over("untouched memory")?;
        mirror.scatter(1);
        mirror.agrees("written by us")?;
        let data = Random(2).bytes(3 * PAGE + 100);
        mirror.write(HUGE - PAGE - 50, &data)?;
        check_eq!(
            place.to_vec(HUGE - PAGE - 50, data.len()),
            data,
            "written by the device"
        );
        check_eq!(
            mirror.read(HUGE - PAGE - 50, data.len())?,
            data,
            "read by the device"
        );
        mirror.copy(0, HUGE - PAGE - 50, data.len())?;
        check_eq!(place.to_vec(0, data.len()), data, "copied by the device");
        mirror.fill(0x5152_5354_5556_5758)?;
        for offset in (0..place.len()).step_by(PAGE) {
            check_eq!(
                place.read_u64(offset),
                0x5152_5354_5556_5758,
                "filled by the device, at {offset:#x}"
            );
        }
        check_eq!(procfs::vm_pin()?, 0, "VmPin");
        Ok(())
    })
}

/// The two meet in the middle of a job.
fn both_sides_at_the_same_time(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(4 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(0)?;
    let at = |offset| mirror.userptr.at(offset);
    let mut stream = compute::Stream::new();
    stream
        .fill(at(0), 8, 1)
        .spin_until(at(P), 2, 10_000_000)
        .fill(at(2 * P), 8, 3);
    let fence = mirror.submit(&stream)?;
    check!(
        crate::support::eventually(job::LIMIT, || place.read_u64(0) == 1),
        "the running job's write is seen"
    );
    place.write_u64(PAGE, 2);
    fence.wait(Some(job::LIMIT))?;
    check_eq!(place.read_u64(2 * PAGE), 3, "the job has seen our write");
    Ok(())
}

/// Neither pages nor page tables come into being.
fn registering_touches_nothing(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(64 << 20)?;
    place.write_u64(5 * PAGE, 1);
    let rss = procfs::smaps(place.address(0), "Rss:")?;
    let tables = procfs::status_bytes("VmPTE:")?;
    let mirror = Mirror::new(&device, &place)?;
    check_eq!(procfs::smaps(place.address(0), "Rss:")?, rss, "Rss");
    check_eq!(procfs::status_bytes("VmPTE:")?, tables, "VmPTE");
    check_eq!(place.resident()?, PAGE, "bytes in memory");
    let count = mirror.count()?;
    check_eq!(
        (count.mapped_bytes, count.resident_bytes, count.faults),
        (0, 0, 0),
        "bytes mapped, bytes held, pages faulted in"
    );
    check_eq!((count.maps, count.entries), (0, 0), "MAP commands, entries");
    Ok(())
}

fn only_prefetched_pages_appear(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(4 * HUGE)?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    mirror.prefetch(HUGE - PAGE, 3 * PAGE)?;
    check_eq!(mirror.count()?.mapped_bytes, 3 * P, "bytes mapped");
    check_eq!(place.resident()?, 3 * PAGE, "bytes in memory");
    check_eq!(mirror.end(&mirror.idle())?, End::Done, "a job");
    check_eq!(place.resident()?, 3 * PAGE, "bytes in memory after a job");
    mirror.coherent("prefetched", HUGE - PAGE)?;
    mirror.coherent("prefetched", HUGE + PAGE)?;
    check_eq!(mirror.count()?.resident_bytes, 0, "bytes held");
    Ok(())
}

fn prefault_flag(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::with(&device, &place, WHOLE.flag(uapi::USERPTR_PREFAULT))?;
    let count = mirror.count()?;
    check_eq!(count.mapped_bytes, 16 * P, "bytes mapped");
    check!(count.faults > 0, "no page was faulted in");
    check_eq!(place.resident()?, 16 * PAGE, "bytes in memory");
    mirror.coherent_all_over("faulted in at once")
}

/// Far more than the guest has.
fn sixty_four_gib(env: &Env) -> TestResult {
    const SIZE: usize = 64 << 30;
    let device = open(env)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_with(0, SIZE, RW, libc::MAP_PRIVATE | libc::MAP_NORESERVE)?;
    let free = procfs::meminfo("MemFree:")?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    let spots = [
        0,
        1 << 30,
        (3 << 30) - PAGE,
        SIZE / 2 + 12 * PAGE,
        SIZE - PAGE,
    ];
    for offset in spots {
        mirror.prefetch(offset, PAGE)?;
        mirror.coherent("a spot", offset)?;
    }
    let count = mirror.count()?;
    check_eq!(count.mapped_bytes, spots.len() as u64 * P, "bytes mapped");
    check_eq!(count.size, SIZE as u64, "size");
    check_eq!(
        procfs::smaps(place.address(0), "Rss:")?,
        spots.len() as u64 * P,
        "Rss"
    );
    let used = free.saturating_sub(procfs::meminfo("MemFree:")?);
    check!(used < 64 << 10, "{used} kB of memory are gone");
    Ok(())
}

fn read_only_reads(env: &Env) -> TestResult {
    on_each_kind(env, HUGE, |device, place| {
        let mirror = Mirror::with(device, place, READ_ONLY)?;
        mirror.agrees("untouched")?;
        mirror.scatter(3);
        mirror.agrees("written after the device has read zeros")?;
        place.write_u64(PAGE, 77);
        check_eq!(mirror.peek(PAGE)?, 77, "the device's view");
        Ok(())
    })
}

/// The device enforces it; whoever shares the device does not notice.
fn read_only_write_fails_alone(env: &Env) -> TestResult {
    let (device, other) = (open(env)?, open(env)?);
    let place = Place::base(4 * PAGE)?;
    let data = Random(4).bytes(4 * PAGE);
    place.write(0, &data);
    let mirror = Mirror::with(&device, &place, READ_ONLY)?;
    let neighbour = Mirror::new(&other, &place)?;
    mirror.agrees("before")?;
    neighbour.agrees("the neighbour, before")?;
    mirror.fails("a write", &mirror.writing(PAGE, 1))?;
    check_eq!(place.to_vec(0, 4 * PAGE), data, "the memory");
    neighbour.coherent_all_over("the neighbour, after")
}

/// What no EXECBUFFER has listed was never mapped.
fn unlisted_fails_alone(env: &Env) -> TestResult {
    let (device, other) = (open(env)?, open(env)?);
    let place = Place::base(4 * PAGE)?;
    place.fill(0x11);
    let userptr = device.register(&place, WHOLE)?;
    let neighbour = Mirror::new(&other, &place)?;
    neighbour.agrees("the neighbour, before")?;
    let mut stream = compute::Stream::new();
    stream.fill(userptr.at(0), 8, 1);
    let fence = Exec::new(stream.as_bytes()).submit_with_fence(&device)?;
    check_err!(fence.wait(Some(job::LIMIT)), Errno::IO, "the job");
    check_eq!(place.read_u64(0), 0x1111_1111_1111_1111, "the memory");
    neighbour.coherent_all_over("the neighbour, after")
}

/// With SPARSE it is the program's business what a job touches.
fn unmapped_part_fails_alone(env: &Env) -> TestResult {
    let (device, other) = (open(env)?, open(env)?);
    let place = Place::base(4 * PAGE)?;
    place.fill(0x11);
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    let neighbour = Mirror::new(&other, &place)?;
    neighbour.agrees("the neighbour, before")?;
    mirror.prefetch(0, 2 * PAGE)?;
    mirror.coherent("what is mapped", PAGE)?;
    mirror.fails("a write behind it", &mirror.writing(2 * PAGE, 1))?;
    check_eq!(
        place.read_u64(2 * PAGE),
        0x1111_1111_1111_1111,
        "the memory"
    );
    neighbour.coherent_all_over("the neighbour, after")
}

/// The command that comes with RESOURCE_CREATE_BLOB is a job like others: it may cost its context,
/// and a context that is lost takes none.
fn commands_of_blobs_are_jobs(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(4 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.agrees("before")?;
    let elsewhere = Place::base(PAGE)?;
    elsewhere.fill(0x11);
    let unlisted = device.register(&elsewhere, WHOLE)?;
    let mut good = compute::Stream::new();
    good.delay(1);
    let mut bad = compute::Stream::new();
    bad.fill(unlisted.at(0), 8, 1);
    let blob_with = |stream: &compute::Stream| {
        let options = BlobOptions {
            command: stream.as_bytes(),
            ..BlobOptions::host3d(P, 1)
        };
        device.create_blob(&options).map(drop)
    };
    blob_with(&good)?;
    mirror.agrees("after a command that is right")?;
    blob_with(&bad)?;
    let lost = eventually(job::LIMIT, || {
        matches!(mirror.end(&mirror.idle()), Ok(End::Refused(Errno::IO)))
    });
    check!(lost, "the context is lost by a command that is wrong");
    check_eq!(elsewhere.read_u64(0), 0x1111_1111_1111_1111, "the memory");
    check_err!(
        blob_with(&good),
        Errno::IO,
        "a command in a context that is lost"
    );
    Ok(())
}

/// What was sent between two points, as entries and commands.
fn sent(before: &uapi::BoQuery, after: &uapi::BoQuery) -> (u64, u64) {
    (after.entries - before.entries, after.maps - before.maps)
}

/// Only the page that has changed is sent again.
fn one_page_changes(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(HUGE)?;
    let mirror = Mirror::new(&device, &place)?;
    let data = mirror.scatter(5);
    for page in [0, 100, HUGE / PAGE - 1] {
        let offset = page * PAGE;
        let lost = mirror.loses("one page", PAGE, || {
            let before = mirror.count()?;
            place.advise(offset, PAGE, libc::MADV_DONTNEED)?;
            Ok(before)
        })?;
        let now = mirror.count()?;
        check_eq!(
            lost.mapped_bytes - now.mapped_bytes,
            P,
            "bytes lost with page {page}"
        );
        check_eq!(mirror.peek(offset)?, 0, "the device's view of page {page}");
        let (entries, maps) = sent(&now, &mirror.count()?);
        check_eq!((entries, maps), (1, 1), "entries and MAPs for page {page}");
        place.write(offset, &data[offset..offset + PAGE]);
    }
    mirror.agrees("in the end")?;
    check_eq!(place.to_vec(0, HUGE), data, "our view");
    Ok(())
}

fn one_page_changes_in_each_huge_page(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(8 * HUGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.scatter(6);
    mirror.agrees("before")?;
    let before = mirror.count()?;
    for part in 0..8 {
        place.advise(part * HUGE + part * 5 * PAGE, PAGE, libc::MADV_DONTNEED)?;
    }
    mirror.agrees("after")?;
    let (entries, maps) = sent(&before, &mirror.count()?);
    check_eq!(entries, 8, "entries");
    check!(maps <= 8, "{maps} MAPs for 8 pages");
    Ok(())
}

fn nothing_changes_nothing_sent(env: &Env) -> TestResult {
    on_each_kind(env, HUGE, |device, place| {
        let mirror = Mirror::new(device, place)?;
        mirror.scatter(7);
        mirror.agrees("first")?;
        let before = mirror.count()?;
        for _ in 0..20 {
            mirror.coherent("again", HUGE - PAGE)?;
        }
        let after = mirror.count()?;
        check_eq!(sent(&before, &after), (0, 0), "entries and MAPs");
        check_eq!(after.faults, before.faults, "pages faulted in");
        check_eq!(after.invalidations, before.invalidations, "invalidations");
        mirror.count_both("in the end").map(drop)
    })
}

fn entries_of_a_huge_page(env: &Env) -> TestResult {
    each_kind(&[Pages::Huge, Pages::Hugetlb], |pages| {
        let device = open(env)?;
        let place = Place::new(pages, HUGE)?;
        place.fill(1);
        if !place.is_huge(0)? {
            skip!("the kernel gave small pages");
        }
        let mirror = Mirror::new(&device, &place)?;
        mirror.agrees("a huge page")?;
        let count = mirror.count()?;
        check_eq!(
            (count.entries, count.maps),
            (1, 1),
            "{pages:?}: entries, MAPs"
        );
        Ok(())
    })
}

fn overlapping(env: &Env) -> TestResult {
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

fn same_range_twice(env: &Env) -> TestResult {
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

fn read_only_and_writable(env: &Env) -> TestResult {
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

fn two_contexts(env: &Env) -> TestResult {
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
fn two_files_share_memory(env: &Env) -> TestResult {
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
fn many_registrations_one_unmap(env: &Env) -> TestResult {
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

fn prefetch_arguments(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(10 * PAGE)?;
    for options in [WHOLE, SPARSE, READ_ONLY] {
        let userptr = device.register(&place, options)?;
        for (offset, length) in [(0, 10 * P), (0, P), (3 * P, 7 * P), (9 * P, P)] {
            check_eq!(
                userptr.prefetch(offset, length)?,
                length,
                "bytes done of {length} at {offset}"
            );
        }
        for (offset, length) in [
            (0, 11 * P),
            (10 * P, P),
            (1, P),
            (0, 100),
            (!4095, P),
            (P, !4095),
        ] {
            check_err!(
                userptr.prefetch(offset, length),
                Errno::INVAL,
                "{length:#x} bytes at {offset:#x}"
            );
        }
        let mut wrong = uapi::UserptrPrefetch {
            bo_handle: userptr.handle(),
            flags: 1,
            length: P,
            ..Default::default()
        };
        check_err!(
            raw::call(&device, uapi::nr::USERPTR_PREFETCH, &mut wrong),
            Errno::INVAL,
            "flags 1"
        );
    }
    Ok(())
}

/// Partial success says how far; the error comes when nothing could be done.
fn prefetch_stops_at_a_hole(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(4 * HUGE)?;
    let userptr = device.register(&place, SPARSE)?;
    place.unmap(2 * HUGE, PAGE)?;
    match userptr.prefetch(0, 4 * HUGE as u64) {
        Ok(done) => {
            check!(
                done > 0 && done <= 2 * HUGE as u64 && done % P == 0,
                "{done} bytes done before the hole"
            );
            check!(
                userptr.query()?.mapped_bytes >= done,
                "fewer bytes are mapped than were done"
            );
        }
        Err(error) => check_eq!(error, Errno::FAULT, "error with a hole"),
    }
    check_err!(
        userptr.prefetch(2 * HUGE as u64, P),
        Errno::FAULT,
        "the hole"
    );
    check_eq!(
        userptr.prefetch(3 * HUGE as u64, HUGE as u64)?,
        HUGE as u64,
        "bytes done behind the hole"
    );
    Ok(())
}

fn prefetch_without_sparse(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.prefetch(4 * PAGE, 2 * PAGE)?;
    check_eq!(mirror.count()?.mapped_bytes, 2 * P, "bytes mapped");
    mirror.coherent_all_over("the rest comes with the job")?;
    check_eq!(mirror.count()?.mapped_bytes, 16 * P, "bytes mapped");
    Ok(())
}

fn query(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::part(&device, &place, 2 * PAGE, 8 * PAGE, WHOLE.events(3))?;
    let before = mirror.count()?;
    check_eq!(
        before.flags,
        uapi::USERPTR_MIRRORED | uapi::USERPTR_EVENT,
        "flags"
    );
    check_eq!(before.memory_model, memory_model::DYNAMIC, "memory model");
    check_eq!(before.state, bo_state::VALID, "state");
    check_eq!(before.addr, place.address(2 * PAGE), "address");
    check_eq!(before.size, 8 * P, "size");
    mirror.fill(1)?;
    let after = mirror.count()?;
    check_eq!(after.mapped_bytes, 8 * P, "bytes mapped");
    check_eq!(after.resident_bytes, 0, "bytes held");
    check!(after.maps > 0 && after.entries > 0, "nothing was sent");
    check!(after.faults > 0, "nothing was faulted in");
    check_eq!(after.invalidations, 0, "invalidations");
    let expected = procfs::minimal_runs(place.address(2 * PAGE) as usize, 8 * PAGE)?;
    check_eq!(after.entries, expected, "entries");
    Ok(())
}

fn nothing_mapped(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    place.unmap(0, 16 * PAGE)?;
    check_err!(
        device.register(&place, WHOLE).map(drop),
        Errno::FAULT,
        "nothing is mapped"
    );
    // One page is enough, of whatever protection.
    place.map_with(15 * PAGE, PAGE, NONE, libc::MAP_PRIVATE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.refused("a hole", Errno::FAULT)?;
    place.map(0, 16 * PAGE)?;
    mirror.coherent_all_over("all mapped")
}

/// Judged when it is used.
fn partly_mapped(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    for (what, offset, pages) in [("start", 0, 1), ("middle", 7, 2), ("end", 15, 1)] {
        let length = pages * PAGE;
        place.map(0, 16 * PAGE)?;
        place.unmap(offset * PAGE, length)?;
        let mirror = Mirror::new(&device, &place)?;
        mirror.refused(&format!("a hole at the {what}"), Errno::FAULT)?;
        place.map(offset * PAGE, length)?;
        mirror.coherent_all_over(&format!("the hole at the {what} filled"))?;
    }
    place.protect(3 * PAGE, PAGE, READ)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.refused("a page that we may not write", Errno::PERM)?;
    let reader = Mirror::with(&device, &place, READ_ONLY)?;
    reader.agrees("read-only")
}

fn remap_after_unmap(env: &Env) -> TestResult {
    on_each_kind(env, HUGE, |device, place| {
        let mirror = Mirror::new(device, place)?;
        for round in 0..5 {
            mirror.scatter(round);
            mirror.agrees("before")?;
            mirror.loses("munmap", HUGE, || place.unmap(0, HUGE))?;
            check_eq!(mirror.count()?.mapped_bytes, 0, "bytes mapped");
            mirror.refused("nothing mapped", Errno::FAULT)?;
            check_eq!(
                mirror.count()?.state,
                bo_state::VALID,
                "state with nothing mapped"
            );
            place.map(0, HUGE)?;
            check_eq!(mirror.peek(HUGE / 2)?, 0, "new memory, round {round}");
        }
        mirror.coherent_all_over("in the end")
    })
}

/// A program that knows nothing of registrations but its own: allocate, use, free, again.
fn malloc_and_free_again(env: &Env) -> TestResult {
    let device = open(env)?;
    let mut random = Random(8);
    for round in 0..env.iterations(60) {
        // Of the heap and of mappings of their own, by glibc's threshold.
        let pages = 1 + random.below(100) as usize;
        let memory = Malloc::new(pages * PAGE);
        let value = random.next() as u32;
        memory.write_u32(0, value);
        let userptr = device.register(&memory, WHOLE)?;
        job::add(
            &device,
            userptr.at(0),
            (pages * PAGE) as u64,
            1,
            userptr.handle(),
        )?;
        check_eq!(
            memory.read_u32(0),
            value.wrapping_add(1),
            "{pages} pages in round {round}"
        );
        check_eq!(
            memory.read_u32((pages - 1) * PAGE + 8),
            1,
            "the last page in round {round}"
        );
    }
    Ok(())
}

/// The cache that a library would keep: an address range is registered once, whatever malloc and
/// free do with it later.
fn malloc_left_registered(env: &Env) -> TestResult {
    let device = open(env)?;
    let mut random = Random(9);
    let mut cache: Vec<(u64, u64, Registration<'_, ()>)> = Vec::new();
    let rounds = env.iterations(60);
    for round in 0..rounds {
        let length = [4, 32, 64, 200, 300][random.below(5) as usize] * PAGE;
        let memory = Malloc::new(length);
        let (addr, size) = (memory.as_ptr() as u64, length as u64);
        let known = cache
            .iter()
            .position(|(a, s, _)| *a <= addr && addr + size <= a + s);
        let index = match known {
            Some(index) => index,
            None => {
                // SAFETY: What the device may do with the range is only what this loop asks it to,
                // while `memory` is allocated and no reference to it exists.
                let userptr = unsafe { device.register_raw(addr, size, SPARSE)? };
                cache.push((addr, size, userptr));
                cache.len() - 1
            }
        };
        let (start, _, userptr) = &cache[index];
        let offset = addr - start;
        let value = random.next() as u32;
        for page in (0..length).step_by(PAGE) {
            memory.write_u32(page, value);
        }
        check_eq!(userptr.prefetch(offset, size)?, size, "bytes prefetched");
        job::add(&device, userptr.at(offset), size, 3, userptr.handle())?;
        for page in (0..length).step_by(PAGE) {
            check_eq!(
                memory.read_u32(page),
                value.wrapping_add(3),
                "byte {page:#x} of {length:#x} in round {round}"
            );
        }
    }
    println!("    # {} registrations for {rounds} rounds", cache.len());
    check!(
        rounds < 20 || (cache.len() as u64) < rounds,
        "no registration was of use twice"
    );
    Ok(())
}

fn closed_while_busy(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let userptr = device.register(&place, WHOLE)?;
    let mut stream = compute::Stream::new();
    stream.delay(200_000).add_u32(userptr.at(0), 16 * P, 5);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[userptr.handle()])
        .submit_with_fence(&device)?;
    userptr.close()?;
    fence.wait(Some(job::LIMIT))?;
    for page in 0..16 {
        check_eq!(place.read_u32(page * PAGE), 5, "page {page}");
    }
    Ok(())
}

fn file_closed_first(env: &Env) -> TestResult {
    let place = Place::base(64 * PAGE)?;
    for round in 0..10 {
        let device = open(env)?;
        for page in 0..16 {
            let userptr = device.register_range(&place, page * 4 * PAGE, 4 * PAGE, WHOLE)?;
            job::add(&device, userptr.at(0), 4 * P, 1, userptr.handle())?;
            std::mem::forget(userptr);
        }
        drop(device);
        check_eq!(place.read_u32(63 * PAGE), round + 1, "after round {round}");
        place.protect(0, 64 * PAGE, READ)?;
        place.protect(0, 64 * PAGE, RW)?;
    }
    Ok(())
}

fn memory_unmapped_first(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(1)?;
    place.unmap(0, 16 * PAGE)?;
    // Closing must not mind.
    mirror.userptr.close()?;
    Ok(())
}

/// What a mirrored handle cannot be used for.
fn no_other_uses(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(4 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    let handle = mirror.userptr.handle();
    check_err!(device.map_offset(handle), Errno::INVAL, "MAP");
    check_err!(
        device.prime_export(handle).map(drop),
        Errno::INVAL,
        "PRIME_HANDLE_TO_FD"
    );
    for nr in [uapi::nr::TRANSFER_TO_HOST, uapi::nr::TRANSFER_FROM_HOST] {
        let mut transfer = uapi::Transfer {
            bo_handle: handle,
            ..Default::default()
        };
        check_err!(
            raw::call(&device, nr, &mut transfer),
            Errno::INVAL,
            "ioctl {nr:#x}"
        );
    }
    let wrong = WHOLE.flag(uapi::USERPTR_PINNED);
    check_err!(
        device.register(&place, wrong).map(drop),
        Errno::INVAL,
        "two modes"
    );
    let memfd = virtgpu_client::Memfd::new(4 * P)?;
    check_err!(
        device.register_memfd(&memfd, 0, 4 * P, WHOLE).map(drop),
        Errno::INVAL,
        "a memfd"
    );
    mirror.coherent_all_over("as before")
}

fn host3d_guest(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::with(&device, &place, WHOLE.host3d_guest(1))?;
    mirror.coherent_all_over("behind a host object")?;
    mirror.loses("munmap", 16 * PAGE, || place.map(0, 16 * PAGE))?;
    mirror.coherent_all_over("new memory behind it")
}

/// More entries than fit into a command, and more commands than fit into the queue.
fn large(env: &Env) -> TestResult {
    let device = open(env)?;
    let memory = Mapping::anonymous_with(
        64 << 20,
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::PRIVATE | MapFlags::NORESERVE,
    )?;
    let userptr = device.register(&memory, RegisterOptions::mirrored())?;
    let start = std::time::Instant::now();
    job::add(
        &device,
        userptr.at(0),
        memory.len() as u64,
        9,
        userptr.handle(),
    )?;
    check!(
        start.elapsed() < Duration::from_secs(60),
        "it took {:?}",
        start.elapsed()
    );
    for offset in (0..memory.len()).step_by(PAGE) {
        check_eq!(memory.read_u32(offset), 9, "word at {offset:#x}");
    }
    check_eq!(
        userptr.query()?.mapped_bytes,
        memory.len() as u64,
        "bytes mapped"
    );
    Ok(())
}
