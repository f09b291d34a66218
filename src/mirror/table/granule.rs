// SPDX-License-Identifier: GPL-2.0

//! The states of the pages of one granule, and what is counted of them.
//!
//! A page is a word: its address, and flags. Who changes a granule holds the lock of the table, and
//! may not allocate: callbacks do.

use super::GRANULE;
use crate::kapi::mm::{
    Dirtied,
    HmmPage,
    TrackedPage, //
};
use core::ops::Range;
use kernel::{
    page::PAGE_SHIFT,
    prelude::*, //
};

/// The device may reach the page.
pub(super) const REACHABLE: u64 = 1 << 0;
/// Jobs may rely on it.
pub(super) const MAPPED: u64 = 1 << 1;
/// It was asked for, and was not found unmapped since.
pub(super) const WANTED: u64 = 1 << 2;
/// Those that are counted.
pub(super) const COUNTED: u64 = REACHABLE | MAPPED | WANTED;
/// The device has not responded to MAP.
pub(super) const MAPPING: u64 = 1 << 3;
/// The device may write it.
pub(super) const WRITABLE: u64 = 1 << 4;
/// The driver has a reference on its folio, because the device is lost.
pub(super) const QUARANTINED: u64 = 1 << 5;
/// It is being evicted, and MAP was not sent since.
pub(super) const EVICTING: u64 = 1 << 6;
/// The device has it alone.
pub(super) const EXCLUSIVE: u64 = 1 << 7;
pub(super) const FLAGS: u64 = TrackedPage::FLAGS;
const _: () = assert!(EXCLUSIVE < FLAGS);

/// A page that the device may reach, or several that are one behind the other.
pub(in crate::mirror) struct ReachablePages<'a> {
    /// The first one.
    pub(in crate::mirror) tracked: &'a mut TrackedPage,
    pub(in crate::mirror) count: usize,
    /// Whether the device may have written them.
    pub(in crate::mirror) writable: bool,
}

/// What the device may do with a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::mirror) enum Reach {
    /// Nothing.
    #[default]
    Nothing,
    /// It may reach the page still, but that is about to end.
    Ending,
    /// It may read.
    Read,
    /// It may read and write.
    Write,
    /// It may read and write, and no one else does.
    Exclusive,
}

/// The states of neighbouring pages.
///
/// As long as all are in the same state, and those that have an address follow each other in
/// memory, as the pages of a huge page do, they are kept as one *leaf*. What is done to a part of
/// it splits it, for which there is memory, as callbacks must not allocate any.
pub(super) struct Granule {
    /// How many pages there are.
    pub(super) len: usize,
    /// The first page, if all are in its state. Has no reference.
    pub(super) leaf: TrackedPage,
    /// Otherwise all pages. Has room for them from the beginning.
    pub(super) pages: KVec<TrackedPage>,
    /// The sum of [`packed`] over their words.
    pub(super) sums: u64,
    /// Pages were in quarantine. If none was, words that count for nothing are 0.
    pub(super) had_quarantine: bool,
}

/// Pages in some states.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) reachable: usize,
    pub(super) mapped: usize,
    pub(super) wanted: usize,
    /// Both mapped and wanted.
    pub(super) ready: usize,
}

