// SPDX-License-Identifier: GPL-2.0

//! Jobs and the device: what it carries out, its loss and its reset.

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
    PAGES,
    RING, //
};
use core::ops::Range;

impl Model {
    /// A job that keeps a callback waiting loses its context.
    pub(super) fn grace(&mut self) -> bool {
        let state = &mut self.state;
        let waits = |change: &Change| change.phase == Phase::Unsent;
        let late = state.job.is_some() && state.changes.iter().flatten().any(waits);
        late && !core::mem::replace(&mut state.context_lost, true)
    }

    pub(super) fn queue(&mut self) -> Check {
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

    /// The device carries out the oldest command; `accepts` a MAP, or stops on the way.
    pub(super) fn work(&mut self, accepts: bool) -> Check {
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

    pub(super) fn reset(&mut self) -> bool {
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

    pub(super) fn device_reset(&mut self) -> bool {
        let ready = self.state.reset || self.state.lost && self.makes(Mistake::ReleasedEarly);
        if !ready || self.table.is_device_reset() {
            return false;
        }
        self.table.set_device_reset();
        true
    }

    pub(super) fn release(&mut self) -> Check {
        let at = self.state.released.into();
        if !self.table.is_device_reset() || at == PAGES {
            return Ok(false);
        }
        let part = self.table.next_part(at..PAGES, Having::Anything);
        self.state.released = part.end as u8;
        self.release_quarantine(part)
    }

    pub(super) fn release_quarantine(&mut self, part: Range<usize>) -> Check {
        let (state, mut kept) = (&mut self.state, true);
        self.table.release_quarantine(part, |pages, quarantined| {
            for phys in pages.addresses() {
                let owner = Self::owner(state, phys);
                kept &= owner.is_some();
                if let Some((which, age)) = owner.filter(|_| quarantined) {
                    kept &= state.quarantined[which] == Some(age);
                    state.quarantined[which] = None;
                }
            }
        });
        Self::kept(kept)
    }
}
