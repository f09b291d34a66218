// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory in a contiguous area: when somebody wants the area, mirrored pages move out of the way,
//! and pinned ones were never there.

use virtgpu_client::{Bytes, RegisterOptions};

use super::race::additions;
use super::support::{family, open, Mirror};
use crate::ktap::{Family, TestResult};
use crate::support::cma::Area;
use crate::support::job;
use crate::support::place::Place;
use crate::support::{agree, Env, HUGE, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = family(
    "mm_cma",
    cases![
        taken_while_mapped: 300,
        taken_while_the_device_writes: 600,
        pinned_memory_leaves: 300,
    ],
);

/// Pages that are taken at a time.
const PIECE: u64 = 1024;

/// Memory of which at least half is in the area. The kernel gives it to programs when it has little
/// else.
fn inside(area: &Area, length: usize) -> TestResult<Place> {
    const FILLER: usize = 32 << 20;
    let mut fillers = Vec::new();
    for _ in 0..16 {
        let place = Place::base(length)?;
        place.fill(0);
        let (count, all) = (area.count(&place.frames()?), length / PAGE);
        if count >= all / 2 {
            println!("    # {count} of {all} pages are in the area");
            return Ok(place);
        }
        let filler = Place::base(FILLER)?;
        filler.fill(1);
        // Also what was got in vain, or it would be got again.
        fillers.extend([place, filler]);
    }
    skip!("the kernel gives programs no pages of the contiguous area");
}

/// Takes pieces until none of `place` is in the area.
fn take_all_of(area: &mut Area, place: &Place) -> TestResult {
    for _ in 0..area.pages().div_ceil(PIECE) {
        if area.count(&place.frames()?) == 0 || !area.take(PIECE)? {
            break;
        }
    }
    Ok(())
}

fn taken_while_mapped(env: &Env) -> TestResult {
    let device = open(env)?;
    let mut area = Area::find()?;
    let place = inside(&area, HUGE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(7)?;
    let data = mirror.scatter(11);
    mirror.loses("an allocation of the area", PAGE, || {
        take_all_of(&mut area, &place)
    })?;
    check_eq!(area.count(&place.frames()?), 0, "pages that did not move");
    check_eq!(mirror.read(0, HUGE)?, data, "the device's view elsewhere");
    mirror.coherent_all_over("elsewhere")?;
    area.give_back()?;
    mirror.agrees("in the end")
}

fn taken_while_the_device_writes(env: &Env) -> TestResult {
    let device = open(env)?;
    let mut area = Area::find()?;
    let place = inside(&area, 64 * PAGE)?;
    let mirror = Mirror::new(&device, &place)?;
    let before = mirror.stat()?.space_invalidates;
    let jobs = additions(&mirror, 64 * PAGE, env.rounds(60), |_| {
        take_all_of(&mut area, &place)?;
        area.give_back()?;
        // Back into the area, perhaps.
        place.advise(0, 32 * PAGE, libc::MADV_DONTDUMP)?;
        place.advise(0, 32 * PAGE, libc::MADV_DODUMP)
    })?;
    check!(
        mirror.stat()?.space_invalidates > before,
        "the device was never told"
    );
    agree::added(&place, jobs)?;
    mirror.coherent_all_over("in the end")
}

/// A pin for long would keep the area from whoever it was made for.
fn pinned_memory_leaves(env: &Env) -> TestResult {
    let device = open(env)?;
    let mut area = Area::find()?;
    let place = inside(&area, 64 * PAGE)?;
    place.write_u64(3 * PAGE, 0x33);
    let userptr = device.register(&place, RegisterOptions::pinned())?;
    check_eq!(
        area.count(&place.frames()?),
        0,
        "pinned pages in the contiguous area"
    );
    let peek = || job::peek(&device, userptr.at(3 * PAGE as u64), userptr.handle());
    check_eq!(peek()?, 0x33, "the device's view");
    check!(area.take(PIECE)?, "the area cannot be had");
    area.give_back()?;
    job::poke(&device, userptr.at(5 * PAGE as u64), 0x55, userptr.handle())?;
    check_eq!(place.read_u64(5 * PAGE), 0x55, "our view");
    Ok(())
}
