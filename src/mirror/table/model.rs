// SPDX-License-Identifier: GPL-2.0

//! A model of a small registration: the table itself, and around it all that changes the state of a
//! page, one step for each hold of the lock and for each thing that is waited for.
//!
//! That is population (lookup, MAP, response, INVALIDATE of what was refused), two changes of the
//! process's memory at a time with both passes of their callbacks, a job, eviction, the mirror ring
//! with its credits and its kept commands, the device, its loss and its reset. The steps are those
//! of `populate.rs`, `invalidate.rs`, `evict.rs`, `range.rs` and EXECBUFFER; who changes these
//! changes them here.
//!
//! Left out are holds of the lock between which nothing can come that could not come before or
//! after as well: the callback moves the sequence on and marks the first granule in one step, and
//! it looks at the jobs in the step in which it marks the last one.

mod change;
mod check;
mod device;
mod populate;

use super::{
    packed,
    Counts,
    Granule,
    Having,
    Layout,
    ReachablePages,
    Table,
    GRANULE,
    QUARANTINED, //
};
use crate::kapi::mm::{
    HmmPage,
    TrackedPage, //
};
use core::ops::Range;
use kernel::{
    page::PAGE_SHIFT,
    prelude::*, //
};

/// Pages of the range; the first granule has one of them, the second the others.
const PAGES: usize = 3;
const START: usize = GRANULE - 1;
const GRANULES: usize = 2;
/// MAPs and INVALIDATEs that the ring has room for.
const MAPS: usize = 2;
const INVALIDATES: usize = 2;
const RING: usize = MAPS + INVALIDATES;
/// Changes of memory at a time.
const CHANGES: usize = 2;

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The first pages are looked up that a job lacks, so many at most.
    LookUp(usize),
    /// The first are that a prefetch lacks.
    Prefetch(u8, u8),
    /// MAP is sent for so many of them, or not at all if the lookup is stale.
    Commit(usize),
    /// The oldest response to a MAP is looked at.
    Response,
    /// What was refused is invalidated: INVALIDATE is sent, or its acknowledgement looked at.
    Invalidate,
    /// The kernel begins to replace pages, or to unmap them.
    Replace(u8, u8),
    Unmap(u8, u8),
    /// The same where nothing may be waited for.
    Reap(u8, u8),
    /// A change gets on.
    GetOn(usize),
    /// The job has had its time.
    Grace,
    /// A job is put into the ring, and ends.
    Queue,
    JobEnds,
    /// INVALIDATE is sent for the first granule from a page on that the device reaches.
    Evict(usize),
    /// Its acknowledgement is looked at.
    Evicted,
    /// The device carries out the oldest command, or, if it is a MAP, a part of it and refuses it.
    Work,
    Refuse,
    /// The device is lost, reset, the table learns of that, and what is in quarantine is released.
    Lose,
    Reset,
    TableReset,
    Release,
}

/// A mistake that is made on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    /// MAP is sent although the sequence is stale.
    StaleIsSent,
    /// Jobs do not look at the table.
    NoLook,
    /// INVALIDATE does not wait for jobs.
    JobsNotAwaited,
    /// A callback returns when INVALIDATE is sent.
    AcknowledgementNotAwaited,
    /// A callback sends nothing if INVALIDATE is on its way for its pages.
    AnothersAcknowledgement,
    /// A callback that may not block does not refuse.
    NotRefused,
    /// Eviction does not ask whether MAP was sent since.
    SentSince,
    /// What was refused is not invalidated.
    NotInvalidated,
    /// Nothing is put into quarantine.
    NoQuarantine,
    /// The quarantine ends before the reset.
    ReleasedEarly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Span {
    start: u8,
    end: u8,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start.into()..self.end.into()
    }
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self {
            start: range.start as u8,
            end: range.end as u8,
        }
    }
}

