// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! MAP: pages become reachable in a space, all of them or none.

use std::sync::atomic::Ordering;

use virtgpu_protocol::mirror::{self as wire, access, status};

use super::{bytes, Table};
use crate::log::Event;
use crate::memory::area::Area;
use crate::memory::ram::GuestRam;
use crate::memory::PAGE;
use crate::mirror::runs::{push, Placed, Run};
use crate::mirror::Mirror;
use crate::misbehave::mutant::Mutant;

impl Mirror {
    /// The runs that `entries` name, placed from `start` on.
    fn runs(
        ram: &GuestRam,
        mut start: u64,
        entries: &[wire::MapEntry],
        most: u32,
    ) -> Result<Vec<Placed>, u32> {
        let mut runs = Vec::new();
        for entry in entries {
            if entry.access.get() & !most != 0 {
                return Err(status::INVALID);
            }
            let write = entry.access.get() & access::WRITE != 0;
            let mut addr = entry.addr.get();
            let mut left = u64::from(entry.length.get());
            while left > 0 {
                let range = ram.file_range(addr, left).ok_or(status::INVALID)?;
                // The host maps whole pages of files only.
                if (range.offset | range.length) % PAGE != 0 {
                    return Err(status::INVALID);
                }
                let run = Run {
                    length: range.length,
                    file: range.file,
                    offset: range.offset,
                    write,
                    exclusive: entry.access.get() & access::ATOMIC != 0,
                };
                // A region ends before 2^64, and so does the part of the entry in it.
                addr = addr.wrapping_add(run.length);
                left -= run.length;
                let at = start;
                start += run.length;
                push(&mut runs, at, run);
            }
        }
        Ok(runs)
    }

    pub(super) fn map(
        &self,
        table: &mut Table,
        ram: &GuestRam,
        id: u32,
        (start, length): (u64, u64),
        entries: &[wire::MapEntry],
    ) -> Result<(), u32> {
        let space = match table.spaces.get_mut(&id) {
            Some(space) => space,
            None => table.undead.get_mut(&id).ok_or(status::NO_SUCH_SPACE)?,
        };
        let inside = space.area.check(start, length);
        inside.map_err(|_| status::INVALID)?;
        let mut new = Self::runs(ram, start, entries, space.access)?;
        let asked = new.clone();
        self.twist(&mut new, space.faulting.is_some());
        let (area, usage) = (space.area.clone(), space.area.usage().clone());
        let before = space.runs.mappings();
        let old = space.runs.cut(start, start + length);
        // One for each run, and one for a gap that becomes two; a window is one, too.
        let after = space.runs.mappings() + new.len() + 1 + area.missing(start, length);
        if !table.budget.may_map(&usage, before, after) {
            for (at, run) in old {
                space.runs.insert(at, run);
            }
            return Err(status::NO_MEMORY);
        }
        self.unmapped(bytes(&old));
        self.hammer.remove(id, start, start + length);
        // Before it is true: who sees the mapping finds it in the log.
        self.log_map(id, (start, length), entries.len(), &asked, &new);
        let result = install(&area, &new);
        let mut kept = &new;
        if let Err(error) = &result {
            log::warn!("space {id}: {error}");
            kept = &old;
            if let Err(error) = self.put_back(id, &area, (start, length), &old) {
                log::warn!("space {id} is lost: {error}");
                area.clear(start, start + length);
                self.log_unmapped(id, start, length);
                usage.change(before, space.runs.mappings());
                self.lose_one(table, id);
                return Err(status::NO_SUCH_SPACE);
            }
        }
        for (at, run) in kept {
            space.runs.insert(*at, run.clone());
            if space.hammer && run.write {
                self.hammer.add(id, &area, *at, run.length);
            }
        }
        usage.change(before, space.runs.mappings());
        if result.is_ok() {
            space.maps += 1;
            if asked.iter().any(|(_, run)| run.exclusive) {
                self.counters.exclusive.fetch_add(1, Ordering::Relaxed);
            }
        }
        let pages = &self.counters.mapped_pages;
        pages.fetch_add(bytes(kept) / PAGE, Ordering::Relaxed);
        result.map_err(|_| status::NO_MEMORY)?;
        self.counters.maps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Maps `old`, and nothing else, between `start` and `start + length`, after a MAP that failed.
    fn put_back(
        &self,
        id: u32,
        area: &Area,
        (start, length): (u64, u64),
        old: &[Placed],
    ) -> std::io::Result<()> {
        area.unmap(start, length)?;
        self.log_unmapped(id, start, length);
        if !old.is_empty() {
            self.log_map(id, (start, length), 0, old, old);
        }
        install(area, old)
    }

    /// What a mutant maps instead.
    fn twist(&self, runs: &mut Vec<Placed>, faulting: bool) {
        if self.has(Mutant::IgnoreReadOnly) || faulting && self.has(Mutant::ReadGrantsWrite) {
            runs.iter_mut().for_each(|(_, run)| run.write = true);
        }
        if self.has(Mutant::DropMapTail) {
            if let Some((at, run)) = runs.pop() {
                if run.length > PAGE {
                    let part = run.part(0, run.length - PAGE);
                    runs.push((at, part));
                }
            }
        }
    }

    fn log_map(
        &self,
        space: u32,
        (start, length): (u64, u64),
        entries: usize,
        asked: &[Placed],
        runs: &[Placed],
    ) {
        self.log.write(|| Event::Mapped {
            space,
            start,
            length,
            entries: entries as u64,
            pages: runs.iter().map(|(_, run)| run.length / PAGE).sum(),
            asked: rights(asked),
            runs: rights(runs),
        });
    }
}

fn install(area: &Area, runs: &[Placed]) -> std::io::Result<()> {
    runs.iter()
        .try_for_each(|(at, run)| area.map(*at, run.length, &run.file, run.offset, run.write))
}

/// Runs for the log, neighbours with the same rights as one.
fn rights(runs: &[Placed]) -> Vec<(u64, u64, u32)> {
    let mut list: Vec<(u64, u64, u32)> = Vec::new();
    for (at, run) in runs {
        let access = match (run.exclusive, run.write) {
            (true, _) => access::EXCLUSIVE,
            (false, true) => access::READ | access::WRITE,
            (false, false) => access::READ,
        };
        match list.last_mut() {
            Some((start, length, same)) if *start + *length == *at && *same == access => {
                *length += run.length;
            }
            _ => list.push((*at, run.length, access)),
        }
    }
    list
}
