// SPDX-License-Identifier: GPL-2.0

//! What must hold in every state.

use super::super::{
    packed,
    FLAGS,
    MAPPED,
    QUARANTINED,
    REACHABLE,
    WANTED, //
};
use super::{
    age,
    Check,
    Command,
    Model,
    CHANGES,
    PAGES, //
};

impl Model {
    /// What must hold at any time.
    pub(super) fn check(&self) -> Check {
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
            let words = (0..granule.len).map(|at| granule.word(at));
            if granule.sums != words.clone().map(packed).sum::<u64>() {
                return Err(c"the sums of a granule are wrong");
            }
            let nothing = granule.sums == 0 && words.clone().all(|word| word == 0);
            if granule.is_empty() != nothing {
                return Err(c"a granule is empty and does not look so, or the reverse");
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
