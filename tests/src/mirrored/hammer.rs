// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Device and process write to the same memory by turns while a thread keeps it moving. What both
//! must see, a third copy that nothing moves says.

use std::fs;

use virtgpu_client::{compute, Bytes, Errno, Memory};

use super::race::Race;
use super::support::{each_kind, family, open, seed, End, Mirror, SPARSE, WHOLE};
use crate::ktap::{reap, Family, Outcome, TestResult};
use crate::support::place::{Pages, Place, READ, RW};
use crate::support::{numa, raced, swap, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "mirrored_hammer",
    cases![
        fork: 300,
        move_pages: 300,
        swap_out: 300,
        collapse_and_split: 300,
        soft_dirty: 300,
        protect: 300,
        unmap_parts: 300,
        remap: 300,
        everything: 600,
    ],
);

const LENGTH: usize = HUGE;

/// Runs a job, which is called by this name, until it has got through.
pub(super) type Done<'a> = dyn Fn(&str, &mut dyn FnMut() -> TestResult<End>) -> TestResult + 'a;

/// One operation on a random part, by the process or by the device, on memory and on the copy.
pub(super) fn step(
    done: &Done<'_>,
    mirror: &Mirror<'_>,
    place: &Place,
    copy: &mut [u8],
    random: &mut Random,
) -> TestResult {
    let length = (1 + random.below(8) as usize) * PAGE;
    let offset = random.below(((copy.len() - length) / PAGE) as u64 + 1) as usize * PAGE;
    let part = offset..offset + length;
    match random.below(5) {
        0 => {
            let data = Random(random.next()).bytes(length);
            place.write(offset, &data);
            copy[part].copy_from_slice(&data);
        }
        1 => {
            let data = Random(random.next()).bytes(length);
            done("a job that writes", &mut || mirror.try_write(offset, &data))?;
            copy[part].copy_from_slice(&data);
        }
        2 => {
            let value = random.next() as u32;
            let mut stream = compute::Stream::new();
            stream.add_u32(mirror.userptr.at(offset as u64), length as u64, value);
            done("a job that adds", &mut || mirror.end(&stream))?;
            for word in copy[part].chunks_exact_mut(4) {
                let sum = u32::from_le_bytes((&*word).try_into().expect("4 bytes"));
                word.copy_from_slice(&sum.wrapping_add(value).to_le_bytes());
            }
        }
        3 => {
            let stream = mirror.reading_part(offset, length);
            done("a job that reads", &mut || mirror.end(&stream))?;
            check_eq!(
                mirror.result(),
                compute::crc32c(0, &copy[part]),
                "the device's view of {length} bytes at {offset:#x}"
            );
        }
        _ => {
            let seen = compute::crc32c(0, &place.to_vec(offset, length));
            check_eq!(
                seen,
                compute::crc32c(0, &copy[part]),
                "our view of {length} bytes at {offset:#x}"
            );
        }
    }
    Ok(())
}

/// Runs steps while `disturb` is called in a thread, again and again, with a number of its own.
fn hammer(
    env: &Env,
    pages: Pages,
    rounds: u64,
    mut disturb: impl FnMut(&Place, u64) -> TestResult + Send,
) -> TestResult {
    let device = open(env)?;
    let place = match pages {
        Pages::Base => Place::across(33 * PAGE)?,
        _ => Place::new(pages, LENGTH)?,
    };
    let mirror = Mirror::new(&device, &place)?;
    let mut random = Random(seed());
    let mut copy = mirror.scatter(random.next());
    let mut steps = 0;
    let outcomes = Race::run(
        |number| disturb(&place, number),
        |race| {
            let done: &Done<'_> = &|what, job| race.done(what, job);
            race.next_disturbance();
            while race.goes_on(steps, rounds) {
                if let Err(Outcome::Fail(reason)) =
                    step(done, &mirror, &place, &mut copy, &mut random)
                {
                    return Err(Outcome::Fail(format!("step {steps}: {reason}")));
                }
                steps += 1;
            }
            Ok(())
        },
    )?;
    let count = mirror.count()?;
    println!(
        "    # {} invalidations, {} MAPs, {} lookups repeated",
        count.invalidations, count.maps, count.retries
    );
    raced("steps", steps)?;
    outcomes.was_a_race()?;
    check_eq!(
        mirror.csum(0, copy.len())?,
        compute::crc32c(0, &copy),
        "the device's view in the end"
    );
    check_eq!(place.to_vec(0, copy.len()), copy, "our view in the end");
    Ok(())
}

/// What the steps work on.
const KINDS: [Pages; 2] = [Pages::Base, Pages::Huge];

/// A child that writes to its copies, and ends.
pub(super) fn fork_once(place: &Place, number: u64) -> TestResult {
    let start = place.as_ptr();
    // SAFETY: The child of a process with threads may call little; this one writes to its memory
    // and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        for page in (0..place.len() / PAGE).filter(|page| *page as u64 % 3 == number % 3) {
            // SAFETY: Inside of the place, which the child has a copy of.
            unsafe { start.add(page * PAGE).write_volatile(0xee) };
        }
        // SAFETY: Ends the child.
        unsafe { libc::_exit(0) }
    }
    check!(pid > 0, "fork: {}", std::io::Error::last_os_error());
    reap(pid)?;
    Ok(())
}

fn fork(env: &Env) -> TestResult {
    each_kind(&KINDS, |pages| {
        hammer(env, pages, env.rounds(50), fork_once)
    })
}

