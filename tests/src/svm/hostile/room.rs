// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that refuses a MAP of one context now and then: what that costs the context, and for
//! how long.

use std::time::Duration;

use virtgpu_client::protocol::uapi::{svm_state, SvmQuery};
use virtgpu_client::{compute, Deadline, Errno, Memory};

use super::{victim, victim_with};
use crate::ktap::TestResult;
use crate::support::place::{Pages, Place};
use crate::support::{pace, Env, HUGE, PAGE};
use crate::svm::support::{at, others_work, Svm, USUAL};
use crate::{check, check_eq};

/// A device without room for one MAP is asked for little at a time, and for nothing ahead of the
/// faults; but not for ever, if it has taken much since. A fault maps one granule at most, so that
/// fewer faults than granules show that others were mapped ahead.
pub(super) fn room_comes_back(env: &Env) -> TestResult {
    const BEFORE: usize = 6 * HUGE;
    const GRANULES: usize = 8;
    let victim = victim(env)?;
    // Each granule is one MAP.
    let place = Place::new(Pages::Huge, BEFORE + GRANULES * HUGE)?;
    let filling = |from: usize, to: usize| {
        let mut stream = compute::Stream::new();
        stream.fill(at(place.address(from)), (to - from) as u64, 7);
        stream
    };
    victim.run("filling the beginning", &filling(0, BEFORE))?;
    let begun = victim.count()?;
    victim.run("filling the rest", &filling(BEFORE, place.len()))?;
    let ended = victim.count()?;
    let served = |count: &SvmQuery| count.faults - count.coalesced;
    let served = [served(&begun), served(&ended) - served(&begun)];
    println!("    # {served:?} faults were served");
    check!(
        served[1] < GRANULES as u64,
        "{} faults for {GRANULES} granules",
        served[1]
    );
    check_eq!(ended.state, svm_state::ACTIVE, "the state");
    others_work(env, "a device that has refused a MAP")
}

/// The device says of a MAP that there is no such space, for which an event will give the reason.
/// Until then the context is not lost: that of the page it is not.
pub(super) fn dropped_space_is_no_bad_address(env: &Env) -> TestResult {
    const PAGES: usize = 64;
    let victim = victim_with(env, USUAL.exact().workers(1))?;
    let place = Place::scattered(PAGES)?;
    // More than there is room for, so that MAPs have a response before their faults are resolved.
    let mut stream = compute::Stream::new();
    for number in 0..4 * PAGES {
        stream.add_u32(at(place.address(number % PAGES * PAGE)), 4, 1);
    }
    victim.submit(0, &stream)?;
    let deadline = Deadline::after(pace::limit(Duration::from_secs(3)));
    check_eq!(
        victim.space.wait_ring(0, deadline),
        Err(Errno::TIME),
        "the job"
    );
    let count = victim.count()?;
    check_eq!(count.state, svm_state::ACTIVE, "the state");
    check!(count.evictions > 0, "nothing was evicted: {count:?}");
    // The one to which the device says so is the 65th.
    check!(count.maps > 64, "the job did not get there: {count:?}");
    drop::<Svm>(victim);
    others_work(env, "a space that the device has dropped")
}
