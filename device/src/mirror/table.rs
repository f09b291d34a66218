// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The spaces that exist, and what commands do to them.
//!
//! A command changes the table and the mappings of this process under the lock of the table. Jobs
//! take no part in that: they go on while pages come and go, and an access to what is not mapped is
//! a fault. When a command that takes pages returns, no access to them is going on.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use virtgpu_protocol::mirror::{self as wire, access, space_kind, status};

use super::command::{self, Command, Malformed};
use super::runs::{push, Placed, Run, Runs};
use super::stall::Faulting;
use super::{Limits, Mirror, SpaceCounts};
use crate::cancel::Cancel;
use crate::log::names;
use crate::log::Event;
use crate::memory::area::{self, Area};
use crate::memory::ram::GuestRam;
use crate::memory::usage::{Budget, Usage};
use crate::memory::PAGE;
use crate::misbehave::mutant::Mutant;
use crate::queues::events::Record;

/// What a space belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerId {
    Resource(u32),
    Context(u32),
}

/// A context that can have a space.
#[derive(Debug)]
struct Client {
    /// Ends its jobs.
    cancel: Arc<Cancel>,
    /// It has had a job, and so gets no space any more.
    used: bool,
    /// Its space, also when that is gone.
    space: Option<Arc<Faulting>>,
}

/// A resource that can have a space.
#[derive(Debug)]
struct Owner {
    area: Arc<Area>,
    hammer: bool,
    space: Option<u32>,
}

/// A space.
#[derive(Debug)]
pub(crate) struct Space {
    owner: OwnerId,
    /// It is the address space of a context.
    faulting: Option<Arc<Faulting>>,
    area: Arc<Area>,
    /// The most that may be allowed.
    access: u32,
    hammer: bool,
    runs: Runs,
    maps: u64,
    invalidates: u64,
}

/// The spaces.
#[derive(Debug)]
pub(crate) struct Table {
    owners: HashMap<u32, Owner>,
    /// Contexts that can have a space.
    contexts: HashMap<u32, Client>,
    spaces: HashMap<u32, Space>,
    /// Spaces that a mutant does not let go.
    undead: HashMap<u32, Space>,
    /// What counts the mappings of their runs, and the windows of their areas.
    budget: Budget,
}

impl Table {
    pub(crate) fn new(mappings: usize) -> Self {
        Self {
            owners: HashMap::new(),
            contexts: HashMap::new(),
            spaces: HashMap::new(),
            undead: HashMap::new(),
            budget: Budget::new(mappings),
        }
    }

    /// What counts the mappings of context `ctx`.
    pub(crate) fn client(&mut self, ctx: u32) -> Usage {
        self.budget.client(ctx)
    }

    pub(crate) fn adopt(&mut self, resource: u32, area: Arc<Area>, hammer: bool) {
        let owner = Owner {
            area,
            hammer,
            space: None,
        };
        self.owners.insert(resource, owner);
    }

    pub(crate) fn forget(&mut self, resource: u32) {
        self.owners.remove(&resource);
    }

    pub(crate) fn adopt_context(&mut self, ctx: u32, cancel: Arc<Cancel>) {
        let client = Client {
            cancel,
            used: false,
            space: None,
        };
        self.contexts.insert(ctx, client);
    }

    pub(crate) fn forget_context(&mut self, ctx: u32) {
        self.contexts.remove(&ctx);
    }

    /// A job of context `ctx` comes. Returns the space that it is in fault mode with; without, it
    /// never will be.
    pub(crate) fn use_context(&mut self, ctx: u32) -> Option<Arc<Faulting>> {
        let client = self.contexts.get_mut(&ctx)?;
        client.used = true;
        client.space.clone()
    }

    /// The space of a context.
    pub(crate) fn space_of_context(&self, ctx: u32) -> Option<u32> {
        let space = self.contexts.get(&ctx)?.space.as_ref()?;
        self.has(space).then_some(space.id)
    }

    /// The space of this id, if it is that of a context.
    pub(crate) fn faulting(&self, space: u32) -> Option<&Arc<Faulting>> {
        self.spaces.get(&space)?.faulting.as_ref()
    }

    /// Whether the address space of a context is not gone.
    pub(crate) fn has(&self, faulting: &Arc<Faulting>) -> bool {
        let other = self.faulting(faulting.id);
        other.is_some_and(|other| Arc::ptr_eq(other, faulting))
    }

    /// Whether something is mapped at `at` in a space that allows `access`.
    pub(crate) fn allows(&self, space: u32, at: u64, access: u32) -> bool {
        let run = self.spaces.get(&space).and_then(|s| s.runs.find(at));
        run.is_some_and(|run| match access {
            access::READ => true,
            access::WRITE => run.write,
            _ => run.exclusive,
        })
    }

    pub(crate) fn forget_all(&mut self) {
        self.owners.clear();
        self.contexts.clear();
        self.undead.clear();
    }

    /// The space of a resource.
    pub(crate) fn space_of(&self, resource: u32) -> Option<u32> {
        self.owners.get(&resource)?.space
    }

