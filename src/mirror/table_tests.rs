// SPDX-License-Identifier: GPL-2.0

//! What the table says of pages and granules, one function at a time. What happens to them together
//! is in `table/model.rs`.

use super::table::{
    Having,
    Layout,
    Table,
    GRANULE, //
};
use crate::kapi::mm::HmmPage;
use kernel::prelude::*;

/// Pages of the range; the first granule has one of them, the second two.
const PAGES: usize = 3;
const START: usize = GRANULE - 1;

#[kunit_tests(virtgpu_userptr_table)]
mod tests {
    use super::*;

    /// A table of [`PAGES`] pages with both granules.
    fn small() -> Result<Table> {
        let layout = Layout::new(START, PAGES);
        let mut table = Table::new(layout);
        table.add(Table::new_granule(layout, 0)?);
        table.add(Table::new_granule(layout, 1)?);
        Ok(table)
    }

    #[test]
    fn granules_begin_where_huge_pages_do() {
        let layout = Layout::new(START, PAGES);
        assert_eq!(layout.granule(0), 0..1);
        assert_eq!(layout.granule(1), 1..3);
        assert_eq!(layout.granule(2), 1..3);
    }

    #[test]
    fn stale_pages_of_several_granules() -> Result {
        let layout = Layout::new(START, PAGES);
        let mut table = Table::new(layout);
        for _ in 0..2 {
            assert_eq!(table.next_stale(0..PAGES, PAGES, false), Some(0..3));
            assert_eq!(table.next_stale(0..PAGES, 2, false), Some(0..2));
            assert_eq!(table.next_stale(1..PAGES, PAGES, false), Some(1..3));
            assert_eq!(table.next_stale(0..PAGES, PAGES, true), None);
            if !table.has_granule(0) {
                table.add(Table::new_granule(layout, 0)?);
            }
        }
        Ok(())
    }

    /// A table of `granules` granules, all of them mapped.
    fn mapped(granules: usize) -> Result<(Layout, Table)> {
        let layout = Layout::new(0, granules * GRANULE);
        let mut table = Table::new(layout);
        let pages = KVec::from_elem(HmmPage::default(), GRANULE, GFP_KERNEL)?;
        for first in (0..granules * GRANULE).step_by(GRANULE) {
            table.add(Table::new_granule(layout, first)?);
            table.set_mapping(first, &pages, true);
            table.set_mapped(first..first + GRANULE);
        }
        Ok((layout, table))
    }

    #[test]
    fn no_look_is_long() -> Result {
        const GRANULES: usize = 400;
        // Every word once for the look and once for the change, and what is passed over.
        const MOST: usize = 4 * GRANULE;
        let (_, mut table) = mapped(GRANULES)?;
        let all = 0..GRANULES * GRANULE;
        table.take_looked();
        // All is mapped.
        let (mut at, mut looks) = (0, 0);
        while let Some(stale) = table.next_stale(at..all.end, all.end, false) {
            assert!(stale.is_empty() && stale.start > at);
            at = stale.start;
            looks += 1;
            assert!(table.take_looked() <= MOST);
        }
        assert!(looks >= 2);
        // All goes.
        let mut at = 0;
        while at < all.end {
            let part = table.next_part(at..all.end, Having::Reachable);
            assert!(part.start == at && part.len() <= GRANULE);
            assert_eq!(table.invalidate(part.clone(), false), Some(part.clone()));
            assert!(table.take_looked() <= MOST);
            table.set_unmapped(part.clone(), |_| ());
            assert!(table.take_looked() <= MOST);
            at = part.end;
        }
        // Nothing is left but WANTED; a page at the end that is reachable is found in short looks.
        let last = all.end - 1;
        table.set_mapping(last, &[HmmPage::default()], true);
        let (mut at, mut looks) = (0, 0);
        loop {
            let part = table.next_part(at..all.end, Having::Reachable);
            assert!(table.take_looked() <= MOST);
            if !part.is_empty() {
                assert!(part.contains(&last));
                break;
            }
            assert!(part.start > at && part.start < all.end);
            at = part.start;
            looks += 1;
        }
        assert!(looks >= 2);
        Ok(())
    }