fn move_pages(env: &Env) -> TestResult {
    numa::two_nodes()?;
    let moving = |place: &Place, number| numa::move_to(place, number as i32 % 2).map(drop);
    each_kind(&KINDS, |pages| hammer(env, pages, env.rounds(50), moving))
}

fn page_out(place: &Place, number: u64) -> TestResult {
    let part = place.len() / PAGE / 8 * PAGE;
    place.advise(number as usize % 8 * part, part, libc::MADV_PAGEOUT)
}

fn swap_out(env: &Env) -> TestResult {
    swap::enable()?;
    each_kind(&KINDS, |pages| hammer(env, pages, env.rounds(50), page_out))
}

fn collapse_once(place: &Place, number: u64) -> TestResult {
    // Pages that are in use elsewhere for a moment keep it from happening.
    drop(place.advise(0, place.len(), libc::MADV_COLLAPSE));
    let page = number as usize % (place.len() / PAGE);
    // Rights that no one lacks: splits what covers the page, and undoes it.
    place.advise(page * PAGE, PAGE, libc::MADV_DONTDUMP)?;
    place.advise(page * PAGE, PAGE, libc::MADV_DODUMP)
}

fn collapse_and_split(env: &Env) -> TestResult {
    hammer(env, Pages::Huge, env.rounds(300), collapse_once)
}

fn clear_refs(_: &Place, _: u64) -> TestResult {
    Ok(fs::write("/proc/self/clear_refs", "4")?)
}

fn soft_dirty(env: &Env) -> TestResult {
    each_kind(&KINDS, |pages| {
        hammer(env, pages, env.rounds(50), clear_refs)
    })
}

/// Invalidates memory that the steps do not use. A sparse registration of all of it has it too, and
/// its jobs use only what stays: whether the rest is there must not matter to them.
///
/// A right that is missing for a moment may be `refused`, though: the memory is still there.
fn beside(
    env: &Env,
    rounds: u64,
    refused: Option<Errno>,
    mut disturb: impl FnMut(&Place, usize, u64) -> TestResult + Send,
) -> TestResult {
    let device = open(env)?;
    let place = Place::base(2 * LENGTH)?;
    let all = Mirror::with(&device, &place, SPARSE)?;
    let mirror = Mirror::part(&device, &place, 0, LENGTH, WHOLE)?;
    all.prefetch(0, 2 * LENGTH)?;
    let mut random = Random(seed());
    let mut copy = mirror.scatter(random.next());
    let mut steps = 0;
    let outcomes = Race::run(
        |number| disturb(&place, LENGTH, number),
        |race| {
            let done: &Done<'_> = &|what, job| race.done(what, job);
            race.next_disturbance();
            while race.goes_on(steps, rounds) {
                steps += 1;
                step(done, &mirror, &place, &mut copy, &mut random)?;
                // The other registration works on the same part, and is hit all the time.
                let stream = all.reading_part(0, PAGE);
                match race.attempt(|| all.end(&stream))? {
                    End::Done => {}
                    End::Refused(error) if Some(error) == refused => continue,
                    other => {
                        return Err(Outcome::Fail(format!(
                            "a job on what was prefetched, beside memory that goes: {other:?}"
                        )))
                    }
                }
                check_eq!(
                    all.result(),
                    compute::crc32c(0, &copy[..PAGE]),
                    "the first page, in step {steps}"
                );
            }
            Ok(())
        },
    )?;
    raced("steps", steps)?;
    outcomes.was_a_race()?;
    check_eq!(place.to_vec(0, LENGTH), copy, "our view in the end");
    mirror.agrees("in the end")
}

fn protect(env: &Env) -> TestResult {
    // Never less than the device's registration has: rights are taken from what no step uses.
    beside(
        env,
        env.rounds(200),
        Some(Errno::PERM),
        |place, start, number| {
            let page = start + number as usize % (LENGTH / PAGE) * PAGE;
            place.map(page, PAGE)?;
            place.protect(page, PAGE, READ)?;
            place.protect(page, PAGE, RW)
        },
    )
}

fn unmap_parts(env: &Env) -> TestResult {
    beside(env, env.rounds(200), None, |place, start, number| {
        let pages = 1 + number as usize % 16;
        let offset = start + number as usize * 7 % (LENGTH / PAGE - 16) * PAGE;
        place.unmap(offset, pages * PAGE)?;
        place.map(offset, pages * PAGE)
    })
}

fn remap(env: &Env) -> TestResult {
    beside(env, env.rounds(200), None, |place, start, number| {
        let other = Place::reserve(Pages::Base, 16 * PAGE)?;
        let offset = start + number as usize * 3 % (LENGTH / PAGE - 16) * PAGE;
        place.move_to(offset, 16 * PAGE, &other, 0, 0)?;
        other.move_to(0, 16 * PAGE, place, offset, 0)
    })
}

/// All that leaves the content alone, by turns.
fn everything(env: &Env) -> TestResult {
    swap::enable()?;
    let two = numa::two_nodes().is_ok();
    each_kind(&KINDS, |pages| {
        hammer(env, pages, env.rounds(50), |place, number| {
            match number % 5 {
                0 => fork_once(place, number / 5),
                1 => page_out(place, number / 5),
                2 => collapse_once(place, number / 5),
                3 => clear_refs(place, number / 5),
                _ if two => numa::move_to(place, (number / 5) as i32 % 2).map(drop),
                _ => Ok(fs::write("/proc/sys/vm/compact_memory", "1")?),
            }
        })?;
        Ok(())
    })
}
