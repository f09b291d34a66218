// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! How spaces come and go, and how faults of theirs end.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use virtgpu_protocol::mirror::{self as wire, access, space_kind, status};

use super::{Space, Table, DESTROYED, LOST};
use crate::log::Event;
use crate::memory::area::{self, Area};
use crate::memory::usage::Usage;
use crate::memory::PAGE;
use crate::mirror::runs::Runs;
use crate::mirror::stall::Faulting;
use crate::mirror::{Limits, Mirror};
use crate::misbehave::mutant::Mutant;
use crate::queues::events::{OwnerId, Record};

impl Mirror {
    pub(super) fn create(&self, table: &mut Table, create: &wire::SpaceCreate) -> u32 {
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
    pub(super) fn resolve(&self, table: &Table, id: u32, fault: u64, status: u32) {
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
    pub(in crate::mirror) fn remove(&self, table: &mut Table, id: u32, why: &'static str) {
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

    /// Unmaps all that is mapped in a space.
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
    pub(in crate::mirror) fn lose_one(&self, table: &mut Table, id: u32) {
        let Some(owner) = table.spaces.get(&id).map(|space| space.owner) else {
            return;
        };
        self.remove(table, id, LOST);
        self.events.post(Record {
            owner: Some(owner),
            ..Record::space_lost(id)
        });
    }
}