/// For which time a page is at an address: its number in memory follows from both.
type Age = u8;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Found {
    which: Span,
    ages: [Age; PAGES],
    /// No callback has moved the sequence on since.
    fresh: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Sent {
    which: Span,
    /// Whether the device took it.
    response: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// Pages from this one on are not marked yet.
    Marking(u8),
    /// INVALIDATE is to be sent.
    Unsent,
    Sent,
    Acknowledged,
    /// The callbacks have returned.
    Returned,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Change {
    which: Span,
    /// For good.
    gone: bool,
    /// The device was lost when it began.
    lost: bool,
    span: Option<Span>,
    phase: Phase,
}

/// INVALIDATE that is no callback's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Invalidation {
    which: Span,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Sender {
    Change(u8),
    Populate,
    Eviction,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Command {
    Map(Span, [Age; PAGES]),
    Invalidate(Span, Sender),
}

/// All that tells one state from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// The table.
    words: [u64; PAGES],
    granules: [bool; GRANULES],
    device_reset: bool,
    /// What is mapped in the process, what the device reaches, and what is in quarantine.
    process: [Age; PAGES],
    device: [Option<Age>; PAGES],
    quarantined: [Option<Age>; PAGES],
    /// The oldest first.
    ring: [Option<Command>; RING],
    found: Option<Found>,
    sent: [Option<Sent>; MAPS],
    refused: Option<Invalidation>,
    changes: [Option<Change>; CHANGES],
    eviction: Option<Invalidation>,
    /// The pages that the job uses, as a set.
    job: Option<u8>,
    context_lost: bool,
    lost: bool,
    reset: bool,
    released: u8,
}

/// Whether the step was possible, or what is wrong.
pub(super) type Check = Result<bool, &'static CStr>;

/// The table, and the rest of the world.
pub(super) struct Model {
    table: Table,
    pub(super) state: State,
    sparse: bool,
    mistake: Option<Mistake>,
}

/// Those of the same age are one behind the other, so that they make a leaf.
fn page(which: usize, age: Age) -> HmmPage {
    const _: () = assert!(PAGES <= 1 << 2);
    HmmPage::made_up(1 << 20 | usize::from(age) << 2 | which)
}

/// Which page that is.
fn age(which: usize, phys: u64) -> Option<Age> {
    let age = (phys >> PAGE_SHIFT >> 2) as Age;
    (page(which, age).phys() == phys).then_some(age)
}

impl Granule {
    /// Makes a leaf of the pages if they can be one: so both are seen, as what happens splits it.
    fn join(&mut self) {
        self.split();
        let first = self.pages.first().map_or(0, |page| page.word());
        self.leaf.set(first);
        let pages = self.pages.iter().enumerate();
        let fits = |(at, page): (usize, &TrackedPage)| page.word() == self.leaf_word(at);
        if first & QUARANTINED == 0 && pages.clone().all(fits) {
            self.pages.clear();
        } else {
            self.leaf.set(0);
        }
    }
}

impl Model {
    pub(super) fn new(sparse: bool, mistake: Option<Mistake>) -> Self {
        Self {
            table: Table::new(Layout::new(START, PAGES)),
            state: State {
                words: [0; PAGES],
                granules: [false; GRANULES],
                device_reset: false,
                process: [0; PAGES],
                device: [None; PAGES],
                quarantined: [None; PAGES],
                ring: [None; RING],
                found: None,
                sent: [None; MAPS],
                refused: None,
                changes: [None; CHANGES],
                eviction: None,
                job: None,
                context_lost: false,
                lost: false,
                reset: false,
                released: 0,
            },
            sparse,
            mistake,
        }
    }

    /// Goes back, or on, to a state.
    pub(super) fn restore(&mut self, state: &State) -> Check {
        self.state = *state;
        let table = &mut self.table;
        table.device_reset = state.device_reset;
        table.totals = Counts::default();
        table.looked = 0;
        for (index, &there) in state.granules.iter().enumerate() {
            if !there {
                table.granules.remove(&index);
                continue;
            }
            let pages = table.layout.pages_of(index);
            if !table.has_granule(pages.start) {
                let granule =
                    Table::new_granule(table.layout, pages.start).map_err(|_| c"ENOMEM")?;
                table.add(granule);
            }
            let Some(granule) = table.granules.get_mut(&index) else {
                return Err(c"no granule");
            };
            granule.split();
            for (page, &word) in granule.pages.iter_mut().zip(&state.words[pages]) {
                page.set(word);
            }
            granule.sums = granule.pages.iter().map(|page| packed(page.word())).sum();
            let quarantined = |page: &TrackedPage| page.word() & QUARANTINED != 0;
            granule.had_quarantine = granule.pages.iter().any(quarantined);
            granule.join();
            table.totals.add(granule.sums);
        }
        Ok(true)
    }

    /// Takes a step, if it is possible now.
    pub(super) fn step(&mut self, step: Step) -> Check {
        let taken = match step {
            Step::LookUp(most) => self.look_up(0..PAGES, most, self.sparse),
            Step::Prefetch(start, end) => self.look_up(Span { start, end }.range(), PAGES, false),
            Step::Commit(most) => self.commit(most),
            Step::Response => self.response(),
            Step::Invalidate => self.invalidate(),
            Step::Replace(start, end) => self.begin(Span { start, end }, false, true),
            Step::Unmap(start, end) => self.begin(Span { start, end }, true, true),
            Step::Reap(start, end) => self.begin(Span { start, end }, true, false),
            Step::GetOn(which) => self.get_on(which),
            Step::Grace => Ok(self.grace()),
            Step::Queue => self.queue(),
            Step::JobEnds => Ok(self.state.job.take().is_some()),
            Step::Evict(first) => self.evict(first),
            Step::Evicted => self.evicted(),
            Step::Work => self.work(true),
            Step::Refuse => self.work(false),
            Step::Lose => Ok(!core::mem::replace(&mut self.state.lost, true)),
            Step::Reset => Ok(self.reset()),
            Step::TableReset => Ok(self.device_reset()),
            Step::Release => self.release(),
        }?;
        if taken {
            self.read_table();
            self.check()?;
        }
        Ok(taken)
    }

    fn read_table(&mut self) {
        let state = &mut self.state;
        state.words.fill(0);
        for (index, there) in state.granules.iter_mut().enumerate() {
            let granule = self.table.granules.get(&index);
            *there = granule.is_some();
            if let Some(granule) = granule {
                let words = &mut state.words[self.table.layout.pages_of(index)];
                for (at, word) in words.iter_mut().enumerate() {
                    *word = granule.word(at);
                }
            }
        }
        state.device_reset = self.table.device_reset;
    }

    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Whether the page is still the process's, or in quarantine.
    fn is_kept(state: &State, which: usize, age: Age) -> bool {
        state.process[which] == age || state.quarantined[which] == Some(age)
    }

    fn has_place(&self) -> bool {
        let invalidate = |command: &&Command| matches!(command, Command::Invalidate(..));
        self.state.ring.iter().flatten().filter(invalidate).count() < INVALIDATES
    }

    fn send(&mut self, command: Command) -> Check {
        let free = self.state.ring.iter_mut().find(|place| place.is_none());
        *free.ok_or(c"the ring is too small")? = Some(command);
        Ok(true)
    }

    /// Each part in which the device reaches something.
    fn parts(&mut self, which: Span, mut with: impl FnMut(&mut Table, Range<usize>)) {
        let mut rest = which.range();
        while !rest.is_empty() {
            let part = self.table.next_part(rest.clone(), Having::Reachable);
            rest.start = part.end;
            if !part.is_empty() {
                with(&mut self.table, part);
            }
        }
    }

    /// The place of a page that the table speaks of, and which of those that were there it is,
    /// unless it may have been freed by now.
    fn owner(state: &State, phys: u64) -> Option<(usize, Age)> {
        (0..PAGES).find_map(|which| {
            let age = age(which, phys)?;
            Self::is_kept(state, which, age).then_some((which, age))
        })
    }

    /// Whether all of the pages are such ones.
    fn are_owned(state: &State, pages: &ReachablePages<'_>) -> bool {
        pages
            .addresses()
            .all(|phys| Self::owner(state, phys).is_some())
    }

    fn kept(kept: bool) -> Check {
        if kept {
            Ok(true)
        } else {
            Err(c"the table speaks of a page that has gone")
        }
    }
}
