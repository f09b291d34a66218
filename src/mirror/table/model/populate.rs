// SPDX-License-Identifier: GPL-2.0

//! What maps pages, and what invalidates them by itself: population and eviction.

use super::super::{
    Having,
    Table, //
};
use super::{
    page,
    Check,
    Command,
    Found,
    Invalidation,
    Mistake,
    Model,
    Phase,
    Sender,
    Sent,
    MAPS,
    PAGES, //
};
use crate::kapi::mm::HmmPage;
use core::ops::Range;

impl Model {
    /// The way in, without the lock: no change is under way.
    pub(super) fn look_up(&mut self, which: Range<usize>, most: usize, sparse: bool) -> Check {
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

    pub(super) fn commit(&mut self, most: usize) -> Check {
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

    pub(super) fn response(&mut self) -> Check {
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

    pub(super) fn invalidate(&mut self) -> Check {
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

    pub(super) fn evict(&mut self, first: usize) -> Check {
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

    pub(super) fn evicted(&mut self) -> Check {
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
        self.table.set_evicted(which.range(), |pages| {
            kept &= Self::are_owned(state, &pages);
        });
        Self::kept(kept)
    }
}
