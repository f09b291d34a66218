// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device with room for little: the driver evicts pages, so that all jobs go on.

use std::time::Duration;

use virtgpu_client::protocol::uapi::svm_state;
use virtgpu_client::{compute, Bytes, Memory, SpaceOptions};

use super::silent::{Silent, SIZE};
use super::support::{at, family, open, open_with, others_work, End, Svm, RINGS, USUAL};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::place::Place;
use crate::support::{procfs, Env, PAGE};
use crate::{cases, check, check_eq};

/// A device with room for few runs of pages.
pub(crate) const FAMILY: Family = Family {
    device: "--mirror-mappings 600",
    ..family(
        "svm_scarce",
        cases![
            evicts_and_goes_on: 300,
            evicts_at_the_end_of_addresses: 300,
            prefetches_all_the_same: 300,
        ],
    )
};

/// A device with room for fewer pages than there are jobs that need one each.
pub(crate) const SCARCER: Family = Family {
    device: "--mirror-mappings 16",
    ..family(
        "svm_scarcer",
        cases![
            jobs_take_from_each_other: 600,
            jobs_ask_for_too_much: 600,
            asks_a_userfaultfd_for_one_page: 300,
        ],
    )
};

/// Pages of [`in_many_runs`].
const PAGES: usize = 2000;

/// More runs of pages than the device has mappings for: it makes room, and no job fails.
fn evicts_and_goes_on(env: &Env) -> TestResult {
    more_than_it_has_room_for(env, &open(env)?)
}

/// The same with the last page that there can be: going round begins anew behind it.
fn evicts_at_the_end_of_addresses(env: &Env) -> TestResult {
    let svm = open(env)?;
    let last = svm.space.va_end() - PAGE as u64;
    // SAFETY: New memory, if nothing is there; otherwise it is the stack's, and stays.
    let new = unsafe {
        libc::mmap(
            last as *mut libc::c_void,
            PAGE,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if new as u64 != last {
        let error = std::io::Error::last_os_error();
        check_eq!(
            error.raw_os_error(),
            Some(libc::EEXIST),
            "mapping the last page"
        );
    }
    svm.peek(last)?;
    more_than_it_has_room_for(env, &svm)?;
    svm.peek(last)?;
    if new as u64 == last {
        // SAFETY: It was mapped above, and nothing is in it.
        unsafe { libc::munmap(new, PAGE) };
    }
    Ok(())
}

/// PREFETCH of more than there is room for: MAPs that fail while others are on their way.
fn prefetches_all_the_same(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = in_many_runs()?;
    let length = place.len() as u64;
    let done = svm.space.prefetch_for_writing(place.address(0), length)?;
    check_eq!(done, length, "bytes prefetched");
    let query = svm.count()?;
    check!(query.evictions > 0, "nothing was evicted: {query:?}");
    // What has been evicted is no error, and what has not is there.
    let last = place.address(place.len() - PAGE);
    svm.poke(last, 9)?;
    check_eq!(svm.count()?.faults, query.faults, "faults on the last page");
    place.write_u64(place.len() - PAGE, 0);
    svm.run("adding to all of it", &Svm::adding(&place))?;
    for offset in (0..place.len()).step_by(PAGE) {
        check_eq!(place.read_u32(offset), 1, "what was added at {offset:#x}");
    }
    others_work(env, "a device that is full")
}

fn more_than_it_has_room_for(env: &Env, svm: &Svm) -> TestResult {
    let place = in_many_runs()?;
    let adding = adding_to_each(&place);
    for _ in 0..3 {
        svm.run("adding to all of it", &adding)?;
    }
    for offset in (0..place.len()).step_by(PAGE) {
        check_eq!(place.read_u32(offset), 3, "additions at {offset:#x}");
    }
    let query = svm.count()?;
    check!(query.evictions > 0, "nothing was evicted: {query:?}");
    check_eq!(query.state, svm_state::ACTIVE, "the state");
    others_work(env, "a device that is full")
}

/// Memory in more runs of pages than the device has room for.
fn in_many_runs() -> TestResult<Place> {
    let place = Place::scattered(PAGES)?;
    let runs = procfs::minimal_runs(place.as_ptr() as usize, place.len())?;
    if runs < 1200 {
        return Err(Outcome::Skip(format!("memory in {runs} runs only")));
    }
    for offset in (0..place.len()).step_by(PAGE) {
        place.write_u64(offset, 0);
    }
    Ok(place)
}

/// A job that adds 1 to the first word of each page, by an operation of its own.
fn adding_to_each(place: &Place) -> compute::Stream {
    let mut adding = compute::Stream::new();
    for offset in (0..place.len()).step_by(PAGE) {
        adding.add_u32(at(place.address(offset)), 8, 1);
    }
    adding
}

/// Each job evicts what others have, in the one granule that all use, so that there is nothing left
/// to evict for one that asks at the wrong moment. It is not out of memory for that.
fn jobs_take_from_each_other(env: &Env) -> TestResult {
    take_from_each_other(env, USUAL.exact().workers(4))
}

/// The same where a fault asks for more than there is room for.
fn jobs_ask_for_too_much(env: &Env) -> TestResult {
    take_from_each_other(env, USUAL.workers(4))
}

fn take_from_each_other(env: &Env, options: SpaceOptions) -> TestResult {
    const ADDITIONS: usize = 64;
    let svm = open_with(env, options)?;
    let place = Place::scattered(16)?;
    let word = |ring: u32| 64 + ring as usize * 8;
    for round in 1..=env.iterations(10) {
        for ring in 0..RINGS {
            let mut stream = compute::Stream::new();
            for number in 0..ADDITIONS {
                let page = (number * 7 + ring as usize * 5) % 16;
                let address = place.address(page * PAGE + word(ring));
                stream.atomic_add(at(address), 1, 1);
            }
            svm.submit(ring, &stream)?;
        }
        for ring in 0..RINGS {
            check_eq!(
                svm.finish(ring)?,
                End::Done,
                "round {round}: ring {ring}, {:?}",
                svm.count()
            );
            let sum: u64 = (0..16)
                .map(|page| place.read_u64(page * PAGE + word(ring)))
                .sum();
            check_eq!(sum, round * ADDITIONS as u64, "the sum of ring {ring}");
        }
    }
    let count = svm.count()?;
    println!(
        "    # {} faults, {} evictions",
        count.faults, count.evictions
    );
    check!(count.evictions > 0, "nothing was evicted");
    drop(svm);
    others_work(env, "jobs that had no room")
}

/// A device without room for more is no reason to ask a userfaultfd for what was not touched.
fn asks_a_userfaultfd_for_one_page(env: &Env) -> TestResult {
    let svm = open(env)?;
    let runs = in_many_runs()?;
    let mut adding = compute::Stream::new();
    for offset in (0..64 * PAGE).step_by(PAGE) {
        adding.add_u32(at(runs.address(offset)), 4, 1);
    }
    svm.run("more than there is room for", &adding)?;
    let query = svm.count()?;
    check!(query.evictions > 0, "nothing was evicted: {query:?}");
    let silent = Silent::new()?;
    silent.stall(&svm, 1, 0)?;
    silent.uffd.zero(silent.place.address(0), PAGE)?;
    let end = svm.finish(1);
    // Whoever waits in vain does so no longer.
    let asked = silent.uffd.next(Duration::ZERO)?;
    silent.uffd.unregister(silent.place.address(0), SIZE)?;
    check_eq!(end?, End::Done, "the job");
    check_eq!(asked.map(|fault| fault.address), None, "the next page");
    Ok(())
}