    /// Counts of the space of a resource.
    pub(crate) fn counts_of(&self, resource: u32) -> Option<SpaceCounts> {
        self.counts(self.space_of(resource)?)
    }

    /// Counts of a space.
    pub(crate) fn counts(&self, space: u32) -> Option<SpaceCounts> {
        let space = self.spaces.get(&space)?;
        Some(SpaceCounts {
            pages: space.runs.bytes() / PAGE,
            maps: space.maps,
            invalidates: space.invalidates,
        })
    }

    /// The context that a space counts for.
    pub(crate) fn client_of(&self, space: u32) -> Option<u32> {
        let space = self.spaces.get(&space)?;
        Some(space.area.usage().client())
    }

    /// Faults that are not resolved.
    pub(crate) fn pending(&self) -> usize {
        let faulting = self.spaces.values().filter_map(|s| s.faulting.as_ref());
        faulting.map(|space| space.pending()).sum()
    }

    /// All of them.
    pub(crate) fn spaces(&self) -> Vec<u32> {
        self.spaces.keys().copied().collect()
    }
}

/// Why a space is gone that SPACE_DESTROY named.
const DESTROYED: &str = "destroyed";
/// Why a space is gone that the host could not keep.
const LOST: &str = "lost";

impl Mirror {
    /// Carries out a command, or answers what is none.
    pub(super) fn act(
        &self,
        command: Result<Command, Malformed>,
        bytes: &[u8],
        ram: &GuestRam,
    ) -> Option<u32> {
        let mut table = self.table();
        match command {
            Ok(Command::Create(create)) => Some(self.create(&mut table, &create)),
            Ok(Command::Destroy { space }) => {
                self.remove(&mut table, space, DESTROYED);
                None
            }
            Ok(Command::Map {
                space,
                start,
                length,
                entries,
            }) => {
                let result = self.map(&mut table, ram, space, (start, length), &entries);
                Some(result.err().unwrap_or(status::OK))
            }
            Ok(Command::Invalidate { space, start, last }) => {
                self.invalidate(&mut table, space, start, last);
                self.counters.invalidates.fetch_add(1, Ordering::Relaxed);
                None
            }
            Ok(Command::Resolve {
                space,
                fault,
                status,
            }) => {
                self.resolve(&table, space, fault, status);
                None
            }
            Err(error) => {
                let kind = command::kind(bytes);
                log::warn!("{}: {error}", names::command(kind));
                names::has_status(kind).then_some(status::INVALID)
            }
        }
    }

    fn create(&self, table: &mut Table, create: &wire::SpaceCreate) -> u32 {
        let id = create.hdr.space_id.get();
        let created = match (self.offered(), create.kind.get()) {
            (Some(limits), space_kind::CONTEXT) => self.of_context(table, create, &limits),
            (Some(limits), _) => Self::of_resource(table, create, &limits),
            (None, _) => Err(status::INVALID),
        };
        let space = match created {
            Ok(space) => space,
            Err(status) => return status,
        };
        self.log.write(|| Event::Space {
            space: id,
            resource: match space.owner {
                OwnerId::Resource(resource) => resource,
                OwnerId::Context(_) => 0,
            },
            ctx: match space.owner {
                OwnerId::Resource(_) => None,
                OwnerId::Context(ctx) => Some(ctx),
            },
            bytes: space.area.size(),
            access: space.access,
        });
        table.undead.remove(&id);
        table.spaces.insert(id, space);
        self.counters.spaces.fetch_add(1, Ordering::Relaxed);
        status::OK
    }

    /// Whether there can be one more space, of this id.
    fn has_room(table: &Table, id: u32, limits: &Limits) -> Result<(), u32> {
        if table.spaces.contains_key(&id) {
            return Err(status::INVALID);
        }
        match table.spaces.len() < limits.max_spaces as usize {
            true => Ok(()),
            false => Err(status::LIMIT),
        }
    }

    /// The new space of a resource.
    fn of_resource(
        table: &mut Table,
        create: &wire::SpaceCreate,
        limits: &Limits,
    ) -> Result<Space, u32> {
        let (id, resource) = (create.hdr.space_id.get(), create.id.get());
        let owner = table.owners.get(&resource).ok_or(status::INVALID)?;
        if create.size.get() != owner.area.size() || owner.space.is_some() {
            return Err(status::INVALID);
        }
        Self::has_room(table, id, limits)?;
        let owner = table.owners.get_mut(&resource).ok_or(status::INVALID)?;
        owner.space = Some(id);
        Ok(Space {
            owner: OwnerId::Resource(resource),
            faulting: None,
            area: owner.area.clone(),
            access: create.access.get(),
            hammer: owner.hammer,
            runs: Runs::default(),
            maps: 0,
            invalidates: 0,
        })
    }

