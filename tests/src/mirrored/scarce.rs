// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device with room for few runs of pages: whoever needs much of it does without, and no one else
//! notices.

use virtgpu_client::protocol::uapi::bo_state;
use virtgpu_client::{Bytes, Errno, Memory};

use super::support::{family as well_behaved, open, End, Mirror, READ_ONLY, SPARSE, WHOLE};
use crate::ktap::{Case, Family, Outcome, TestResult};
use crate::support::child::{self, drop_privileges};
use crate::support::debugfs::Knobs;
use crate::support::place::{Pages, Place};
use crate::support::{eventually, job, Env, HUGE, PAGE};
use crate::{cases, check, check_eq};

/// Mappings that the device has for all spaces: two huge pages have room for twice as many holes.
const MAPPINGS: usize = 600;

pub(crate) const FAMILY: Family = family(
    "mirrored_scarce",
    "--mirror-mappings 600",
    cases![
        holes_end_a_registration_and_not_the_device: 200,
        memory_that_is_not_used_makes_room: 200,
        what_no_eviction_helps_is_refused: 200,
    ],
);
/// Each space is lost with its first MAP.
pub(crate) const LOST: Family = family(
    "mirrored_space_lost",
    "--adversary space-lost --adversary-on MAP",
    cases![a_lost_space_is_that_registration],
);

const fn family(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        device,
        ..well_behaved(name, cases)
    }
}

/// The registration is lost in the end, and the memory and others are as they were.
fn holes_end_a_registration_and_not_the_device(env: &Env) -> TestResult {
    let other = Place::base(4 * PAGE)?;
    let device = open(env)?;
    let second = Mirror::new(&device, &other)?;
    second.coherent_all_over("before")?;
    let child = child::spawn(|| {
        drop_privileges()?;
        let device = open(env)?;
        // What is a huge page is one run.
        let place = Place::new(Pages::Huge, 2 * HUGE)?;
        place.write_u64(0, 1);
        place.write_u64(HUGE, 1);
        let mirror = Mirror::new(&device, &place)?;
        // The first hole makes small pages of it, and all of it is taken from the device.
        for part in [0, HUGE] {
            place.advise(part + PAGE, PAGE, libc::MADV_DONTNEED)?;
        }
        mirror.run("mapping everything", &mirror.idle())?;
        for page in (3..place.len() / PAGE).step_by(2) {
            place.advise(page * PAGE, PAGE, libc::MADV_DONTNEED)?;
        }
        let told = eventually(job::LIMIT, || {
            mirror
                .count()
                .is_ok_and(|count| count.state == bo_state::REVOKED)
        });
        check!(told, "the registration is not REVOKED");
        mirror.refused("a lost registration", Errno::IO)?;
        check_eq!(place.read_u64(0), 1, "the memory");
        // Other memory of the same file, and this memory once more.
        let small = Place::base(4 * PAGE)?;
        Mirror::new(&device, &small)?.coherent_all_over("other memory of the same file")?;
        drop(mirror);
        let again = Mirror::part(&device, &place, 0, 2 * PAGE, WHOLE)?;
        again.coherent("registered again", PAGE)
    })?;
    // Somebody else's jobs go on.
    while !child.is_finished()? {
        second.coherent_all_over("meanwhile")?;
        other.advise(PAGE, PAGE, libc::MADV_DONTNEED)?;
    }
    child.join()?;
    second.coherent_all_over("afterwards")
}

