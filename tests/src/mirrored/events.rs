// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! DRM events: a program that asks for them is told when registered memory is unmapped.

use virtgpu_client::protocol::uapi::{event_reason, UserptrEvent, EVENT_USERPTR};
use virtgpu_client::{Bytes, Device};

use super::support::{family, next_event, no_event, on_each_kind, open, Mirror, SPARSE, WHOLE};
use crate::ktap::{Family, TestResult};
use crate::support::place::{Place, READ, RW};
use crate::support::{child, job, Env, HUGE, P, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "mirrored_events",
    cases![
        unmap,
        part_unmapped,
        replaced,
        never_used,
        moved_away,
        ranges_merge,
        only_for_unmap,
        not_asked_for,
        two_registrations,
        registration_lives_on,
        closed_with_event_unread,
        poll_before_the_event,
        mm_gone,
    ],
);

/// What is the same in all events of a registration.
fn check_event(event: &UserptrEvent, mirror: &Mirror<'_>, cookie: u64) -> TestResult {
    check_eq!(event.kind, EVENT_USERPTR, "type");
    check_eq!(event.length as usize, size_of::<UserptrEvent>(), "length");
    check_eq!(event.bo_handle, mirror.userptr.handle(), "handle");
    check_eq!(event.cookie, cookie, "cookie");
    check_eq!(event.reason, event_reason::UNMAP, "reason");
    Ok(())
}

/// Events until they tell of `length` bytes at `addr`, and of nothing outside.
fn expect(device: &Device, mirror: &Mirror<'_>, cookie: u64, addr: u64, length: u64) -> TestResult {
    let mut covered = addr;
    while covered < addr + length {
        for event in next_event(device)? {
            check_event(&event, mirror, cookie)?;
            check!(
                event.addr == covered && event.size > 0 && event.addr + event.size <= addr + length,
                "{:#x} bytes at {:#x} are gone, not the rest of {length:#x} at {addr:#x}",
                event.size,
                event.addr
            );
            covered += event.size;
        }
    }
    Ok(())
}

fn unmap(env: &Env) -> TestResult {
    on_each_kind(env, 2 * HUGE, |device, place| {
        let mirror = Mirror::with(device, place, WHOLE.events(u64::MAX))?;
        mirror.fill(1)?;
        no_event(device)?;
        place.unmap(0, 2 * HUGE)?;
        let (addr, size) = (place.address(0), place.address(2 * HUGE) - place.address(0));
        expect(device, &mirror, u64::MAX, addr, size)?;
        no_event(device)
    })
}

/// The event names the part inside of the registration, however much was unmapped.
fn part_unmapped(env: &Env) -> TestResult {
    let device = open(env)?;
    for (first, pages, from, to) in [
        (10, 3, 10, 13),
        (0, 9, 8, 9),
        (20, 12, 20, 24),
        (0, 32, 8, 24),
    ] {
        let place = Place::base(32 * PAGE)?;
        let mirror = Mirror::part(&device, &place, 8 * PAGE, 16 * PAGE, WHOLE.events(1))?;
        mirror.fill(1)?;
        place.unmap(first * PAGE, pages * PAGE)?;
        let length = (to - from) as u64 * P;
        expect(&device, &mirror, 1, place.address(from * PAGE), length)?;
        no_event(&device)?;
    }
    Ok(())
}

/// MAP_FIXED over it unmaps it too.
fn replaced(env: &Env) -> TestResult {
    on_each_kind(env, HUGE, |device, place| {
        let mirror = Mirror::with(device, place, WHOLE.events(2))?;
        mirror.fill(1)?;
        place.map(0, HUGE)?;
        expect(device, &mirror, 2, place.address(0), HUGE as u64)?;
        mirror.coherent_all_over("what replaces it")
    })
}

/// The memory is gone whether or not a device has used it.
fn never_used(env: &Env) -> TestResult {
    let device = open(env)?;
    for options in [WHOLE, SPARSE] {
        let place = Place::base(16 * PAGE)?;
        place.fill(1);
        let mirror = Mirror::with(&device, &place, options.events(3))?;
        place.unmap(0, 16 * PAGE)?;
        expect(&device, &mirror, 3, place.address(0), 16 * P)?;
    }
    Ok(())
}

fn moved_away(env: &Env) -> TestResult {
    let device = open(env)?;
    let (place, other) = (Place::base(16 * PAGE)?, Place::base(16 * PAGE)?);
    let mirror = Mirror::with(&device, &place, WHOLE.events(5))?;
    mirror.fill(1)?;
    place.move_to(0, 16 * PAGE, &other, 0, 0)?;
    // The kernel says it twice: when it moves the pages, and when it unmaps the old place.
    last_is_told(&device, &mirror, &place, 16)
}

/// However many unmaps: what is told of is all of it, and the file's room for events suffices.
fn ranges_merge(env: &Env) -> TestResult {
    const PAGES: usize = 2000;
    let device = open(env)?;
    let place = Place::base(PAGES * PAGE)?;
    let mirror = Mirror::with(&device, &place, WHOLE.events(5))?;
    mirror.fill(1)?;
    for page in 0..PAGES {
        place.unmap(page * PAGE, PAGE)?;
    }
    last_is_told(&device, &mirror, &place, PAGES)
}

