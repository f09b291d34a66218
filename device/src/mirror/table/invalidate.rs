// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! INVALIDATE: pages that nothing reaches any more.

use super::{bytes, Table};
use crate::memory::area::Area;
use crate::memory::usage::Usage;
use crate::memory::PAGE;
use crate::mirror::runs::{Placed, Runs};
use crate::mirror::Mirror;
use crate::misbehave::mutant::Mutant;

impl Mirror {
    /// Unmaps what is mapped between `start` and `last`, in pages.
    pub(in crate::mirror) fn invalidate(&self, table: &mut Table, id: u32, start: u64, last: u64) {
        let Some(space) = table.spaces.get_mut(&id) else {
            return;
        };
        space.invalidates += 1;
        let start = start - start % PAGE;
        let end = match last.checked_add(1) {
            Some(end) => end.min(space.area.size()).next_multiple_of(PAGE),
            None => space.area.size(),
        };
        let usage = space.area.usage();
        let before = space.runs.mappings();
        let mut old = space.runs.cut(start, end);
        if last != u64::MAX && self.has(Mutant::SkipPage) {
            skip_page(&mut old, &mut space.runs);
        }
        let after = space.runs.mappings();
        let (Some((first, _)), Some((at, run))) = (old.first(), old.last()) else {
            return;
        };
        let (start, length) = (*first, at + run.length - first);
        let result = match table.budget.may_split(usage, before, after) {
            // The addresses around it, too: where nothing is left the host's page tables go.
            true => {
                let gap = space.runs.gap(start, start + length);
                space.area.unmap_around(start, length, gap)
            }
            false => Err(std::io::ErrorKind::QuotaExceeded.into()),
        };
        if let Err(error) = result {
            // It cannot be refused, so more is unmapped than was asked for: all of it needs no
            // mapping that is not there.
            log::warn!("space {id} is lost: {error}");
            for (at, run) in old {
                space.runs.insert(at, run);
            }
            return self.lose_one(table, id);
        }
        usage.change(before, after);
        self.unmapped(bytes(&old));
        if space.hammer {
            self.hammer.remove(id, start, start + length);
        }
        self.log_unmapped(id, start, length);
    }

    /// Another mapping of the first page between `start` and `last` that can be written.
    pub(in crate::mirror) fn alias(&self, id: u32, start: u64, last: u64) -> Option<Area> {
        let mut table = self.table();
        let runs = &mut table.spaces.get_mut(&id)?.runs;
        let found = runs.cut(start, last.checked_add(1)?);
        for (at, run) in &found {
            runs.insert(*at, run.clone());
        }
        let (_, run) = found.into_iter().find(|(_, run)| run.write)?;
        let area = Area::new(PAGE, Usage::default()).ok()?;
        area.map(0, PAGE, &run.file, run.offset, true).ok()?;
        Some(area)
    }
}

/// Puts the last page of `old` back.
fn skip_page(old: &mut Vec<Placed>, runs: &mut Runs) {
    let Some((at, run)) = old.pop() else { return };
    let tail = run.length - PAGE;
    runs.insert(at + tail, run.part(tail, run.length));
    if tail > 0 {
        old.push((at, run.part(0, tail)));
    }
}
