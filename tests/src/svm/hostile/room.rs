// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that refuses a MAP of one context now and then: what that costs the context, and for
//! how long.

use virtgpu_client::protocol::uapi::{svm_state, SvmQuery};
use virtgpu_client::{compute, Memory};

use super::victim;
use crate::ktap::TestResult;
use crate::support::place::{Pages, Place};
use crate::support::{Env, HUGE};
use crate::svm::support::{at, others_work};
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
