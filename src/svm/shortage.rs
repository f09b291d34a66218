// SPDX-License-Identifier: GPL-2.0

//! Want of room in the device: what it has refused, and what it has taken since.
//!
//! A device that has refused a MAP for want of memory is asked for little at a time, since more
//! would cost it what its jobs need next. That is slow, and need not be for ever: the memory that
//! has filled the device may be freed. A device whose jobs use more than it has room for refuses
//! again before it has taken as much as it reached then, as only a quarter of that is taken from it
//! at a time (`fault/room.rs`). So it has room again when it has taken as much as that.

use kernel::prelude::*;

/// How many pages it is to take at least: those of a granule, which a fault asks for at most.
const LEAST: usize = 512;

/// Whether the device lacks room.
pub(super) struct Shortage {
    /// Pages that it is to take before it is said to have room, 0 if it is.
    left: usize,
}

impl Shortage {
    /// There is room.
    pub(super) const fn none() -> Self {
        Self { left: 0 }
    }

    /// Whether the device lacks room.
    pub(super) fn is_on(&self) -> bool {
        self.left > 0
    }

    /// The device has refused a MAP for want of memory, and reaches so many pages.
    pub(super) fn begin(&mut self, reached: usize) {
        if self.left != usize::MAX {
            self.left = reached.max(LEAST);
        }
    }

    /// It has refused one for a reason that says nothing of when it would take it.
    pub(super) fn begin_for_ever(&mut self) {
        self.left = usize::MAX;
    }

    /// It has taken a MAP of so many pages.
    pub(super) fn taken(&mut self, pages: usize) {
        if self.left != usize::MAX {
            self.left = self.left.saturating_sub(pages);
        }
    }
}

/// Those of an address space.
pub(super) struct Shortages {
    /// The device has refused what a fault asked for: until there is room again, one is resolved
    /// only when its MAP has a response. Only what is asked for in this way ends the shortage, so
    /// that the fault whose MAP was refused is tried again within it.
    pub(super) faults: Shortage,
    /// It has refused what no fault asked for: there is no more of that until there is room again.
    pub(super) ahead: Shortage,
}

impl Shortages {
    /// There is room.
    pub(super) const fn none() -> Self {
        Self {
            faults: Shortage::none(),
            ahead: Shortage::none(),
        }
    }

    /// Whether there is one.
    pub(super) fn is_any(&self) -> bool {
        self.faults.is_on() || self.ahead.is_on()
    }

    /// The device has refused a MAP for want of memory, and reaches so many pages: a shortage that
    /// there is begins anew.
    pub(super) fn refused_again(&mut self, reached: usize) {
        for shortage in [&mut self.faults, &mut self.ahead] {
            if shortage.is_on() {
                shortage.begin(reached);
            }
        }
    }
}

#[kunit_tests(virtgpu_userptr_shortage)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_as_much_was_taken() {
        let mut shortage = Shortage::none();
        assert!(!shortage.is_on());
        shortage.begin(1000);
        shortage.taken(999);
        assert!(shortage.is_on());
        shortage.taken(1);
        assert!(!shortage.is_on());
        shortage.taken(1);
        assert!(!shortage.is_on());
    }

    #[test]
    fn it_begins_anew_when_more_is_refused() {
        let mut shortage = Shortage::none();
        for _ in 0..3 {
            shortage.begin(1000);
            shortage.taken(999);
        }
        assert!(shortage.is_on());
        shortage.taken(1);
        assert!(!shortage.is_on());
    }

    #[test]
    fn little_that_is_reached_is_not_soon_taken() {
        let mut shortage = Shortage::none();
        shortage.begin(0);
        shortage.taken(LEAST - 1);
        assert!(shortage.is_on());
        shortage.taken(1);
        assert!(!shortage.is_on());
    }

    #[test]
    fn other_reasons_do_not_end() {
        let mut shortage = Shortage::none();
        shortage.begin_for_ever();
        shortage.taken(usize::MAX);
        shortage.begin(1000);
        shortage.taken(1000);
        assert!(shortage.is_on());
    }
}
