// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Registrations and what is mapped in them end in any order.

use virtgpu_client::protocol::uapi::bo_state;
use virtgpu_client::{compute, Bytes, Errno, Exec, Memory, Registration};

use crate::ktap::TestResult;
use crate::mirrored::support::{on_each_kind, open, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::support::memory::Malloc;
use crate::support::place::{Place, NONE, READ, RW};
use crate::support::{job, Env, Random, HUGE, P, PAGE};
use crate::{check, check_eq, check_err};

pub(super) fn nothing_mapped(env: &Env) -> TestResult {
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

/// Validated when it is used.
pub(super) fn partly_mapped(env: &Env) -> TestResult {
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

pub(super) fn remap_after_unmap(env: &Env) -> TestResult {
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
pub(super) fn malloc_and_free_again(env: &Env) -> TestResult {
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
pub(super) fn malloc_left_registered(env: &Env) -> TestResult {
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

pub(super) fn closed_while_busy(env: &Env) -> TestResult {
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

pub(super) fn file_closed_first(env: &Env) -> TestResult {
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

pub(super) fn memory_unmapped_first(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(1)?;
    place.unmap(0, 16 * PAGE)?;
    // Closing must not mind.
    mirror.userptr.close()?;
    Ok(())
}