/// More memory than the device has room for, but each job uses little of it.
fn memory_that_is_not_used_makes_room(env: &Env) -> TestResult {
    const EACH: usize = 64;
    let device = open(env)?;
    let evicted = || -> TestResult<u64> { Knobs::open(env)?.counters()?.get("evicted_pages") };
    let before = evicted()?;
    let places = (0..16)
        .map(|_| Place::base(2 * EACH * PAGE))
        .collect::<TestResult<Vec<_>>>()?;
    let mirrors = places
        .iter()
        .map(|place| Mirror::with(&device, place, SPARSE))
        .collect::<TestResult<Vec<_>>>()?;
    for round in 0..3u64 {
        for (mirror, salt) in mirrors.iter().zip(0..) {
            // Every other page, so that each is a run.
            if round == 0 {
                for page in 0..EACH {
                    mirror.prefetch(2 * page * PAGE, PAGE)?;
                }
            }
            for page in [0, EACH - 1] {
                mirror.poke(2 * page * PAGE, round * 100 + salt)?;
            }
        }
        for (place, salt) in places.iter().zip(0..) {
            for page in [0, EACH - 1] {
                let seen = place.read_u64(2 * page * PAGE);
                check_eq!(seen, round * 100 + salt, "what the device has written");
            }
        }
    }
    let evicted = evicted()? - before;
    println!("    # {evicted} pages evicted");
    check!(evicted > 0, "everything fits");
    Ok(())
}

/// One registration that does not fit, and others that do.
fn what_no_eviction_helps_is_refused(env: &Env) -> TestResult {
    let device = open(env)?;
    let small = Place::base(4 * PAGE)?;
    let fits = Mirror::new(&device, &small)?;
    fits.coherent_all_over("before")?;
    let place = Place::base(2 * MAPPINGS * PAGE)?;
    let mirror = Mirror::with(&device, &place, SPARSE)?;
    let mut refused = None;
    for page in (0..place.len() / PAGE).step_by(2) {
        match mirror.userptr.prefetch((page * PAGE) as u64, PAGE as u64) {
            Ok(_) => {}
            Err(error) => {
                refused = Some((page, error));
                break;
            }
        }
    }
    let Some((page, error)) = refused else {
        return Err(Outcome::Fail("the device has room for everything".into()));
    };
    check_eq!(error, Errno::NOMEM, "PREFETCH of page {page}");
    check_eq!(
        mirror.end(&mirror.writing(0, 1))?,
        End::Refused(Errno::NOMEM),
        "a job that needs all that was asked for"
    );
    // What was evicted for it comes back when it is wanted.
    drop(mirror);
    fits.coherent_all_over("afterwards")
}

/// Pinned and mirrored registrations whose spaces the device drops.
fn a_lost_space_is_that_registration(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(2 * PAGE)?;
    place.fill(3);
    for options in [WHOLE, READ_ONLY] {
        let mirror = Mirror::with(&device, &place, options)?;
        // The first MAP has its response, and then the space is lost.
        let _ = mirror.userptr.prefetch(0, PAGE as u64);
        let told = eventually(job::LIMIT, || {
            mirror
                .count()
                .is_ok_and(|count| count.state == bo_state::REVOKED)
        });
        check!(told, "the registration is not REVOKED");
        mirror.refused("a lost registration", Errno::IO)?;
        let prefetched = mirror.userptr.prefetch(0, PAGE as u64);
        check_eq!(prefetched, Err(Errno::IO), "PREFETCH");
    }
    let pinned = device.register(
        &place,
        virtgpu_client::RegisterOptions::pinned().read_only(),
    )?;
    let told = eventually(job::LIMIT, || {
        pinned
            .query()
            .is_ok_and(|query| query.state == bo_state::REVOKED)
    });
    check!(told, "pinned read-only memory is not REVOKED");
    let mut stream = virtgpu_client::compute::Stream::new();
    stream.delay(1);
    let outcome = virtgpu_client::Exec::new(stream.as_bytes())
        .buffers(&[pinned.handle()])
        .submit_with_fence(&device)
        .map(drop);
    check_eq!(outcome, Err(Errno::IO), "a job that lists it");
    // The file's context is none the worse for it.
    let outcome = virtgpu_client::Exec::new(stream.as_bytes())
        .submit_with_fence(&device)
        .map(drop);
    check_eq!(outcome, Ok(()), "a job that does not");
    Ok(())
}
