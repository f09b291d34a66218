// SPDX-License-Identifier: GPL-2.0

//! What the device may reach of a mirrored range, page by page.
//!
//! A page passes through these states, and the lock of the file ([`super::NotifierLock`]) is held
//! whenever one changes:
//!
//! - *unmapped*;
//! - *mapping*: MAP was sent, and has not been responded to; the device may reach the page;
//! - *mapped*: jobs may rely on it;
//! - *invalidating*: the kernel is about to change the page tables, and the device may still
//!   reach the page; then unmapped again.
//!
//! The table keeps only the address of a page, and no reference to it.

mod granule;
#[cfg(CONFIG_KUNIT = "y")]
mod interleavings;
#[cfg(CONFIG_KUNIT = "y")]
mod leaves;
#[cfg(CONFIG_KUNIT = "y")]
mod model;

pub(super) use self::granule::{
    Reach,
    ReachablePages, //
};

use self::granule::{
    lanes,
    Counts,
    Granule,
    EVICTING,
    EXCLUSIVE,
    MAPPED,
    MAPPING,
    QUARANTINED,
    REACHABLE,
    WANTED,
    WRITABLE, //
};
#[cfg(CONFIG_KUNIT = "y")]
use self::granule::{
    packed,
    FLAGS, //
};
use crate::kapi::mm::{
    HmmPage,
    TrackedPage, //
};
use core::ops::Range;
use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    }, //
};

/// Pages of a granule, the unit in which the table grows, and in which it is gone over: whoever has
/// more to look at gives the lock to others in between.
pub(super) const GRANULE: usize = 512;

/// Granules of which nothing but the counts is looked at before others get the lock.
const MOST_PASSED: usize = 128;

/// The pages of a mirrored range.
pub(super) struct Table {
    granules: RBTree<usize, Granule>,
    /// Where the granules begin.
    layout: Layout,
    totals: Counts,
    /// Words and granules that were looked at since [`Table::take_looked`].
    looked: usize,
    /// The device has been reset: it reaches nothing any more.
    device_reset: bool,
}

/// How a range is divided into granules: where huge pages may begin, so that few of them are split.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Pages of the first granule that are before the range.
    skew: usize,
    pages: usize,
}

impl Layout {
    /// The layout of `pages` pages, the first of which is at page number `start` of the process.
    pub(super) fn new(start: usize, pages: usize) -> Self {
        Self {
            skew: start % GRANULE,
            pages,
        }
    }

    /// The number of the granule of page `page`.
    fn index(self, page: usize) -> usize {
        (page + self.skew) / GRANULE
    }

    /// The pages of granule `index`.
    fn pages_of(self, index: usize) -> Range<usize> {
        let first = (index * GRANULE).saturating_sub(self.skew);
        first..((index + 1) * GRANULE - self.skew).min(self.pages)
    }

    /// The pages of the granule that page `page` is in.
    pub(super) fn granule(self, page: usize) -> Range<usize> {
        self.pages_of(self.index(page))
    }
}

/// Which granules to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Having {
    /// All.
    Anything,
    /// Those with pages that the device may reach.
    Reachable,
}

/// Memory for a granule, allocated ahead.
pub(super) struct NewGranule(RBTreeNode<usize, Granule>);

