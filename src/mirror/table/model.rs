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
//! Left out are holds of the lock between which nothing can come that could not come before or after
//! as well: the callback moves the sequence on and marks the first granule in one step, and it looks at
//! the jobs in the step in which it marks the last one.

use super::{
    packed,
    Counts,
    Having,
    Layout,
    ReachablePage,
    Table,
    FLAGS,
    GRANULE,
    MAPPED,
    QUARANTINED,
    REACHABLE,
    WANTED, //
};
use crate::kapi::mm::HmmPage;
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

fn page(which: usize, age: Age) -> HmmPage {
    HmmPage::made_up(1 << 20 | which << 8 | usize::from(age))
}

/// Which page that is.
fn age(which: usize, phys: u64) -> Option<Age> {
    let age = (phys >> PAGE_SHIFT) as Age;
    (page(which, age).phys() == phys).then_some(age)
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
            granule.words.copy_from_slice(&state.words[pages]);
            granule.sums = granule.words.iter().map(|&word| packed(word)).sum();
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
                state.words[self.table.layout.pages_of(index)].copy_from_slice(&granule.words);
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

    /// The way in, without the lock: no change is under way.
    fn look_up(&mut self, which: Range<usize>, most: usize, sparse: bool) -> Check {
        let state = &self.state;
        let busy = state.found.is_some() || state.refused.is_some() || state.sent[1].is_some();
        if busy || state.changes.iter().any(Option::is_some) {
            return Ok(false);
        }
        let sent = state.sent[0].map_or(0, |sent| sent.which.end.into());
        let rest = sent.max(which.start)..which.end;
        let Some(which) = self.table.next_stale(rest, most, sparse) else {
            return Ok(false);
        };
        for page in which.clone() {
            if !self.table.has_granule(page) {
                let granule = Table::new_granule(self.table.layout, page).map_err(|_| c"ENOMEM")?;
                self.table.add(granule);
            }
        }
        self.state.found = Some(Found {
            which: which.into(),
            ages: self.state.process,
            fresh: true,
        });
        Ok(true)
    }

    fn commit(&mut self, most: usize) -> Check {
        let Some(found) = self.state.found else {
            return Ok(false);
        };
        let maps = |command: &&Command| matches!(command, Command::Map(..));
        if self.state.ring.iter().flatten().filter(maps).count() == MAPS {
            return Ok(false);
        }
        let Some(place) = self.state.sent.iter().position(Option::is_none) else {
            return Ok(false);
        };
        let all = found.which.range();
        let which = all.start..all.end.min(all.start + most);
        self.state.found = None;
        let stale = !found.fresh && !self.makes(Mistake::StaleIsSent);
        if stale || !self.table.has_granules(&which) || self.state.lost {
            return Ok(true);
        }
        let mut pages = [HmmPage::default(); PAGES];
        for (at, which) in which.clone().enumerate() {
            if found.ages[which] != self.state.process[which] {
                return Err(c"MAP is sent for a page that has gone");
            }
            pages[at] = page(which, found.ages[which]);
        }
        self.table
            .set_mapping(which.start, &pages[..which.len()], true);
        if which.end < all.end {
            self.state.found = Some(Found {
                which: (which.end..all.end).into(),
                ..found
            });
        }
        self.state.sent[place] = Some(Sent {
            which: which.clone().into(),
            response: None,
        });
        self.send(Command::Map(which.into(), found.ages))
    }

    fn response(&mut self) -> Check {
        let [Some(Sent { which, response }), next] = self.state.sent else {
            return Ok(false);
        };
        let Some(accepted) = response else {
            // Who waits for the responses returns.
            let lost = self.state.lost;
            if lost {
                (self.state.sent, self.state.found) = ([None; MAPS], None);
            }
            return Ok(lost);
        };
        if !accepted && self.state.refused.is_some() {
            return Ok(false);
        }
        self.state.sent = [next, None];
        if accepted || self.makes(Mistake::NotInvalidated) {
            self.parts(which, |table, part| table.set_mapped(part));
        } else {
            self.parts(which, |table, part| {
                table.invalidate(part, false);
            });
            self.state.refused = Some(Invalidation {
                which,
                phase: Phase::Unsent,
            });
        }
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

    fn invalidate(&mut self) -> Check {
        let Some(Invalidation { which, phase }) = self.state.refused else {
            return Ok(false);
        };
        match phase {
            Phase::Acknowledged => {
                self.state.refused = None;
                self.set_unmapped(which)
            }
            _ if self.state.lost => {
                self.state.refused = None;
                self.quarantine(which)
            }
            Phase::Unsent if self.has_place() => {
                self.state.refused = Some(Invalidation {
                    which,
                    phase: Phase::Sent,
                });
                self.send(Command::Invalidate(which, Sender::Populate))
            }
            _ => Ok(false),
        }
    }

    /// The first pass begins.
    fn begin(&mut self, which: Span, gone: bool, may_block: bool) -> Check {
        let Some(place) = self.state.changes.iter().position(Option::is_none) else {
            return Ok(false);
        };
        if let Some(found) = &mut self.state.found {
            found.fresh = false;
        }
        let lost = self.state.lost;
        if !may_block && !lost && self.table.reachable_in(which.range()).is_some() {
            // The core ends the change, which has not been made.
            if !self.makes(Mistake::NotRefused) {
                return Ok(true);
            }
        }
        self.mark(
            place,
            Change {
                which,
                gone,
                lost,
                span: None,
                phase: Phase::Marking(which.start),
            },
            may_block,
        )
    }

    /// Marks the next part; after the last, INVALIDATE is sent if no job is in the way.
    fn mark(&mut self, place: usize, mut change: Change, may_block: bool) -> Check {
        let Phase::Marking(at) = change.phase else {
            return Ok(false);
        };
        let having = if change.gone {
            Having::Anything
        } else {
            Having::Reachable
        };
        let rest = at.into()..change.which.end.into();
        let part = self.table.next_part(rest.clone(), having);
        let end = part.end;
        if !part.is_empty() {
            if let Some(found) = self.table.invalidate(part, change.gone) {
                if change.lost {
                    self.quarantine_part(found.clone())?;
                }
                let start = change.span.map_or(found.start, |span| span.start.into());
                change.span = Some((start..found.end).into());
            }
        }
        change.phase = Phase::Marking(end as u8);
        if end == rest.end {
            change.phase = match change.span {
                Some(span) if !change.lost => {
                    if !may_block && self.makes(Mistake::NotRefused) {
                        Phase::Returned
                    } else {
                        self.post_invalidate(place, span, false)?
                    }
                }
                _ => Phase::Returned,
            };
        }
        self.state.changes[place] = Some(change);
        Ok(true)
    }

    /// Sends a callback's INVALIDATE, if that is possible; returns the phase after that.
    fn post_invalidate(
        &mut self,
        place: usize,
        span: Span,
        waited: bool,
    ) -> Result<Phase, &'static CStr> {
        let over = self.state.job.is_none() || waited && self.state.context_lost;
        if !over && !self.makes(Mistake::JobsNotAwaited) {
            return Ok(Phase::Unsent);
        }
        if self.state.lost {
            self.quarantine(span)?;
            return Ok(Phase::Returned);
        }
        if self.makes(Mistake::AnothersAcknowledgement) {
            let mut others = self.state.changes.iter().enumerate();
            let covers = |(other, change): (usize, &Option<Change>)| {
                other != place
                    && change.is_some_and(|change| {
                        change.phase == Phase::Sent
                            && change.span.is_some_and(|other| {
                                other.start <= span.start && other.end >= span.end
                            })
                    })
            };
            if others.any(covers) {
                return Ok(Phase::Returned);
            }
        }
        if !self.has_place() {
            return Ok(Phase::Unsent);
        }
        self.send(Command::Invalidate(span, Sender::Change(place as u8)))?;
        Ok(Phase::Sent)
    }

    /// A change gets on: the rest of the first pass, the second, and what the kernel does then.
    fn get_on(&mut self, place: usize) -> Check {
        let Some(mut change) = self.state.changes[place] else {
            return Ok(false);
        };
        match (change.phase, change.span) {
            (Phase::Marking(_), _) => return self.mark(place, change, true),
            (Phase::Unsent, Some(span)) => {
                change.phase = self.post_invalidate(place, span, true)?;
                if change.phase == Phase::Unsent {
                    return Ok(false);
                }
            }
            (Phase::Acknowledged, Some(span)) => {
                self.set_unmapped(span)?;
                change.phase = Phase::Returned;
            }
            (Phase::Sent, Some(span)) if self.state.lost => {
                self.quarantine(span)?;
                change.phase = Phase::Returned;
            }
            (Phase::Sent, _) if self.makes(Mistake::AcknowledgementNotAwaited) => {
                change.phase = Phase::Returned;
            }
            (Phase::Returned, _) => return self.changed(place, change),
            _ => return Ok(false),
        }
        self.state.changes[place] = Some(change);
        Ok(true)
    }

    /// The kernel does what the callbacks were called for: other pages are there from now on.
    fn changed(&mut self, place: usize, change: Change) -> Check {
        let state = &mut self.state;
        state.changes[place] = None;
        for page in change.which.range() {
            if change.gone && state.words[page] & WANTED != 0 {
                return Err(c"what was unmapped is still wanted");
            }
            let uses = |job: u8| job & 1 << page != 0;
            if state.job.is_some_and(uses) && !state.context_lost && !state.lost {
                return Err(c"a job runs on a page that was replaced");
            }
            state.process[page] += 1;
        }
        Ok(true)
    }

    /// A job that keeps a callback waiting loses its context.
    fn grace(&mut self) -> bool {
        let state = &mut self.state;
        let waits = |change: &Change| change.phase == Phase::Unsent;
        let late = state.job.is_some() && state.changes.iter().flatten().any(waits);
        late && !core::mem::replace(&mut state.context_lost, true)
    }

    fn queue(&mut self) -> Check {
        let state = &mut self.state;
        let all = (1 << PAGES) - 1;
        let uses = if self.sparse {
            let wanted = |&page: &usize| state.words[page] & WANTED != 0;
            (0..PAGES).filter(wanted).map(|page| 1 << page).sum()
        } else {
            all
        };
        let ready = self.table.is_ready(self.sparse) || self.mistake == Some(Mistake::NoLook);
        if state.lost || state.context_lost || state.job.is_some() || uses == 0 || !ready {
            return Ok(false);
        }
        state.job = Some(uses);
        Ok(true)
    }

    fn evict(&mut self, first: usize) -> Check {
        let state = &self.state;
        if state.lost || state.eviction.is_some() || state.job.is_some() || !self.has_place() {
            return Ok(false);
        }
        let part = self.table.next_part(first..PAGES, Having::Reachable);
        let Some(which) = self.table.reachable_in(part) else {
            return Ok(false);
        };
        if self.table.evict(which.clone()) == 0 {
            return Err(c"nothing was there to evict");
        }
        let which = which.into();
        self.state.eviction = Some(Invalidation {
            which,
            phase: Phase::Sent,
        });
        self.send(Command::Invalidate(which, Sender::Eviction))
    }

    fn evicted(&mut self) -> Check {
        let Some(Invalidation { which, phase }) = self.state.eviction else {
            return Ok(false);
        };
        if phase != Phase::Acknowledged && !self.state.lost {
            return Ok(false);
        }
        self.state.eviction = None;
        if phase != Phase::Acknowledged {
            return Ok(true);
        }
        if self.makes(Mistake::SentSince) {
            self.parts(which, |table, part| {
                table.invalidate(part, false);
            });
            return self.set_unmapped(which);
        }
        let (state, mut kept) = (&self.state, true);
        self.table.set_evicted(which.range(), |page| {
            kept &= Self::owner(state, page).is_some();
        });
        Self::kept(kept)
    }

    /// The place of a page that the table speaks of, and which of those that were there it is,
    /// unless it may have been freed by now.
    fn owner(state: &State, page: ReachablePage) -> Option<(usize, Age)> {
        (0..PAGES).find_map(|which| {
            let age = age(which, page.phys)?;
            Self::is_kept(state, which, age).then_some((which, age))
        })
    }

    fn kept(kept: bool) -> Check {
        if kept {
            Ok(true)
        } else {
            Err(c"the table speaks of a page that has gone")
        }
    }

    fn set_unmapped(&mut self, which: Span) -> Check {
        let (state, mut kept) = (self.state, true);
        self.parts(which, |table, part| {
            table.set_unmapped(part, |page| kept &= Self::owner(&state, page).is_some());
        });
        Self::kept(kept)
    }

    fn quarantine(&mut self, which: Span) -> Check {
        let mut rest = which.range();
        while !rest.is_empty() {
            let part = self.table.next_part(rest.clone(), Having::Reachable);
            rest.start = part.end;
            if !part.is_empty() {
                self.quarantine_part(part)?;
            }
        }
        Ok(true)
    }

    fn quarantine_part(&mut self, part: Range<usize>) -> Check {
        if self.table.is_device_reset() {
            return self.release_quarantine(part);
        }
        if self.makes(Mistake::NoQuarantine) {
            return Ok(true);
        }
        let (state, mut kept) = (&mut self.state, true);
        self.table
            .set_quarantined(part, |page| match Self::owner(state, page) {
                Some((which, age)) if state.quarantined[which].is_none() => {
                    state.quarantined[which] = Some(age)
                }
                _ => kept = false,
            });
        Self::kept(kept)
    }

    fn release_quarantine(&mut self, part: Range<usize>) -> Check {
        let (state, mut kept) = (&mut self.state, true);
        self.table.release_quarantine(part, |page, quarantined| {
            let owner = Self::owner(state, page);
            kept &= owner.is_some();
            if let Some((which, age)) = owner.filter(|_| quarantined) {
                kept &= state.quarantined[which] == Some(age);
                state.quarantined[which] = None;
            }
        });
        Self::kept(kept)
    }

    /// The device carries out the oldest command; `accepts` a MAP, or stops on the way.
    fn work(&mut self, accepts: bool) -> Check {
        let state = &mut self.state;
        let Some(command) = state.ring[0] else {
            return Ok(false);
        };
        if state.reset || !accepts && matches!(command, Command::Invalidate(..)) {
            return Ok(false);
        }
        state.ring.copy_within(1.., 0);
        state.ring[RING - 1] = None;
        match command {
            Command::Map(which, ages) => {
                let done = if accepts { PAGES } else { 1 };
                for page in which.range().take(done) {
                    if state.device[page].is_some_and(|age| age != ages[page]) {
                        return Err(c"a page of the device is replaced without INVALIDATE");
                    }
                    state.device[page] = Some(ages[page]);
                }
                let mut sent = state.sent.iter_mut().flatten();
                if let Some(sent) = sent.find(|sent| sent.response.is_none()) {
                    sent.response = Some(accepts);
                }
            }
            Command::Invalidate(which, sender) => {
                state.device[which.range()].fill(None);
                let phase = match sender {
                    Sender::Change(place) => {
                        let change = &mut state.changes[usize::from(place)];
                        change.as_mut().map(|change| &mut change.phase)
                    }
                    Sender::Populate => state.refused.as_mut().map(|sent| &mut sent.phase),
                    Sender::Eviction => state.eviction.as_mut().map(|sent| &mut sent.phase),
                };
                // Who sent it may have returned, as the device is lost.
                if let Some(phase) = phase.filter(|phase| **phase == Phase::Sent) {
                    *phase = Phase::Acknowledged;
                }
            }
        }
        Ok(true)
    }

    fn reset(&mut self) -> bool {
        let state = &mut self.state;
        if !state.lost || state.reset {
            return false;
        }
        state.reset = true;
        state.device = [None; PAGES];
        state.ring = [None; RING];
        state.job = None;
        true
    }

    fn device_reset(&mut self) -> bool {
        let ready = self.state.reset || self.state.lost && self.makes(Mistake::ReleasedEarly);
        if !ready || self.table.is_device_reset() {
            return false;
        }
        self.table.set_device_reset();
        true
    }

    fn release(&mut self) -> Check {
        let at = self.state.released.into();
        if !self.table.is_device_reset() || at == PAGES {
            return Ok(false);
        }
        let part = self.table.next_part(at..PAGES, Having::Anything);
        self.state.released = part.end as u8;
        self.release_quarantine(part)
    }

    /// What must hold at any time.
    fn check(&self) -> Check {
        let state = &self.state;
        for page in 0..PAGES {
            let word = state.words[page];
            if word & (REACHABLE | QUARANTINED) != 0 {
                let known = age(page, word & !FLAGS);
                if !known.is_some_and(|age| Self::is_kept(state, page, age)) {
                    return Err(c"the table has a page that has gone");
                }
            }
            if let Some(reached) = state.device[page] {
                if !Self::is_kept(state, page, reached) {
                    return Err(c"the device reaches a page that has gone");
                }
                if word & (REACHABLE | QUARANTINED) == 0
                    || age(page, word & !FLAGS) != Some(reached)
                {
                    return Err(c"the table does not know what the device reaches");
                }
            }
            let right = state.device[page] == Some(state.process[page]);
            if word & MAPPED != 0 && !right && !state.reset {
                return Err(c"jobs may rely on what the device does not reach");
            }
            let runs = state.job.is_some_and(|job| job & 1 << page != 0) && !state.context_lost;
            if runs && !right && !state.lost {
                return Err(c"a job runs on a page after its INVALIDATE");
            }
            if state.quarantined[page].is_some() != (word & QUARANTINED != 0) {
                return Err(c"the table does not know what is in quarantine");
            }
        }
        for command in state.ring.iter().flatten() {
            let Command::Map(which, ages) = command else {
                continue;
            };
            if which.range().any(|p| !Self::is_kept(state, p, ages[p])) {
                return Err(c"MAP is on its way for a page that has gone");
            }
        }
        if state.released as usize == PAGES && state.changes == [None; CHANGES] {
            let still = |word: &u64| word & (REACHABLE | QUARANTINED) != 0;
            if state.refused.is_none() && state.words.iter().any(still) {
                return Err(c"something is in quarantine after all");
            }
        }
        self.check_counts()
    }

    fn check_counts(&self) -> Check {
        let words = &self.state.words;
        let count = |flags: u64| words.iter().filter(|&word| word & flags == flags).count();
        let totals = &self.table.totals;
        let counted = [totals.reachable, totals.mapped, totals.wanted, totals.ready];
        let counts = [REACHABLE, MAPPED, WANTED, MAPPED | WANTED].map(count);
        if counted != counts {
            return Err(c"the counts are wrong");
        }
        for granule in self.table.granules.values() {
            if granule.sums != granule.words.iter().map(|&word| packed(word)).sum::<u64>() {
                return Err(c"the sums of a granule are wrong");
            }
        }
        let [_, mapped, wanted, ready] = counts;
        if self.table.is_ready(true) != (ready == wanted) {
            return Err(c"what was asked for is not what is ready");
        }
        if self.table.is_ready(false) != (mapped == PAGES) {
            return Err(c"all is not what is ready");
        }
        Ok(true)
    }
}
