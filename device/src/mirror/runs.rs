// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What is mapped in a space: runs of addresses that are consecutive bytes of a file.
//!
//! Each run is one mapping of the host, of which a process has a limited number, so what
//! continues a run becomes a part of it. The lock of the table protects runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// Consecutive bytes of a file.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) length: u64,
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) write: bool,
    /// The device alone has it.
    pub(crate) exclusive: bool,
}

impl Run {
    /// Whether `next` could be a part of it.
    pub(crate) fn continues_with(&self, next: &Self) -> bool {
        Arc::ptr_eq(&self.file, &next.file)
            && self.offset + self.length == next.offset
            && (self.write, self.exclusive) == (next.write, next.exclusive)
    }

    /// The part from byte `from` up to byte `to`.
    pub(crate) fn part(&self, from: u64, to: u64) -> Self {
        Self {
            length: to - from,
            offset: self.offset + from,
            ..self.clone()
        }
    }
}

/// A run and where it begins.
pub(crate) type Placed = (u64, Run);

/// Adds `run` to the end of `runs`, as a part of the last one if it can be.
pub(crate) fn push(runs: &mut Vec<Placed>, start: u64, run: Run) {
    match runs.last_mut() {
        Some((at, last)) if *at + last.length == start && last.continues_with(&run) => {
            last.length += run.length;
        }
        _ => runs.push((start, run)),
    }
}

/// Runs that do not overlap, by their starts.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    runs: BTreeMap<u64, Run>,
    /// Places where a run begins at the end of another.
    joints: usize,
}

impl Runs {
    /// The most mappings that there are for them: one for each, and one for each gap behind one.
    pub(crate) fn mappings(&self) -> usize {
        2 * self.runs.len() - self.joints
    }

    /// From the start of the first to the end of the last.
    pub(crate) fn span(&self) -> Option<Range<u64>> {
        let (start, _) = self.runs.first_key_value()?;
        let (last, run) = self.runs.last_key_value()?;
        Some(*start..last + run.length)
    }

    /// The run that byte `at` is in, and where it begins.
    pub(crate) fn placed(&self, at: u64) -> Option<(u64, &Run)> {
        let (start, run) = self.runs.range(..=at).next_back()?;
        (at - start < run.length).then_some((*start, run))
    }

    /// The run that byte `at` is in.
    pub(crate) fn find(&self, at: u64) -> Option<&Run> {
        self.placed(at).map(|(_, run)| run)
    }

    /// Bytes of all.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.values().map(|run| run.length).sum()
    }

    /// Joints that a run between `start` and `end` has with its neighbours.
    fn joints_at(&self, start: u64, end: u64) -> usize {
        let before = self.runs.range(..start).next_back();
        let before = before.is_some_and(|(at, run)| at + run.length == start);
        usize::from(before) + usize::from(self.runs.contains_key(&end))
    }

    /// Adds a run.
    fn add(&mut self, start: u64, run: Run) {
        self.joints += self.joints_at(start, start + run.length);
        self.runs.insert(start, run);
    }

    /// Takes the run at `start` out.
    fn take(&mut self, start: u64) -> Option<Run> {
        let run = self.runs.remove(&start)?;
        self.joints -= self.joints_at(start, start + run.length);
        Some(run)
    }

    /// Takes out what is between `start` and `end`.
    pub(crate) fn cut(&mut self, start: u64, end: u64) -> Vec<Placed> {
        let mut found = Vec::new();
        let before = self.runs.range(..start).next_back().map(|(at, _)| *at);
        let inside = self.runs.range(start..end.max(start)).map(|(at, _)| *at);
        let touched: Vec<u64> = before.into_iter().chain(inside).collect();
        for at in touched {
            let Some(run) = self.runs.get(&at) else {
                continue;
            };
            let (from, to) = (
                start.max(at) - at,
                end.min(at + run.length).saturating_sub(at),
            );
            if from >= to {
                continue;
            }
            let Some(run) = self.take(at) else { continue };
            if from > 0 {
                self.add(at, run.part(0, from));
            }
            if to < run.length {
                self.add(at + to, run.part(to, run.length));
            }
            found.push((at + from, run.part(from, to)));
        }
        found
    }

    /// From the end of the run before `start` to the start of the one behind `end`, where there is
    /// none in between.
    pub(crate) fn gap(&self, start: u64, end: u64) -> Range<u64> {
        let before = self.runs.range(..start).next_back();
        let behind = self.runs.range(end..).next();
        before.map_or(0, |(at, run)| at + run.length)..behind.map_or(u64::MAX, |(at, _)| *at)
    }

    /// Puts a run where none is, together with its neighbours if they are one.
    pub(crate) fn insert(&mut self, mut start: u64, mut run: Run) {
        let before = self.runs.range(..start).next_back();
        let before = before
            .filter(|(at, before)| *at + before.length == start && before.continues_with(&run));
        if let Some(before) = before.map(|(at, _)| *at).and_then(|at| self.take(at)) {
            start -= before.length;
            run = Run {
                length: before.length + run.length,
                ..before
            };
        }
        let end = start + run.length;
        let after = self.runs.get(&end);
        if after.is_some_and(|after| run.continues_with(after)) {
            run.length += self.take(end).map_or(0, |after| after.length);
        }
        self.add(start, run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Cutting and inserting is what it is on an array of pages, and neighbours are one run.
        #[test]
        fn like_an_array(steps in prop::collection::vec(
            (0..64u64, 1..20u64, prop::option::of((0..64u64, any::<bool>()))), 1..60)) {
            let file = Arc::new(File::open("/dev/null").unwrap());
            let mut runs = Runs::default();
            let mut pages = [None; 84];
            for (start, length, what) in steps {
                let range = start as usize..(start + length) as usize;
                let cut = runs.cut(start, start + length);
                let want = pages[range.clone()].iter().flatten().count() as u64;
                prop_assert_eq!(cut.iter().map(|(_, r)| r.length).sum::<u64>(), want);
                for (at, run) in &cut {
                    for page in 0..run.length {
                        let old = pages[(at + page) as usize];
                        prop_assert_eq!(old, Some((run.offset + page, run.write)));
                    }
                }
                pages[range.clone()].fill(None);
                if let Some((offset, write)) = what {
                    let file = file.clone();
                    let run = Run { length, file, offset, write, exclusive: false };
                    runs.insert(start, run);
                    for (page, offset) in range.zip(offset..) {
                        pages[page] = Some((offset, write));
                    }
                }
                let ends = (1..pages.len()).filter(|i| match (pages[i - 1], pages[*i]) {
                    (Some((a, b)), next) => next != Some((a + 1, b)),
                    _ => false,
                });
                prop_assert_eq!(runs.runs.len(), ends.count());
                let gaps = pages.windows(2).filter(|two| two[0].is_some() && two[1].is_none());
                prop_assert_eq!(runs.mappings(), runs.runs.len() + gaps.count());
                for (page, want) in (0..).zip(pages) {
                    let found = runs.find(page).map(|run| run.write);
                    prop_assert_eq!(found, want.map(|(_, write)| write));
                }
                let span = runs.span().map_or(0..0, |span| span.start as usize..span.end as usize);
                prop_assert!(pages[span.clone()].iter().flatten().count() == pages.iter().flatten().count());
                prop_assert!(span.is_empty() || pages[span.start].is_some() && pages[span.end - 1].is_some());
            }
        }
    }
}
