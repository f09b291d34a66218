// SPDX-License-Identifier: GPL-2.0

//! What the kernel does to the memory of the process, and both passes of the callbacks for it.

use super::super::{
    Having,
    WANTED, //
};
use super::{
    Change,
    Check,
    Command,
    Mistake,
    Model,
    Phase,
    Sender,
    Span, //
};
use core::ops::Range;
use kernel::prelude::*;

impl Model {
    /// The first pass begins.
    pub(super) fn begin(&mut self, which: Span, gone: bool, may_block: bool) -> Check {
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
    pub(super) fn get_on(&mut self, place: usize) -> Check {
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

    pub(super) fn set_unmapped(&mut self, which: Span) -> Check {
        let (state, mut kept) = (self.state, true);
        self.parts(which, |table, part| {
            table.set_unmapped(part, |pages| kept &= Self::are_owned(&state, &pages));
        });
        Self::kept(kept)
    }

    pub(super) fn quarantine(&mut self, which: Span) -> Check {
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
        self.table.set_quarantined(part, |page| {
            kept &= page.count == 1;
            match Self::owner(state, page.tracked.phys()) {
                Some((which, age)) if state.quarantined[which].is_none() => {
                    state.quarantined[which] = Some(age)
                }
                _ => kept = false,
            }
        });
        Self::kept(kept)
    }
}