impl Granule {
    /// `len` pages of which nothing is known.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(len: usize) -> Result<Self> {
        Ok(Self {
            len,
            leaf: TrackedPage::default(),
            pages: KVec::with_capacity(len, GFP_KERNEL_ACCOUNT)?,
            sums: 0,
            had_quarantine: false,
        })
    }

    /// Whether all pages are in one state, and there is only the leaf.
    pub(super) fn is_leaf(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether nothing is known of any page.
    pub(super) fn is_empty(&self) -> bool {
        let nothing = |page: &TrackedPage| page.word() == 0;
        let all = || nothing(&self.leaf) && self.pages.iter().all(nothing);
        self.sums == 0 && (!self.had_quarantine || all())
    }

    /// The word of page `at`.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(super) fn word(&self, at: usize) -> u64 {
        let page = self.pages.get(at);
        page.map_or_else(|| self.leaf_word(at), |page| page.word())
    }

    /// The word of page `at` of the leaf.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(super) fn leaf_word(&self, at: usize) -> u64 {
        let word = self.leaf.word();
        match word & REACHABLE {
            0 => word,
            _ => word + ((at as u64) << PAGE_SHIFT),
        }
    }

    /// Keeps the pages one by one from now on. Returns how many words that has set.
    pub(super) fn split(&mut self) -> usize {
        if !self.is_leaf() {
            return 0;
        }
        let word = self.leaf.word();
        // There is room.
        TrackedPage::append(&mut self.pages, self.len, word, word & REACHABLE != 0);
        self.leaf.set(0);
        self.len
    }

    /// Calls `with` for each page of `part`, with its place there, and keeps the pages one by one
    /// from now on. Returns how many words it has looked at.
    fn one_by_one(
        &mut self,
        part: Range<usize>,
        mut with: impl FnMut(usize, &mut TrackedPage),
    ) -> usize {
        // Filling the words of a leaf takes a tenth of what changing them does.
        let looked = self.split().max(part.len());
        for (at, page) in self.pages.get_mut(part).into_iter().flatten().enumerate() {
            let before = page.word();
            with(at, page);
            if (before ^ page.word()) & COUNTED != 0 {
                self.sums -= packed(before);
                self.sums += packed(page.word());
            }
        }
        looked
    }

    /// Changes pages, as [`Table::each`] does, of which none changes that the device cannot reach.
    /// Returns how many words it has looked at.
    pub(super) fn each(
        &mut self,
        part: Range<usize>,
        change: &mut impl FnMut(ReachablePages<'_>, u64) -> Option<u64>,
    ) -> usize {
        let whole = part == (0..self.len);
        let word = self.leaf.word();
        if self.is_leaf() && (whole || word & REACHABLE == 0) {
            if word & REACHABLE == 0 {
                return 1;
            }
            if let Some(new) = change(ReachablePages::of(&mut self.leaf, self.len), word) {
                self.leaf.set(new);
                self.sums = packed(new) * self.len as u64;
            }
            return 1;
        }
        let looked = self.one_by_one(part, |_, page| {
            let word = page.word();
            if let Some(new) = change(ReachablePages::of(page, 1), word) {
                page.set(new);
            }
        });
        if whole && self.is_empty() {
            self.pages.clear();
        }
        looked
    }

    /// Takes `flags` from the words of pages. Returns how many words it has looked at.
    pub(super) fn clear(&mut self, part: Range<usize>, flags: u64) -> usize {
        if part == (0..self.len) {
            self.leaf.clear(flags);
            self.pages.iter_mut().for_each(|page| page.clear(flags));
            // Counting takes longer than clearing.
            self.sums &= !lanes(flags);
            return self.pages.len().max(1);
        }
        if self.is_leaf() && self.leaf.word() & flags == 0 {
            return 1;
        }
        self.one_by_one(part, |_, page| page.clear(flags))
    }

    /// Gives the pages of `part` the addresses of `found`, each with its `flags`. Those of their
    /// flags that are in `stay` stay. Returns how many words it has looked at.
    pub(super) fn set_addresses(
        &mut self,
        part: Range<usize>,
        found: &[HmmPage],
        stay: u64,
        flags: impl Fn(usize) -> u64,
    ) -> usize {
        let word = |page: &HmmPage, at: usize| page.phys() & !FLAGS | flags(at);
        let follow = |found: &[HmmPage]| found.windows(2).all(|two| two[0].is_followed_by(two[1]));
        let same = |first: u64| (1..found.len()).all(|at| flags(at) == first);
        let whole = part == (0..self.len) && found.len() == self.len;
        let before = match self.is_leaf() {
            _ if !whole => None,
            true => Some(self.leaf.word()),
            false => self.common(stay | QUARANTINED),
        };
        if let (Some(first), Some(before)) = (found.first(), before) {
            let before = before & stay;
            if same(flags(0)) && follow(found) {
                self.pages.clear();
                let new = word(first, 0) | before;
                self.leaf.set(new);
                self.sums = packed(new) * self.len as u64;
                return found.len();
            }
        }
        self.one_by_one(part, |at, page| {
            if let Some(found) = found.get(at) {
                page.set(word(found, at) | page.word() & (stay | QUARANTINED));
            }
        })
    }

    /// Which of `flags` the pages have, if they all have the same ones, and none is in quarantine.
    fn common(&self, flags: u64) -> Option<u64> {
        let first = self.pages.first()?.word() & flags;
        let is_same = |page: &TrackedPage| page.word() & flags == first;
        (first & QUARANTINED == 0 && self.pages.iter().all(is_same)).then_some(first)
    }

    /// Whether no job lacks anything here; with `sparse`, anything that was asked for.
    pub(super) fn is_ready(&self, sparse: bool) -> bool {
        let [_, mapped, wanted, ready] = Counts::unpack(self.sums);
        if sparse {
            ready == wanted
        } else {
            mapped == self.len
        }
    }
}

