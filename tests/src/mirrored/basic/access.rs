// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the device reaches of a registration, and what it does not.

use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::uapi::{self, memory_model};
use virtgpu_client::{compute, BlobOptions, Bytes, Errno, Exec, Mapping, Memory, RegisterOptions};

use crate::ktap::TestResult;
use crate::mirrored::support::{on_each_kind, open, End, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::support::place::{Pages, Place, RW};
use crate::support::{eventually, job, procfs, raw, Env, Random, HUGE, P, PAGE};
use crate::{check, check_eq, check_err};

pub(super) fn open_close(env: &Env) -> TestResult {
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

pub(super) fn both_sides_see_the_same(env: &Env) -> TestResult {
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
pub(super) fn both_sides_at_the_same_time(env: &Env) -> TestResult {
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
pub(super) fn registering_touches_nothing(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(64 << 20)?;
    place.write_u64(5 * PAGE, 1);
    let now = || -> TestResult<[u64; 2]> {
        let rss = procfs::smaps(place.address(0), "Rss:")?;
        Ok([rss, procfs::status_bytes("VmPTE:")?])
    };
    // What registers, and what looks, has page tables of its own, from the first time on.
    drop(Mirror::new(&device, &Place::base(PAGE)?)?);
    now()?;
    let before = now()?;
    let mirror = Mirror::new(&device, &place)?;
    check_eq!(now()?, before, "Rss and VmPTE");
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

pub(super) fn only_prefetched_pages_appear(env: &Env) -> TestResult {
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

pub(super) fn prefault_flag(env: &Env) -> TestResult {
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
pub(super) fn sixty_four_gib(env: &Env) -> TestResult {
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

pub(super) fn read_only_reads(env: &Env) -> TestResult {
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
pub(super) fn read_only_write_fails_alone(env: &Env) -> TestResult {
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
pub(super) fn unlisted_fails_alone(env: &Env) -> TestResult {
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
pub(super) fn unmapped_part_fails_alone(env: &Env) -> TestResult {
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
pub(super) fn commands_of_blobs_are_jobs(env: &Env) -> TestResult {
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

/// What a mirrored handle cannot be used for.
pub(super) fn no_other_uses(env: &Env) -> TestResult {
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

pub(super) fn host3d_guest(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::with(&device, &place, WHOLE.host3d_guest(1))?;
    mirror.coherent_all_over("behind a host object")?;
    mirror.loses("munmap", 16 * PAGE, || place.map(0, 16 * PAGE))?;
    mirror.coherent_all_over("new memory behind it")
}

/// More entries than fit into a command, and more commands than fit into the queue.
pub(super) fn large(env: &Env) -> TestResult {
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
