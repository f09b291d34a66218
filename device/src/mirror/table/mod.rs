// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The spaces that exist, and what commands do to them.
//!
//! A command changes the table and the mappings of this process under the lock of the table. Jobs
//! take no part in that: they go on while pages come and go, and an access to what is not mapped is
//! a fault. When a command that takes pages returns, no access to them is going on.

mod invalidate;
mod life;
mod map;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use virtgpu_protocol::mirror::{access, status};

use super::command::{self, Command, Malformed};
use super::runs::{Placed, Runs};
use super::stall::Faulting;
use super::{Mirror, SpaceCounts};
use crate::cancel::Cancel;
use crate::log::names;
use crate::log::Event;
use crate::memory::area::Area;
use crate::memory::ram::GuestRam;
use crate::memory::usage::{Budget, Usage};
use crate::memory::PAGE;
use crate::queues::events::OwnerId;

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
    /// Carries out a command, or refuses what is none.
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
}

/// Bytes of runs.
fn bytes(runs: &[Placed]) -> u64 {
    runs.iter().map(|(_, run)| run.length).sum()
}
