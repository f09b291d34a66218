// SPDX-License-Identifier: GPL-2.0

//! Whether a table with leaves says the same as one that keeps each page by itself.

use super::{
    Layout,
    Reach,
    ReachablePages,
    Table,
    GRANULE, //
};
use crate::kapi::mm::HmmPage;
use core::ops::Range;
use kernel::prelude::*;

/// Pages before the first whole granule, whole granules, and pages behind them.
const SKEW: usize = 3;
const WHOLE: usize = 2;
const PAGES: usize = SKEW + WHOLE * GRANULE + 5;
const GRANULES: usize = WHOLE + 2;

/// A table, and what its functions have said of pages.
struct Told {
    table: Table,
    said: KVec<u64>,
    splits: bool,
}

/// What is done to a table.
#[derive(Clone, Copy, Debug)]
enum Step {
    Map { writable: bool, rights: bool },
    Mapped,
    Invalidate { gone: bool },
    Unmapped,
    Evict,
    Evicted,
    Quarantine,
    Release,
}

/// The page that is behind page `at` of the range: two of four are next to each other.
fn page(at: usize, pieces: bool) -> HmmPage {
    let gap = if pieces { at / 2 } else { 0 };
    HmmPage::made_up((1 << 20) + at + gap)
}

/// Says what is told of pages, as numbers.
fn numbers(pages: ReachablePages<'_>, kept: bool, say: &mut impl FnMut(u64)) {
    for phys in pages.addresses() {
        say(phys | u64::from(pages.writable) | u64::from(kept) << 1);
    }
}

impl Told {
    fn new(splits: bool) -> Result<Self> {
        Ok(Self {
            table: Table::new(Layout::new(GRANULE - SKEW, PAGES)),
            said: KVec::new(),
            splits,
        })
    }

    fn step(&mut self, step: Step, which: Range<usize>, pieces: bool) -> Result {
        let Self { table, said, .. } = self;
        said.clear();
        let mut out_of_memory = false;
        let mut say = |of: u64| out_of_memory |= said.push(of, GFP_KERNEL).is_err();
        match step {
            Step::Map { writable, rights } => {
                let mut at = which.start;
                while at < which.end {
                    let end = table.layout.granule(at).end.min(which.end);
                    if !table.has_granule(at) {
                        table.add(Table::new_granule(table.layout, at)?);
                    }
                    let mut pages = KVec::with_capacity(end - at, GFP_KERNEL)?;
                    let mut reach = KVec::with_capacity(end - at, GFP_KERNEL)?;
                    for page_at in at..end {
                        pages.push(page(page_at, pieces), GFP_KERNEL)?;
                        let right = match writable {
                            true => Reach::Write,
                            false => Reach::Read,
                        };
                        reach.push(right, GFP_KERNEL)?;
                    }
                    match rights {
                        true => table.set_reachable(at, &pages, &reach),
                        false => table.set_mapping(at, &pages, writable),
                    }
                    at = end;
                }
            }
            Step::Mapped => table.set_mapped(which),
            Step::Invalidate { gone } => {
                let span = table.invalidate(which, gone).unwrap_or(0..0);
                say(span.start as u64);
                say(span.end as u64);
            }
            Step::Unmapped => table.set_unmapped(which, |pages| numbers(pages, false, &mut say)),
            Step::Evict => say(table.evict(which) as u64),
            Step::Evicted => table.set_evicted(which, |pages| numbers(pages, false, &mut say)),
            Step::Quarantine => {
                table.set_quarantined(which, |pages| numbers(pages, false, &mut say));
            }
            Step::Release => {
                table.release_quarantine(which, |pages, kept| numbers(pages, kept, &mut say));
            }
        }
        if self.splits {
            for (_, granule) in self.table.granules.iter_mut() {
                granule.split();
            }
        }
        if out_of_memory {
            return Err(ENOMEM);
        }
        Ok(())
    }

    /// All that can be asked of the table.
    fn state(&mut self, into: &mut KVec<u64>) -> Result {
        into.clear();
        let table = &mut self.table;
        for index in 0..GRANULES {
            let len = table.layout.pages_of(index).len();
            for at in 0..len {
                let granule = table.granules.get(&index);
                into.push(granule.map_or(0, |granule| granule.word(at)), GFP_KERNEL)?;
            }
        }
        let mut reach = KVec::from_elem(Reach::Nothing, PAGES, GFP_KERNEL)?;
        table.reach(0..PAGES, &mut reach);
        for right in &reach {
            into.push(*right as u64, GFP_KERNEL)?;
        }
        for sparse in [false, true] {
            let stale = table.next_stale(0..PAGES, PAGES, sparse).unwrap_or(0..0);
            let ready = u64::from(table.is_ready(sparse));
            for number in [stale.start as u64, stale.end as u64, ready] {
                into.push(number, GFP_KERNEL)?;
            }
        }
        into.push(table.mapped() as u64, GFP_KERNEL)?;
        Ok(())
    }
}

/// Numbers that look random, always the same ones.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % below
    }

    /// Some of the pages: a granule, all, or any.
    fn range(&mut self, layout: Layout) -> Range<usize> {
        match self.next(3) {
            0 => layout.pages_of(self.next(GRANULES)),
            1 => 0..PAGES,
            _ => {
                let start = self.next(PAGES);
                start..(start + 1 + self.next(2 * GRANULE)).min(PAGES)
            }
        }
    }

    fn step(&mut self) -> Step {
        match self.next(16) {
            0..5 => Step::Map {
                writable: self.next(2) == 0,
                rights: self.next(2) == 0,
            },
            5..7 => Step::Mapped,
            7..10 => Step::Invalidate {
                gone: self.next(2) == 0,
            },
            10..13 => Step::Unmapped,
            13 => Step::Evict,
            14 => Step::Evicted,
            _ => match self.next(8) {
                0 => Step::Quarantine,
                _ => Step::Release,
            },
        }
    }
}

#[kunit_tests(virtgpu_userptr_leaves)]
mod tests {
    use super::*;

    /// Steps from an empty table on.
    const STEPS: usize = 40;

    #[test]
    fn leaves_say_the_same() -> Result {
        let mut numbers = Numbers(1);
        let (mut one, mut other) = (KVec::new(), KVec::new());
        let mut leaves = 0;
        for _ in 0..8 {
            let (mut leafed, mut split) = (Told::new(false)?, Told::new(true)?);
            let mut at = 0;
            while at < STEPS {
                let (step, which) = (numbers.step(), numbers.range(leafed.table.layout));
                let pieces = numbers.next(4) == 0;
                // Pages that the device reaches are not replaced.
                leafed.state(&mut one)?;
                let is_reached = which
                    .clone()
                    .any(|at| one[at] & super::super::REACHABLE != 0);
                if is_reached && matches!(step, Step::Map { .. }) {
                    at += 1;
                    continue;
                }
                leafed.step(step, which.clone(), pieces)?;
                split.step(step, which, pieces)?;
                assert!(leafed.said[..] == split.said[..]);
                leafed.state(&mut one)?;
                split.state(&mut other)?;
                assert!(one[..] == other[..]);
                let is_leaf = |granule: &super::super::Granule| {
                    granule.is_leaf() && granule.len > 1 && granule.sums != 0
                };
                leaves += usize::from(leafed.table.granules.values().any(is_leaf));
                at += 1;
            }
        }
        // There were some.
        assert!(leaves > 25);
        Ok(())
    }
}
