// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What is sent to the device: what has changed, or was asked for, and nothing else.

use virtgpu_client::protocol::uapi::{self, bo_state, memory_model};
use virtgpu_client::{Bytes, Errno};

use crate::ktap::TestResult;
use crate::mirrored::support::{each_kind, on_each_kind, open, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::support::place::{Pages, Place};
use crate::support::{prefetch, procfs, Env, HUGE, P, PAGE};
use crate::{check, check_eq, check_err, skip};

/// What was sent between two points, as entries and commands.
fn sent(before: &uapi::BoQuery, after: &uapi::BoQuery) -> (u64, u64) {
    (after.entries - before.entries, after.maps - before.maps)
}

/// Only the page that has changed is sent again.
pub(super) fn one_page_changes(env: &Env) -> TestResult {
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

pub(super) fn one_page_changes_in_each_huge_page(env: &Env) -> TestResult {
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

pub(super) fn nothing_changes_nothing_sent(env: &Env) -> TestResult {
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

pub(super) fn entries_of_a_huge_page(env: &Env) -> TestResult {
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

pub(super) fn prefetch_arguments(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(10 * PAGE)?;
    for options in [WHOLE, SPARSE, READ_ONLY] {
        let userptr = device.register(&place, options)?;
        prefetch::arguments(&device, &userptr)?;
    }
    Ok(())
}

/// Partial success says how far; the error comes when nothing could be done.
pub(super) fn prefetch_stops_at_a_hole(env: &Env) -> TestResult {
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

pub(super) fn prefetch_without_sparse(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.prefetch(4 * PAGE, 2 * PAGE)?;
    check_eq!(mirror.count()?.mapped_bytes, 2 * P, "bytes mapped");
    mirror.coherent_all_over("the rest comes with the job")?;
    check_eq!(mirror.count()?.mapped_bytes, 16 * P, "bytes mapped");
    Ok(())
}

pub(super) fn query(env: &Env) -> TestResult {
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