    /// The new space of a context, which is in fault mode from now on.
    fn of_context(
        &self,
        table: &mut Table,
        create: &wire::SpaceCreate,
        limits: &Limits,
    ) -> Result<Space, u32> {
        let (id, ctx, size) = (
            create.hdr.space_id.get(),
            create.id.get(),
            create.size.get(),
        );
        let client = table.contexts.get(&ctx).ok_or(status::INVALID)?;
        let good = size > 0 && size <= area::MAX_SIZE && size % u64::from(limits.granularity) == 0;
        if !good || client.used || client.space.is_some() {
            return Err(status::INVALID);
        }
        Self::has_room(table, id, limits)?;
        let usage = table.client(ctx);
        let area = Area::for_faults(size, usage).map_err(|error| {
            log::error!("area: {error}");
            status::NO_MEMORY
        })?;
        let area = Arc::new(area);
        let client = table.contexts.get_mut(&ctx).ok_or(status::INVALID)?;
        let cancel = client.cancel.clone();
        let faulting = Faulting::new(id, area.clone(), cancel, limits);
        let faulting = client.space.insert(Arc::new(faulting));
        let access = create.access.get();
        Ok(Space {
            owner: OwnerId::Context(ctx),
            faulting: Some(faulting.clone()),
            area,
            // What can be written can also be the device's alone.
            access: match access & access::WRITE {
                0 => access,
                _ => access | access::EXCLUSIVE,
            },
            hammer: false,
            runs: Runs::default(),
            maps: 0,
            invalidates: 0,
        })
    }

    /// The guest has resolved a fault.
    fn resolve(&self, table: &Table, id: u32, fault: u64, status: u32) {
        let Some(space) = table.faulting(id) else {
            return;
        };
        // Before it is true: who goes on finds it in the log.
        self.log.write(|| Event::Resolved {
            space: id,
            fault,
            status,
        });
        let keeps = self.has(Mutant::StallKeepsTranslation) && status == wire::resolution::OK;
        let kept = |page| {
            let run = table.spaces.get(&id).filter(|_| keeps)?.runs.placed(page)?;
            let area = Area::new(PAGE, Usage::default()).ok()?;
            let (offset, write) = (run.1.offset + page - run.0, run.1.write);
            area.map(0, PAGE, &run.1.file, offset, write).ok()?;
            Some(area)
        };
        if !space.resolve(fault, status, kept) {
            log::warn!("space {id}: there is no fault {fault}");
        }
    }

    /// Ends a space, if it exists. Nothing can be accessed through it any more afterwards, and no
    /// event names it.
    pub(super) fn remove(&self, table: &mut Table, id: u32, why: &'static str) {
        // Also those of one that was lost before.
        self.events.forget(id);
        let Some(mut space) = table.spaces.remove(&id) else {
            return;
        };
        self.clear(id, &mut space);
        if let OwnerId::Resource(resource) = space.owner {
            if let Some(owner) = table.owners.get_mut(&resource) {
                owner.space = None;
            }
        }
        // Jobs of the context can do nothing without it, least of all wait for faults.
        if let Some(faulting) = &space.faulting {
            faulting.cancel.set();
        }
        self.counters.spaces.fetch_sub(1, Ordering::Relaxed);
        self.log.write(|| Event::SpaceGone {
            space: id,
            why: why.into(),
        });
        if why == DESTROYED && self.has(Mutant::MapAfterDestroy) {
            table.undead.insert(id, space);
        }
    }

    /// Takes away all that is mapped in a space.
    fn clear(&self, id: u32, space: &mut Space) {
        let runs = std::mem::take(&mut space.runs);
        let Some(span) = runs.span() else {
            return;
        };
        space.area.clear(span.start, span.end);
        space.area.usage().subtract(runs.mappings());
        self.unmapped(runs.bytes());
        if space.hammer {
            self.hammer.remove(id, span.start, span.end);
        }
        self.log_unmapped(id, span.start, span.end - span.start);
    }

    /// Ends a space, if it exists, because the host cannot keep it, and tells the guest.
    pub(super) fn lose_one(&self, table: &mut Table, id: u32) {
        let Some(owner) = table.spaces.get(&id).map(|space| space.owner) else {
            return;
        };
        self.remove(table, id, LOST);
        self.events.post(Record {
            owner: Some(owner),
            ..Record::space_lost(id)
        });
    }

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

    fn map(
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

    fn unmapped(&self, bytes: u64) {
        let pages = &self.counters.mapped_pages;
        pages.fetch_sub(bytes / PAGE, Ordering::Relaxed);
    }

    fn log_unmapped(&self, space: u32, start: u64, length: u64) {
        self.log.write(|| Event::Unmapped {
            space,
            start,
            length,
        });
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

    /// Takes away what is mapped between `start` and `last`, in pages.
    pub(super) fn invalidate(&self, table: &mut Table, id: u32, start: u64, last: u64) {
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
            // It cannot be refused, so more is taken away than was asked for: all of it needs no
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
    pub(super) fn alias(&self, id: u32, start: u64, last: u64) -> Option<Area> {
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

/// Bytes of runs.
fn bytes(runs: &[Placed]) -> u64 {
    runs.iter().map(|(_, run)| run.length).sum()
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

fn install(area: &Area, runs: &[Placed]) -> std::io::Result<()> {
    runs.iter()
        .try_for_each(|(at, run)| area.map(*at, run.length, &run.file, run.offset, run.write))
}
