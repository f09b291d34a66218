// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Transparent huge pages: small ones that become one, and those that fall apart.

use std::fs;
use std::time::Duration;

use virtgpu_client::{Bytes, Memory};

use crate::ktap::{Outcome, TestResult};
use crate::skip;
use crate::support::eventually;
use crate::support::place::{Pages, Place};
use crate::support::HUGE;

/// A huge page, if the kernel gives any.
pub(crate) fn huge() -> TestResult<Place> {
    let place = Place::new(Pages::Huge, HUGE)?;
    place.fill(1);
    if !place.is_huge(0)? {
        skip!("the kernel gave small pages");
    }
    Ok(place)
}

/// Small pages that may become a huge one.
pub(crate) fn small(length: usize) -> TestResult<Place> {
    let place = Place::base(length)?;
    place.fill(0);
    Ok(place)
}

/// Makes all of a place huge pages.
pub(crate) fn collapse(place: &Place) -> TestResult {
    // The advice against huge pages would refuse it for a reason of its own.
    place.advise(0, place.len(), libc::MADV_HUGEPAGE)?;
    let mut last = Ok(());
    // A page may be on its way somewhere for a moment.
    eventually(Duration::from_secs(60), || {
        last = place.advise(0, place.len(), libc::MADV_COLLAPSE);
        last.is_ok()
    });
    last
}

/// Refuses on memory that no device uses, too: then it is not the device's fault.
pub(crate) fn can_collapse() -> TestResult {
    let control = small(HUGE)?;
    match collapse(&control) {
        Err(Outcome::Fail(reason)) => Err(Outcome::Skip(format!("no collapse here: {reason}"))),
        other => other,
    }
}

/// Has the kernel take all huge pages of a place apart, whose frames stay the same.
pub(crate) fn split(place: &Place) -> TestResult {
    let file = "/sys/kernel/debug/split_huge_pages";
    let (start, end) = (place.address(0), place.address(place.len()));
    let text = format!("{},{start:#x},{end:#x}", std::process::id());
    fs::write(file, text).map_err(|error| Outcome::Skip(format!("{file}: {error}")))
}