impl Table {
    /// A table of unmapped pages.
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            granules: RBTree::new(),
            layout,
            totals: Counts::default(),
            looked: 0,
            device_reset: false,
        }
    }

    /// Whether the device can reach any of the pages.
    pub(super) fn is_reached(&self) -> bool {
        self.totals.reachable > 0
    }

    /// Pages that jobs may rely on.
    pub(super) fn mapped(&self) -> usize {
        self.totals.mapped
    }

    /// Whether a job may use everything; with `sparse`, everything that was asked for.
    pub(super) fn is_ready(&self, sparse: bool) -> bool {
        if sparse {
            self.totals.ready == self.totals.wanted
        } else {
            self.totals.mapped == self.layout.pages
        }
    }

    /// The memory that [`Table::add`] needs for the granule of `page`, unless it is there.
    ///
    /// Allocates, so that the lock must not be held.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new_granule(layout: Layout, page: usize) -> Result<NewGranule> {
        let pages = layout.granule(page).len();
        let granule = Granule::new(pages)?;
        let node = RBTreeNode::new(layout.index(page), granule, GFP_KERNEL_ACCOUNT)?;
        Ok(NewGranule(node))
    }

    /// The first part of `which` in a single granule that has what is asked for, at or behind
    /// `which.start`; empty if there was none as far as it looked, or at all if it is at the end.
    pub(super) fn next_part(&mut self, which: Range<usize>, having: Having) -> Range<usize> {
        let nothing = which.end..which.end;
        if which.is_empty() || having == Having::Reachable && self.totals.reachable == 0 {
            return nothing;
        }
        let first = self.layout.index(which.start);
        let mut passed = 0;
        let mut cursor = self.granules.cursor_lower_bound_mut(&first);
        while let Some(at) = cursor {
            let (&index, granule) = at.current();
            let pages = self.layout.pages_of(index);
            let start = pages.start.max(which.start);
            if start >= which.end {
                break;
            }
            let found = match having {
                Having::Anything => true,
                Having::Reachable => granule.sums & lanes(REACHABLE) != 0,
            };
            if found || passed == MOST_PASSED {
                let end = if found {
                    pages.end.min(which.end)
                } else {
                    start
                };
                self.looked += passed + 1;
                return start..end;
            }
            passed += 1;
            cursor = at.move_next();
        }
        self.looked += passed;
        nothing
    }

    /// How many words and granules were looked at since this was called last.
    pub(super) fn take_looked(&mut self) -> usize {
        core::mem::take(&mut self.looked)
    }

    /// Whether all granules of `which` are there.
    pub(super) fn has_granules(&self, which: &Range<usize>) -> bool {
        let mut at = which.start;
        while at < which.end {
            if !self.has_granule(at) {
                return false;
            }
            at = self.layout.granule(at).end;
        }
        true
    }

    /// Gives back the granules of `which` in which nothing is known of any page.
    fn release(&mut self, which: Range<usize>) {
        let mut at = which.start;
        while at < which.end {
            let index = self.layout.index(at);
            at = self.layout.pages_of(index).end;
            if self.granules.get(&index).is_some_and(Granule::is_empty) {
                self.granules.remove(&index);
            }
        }
    }

    /// Whether the granule of `page` is there.
    pub(super) fn has_granule(&self, page: usize) -> bool {
        self.granules.get(&self.layout.index(page)).is_some()
    }

    /// Adds a granule that is not there.
    pub(super) fn add(&mut self, granule: NewGranule) {
        self.granules.insert(granule.0);
    }

    /// Calls `with` for each granule that has pages of `which`, with its first page and their place
    /// in it; counts what it changes. It returns how many words it has looked at.
    fn each_granule(
        &mut self,
        which: Range<usize>,
        mut with: impl FnMut(usize, &mut Granule, Range<usize>) -> usize,
    ) {
        let first = self.layout.index(which.start);
        let Some(mut cursor) = self.granules.cursor_lower_bound_mut(&first) else {
            return;
        };
        loop {
            let (index, granule) = cursor.current_mut();
            let base = self.layout.pages_of(*index).start;
            if base >= which.end {
                break;
            }
            let from = which.start.saturating_sub(base);
            let to = (which.end - base).min(granule.len);
            self.totals.subtract(granule.sums);
            self.looked += 1 + with(base, granule, from..to);
            self.totals.add(granule.sums);
            match cursor.move_next() {
                Some(next) => cursor = next,
                None => break,
            }
        }
    }

    /// Changes the pages `which` that have granules, one by one, or several that are one behind the
    /// other in the same state; with [`None`] they stay as they are.
    fn each(
        &mut self,
        which: Range<usize>,
        mut change: impl FnMut(ReachablePages<'_>, u64) -> Option<u64>,
    ) {
        self.each_granule(which, |_, granule, part| granule.each(part, &mut change));
    }

    /// Takes `flags` from the words of the pages `which` that have granules.
    fn clear(&mut self, which: Range<usize>, flags: u64) {
        self.each_granule(which, |_, granule, part| granule.clear(part, flags));
    }

    /// The first pages in `which` that a job would need and that are not mapped: neighbours, `most`
    /// at most, in two granules or as many as so many pages fill; with `sparse`, only those that
    /// were asked for. Empty if there are none before it, and it is for the caller to go on from
    /// there.
    pub(super) fn next_stale(
        &mut self,
        which: Range<usize>,
        most: usize,
        sparse: bool,
    ) -> Option<Range<usize>> {
        let is_stale = |word: u64| word & MAPPED == 0 && (!sparse || word & WANTED != 0);
        let stale = |page: &TrackedPage| is_stale(page.word());
        // Behind the pages that are taken, when they begin at `start`.
        let stop = |start: usize| {
            let last = self.layout.index(start) + (most / GRANULE).max(2) - 1;
            start
                .saturating_add(most)
                .min(self.layout.pages_of(last).end)
        };
        let mut at = which.start;
        let mut passed = 0;
        let mut found: Option<Range<usize>> = None;
        while at < which.end {
            let granule = self.layout.granule(at);
            let end = granule.end.min(which.end);
            if found.is_none() {
                if passed == MOST_PASSED {
                    return Some(at..at);
                }
                passed += 1;
            }
            self.looked += 1;
            // Begins at `at` if something was found.
            let next = match self.granules.get(&self.layout.index(at)) {
                None if sparse && found.is_none() => {
                    at = self.next_granule(end)?;
                    continue;
                }
                None if sparse => None,
                None => Some(at..end),
                Some(granule) if granule.is_ready(sparse) => None,
                Some(granule) if granule.is_leaf() => {
                    is_stale(granule.leaf.word()).then_some(at..end)
                }
                Some(Granule { pages, .. }) => {
                    self.looked += end - at;
                    let pages = pages.get(at - granule.start..end - granule.start)?;
                    let first = match found {
                        Some(_) => Some(0),
                        None => pages.iter().position(stale),
                    };
                    if first.is_none() {
                        // That was enough for once.
                        return (end < which.end).then_some(end..end);
                    }
                    first.map(|first| {
                        let rest = pages.get(first..).unwrap_or_default();
                        let count = rest.iter().take_while(|page| stale(page)).count();
                        at + first..at + first + count
                    })
                }
            };
            if let Some(next) = next {
                let start = found.map_or(next.start, |found| found.start);
                let stop = stop(start);
                found = Some(start..next.end.min(stop));
                if next.end >= stop || next.end < end {
                    break;
                }
            } else if found.is_some() {
                break;
            }
            at = end;
        }
        found
    }

    /// The first page at or after `page` that has a granule.
    fn next_granule(&self, page: usize) -> Option<usize> {
        if page >= self.layout.pages {
            return None;
        }
        let first = self.layout.index(page);
        let cursor = self.granules.cursor_lower_bound(&first)?;
        Some(self.layout.pages_of(*cursor.current().0).start.max(page))
    }

    /// MAP is being sent for pages `from` on, which have a granule, and of which the device reaches
    /// no others at the same places. What it may have written it may have written for good.
    pub(super) fn set_mapping(&mut self, from: usize, pages: &[HmmPage], writable: bool) {
        let write = if writable { WRITABLE } else { 0 };
        let flags = REACHABLE | MAPPING | WANTED | write;
        self.each_granule(from..from + pages.len(), |base, granule, part| {
            let first = base + part.start - from;
            let pages = pages.get(first..first + part.len()).unwrap_or_default();
            granule.set_addresses(part, pages, WRITABLE, |_| flags)
        });
    }

    /// MAP is being sent for pages `from` on, which have a granule, with their rights. The device
    /// faults if it fails, so that no one relies on its response.
    ///
    /// Pages which the device reaches already are the same ones, and no right is taken from it.
    pub(super) fn set_reachable(&mut self, from: usize, pages: &[HmmPage], rights: &[Reach]) {
        let flags = |reach: &Reach| match reach {
            Reach::Exclusive => REACHABLE | MAPPED | WRITABLE | EXCLUSIVE,
            Reach::Write => REACHABLE | MAPPED | WRITABLE,
            _ => REACHABLE | MAPPED,
        };
        self.each_granule(from..from + pages.len(), |base, granule, part| {
            let first = base + part.start - from;
            let places = first..first + part.len();
            let pages = pages.get(places.clone()).unwrap_or_default();
            let rights = rights.get(places).unwrap_or_default();
            let of = |at: usize| rights.get(at).map_or(0, flags);
            granule.set_addresses(part, pages, WRITABLE | EXCLUSIVE, of)
        });
    }

    /// What the device may do with the pages `which`, into `into`, which has a place for each.
    pub(super) fn reach(&mut self, which: Range<usize>, into: &mut [Reach]) {
        into.fill(Reach::Nothing);
        let first = which.start;
        self.each_granule(which, |base, granule, part| {
            if granule.sums & lanes(REACHABLE) == 0 {
                return 0;
            }
            let places = into.iter_mut().skip(base + part.start - first);
            if granule.is_leaf() {
                let reach = Reach::of(granule.leaf.word());
                places.take(part.len()).for_each(|place| *place = reach);
                return 1;
            }
            let pages = granule.pages.get(part).unwrap_or_default();
            for (place, page) in places.zip(pages) {
                *place = Reach::of(page.word());
            }
            pages.len()
        });
    }

    /// The device has responded to MAP: jobs may rely on those of the pages `which` that are still
    /// there.
    pub(super) fn set_mapped(&mut self, which: Range<usize>) {
        self.each(which, |_, word| {
            (word & MAPPING != 0).then_some(word & !MAPPING | MAPPED)
        });
    }

    /// Marks the pages `which` invalidating, and not wanted either if the process has `unmapped`
    /// them. Returns the shortest range with all of them that the device may reach.
    pub(super) fn invalidate(
        &mut self,
        which: Range<usize>,
        unmapped: bool,
    ) -> Option<Range<usize>> {
        let span = self.reachable_in(which.clone());
        let drop = MAPPING | MAPPED | if unmapped { WANTED } else { 0 };
        self.clear(which.clone(), drop);
        if unmapped {
            self.release(which);
        }
        span
    }

    /// Marks the pages `which`, which are not mapped and cannot be had: they are not looked up
    /// until a program asks for them again.
    pub(super) fn set_unwanted(&mut self, which: Range<usize>) {
        self.clear(which, WANTED);
    }

    /// The shortest range with all pages of `which` that the device may reach.
    pub(super) fn reachable_in(&mut self, which: Range<usize>) -> Option<Range<usize>> {
        if self.totals.reachable == 0 {
            return None;
        }
        let mut span: Option<Range<usize>> = None;
        let first = self.layout.index(which.start);
        let mut cursor = self.granules.cursor_lower_bound_mut(&first);
        while let Some(at) = cursor {
            let (index, granule) = at.current();
            let base = self.layout.pages_of(*index).start;
            if base >= which.end {
                break;
            }
            self.looked += 1;
            let from = which.start.saturating_sub(base);
            let to = (which.end - base).min(granule.len);
            if granule.sums & lanes(REACHABLE) == 0 || from >= to {
                cursor = at.move_next();
                continue;
            }
            let part = granule.pages.get(from..to).unwrap_or_default();
            self.looked += part.len();
            let hit = |page: &TrackedPage| page.word() & REACHABLE != 0;
            let found = match granule.is_leaf() {
                true => Some(from..to),
                false => part.iter().position(hit).map(|first| {
                    let last = part.iter().rposition(hit).unwrap_or(first);
                    from + first..from + last + 1
                }),
            };
            if let Some(found) = found {
                let start = span.map_or(base + found.start, |span| span.start);
                span = Some(start..base + found.end);
            }
            cursor = at.move_next();
        }
        span
    }

    /// The device reaches the pages `which` no more, except those that jobs may rely on again;
    /// calls `with` for each.
    pub(super) fn set_unmapped(
        &mut self,
        which: Range<usize>,
        mut with: impl FnMut(ReachablePages<'_>),
    ) {
        self.each(which.clone(), |pages, word| {
            if word & REACHABLE == 0 || word & (MAPPING | MAPPED) != 0 {
                return None;
            }
            with(pages);
            Some(if word & QUARANTINED != 0 {
                word & !REACHABLE
            } else {
                word & WANTED
            })
        });
        self.release(which);
    }

    /// Marks the pages `which` as being evicted, for which INVALIDATE is being sent. Returns the
    /// number of those that the device may reach.
    pub(super) fn evict(&mut self, which: Range<usize>) -> usize {
        let mut count = 0;
        self.each(which, |pages, word| {
            if word & REACHABLE == 0 {
                return None;
            }
            count += pages.count;
            Some(word & !(MAPPING | MAPPED) | EVICTING)
        });
        count
    }

    /// That INVALIDATE is acknowledged: the device reaches those of the pages `which` no more for
    /// which MAP was not sent since; calls `with` for each.
    pub(super) fn set_evicted(
        &mut self,
        which: Range<usize>,
        mut with: impl FnMut(ReachablePages<'_>),
    ) {
        self.each(which, |pages, word| {
            if word & EVICTING == 0 || word & QUARANTINED != 0 {
                return None;
            }
            with(pages);
            Some(word & WANTED)
        });
    }

    /// The device is lost and may reach the pages `which`: marks each that is not in quarantine
    /// yet, and calls `with` for it, one by one.
    pub(super) fn set_quarantined(
        &mut self,
        which: Range<usize>,
        mut with: impl FnMut(ReachablePages<'_>),
    ) {
        // A reference is one on a folio, of which there may be several in a granule.
        self.each_granule(which.clone(), |_, granule, _| {
            granule.had_quarantine = true;
            granule.split()
        });
        self.each(which, |pages, word| {
            if word & REACHABLE == 0 || word & QUARANTINED != 0 {
                return None;
            }
            with(pages);
            Some(word | QUARANTINED)
        });
    }

    /// The device has been reset and reaches nothing. The pages that the table has as reachable are
    /// to be unmapped by [`Table::release_quarantine`].
    pub(super) fn set_device_reset(&mut self) {
        self.device_reset = true;
    }

    /// Whether [`Table::set_device_reset`] was called.
    pub(super) fn is_device_reset(&self) -> bool {
        self.device_reset
    }

    /// The device has been reset: marks the pages `which` unmapped, and calls `with` for each that
    /// it could reach; says whether the page is in quarantine.
    pub(super) fn release_quarantine(
        &mut self,
        which: Range<usize>,
        mut with: impl FnMut(ReachablePages<'_>, bool),
    ) {
        self.each(which, |pages, word| {
            if word & (REACHABLE | QUARANTINED) != 0 {
                with(pages, word & QUARANTINED != 0);
            }
            Some(word & WANTED)
        });
    }
}
