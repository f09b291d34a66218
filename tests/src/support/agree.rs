// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that this process and a device use at once: both see the same bytes, and the device is
//! told before a page goes.

use virtgpu_client::protocol::compute::Stat;
use virtgpu_client::{compute, Bytes, Memory};

use crate::ktap::TestResult;
use crate::support::place::Place;
use crate::support::PAGE;
use crate::{check, check_eq};

/// The first page of `length` bytes, the last one, and one in the middle.
pub(crate) fn spread(length: usize) -> [usize; 3] {
    [0, length / 2, length - 1].map(|offset| offset & !(PAGE - 1))
}

/// Each side sees what the other writes at `offset` of `place`. The device reads the u64 there by
/// `peek`, and writes it by `poke`.
pub(crate) fn coherent(
    what: &str,
    place: &Place,
    offset: usize,
    peek: impl FnOnce() -> TestResult<u64>,
    poke: impl FnOnce(u64) -> TestResult,
) -> TestResult {
    let address = place.address(offset);
    place.write_u64(offset, address ^ 0x51);
    check_eq!(
        peek()?,
        address ^ 0x51,
        "{what}: the device's view of our write at {address:#x}"
    );
    poke(address ^ 0x152)?;
    check_eq!(
        place.read_u64(offset),
        address ^ 0x152,
        "{what}: our view of the device's write at {address:#x}"
    );
    Ok(())
}

/// The device's CRC32C of `expected` is `csum`.
pub(crate) fn sees(what: &str, csum: u32, expected: &[u8]) -> TestResult {
    check_eq!(
        csum,
        compute::crc32c(0, expected),
        "{what}: CRC32C of {} bytes, the device's and ours",
        expected.len()
    );
    Ok(())
}

/// Between two counts of a space the device was told of a loss, and has lost at least `bytes`.
pub(crate) fn has_lost(what: &str, [before, after]: [&Stat; 2], bytes: usize) -> TestResult {
    check!(
        after.space_invalidates > before.space_invalidates,
        "{what}: the device was not told"
    );
    check!(
        after.space_pages.get() + (bytes / PAGE) as u64 <= before.space_pages.get(),
        "{what}: of {} pages mapped in the device, {} still are",
        before.space_pages,
        after.space_pages
    );
    Ok(())
}

/// The first word of each page of `place` is `jobs`: so many have added 1 to all of it.
pub(crate) fn added(place: &Place, jobs: u32) -> TestResult {
    for page in 0..place.len() / PAGE {
        check_eq!(
            place.read_u32(page * PAGE),
            jobs,
            "additions to page {page}"
        );
    }
    Ok(())
}
