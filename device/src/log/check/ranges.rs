// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Ranges of addresses, each with what is allowed there.
//!
//! The check keeps what a log says is mapped in a space in this way, and compares it with what a
//! command wanted and with what a job touched.

use std::collections::BTreeMap;

/// A range: first address, the one after the last, rights.
pub(super) type Range = (u64, u64, u32);

/// Ranges that do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, (u64, u32)>);

impl Ranges {
    /// What is between `start` and `end`, cut to that.
    pub(super) fn between(&self, start: u64, end: u64) -> Vec<Range> {
        let before = self.0.range(..start).next_back();
        let inside = self.0.range(start..end.max(start));
        before
            .into_iter()
            .chain(inside)
            .map(|(from, (to, rights))| (start.max(*from), end.min(*to), *rights))
            .filter(|(from, to, _)| from < to)
            .collect()
    }

    /// The parts between `start` and `end` where not all of `rights` are.
    pub(super) fn lacking(&self, start: u64, end: u64, rights: u32) -> Vec<(u64, u64)> {
        let mut lacking = Vec::new();
        let mut at = start;
        for (from, to, have) in self.between(start, end) {
            if have & rights == rights {
                if at < from {
                    lacking.push((at, from));
                }
                at = to;
            }
        }
        if at < end {
            lacking.push((at, end));
        }
        lacking
    }

    /// Takes out what is between `start` and `end`.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        let Some((first, _)) = self.0.range(..=start).next_back() else {
            return self.remove_inside(start, end);
        };
        let first = *first;
        if let Some((to, rights)) = self.0.get(&first).copied() {
            if first < start && start < to {
                self.0.insert(first, (start, rights));
                if end < to {
                    self.0.insert(end, (to, rights));
                }
            }
        }
        self.remove_inside(start, end);
    }

    /// The same, if nothing reaches across `start`.
    fn remove_inside(&mut self, start: u64, end: u64) {
        let inside = self.0.range(start..end.max(start));
        let inside: Vec<_> = inside
            .map(|(from, (to, rights))| (*from, *to, *rights))
            .collect();
        for (from, to, rights) in inside {
            self.0.remove(&from);
            if end < to {
                self.0.insert(end, (to, rights));
            }
        }
    }

    /// Puts `rights` between `start` and `end`, whatever is there.
    pub(super) fn insert(&mut self, mut start: u64, mut end: u64, rights: u32) {
        self.remove(start, end);
        if let Some((from, (to, same))) = self.0.range(..start).next_back() {
            if *to == start && *same == rights {
                start = *from;
            }
        }
        if let Some((to, same)) = self.0.get(&end).copied() {
            if same == rights {
                self.0.remove(&end);
                end = to;
            }
        }
        self.0.insert(start, (end, rights));
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn like_an_array(steps in prop::collection::vec(
            (0..64u64, 1..20u64, 0..4u32), 1..80)) {
            let mut ranges = Ranges::default();
            let mut pages = [0; 84];
            for (start, length, rights) in steps {
                let end = start + length;
                match rights {
                    0 => ranges.remove(start, end),
                    _ => ranges.insert(start, end, rights),
                }
                pages[start as usize..end as usize].fill(rights);
                let mut seen = [0; 84];
                for (from, to, rights) in ranges.between(0, u64::MAX) {
                    seen[from as usize..to as usize].fill(rights);
                }
                prop_assert_eq!(seen, pages);
                for want in [1, 3] {
                    let mut lacking = [false; 84];
                    for (from, to) in ranges.lacking(5, 70, want) {
                        lacking[from as usize..to as usize].fill(true);
                    }
                    for page in 5..70 {
                        prop_assert_eq!(lacking[page], pages[page] & want != want);
                    }
                }
            }
        }
    }
}
