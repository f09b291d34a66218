// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Pages that were written, as those ask the kernel who copy a running process, for example CRIU.

use std::fs;

use virtgpu_client::{Bytes, Memory};

use crate::check;
use crate::ktap::TestResult;
use crate::skip;
use crate::support::place::Place;
use crate::support::{procfs, PAGE};

/// Whether a page of a place was written.
pub(crate) fn is_dirty(place: &Place, page: usize) -> TestResult<bool> {
    const BIT: u64 = 1 << 55;
    let entries = procfs::pagemap(place.address(page * PAGE) as usize, 1)?;
    Ok(entries[0] & BIT != 0)
}

/// Begins anew for all pages of this process.
pub(crate) fn clear() -> TestResult {
    Ok(fs::write("/proc/self/clear_refs", "4")?)
}

/// A skip unless the kernel knows which pages of a place were written.
pub(crate) fn is_tracked(place: &Place) -> TestResult {
    clear()?;
    place.write_u64(0, 2);
    if is_dirty(place, 1)? || !is_dirty(place, 0)? {
        skip!("the kernel does not track soft-dirty pages");
    }
    Ok(())
}

/// No page of a place was written.
pub(crate) fn is_clean(place: &Place) -> TestResult {
    for page in 0..place.len() / PAGE {
        check!(
            !is_dirty(place, page)?,
            "page {page} is dirty after clear_refs"
        );
    }
    Ok(())
}