impl Reach {
    pub(super) fn of(word: u64) -> Self {
        if word & REACHABLE == 0 {
            Self::Nothing
        } else if word & MAPPED == 0 {
            Self::Ending
        } else if word & WRITABLE == 0 {
            Self::Read
        } else if word & EXCLUSIVE == 0 {
            Self::Write
        } else {
            Self::Exclusive
        }
    }
}

impl<'a> ReachablePages<'a> {
    fn of(tracked: &'a mut TrackedPage, count: usize) -> Self {
        let writable = tracked.word() & WRITABLE != 0;
        Self {
            tracked,
            count,
            writable,
        }
    }

    /// Their physical addresses.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(in crate::mirror) fn addresses(&self) -> impl Iterator<Item = u64> {
        let first = self.tracked.phys();
        (0..self.count as u64).map(move |at| first + (at << PAGE_SHIFT))
    }

    /// Tells the kernel that the device has written the pages.
    pub(in crate::mirror) fn mark_dirty(&self, dirtied: &mut Dirtied) {
        let mut at = 0;
        while at < self.count {
            self.tracked.mark_dirty(at, dirtied);
            let folio = dirtied.folio();
            let end = match folio.is_empty() {
                true => 0,
                false => folio.end.saturating_sub(self.tracked.phys()) >> PAGE_SHIFT,
            };
            at = (end as usize).max(at + 1);
        }
    }
}

/// What a word counts for, each count in 16 bits of its own: a sum over a granule fits.
pub(super) fn packed(word: u64) -> u64 {
    const _: () = assert!(GRANULE < 1 << 16);
    const COUNTS: [u64; COUNTED as usize + 1] = {
        let mut counts = [0; COUNTED as usize + 1];
        let mut word = 0;
        while word < counts.len() as u64 {
            let (mapped, wanted) = (word / MAPPED & 1, word / WANTED & 1);
            counts[word as usize] =
                word & REACHABLE | mapped << 16 | wanted << 32 | (mapped & wanted) << 48;
            word += 1;
        }
        counts
    };
    const _: () = assert!(REACHABLE == 1);
    COUNTS[(word & COUNTED) as usize]
}

/// The counts of [`packed`] that are 0 for words without `flags`.
pub(super) fn lanes(flags: u64) -> u64 {
    let lane = |flag: u64, place: u32| {
        if flags & flag != 0 {
            0xffff << (16 * place)
        } else {
            0
        }
    };
    lane(REACHABLE, 0) | lane(MAPPED, 1) | lane(WANTED, 2) | lane(MAPPED | WANTED, 3)
}

impl Counts {
    pub(super) fn add(&mut self, sums: u64) {
        let [reachable, mapped, wanted, ready] = Self::unpack(sums);
        self.reachable += reachable;
        self.mapped += mapped;
        self.wanted += wanted;
        self.ready += ready;
    }

    pub(super) fn subtract(&mut self, sums: u64) {
        let [reachable, mapped, wanted, ready] = Self::unpack(sums);
        self.reachable -= reachable;
        self.mapped -= mapped;
        self.wanted -= wanted;
        self.ready -= ready;
    }

    fn unpack(sums: u64) -> [usize; 4] {
        [0, 16, 32, 48].map(|shift| usize::from((sums >> shift) as u16))
    }
}
