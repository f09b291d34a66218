// SPDX-License-Identifier: GPL-2.0

//! How much is looked up for a fault: the page alone, or what its job will touch next as well.

use super::super::Svm;
use crate::{
    kapi::mm::{
        Area,
        FaultWait, //
    },
    mirror::{
        Wanted,
        Window, //
    },
};
use kernel::page::PAGE_SHIFT;

/// Most pages of a fault, if the device lacks room.
const SCARCE_PAGES: usize = 16;

impl Svm {
    /// What to look up for an access to page `page` of a window, which is in `area`: nothing else.
    pub(super) fn wanted_alone(area: &Area, page: usize, write: bool) -> Wanted {
        Wanted {
            ask: page..page + 1,
            around: page..page + 1,
            write,
            eager: area.is_private_anonymous() && area.may_write(),
            read_only: !area.may_write(),
            alone: false,
            wait: FaultWait::Interruptible,
        }
    }

    /// What to look up for an access to page `page` of a window, which is in `area`: `pages` pages
    /// if they are of the same area and granule and not there already, and what is around them.
    pub(super) fn wanted(
        &self,
        window: &Window,
        area: &Area,
        page: usize,
        write: bool,
        pages: usize,
    ) -> Wanted {
        let granule = window.granule(page);
        // The part of the granule that is of the area.
        let of = |address: usize| address.saturating_sub(window.start()) >> PAGE_SHIFT;
        let around = granule.start.max(of(area.start))..granule.end.min(of(area.end));
        let scarce = self.is_scarce();
        let pages = if area.is_random() || area.has_userfaultfd() {
            // Whoever serves a userfaultfd is asked for what was touched.
            1
        } else if !write && area.is_anonymous() {
            // Pages of zeroes, each of which would have to be replaced when it is written.
            1
        } else if area.is_sequential() || area.is_hugetlb() {
            granule.len()
        } else {
            pages
        };
        // More would cost the device what it needs for the next access of the same job.
        let pages = pages.min(if scarce { SCARCE_PAGES } else { usize::MAX });
        let end = around.end.min(page + pages);
        // Those that the device has are not to be looked up for more than it has.
        let end = window.first_reachable(page + 1..end.max(page + 1), write);
        let ask = page..end;
        Wanted {
            around: if scarce { ask.clone() } else { around },
            ask,
            ..Self::wanted_alone(area, page, write)
        }
    }
}
