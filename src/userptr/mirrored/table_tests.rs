// SPDX-License-Identifier: GPL-2.0

//! The table against a scripted device: all short sequences of what can happen to three pages, and
//! some long ones.

use super::table::{
    Having,
    Layout,
    Table,
    GRANULE, //
};
use crate::kapi::mm::HmmPage;
use core::ops::Range;
use kernel::prelude::*;

/// Pages of the range; the first granule has one of them, the second two.
const PAGES: usize = 3;
const START: usize = GRANULE - 1;
/// Steps of a sequence. All suites run whenever the module is loaded.
const DEPTH: usize = 3;
/// Random sequences, and their steps.
const WALKS: usize = 400;
const WALK_STEPS: usize = 20;
/// Parts of the range that commands and callbacks are about.
const PARTS: [Range<usize>; 4] = [0..1, 1..3, 1..2, 0..3];
const STEPS: usize = 2 * PARTS.len() + 6;

#[derive(Clone)]
enum Command {
    Map(Range<usize>),
    Invalidate(Range<usize>),
}

/// What has been sent and what is known, on both sides.
struct Model {
    table: Table,
    /// The queue, oldest first, and how many the device has carried out.
    sent: KVec<Command>,
    done: usize,
    /// MAPs carried out whose answers were not looked at.
    answered: KVec<Range<usize>>,
    /// Callbacks that have not returned: what they must end, and the command they wait for.
    callbacks: KVec<(Range<usize>, usize)>,
    /// Pages that are being taken back for others, and the command that does it.
    eviction: Option<(Range<usize>, usize)>,
    /// Pages that the device reaches.
    device: [bool; PAGES],
    held: [bool; PAGES],
    /// Pages that the table has asked to hold.
    holds: usize,
    lost: bool,
}

impl Model {
    fn new() -> Result<Self> {
        let layout = Layout::new(START, PAGES);
        let mut table = Table::new(layout);
        table.add(Table::new_granule(layout, 0)?);
        table.add(Table::new_granule(layout, 1)?);
        Ok(Self {
            table,
            sent: KVec::new(),
            done: 0,
            answered: KVec::new(),
            callbacks: KVec::new(),
            eviction: None,
            device: [false; PAGES],
            held: [false; PAGES],
            holds: 0,
            lost: false,
        })
    }

    /// Takes step number `step`, if it is possible now. Returns whether it was.
    fn step(&mut self, step: usize) -> Result<bool> {
        if let Some(part) = PARTS.get(step) {
            return self.map(part.clone());
        }
        if let Some(part) = PARTS.get(step - PARTS.len()) {
            return self.callback(part.clone());
        }
        match step - 2 * PARTS.len() {
            0 => self.device_works(),
            1 => Ok(self.look_at_answer()),
            2 => Ok(self.callback_returns()),
            3 => self.evict(0..PAGES),
            4 => Ok(self.evicted()),
            _ => Ok(!core::mem::replace(&mut self.lost, true)),
        }
    }

    /// Pages are looked up and MAP is sent, as far as the notifier allows: no callback is running.
    fn map(&mut self, part: Range<usize>) -> Result<bool> {
        if self.lost || !self.callbacks.is_empty() {
            return Ok(false);
        }
        // What the device may still reach is being taken back for others, and nothing waits for the
        // answer to a MAP of it.
        let on_its_way = |other: &Range<usize>| other.start < part.end && part.start < other.end;
        let unanswered = self
            .sent
            .iter()
            .skip(self.done)
            .any(|command| match command {
                Command::Map(other) => on_its_way(other),
                Command::Invalidate(_) => false,
            });
        if self.table.next_stale(part.clone(), PAGES, false) != Some(part.clone())
            || unanswered
            || self.answered.iter().any(on_its_way)
        {
            return Ok(false);
        }
        self.table
            .set_mapping(part.start, &[HmmPage::default(); PAGES][..part.len()], true);
        self.sent.push(Command::Map(part), GFP_KERNEL)?;
        Ok(true)
    }

    /// The first pass.
    fn callback(&mut self, part: Range<usize>) -> Result<bool> {
        if let Some(span) = self.table.invalidate(part, false) {
            if self.lost {
                self.hold(span);
            } else {
                self.sent
                    .push(Command::Invalidate(span.clone()), GFP_KERNEL)?;
                self.callbacks.push((span, self.sent.len()), GFP_KERNEL)?;
            }
        }
        Ok(true)
    }

    /// INVALIDATE is sent for what is taken back for others.
    fn evict(&mut self, part: Range<usize>) -> Result<bool> {
        let Some(span) = self.table.reachable_in(part) else {
            return Ok(false);
        };
        if self.lost || self.eviction.is_some() {
            return Ok(false);
        }
        assert!(self.table.evict(span.clone()) > 0);
        self.sent
            .push(Command::Invalidate(span.clone()), GFP_KERNEL)?;
        self.eviction = Some((span, self.sent.len()));
        Ok(true)
    }

    /// It is acknowledged.
    fn evicted(&mut self) -> bool {
        let done = self.done;
        let Some((span, _)) = self.eviction.take_if(|(_, command)| *command <= done) else {
            return false;
        };
        self.table.set_evicted(span, |_| ());
        true
    }

    fn device_works(&mut self) -> Result<bool> {
        let Some(command) = self.sent.get(self.done).filter(|_| !self.lost).cloned() else {
            return Ok(false);
        };
        self.done += 1;
        match command {
            Command::Map(part) => {
                self.device[part.clone()].fill(true);
                self.answered.push(part, GFP_KERNEL)?;
            }
            Command::Invalidate(part) => self.device[part].fill(false),
        }
        Ok(true)
    }

