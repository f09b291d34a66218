// SPDX-License-Identifier: GPL-2.0

//! Faults on pages that the device should reach.
//!
//! A page is in the table from the moment its MAP is sent, and a fault on it is resolved at once.
//! If the device refuses that MAP, it is taken out by whoever sent it, who may be waiting for
//! something else meanwhile: SVM_PREFETCH for the next page, which a userfaultfd may have to bring.
//! So a fault that comes back over and over is not resolved in vain for ever: the page is revoked,
//! and mapped once more.

use core::ops::Range;
use kernel::prelude::*;

/// How many pages are remembered at least.
const LEAST: usize = 64;

/// How often in a row a fault on a page is resolved because the device should reach the page.
const MOST: u32 = 4;

/// The last pages on which faults were resolved without a MAP.
pub(super) struct InVain {
    /// Page numbers, and how often. Never grows beyond its capacity.
    pages: KVec<(usize, u32)>,
    /// The place that is used next if none is free.
    next: usize,
}

impl InVain {
    /// There were none. As many pages are remembered as the device may have faults at a time,
    /// `most`, and as those of jobs that wait until it may have another.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(most: usize) -> Result<Self> {
        Ok(Self {
            pages: KVec::from_elem((0, 0), most.max(LEAST), GFP_KERNEL)?,
            next: 0,
        })
    }

    /// A fault on page `page` is about to be resolved without a MAP. Returns whether that was done
    /// too often already; then it begins anew.
    pub(super) fn is_too_often(&mut self, page: usize) -> bool {
        let Some((_, count)) = self.find(page) else {
            let free = self.pages.iter().position(|(_, count)| *count == 0);
            let place = free.unwrap_or(self.next);
            self.pages[place] = (page, 1);
            if free.is_none() {
                self.next = (self.next + 1) % self.pages.len();
            }
            return false;
        };
        *count += 1;
        if *count <= MOST {
            return false;
        }
        *count = 0;
        true
    }

    /// MAP was sent for pages `which`, by number.
    pub(super) fn mapped(&mut self, which: Range<usize>) {
        for (page, count) in &mut self.pages {
            if which.contains(page) {
                *count = 0;
            }
        }
    }

    fn find(&mut self, page: usize) -> Option<&mut (usize, u32)> {
        self.pages
            .iter_mut()
            .find(|(of, count)| *of == page && *count > 0)
    }
}

#[kunit_tests(virtgpu_userptr_vain)]
mod tests {
    use super::*;

    const PAGES: usize = LEAST;

    #[test]
    fn one_that_comes_back_is_noticed() {
        let mut vain = InVain::new(PAGES).unwrap();
        for _ in 0..3 {
            for _ in 0..MOST {
                assert!(!vain.is_too_often(7));
            }
            assert!(vain.is_too_often(7));
        }
    }

    #[test]
    fn a_map_begins_anew() {
        let mut vain = InVain::new(PAGES).unwrap();
        for _ in 0..3 {
            for _ in 0..MOST {
                assert!(!vain.is_too_often(7));
            }
            vain.mapped(5..8);
        }
    }

    #[test]
    fn others_do_not_disturb() {
        let mut vain = InVain::new(PAGES).unwrap();
        for _ in 0..MOST {
            for page in 0..PAGES {
                assert!(!vain.is_too_often(page));
            }
        }
        for page in 0..PAGES {
            assert!(vain.is_too_often(page));
        }
    }

    /// Jobs that wait until the device may have another fault come back, too.
    #[test]
    fn few_faults_at_a_time_are_many_pages() {
        let mut vain = InVain::new(1).unwrap();
        for _ in 0..MOST {
            for page in 0..LEAST {
                assert!(!vain.is_too_often(page));
            }
        }
        for page in 0..LEAST {
            assert!(vain.is_too_often(page));
        }
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut vain = InVain::new(PAGES).unwrap();
        for page in 0..=PAGES {
            for _ in 0..MOST {
                assert!(!vain.is_too_often(page));
            }
        }
        assert!(!vain.is_too_often(0));
        assert!(vain.is_too_often(PAGES));
    }
}