    /// Wherever the range and what is missing of it begin.
    #[test]
    fn no_commit_is_long() -> Result {
        const PAGES: usize = 8 * GRANULE;
        const MAPPED: usize = 4 * GRANULE;
        const MOST: usize = 4 * (GRANULE + 1);
        for (start, from) in [
            (0, 0),
            (0, 1),
            (0, GRANULE - 1),
            (1, 0),
            (GRANULE / 2, GRANULE),
        ] {
            let layout = Layout::new(start, PAGES);
            let mut table = Table::new(layout);
            let mut at = 0;
            while at < PAGES {
                table.add(Table::new_granule(layout, at)?);
                at = layout.granule(at).end;
            }
            // Of leaves, and of what was split.
            for _ in 0..2 {
                let missing = table.next_stale(from..PAGES, MAPPED, false).ok_or(EINVAL)?;
                assert_eq!(missing.start, from);
                assert!(missing.len() > MAPPED - GRANULE && missing.len() <= MAPPED);
                assert!(table.take_looked() <= MOST);
                let pages = KVec::from_elem(HmmPage::default(), missing.len(), GFP_KERNEL)?;
                table.set_mapping(from, &pages, true);
                assert!(table.take_looked() <= MOST);
                table.invalidate(missing.clone(), false);
                table.set_unmapped(missing, |_| ());
                table.take_looked();
            }
        }
        Ok(())
    }

    #[test]
    fn empty_granules_are_given_back() -> Result {
        let (layout, mut table) = mapped(2)?;
        let all = 0..2 * GRANULE;
        // For a while.
        table.invalidate(all.clone(), false);
        table.set_unmapped(all.clone(), |_| ());
        assert!(table.has_granules(&all));
        // For good: a part, then the rest.
        table.invalidate(0..GRANULE + 1, true);
        assert!(!table.has_granule(0) && table.has_granule(GRANULE));
        assert!(!table.has_granules(&all));
        table.invalidate(all.clone(), true);
        assert!(!table.has_granule(GRANULE));
        // What the device may still reach keeps it.
        table.add(Table::new_granule(layout, 0)?);
        table.set_mapping(0, &[HmmPage::default()], true);
        table.invalidate(all.clone(), true);
        assert!(table.has_granule(0));
        table.set_quarantined(0..1, |_| ());
        table.set_unmapped(all.clone(), |_| ());
        assert!(table.has_granule(0));
        table.release_quarantine(all, |_, quarantined| assert!(quarantined));
        Ok(())
    }

    #[test]
    fn what_was_writable_is_written() -> Result {
        let mut table = small()?;
        let pages = [HmmPage::default(); 2];
        table.set_mapping(1, &pages, true);
        // Less right, for one of the two.
        table.set_mapping(1, &pages[..1], false);
        table.invalidate(1..3, false);
        let mut written = 0;
        table.set_unmapped(1..3, |pages| {
            written += if pages.writable { pages.count } else { 0 };
        });
        assert_eq!(written, 2);
        // And not for ever.
        table.set_mapping(1, &pages[..1], false);
        table.invalidate(1..3, false);
        table.set_unmapped(1..3, |page| assert!(!page.writable));
        Ok(())
    }

    #[test]
    fn what_is_unmapped_is_not_wanted() -> Result {
        let mut table = small()?;
        table.set_mapping(0, &[HmmPage::default(); PAGES], true);
        table.set_mapped(0..PAGES);
        assert!(table.is_ready(false) && table.is_ready(true));
        // Replaced, and unmapped for good.
        table.invalidate(0..1, false);
        table.invalidate(1..2, true);
        table.set_unmapped(0..2, |_| ());
        assert_eq!(table.next_stale(0..3, 3, true), Some(0..1));
        assert_eq!(table.next_stale(0..3, 3, false), Some(0..2));
        assert_eq!(table.next_stale(1..3, 3, false), Some(1..2));
        assert_eq!(table.mapped(), 1);
        Ok(())
    }
}