    fn look_at_answer(&mut self) -> bool {
        match self.answered.remove(0) {
            Ok(part) => {
                self.table.set_mapped(part);
                true
            }
            Err(_) => false,
        }
    }

    /// The second pass of the oldest callback; then the kernel may take the pages.
    fn callback_returns(&mut self) -> bool {
        let Some((span, command)) = self.callbacks.first().cloned() else {
            return false;
        };
        let acknowledged = command <= self.done;
        if !acknowledged && !self.lost {
            return false;
        }
        let _ = self.callbacks.remove(0);
        if acknowledged {
            self.table.set_unmapped(span.clone(), |_| ());
        } else {
            self.hold(span.clone());
        }
        for page in span {
            assert!(!self.device[page] || self.held[page]);
        }
        true
    }

    fn hold(&mut self, span: Range<usize>) {
        let mut count = 0;
        self.table.set_held(span.clone(), |_| count += 1);
        let fresh = self.held[span.clone()]
            .iter()
            .filter(|held| !**held)
            .count();
        assert!(count <= fresh);
        self.holds += count;
        self.held[span].fill(true);
    }

    /// A lost device is reset: each page is let go as often as it was held.
    fn end(mut self) {
        if self.lost {
            let mut let_go = 0;
            self.table.set_disconnected();
            self.table
                .disconnect(0..PAGES, |_, held| let_go += usize::from(held));
            assert_eq!(let_go, self.holds);
        }
    }

    /// What must hold at any time.
    fn check(&mut self) {
        for page in 0..PAGES {
            let reachable = self.table.reachable_in(page..page + 1).is_some();
            // The table knows all that the device reaches.
            assert!(!self.device[page] || reachable);
            // Jobs rely only on what the device has.
            let stale = self.table.next_stale(page..page + 1, 1, false).is_some();
            assert!(stale || (reachable && self.device[page]));
        }
        let ready = self.table.next_stale(0..PAGES, PAGES, false).is_none();
        assert_eq!(self.table.is_ready(false), ready);
        assert_eq!(
            self.table.is_ready(true),
            self.table.next_stale(0..PAGES, PAGES, true).is_none()
        );
    }
}

#[kunit_tests(virtgpu_userptr_table)]
mod tests {
    use super::*;

    fn all_sequences(start: impl Fn() -> Result<Model>) -> Result {
        let mut steps = [0; DEPTH];
        loop {
            let mut model = start()?;
            let mut taken = 0;
            for step in steps {
                if !model.step(step)? {
                    break;
                }
                model.check();
                taken += 1;
            }
            model.end();
            // Sequences that begin with an impossible one are impossible, too.
            let mut at = taken.min(DEPTH - 1);
            steps[at + 1..].fill(0);
            loop {
                steps[at] += 1;
                if steps[at] < STEPS {
                    break;
                }
                steps[at] = 0;
                if at == 0 {
                    return Ok(());
                }
                at -= 1;
            }
        }
    }

    #[test]
    fn all_sequences_from_nothing() -> Result {
        all_sequences(Model::new)
    }

    #[test]
    fn all_sequences_from_everything() -> Result {
        all_sequences(|| {
            let mut model = Model::new()?;
            for part in [0..1, 1..3] {
                assert!(model.map(part)? && model.device_works()? && model.look_at_answer());
            }
            Ok(model)
        })
    }

    #[test]
    fn long_sequences() -> Result {
        // A generator of random numbers that are the same every time (xorshift).
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..WALKS {
            let mut model = Model::new()?;
            for _ in 0..WALK_STEPS {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let step = (random >> 32) as usize % STEPS;
                // Most end with the device as it should be.
                let lose = step == STEPS - 1 && random % 8 != 0;
                if !lose && model.step(step)? {
                    model.check();
                }
            }
            model.end();
        }
        Ok(())
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
        // Nothing is left but wishes; a page at the end that is reachable is found in short looks.
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
        table.set_held(0..1, |_| ());
        table.set_unmapped(all.clone(), |_| ());
        assert!(table.has_granule(0));
        table.disconnect(all, |_, held| assert!(held));
        Ok(())
    }

    #[test]
    fn what_was_writable_is_written() -> Result {
        let mut model = Model::new()?;
        let pages = [HmmPage::default(); 2];
        model.table.set_mapping(1, &pages, true);
        // Less right, for one of the two.
        model.table.set_mapping(1, &pages[..1], false);
        model.table.invalidate(1..3, false);
        let mut written = 0;
        model
            .table
            .set_unmapped(1..3, |page| written += usize::from(page.writable));
        assert_eq!(written, 2);
        // And not for ever.
        model.table.set_mapping(1, &pages[..1], false);
        model.table.invalidate(1..3, false);
        model
            .table
            .set_unmapped(1..3, |page| assert!(!page.writable));
        Ok(())
    }

    #[test]
    fn what_is_unmapped_is_not_wanted() -> Result {
        let mut model = Model::new()?;
        for part in [0..1, 1..3] {
            assert!(model.map(part)? && model.device_works()? && model.look_at_answer());
        }
        assert!(model.table.is_ready(false) && model.table.is_ready(true));
        // Taken away for a while, and for good.
        model.table.invalidate(0..1, false);
        model.table.invalidate(1..2, true);
        model.table.set_unmapped(0..2, |_| ());
        assert_eq!(model.table.next_stale(0..3, 3, true), Some(0..1));
        assert_eq!(model.table.next_stale(0..3, 3, false), Some(0..2));
        assert_eq!(model.table.next_stale(1..3, 3, false), Some(1..2));
        assert_eq!(model.table.mapped(), 1);
        Ok(())
    }
}
