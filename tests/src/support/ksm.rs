// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Equal pages, of which the kernel makes one.

use std::fs;

use virtgpu_client::Bytes;

use crate::ktap::{Outcome, TestResult};
use crate::support::place::Place;
use crate::support::PAGE;

const KSM: &str = "/sys/kernel/mm/ksm";

/// Starts the kernel's search for equal pages; stops and undoes it on drop.
pub(crate) struct Merging;

impl Merging {
    pub(crate) fn start() -> TestResult<Self> {
        for (file, value) in [
            ("pages_to_scan", "20000"),
            ("sleep_millisecs", "1"),
            ("run", "1"),
        ] {
            fs::write(format!("{KSM}/{file}"), value)
                .map_err(|error| Outcome::Skip(format!("{KSM}/{file}: {error}")))?;
        }
        Ok(Self)
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        let _ = fs::write(format!("{KSM}/run"), "2");
        let _ = fs::write(format!("{KSM}/run"), "0");
    }
}

/// 16 pages of 0x3c that may become one.
pub(crate) fn equal_pages() -> TestResult<Place> {
    let place = Place::base(16 * PAGE)?;
    place.fill(0x3c);
    place.try_advise(0, 16 * PAGE, libc::MADV_MERGEABLE, "MADV_MERGEABLE")?;
    Ok(place)
}

/// Whether all pages of a place are one.
pub(crate) fn all_one(place: &Place) -> bool {
    place
        .frames()
        .is_ok_and(|frames| frames[0].is_some() && frames.iter().all(|frame| *frame == frames[0]))
}
