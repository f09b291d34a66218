// SPDX-License-Identifier: GPL-2.0

//! Which lookups wait for which changes, and which become stale.

use super::changes::{
    Changes,
    CHANGES,
    LOOKS, //
};
use crate::kapi::mm::ChangeId;
use core::ops::Range;
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

#[kunit_tests(virtgpu_userptr_changes)]
mod tests {
    use super::*;

    fn pages(which: Range<usize>) -> Range<usize> {
        which.start * PAGE_SIZE..which.end * PAGE_SIZE
    }

    fn change(number: usize) -> ChangeId {
        ChangeId::made_up(number)
    }

    #[test]
    fn a_change_makes_its_own_addresses_stale() -> Result {
        let mut changes = Changes::new()?;
        let before = changes.begin_look(&pages(0..4)).ok_or(EINVAL)?;
        let beside = changes.begin_look(&pages(5..6)).ok_or(EINVAL)?;
        assert!(!changes.is_stale(before) && !changes.is_stale(beside));
        assert!(changes.begin(change(1), pages(3..5)));
        assert!(changes.is_stale(before));
        assert!(!changes.is_stale(beside));
        // Also when the change is over.
        assert!(changes.end(change(1)));
        assert!(changes.is_stale(before));
        Ok(())
    }

    #[test]
    fn a_lookup_waits_for_changes_of_its_addresses() -> Result {
        let mut changes = Changes::new()?;
        assert!(changes.begin(change(1), pages(0..4)));
        assert!(changes.begin(change(2), pages(2..8)));
        assert_eq!(changes.begin_look(&pages(3..4)), None);
        assert!(changes.begin_look(&pages(8..9)).is_some());
        assert!(changes.end(change(1)));
        assert_eq!(changes.begin_look(&pages(3..4)), None);
        assert!(changes.begin_look(&pages(0..2)).is_some());
        assert!(changes.end(change(2)));
        let after = changes.begin_look(&pages(3..4));
        assert!(after.is_some_and(|look| !changes.is_stale(look)));
        Ok(())
    }

    #[test]
    fn the_end_of_an_unknown_change_ends_none() -> Result {
        let mut changes = Changes::new()?;
        assert!(!changes.end(change(1)));
        assert!(changes.begin(change(1), pages(0..1)));
        assert!(!changes.end(change(2)));
        assert_eq!(changes.begin_look(&pages(0..1)), None);
        // A number is used again when its change is over.
        assert!(changes.end(change(1)));
        assert!(!changes.end(change(1)));
        Ok(())
    }

    #[test]
    fn a_change_that_begins_twice_ends_once() -> Result {
        let mut changes = Changes::new()?;
        assert!(changes.begin(change(1), pages(4..5)));
        assert!(changes.begin(change(1), pages(0..1)));
        assert_eq!(changes.begin_look(&pages(0..1)), None);
        assert_eq!(changes.begin_look(&pages(4..5)), None);
        assert!(changes.end(change(1)));
        assert!(changes.begin_look(&pages(0..5)).is_some());
        Ok(())
    }

    #[test]
    fn nothing_is_waited_for_in_the_end() -> Result {
        let mut changes = Changes::new()?;
        assert!(changes.begin(change(1), pages(0..1)));
        changes.close();
        assert!(changes.begin_look(&pages(0..1)).is_some());
        assert!(!changes.end(change(1)));
        Ok(())
    }

    #[test]
    fn a_change_without_a_place_makes_lookups_stale() -> Result {
        let mut changes = Changes::new()?;
        for number in 0..CHANGES {
            assert!(changes.begin(change(number), pages(9..10)));
        }
        let look = changes.begin_look(&pages(0..1)).ok_or(EINVAL)?;
        assert!(!changes.begin(change(CHANGES), pages(0..1)));
        assert!(changes.is_stale(look));
        assert!(!changes.end(change(CHANGES)));
        assert!(changes.end(change(0)));
        assert!(changes.begin(change(CHANGES), pages(0..1)));
        Ok(())
    }

    #[test]
    fn places_of_lookups_are_bounded_and_used_again() -> Result {
        let mut changes = Changes::new()?;
        let first = changes.begin_look(&pages(0..1)).ok_or(EINVAL)?;
        for _ in 1..LOOKS {
            assert!(changes.begin_look(&pages(0..1)).is_some());
        }
        assert_eq!(changes.begin_look(&pages(7..8)), None);
        changes.supersede(&pages(0..1));
        changes.end_look(first);
        // What has ended is of no use, and its place is as new.
        assert!(changes.is_stale(first));
        let next = changes.begin_look(&pages(0..1)).ok_or(EINVAL)?;
        assert!(!changes.is_stale(next));
        Ok(())
    }
}