fn last_is_told(device: &Device, mirror: &Mirror<'_>, place: &Place, pages: usize) -> TestResult {
    let (mut told, mut count) = (vec![false; pages], 0);
    while told.iter().any(|told| !told) {
        for event in next_event(device)? {
            check_event(&event, mirror, 5)?;
            count += 1;
            let first = (event.addr - place.address(0)) as usize / PAGE;
            let last = first + event.size as usize / PAGE;
            check!(last <= pages, "an event for page {last} of {pages}");
            told[first..last].fill(true);
        }
    }
    println!("    # {count} events for {pages} unmaps");
    Ok(())
}

/// Pages that only change leave no event.
fn only_for_unmap(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::with(&device, &place, WHOLE.events(6))?;
    mirror.loses("mprotect", PAGE, || place.protect(0, PAGE, READ))?;
    place.protect(0, PAGE, RW)?;
    mirror.loses("MADV_DONTNEED", 4 * PAGE, || {
        place.advise(0, 4 * PAGE, libc::MADV_DONTNEED)
    })?;
    mirror.coherent_all_over("afterwards")?;
    let after = Place::base(PAGE)?;
    let marker = Mirror::with(&device, &after, WHOLE.events(7))?;
    marker.fill(1)?;
    after.unmap(0, PAGE)?;
    let events = next_event(&device)?;
    check!(
        events.len() == 1 && events[0].cookie == 7,
        "events for what was not unmapped: {events:?}"
    );
    Ok(())
}

fn not_asked_for(env: &Env) -> TestResult {
    let device = open(env)?;
    let (place, after) = (Place::base(16 * PAGE)?, Place::base(PAGE)?);
    let mirror = Mirror::new(&device, &place)?;
    mirror.loses("munmap", 16 * PAGE, || place.unmap(0, 16 * PAGE))?;
    let marker = Mirror::with(&device, &after, WHOLE.events(8))?;
    marker.fill(1)?;
    after.unmap(0, PAGE)?;
    let events = next_event(&device)?;
    check!(
        events.len() == 1 && events[0].cookie == 8,
        "events that no one asked for: {events:?}"
    );
    Ok(())
}

fn two_registrations(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let one = Mirror::part(&device, &place, 0, 12 * PAGE, WHOLE.events(10))?;
    let two = Mirror::part(&device, &place, 4 * PAGE, 12 * PAGE, WHOLE.events(20))?;
    one.fill(1)?;
    two.fill(2)?;
    place.unmap(0, 16 * PAGE)?;
    let mut told = [0, 0];
    while told != [12 * P, 12 * P] {
        for event in next_event(&device)? {
            let (index, mirror) = if event.cookie == 10 {
                (0, &one)
            } else {
                (1, &two)
            };
            check_event(&event, mirror, [10, 20][index])?;
            told[index] += event.size;
            check!(told[index] <= 12 * P, "{} bytes told of twice", told[index]);
        }
    }
    Ok(())
}

/// Unmapped, mapped, used, unmapped: one event each time.
fn registration_lives_on(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::with(&device, &place, WHOLE.events(11))?;
    for _ in 0..10 {
        mirror.coherent_all_over("mapped")?;
        place.unmap(0, 16 * PAGE)?;
        expect(&device, &mirror, 11, place.address(0), 16 * P)?;
        place.map(0, 16 * PAGE)?;
    }
    Ok(())
}

fn closed_with_event_unread(env: &Env) -> TestResult {
    for _ in 0..10 {
        let device = open(env)?;
        let place = Place::base(16 * PAGE)?;
        let mirror = Mirror::with(&device, &place, WHOLE.events(12))?;
        mirror.fill(1)?;
        place.unmap(0, 16 * PAGE)?;
        // Either the handle or the file goes first.
        drop(mirror);
    }
    Ok(())
}

fn poll_before_the_event(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(16 * PAGE)?;
    let mirror = Mirror::with(&device, &place, WHOLE.events(13))?;
    mirror.fill(1)?;
    std::thread::scope(|scope| {
        let poller = scope.spawn(|| device.wait_for_event(job::LIMIT));
        place.unmap(0, 16 * PAGE)?;
        let told = poller.join().expect("no panic")?;
        check!(told, "poll has not returned for the event");
        expect(&device, &mirror, 13, place.address(0), 16 * P)
    })
}

/// The process that registered ends, and its file lives on in another.
fn mm_gone(env: &Env) -> TestResult {
    let device = open(env)?;
    child::run(|| {
        // What the child leaves behind, the end of its process has to unmap.
        let place = Box::leak(Box::new(Place::base(16 * PAGE)?));
        let mirror = Mirror::with(&device, place, WHOLE.events(14))?;
        mirror.coherent_all_over("in the child")?;
        std::mem::forget(mirror);
        Ok(())
    })?;
    let mut reasons = Vec::new();
    while !reasons.contains(&event_reason::MM_GONE) {
        for event in next_event(&device)? {
            check_eq!(event.cookie, 14, "cookie");
            check_eq!(event.kind, EVENT_USERPTR, "type");
            reasons.push(event.reason);
        }
    }
    check!(
        !reasons.contains(&event_reason::LOST),
        "reasons {reasons:?}"
    );
    Ok(())
}
