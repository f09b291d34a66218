// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Spaces: guest memory that the guest gives and takes page by page, on a queue of its own.
//!
//! A space belongs to a resource that was created without memory, or is the address space of a
//! context. What is mapped in it is mapped in this process too, at the addresses of an `Area`, and
//! that is all that jobs get to see of it: they take no lock, and find out by a fault that
//! something is not there (any more). In the space of a resource that ends the job; in that of a
//! context it stalls it (`stall`).
//!
//! Whoever serves the mirror queue takes the lock of the table, which is held for system calls of
//! this process and nothing else, least of all while a job or the guest is waited for. Threads that
//! take resources away take it inside the device's state.

pub(crate) mod backlog;
pub(crate) mod command;
mod runs;
pub(crate) mod stall;
mod table;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtgpu_protocol::mirror::command::{INVALIDATE, MAP};
use virtgpu_protocol::mirror::{self as wire, device_state, MirrorConfig, VERSION};
use vm_memory::GuestMemoryAtomic;
use zerocopy::little_endian::U32;

use crate::cancel::Cancel;
use crate::log::names;
use crate::log::{Event, EventLog};
use crate::memory::area::{self, Area};
use crate::memory::guarded;
use crate::memory::ram::{GuestRam, Memory};
use crate::memory::{host, PAGE};
use crate::misbehave::adversary::Attack;
use crate::misbehave::hammer::Hammer;
use crate::misbehave::mutant::{self, Mutant};
use crate::queues::chain::RequestBuffer;
use crate::queues::events::{EventRing, OwnerId};
use crate::queues::mirror::CommandRing;

use backlog::Backlog;
use stall::Faulting;
use table::Table;

/// What the extension offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries of a MAP.
    pub max_entries: u32,
    /// Most spaces at a time.
    pub max_spaces: u32,
    /// Buffers that the driver should keep in the event queue.
    pub event_slots: u32,
    /// Bytes that addresses and lengths are multiples of, a power of two, 4096 or more.
    pub granularity: u32,
    /// Most faults of a space that are not resolved; 0 for a device without faults.
    pub max_faults: u32,
    /// Mappings of the host that spaces may use, 0 for half of what the kernel lets a process have.
    pub mappings: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 4096,
            max_spaces: 16384,
            event_slots: 32,
            granularity: PAGE as u32,
            max_faults: 64,
            mappings: 0,
        }
    }
}

/// Counts for people and tests.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Spaces that exist.
    pub(crate) spaces: AtomicU64,
    /// MAPs that were carried out.
    pub(crate) maps: AtomicU64,
    /// INVALIDATEs that were acknowledged.
    pub(crate) invalidates: AtomicU64,
    /// Pages that are mapped.
    pub(crate) mapped_pages: AtomicU64,
    /// Descriptors of the queue.
    pub(crate) ring: AtomicU64,
    /// Most MAPs of one context that were before an INVALIDATE of another.
    pub(crate) maps_ahead: AtomicU64,
    /// Faults that the guest was told of.
    pub(crate) faults: AtomicU64,
    /// Accesses that stalled on a fault that another one had caused.
    pub(crate) joined: AtomicU64,
    /// MAPs that were carried out and gave the device pages of its own.
    pub(crate) exclusive: AtomicU64,
}

/// The same of one space.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SpaceCounts {
    /// Pages that are mapped.
    pub(crate) pages: u64,
    /// MAPs that were carried out.
    pub(crate) maps: u64,
    /// INVALIDATEs that named it.
    pub(crate) invalidates: u64,
}

/// What it takes to serve the queue.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    pub(crate) buffer: RequestBuffer,
    pub(crate) backlog: Backlog,
}

/// The extension.
pub(crate) struct Mirror {
    /// What it offers; nothing if that is `None`. See [`Self::offered`] for the granularity.
    pub(crate) limits: Option<Limits>,
    /// Bytes of the pieces that guest RAM is made of.
    block_size: AtomicU32,
    log: Arc<EventLog>,
    table: Mutex<Table>,
    /// Held while the queue is served.
    pub(crate) serve: Mutex<Serving>,
    /// Commands so far.
    commands: AtomicU64,
    pub(crate) ring: Arc<CommandRing>,
    pub(crate) events: EventRing,
    hammer: Arc<Hammer>,
    mutants: Vec<Mutant>,
    pub(crate) counters: Counters,
    /// A [`device_state`].
    state: AtomicU32,
    /// The driver has accepted faults.
    faulting: AtomicBool,
}

impl Mirror {
    /// One without spaces, which offers what `limits` says, and breaks the contract as `mutants`
    /// say.
    pub(crate) fn new(
        limits: Option<Limits>,
        mutants: Vec<Mutant>,
        memory: &GuestMemoryAtomic<Memory>,
        log: &Arc<EventLog>,
    ) -> Self {
        let limits = limits.filter(|_| guarded::AVAILABLE);
        let mappings = match limits.as_ref().map(|l| l.mappings) {
            Some(0) | None => host::max_mappings() / 2,
            Some(count) => count,
        };
        Self {
            table: Mutex::new(Table::new(mappings)),
            limits,
            block_size: AtomicU32::new(PAGE as u32),
            serve: Mutex::default(),
            commands: AtomicU64::new(0),
            ring: Arc::new(CommandRing::new(memory.clone(), log.clone())),
            events: EventRing::new(memory.clone(), log.clone()),
            counters: Counters::default(),
            hammer: Arc::new(Hammer::new(log.clone())),
            mutants,
            state: AtomicU32::new(device_state::OK),
            faulting: AtomicBool::new(false),
            log: log.clone(),
        }
    }

    /// Whether the contract is to be broken like this.
    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.mutants.contains(&mutant)
    }

    /// Ends the thread that rewrites pages.
    pub(crate) fn end_hammer(&self) {
        self.hammer.end();
    }

    /// Says in the configuration space that the device must be reset.
    pub(crate) fn lose(&self) {
        self.state.store(device_state::LOST, Ordering::Relaxed);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it offers, with pieces no smaller than those of guest RAM.
    pub(crate) fn offered(&self) -> Option<Limits> {
        let mut limits = self.limits?;
        let block_size = self.block_size.load(Ordering::Relaxed);
        limits.granularity = limits.granularity.max(block_size);
        Some(limits)
    }

    /// The same, without faults if the driver has not accepted them.
    fn accepted(&self) -> Option<Limits> {
        let mut limits = self.offered()?;
        if !self.faulting.load(Ordering::Acquire) {
            limits.max_faults = 0;
        }
        Some(limits)
    }

    /// Takes note of whether the driver has accepted faults.
    pub(crate) fn set_faulting(&self, faulting: bool) {
        self.faulting.store(faulting, Ordering::Release);
    }

    /// Takes note of guest RAM.
    pub(crate) fn memory_changed(&self, ram: &GuestRam) {
        let block_size = ram.block_size().max(PAGE as u32);
        let before = self.block_size.swap(block_size, Ordering::Relaxed);
        if before != block_size && self.limits.is_some() {
            log::info!("guest RAM is made of pieces of {block_size} bytes, and so are spaces");
        }
    }

    /// The extension's part of the configuration space.
    pub(crate) fn config(&self) -> Option<MirrorConfig> {
        let limits = self.offered()?;
        Some(MirrorConfig {
            mirror_version: U32::new(VERSION),
            max_entries: U32::new(limits.max_entries),
            max_spaces: U32::new(limits.max_spaces),
            event_slots: U32::new(limits.event_slots),
            granularity: U32::new(limits.granularity),
            device_state: U32::new(self.state.load(Ordering::Relaxed)),
            max_faults: U32::new(limits.max_faults),
            padding: U32::ZERO,
        })
    }

    /// The addresses of a resource of `size` bytes, if it could have a space, for the client of
    /// context `ctx`.
    pub(crate) fn area(&self, ctx: u32, size: u64) -> Option<Arc<Area>> {
        let granularity = u64::from(self.offered()?.granularity);
        if size == 0 || size % granularity != 0 || size > area::MAX_SIZE {
            return None;
        }
        let usage = self.table().client(ctx);
        match Area::new(size, usage) {
            Ok(area) => Some(Arc::new(area)),
            Err(error) => {
                log::error!("area: {error}");
                None
            }
        }
    }

    /// From now on resource `id` can have a space. With `hammer` its pages are rewritten.
    pub(crate) fn adopt(&self, id: u32, area: Arc<Area>, hammer: bool) {
        self.table().adopt(id, area, hammer);
    }

    /// Revokes the space of resource `id`, if it has one, and calls `f` before there is another.
    pub(crate) fn revoke(&self, id: u32, why: &'static str, f: impl FnOnce()) {
        let mut table = self.table();
        let space = table.space_of(id);
        if let Some(space) = space.filter(|_| !self.has(Mutant::NoRevokeOnUnref)) {
            self.remove(&mut table, space, why);
        }
        self.events.forget_owner(OwnerId::Resource(id));
        f();
    }

    /// Resource `id` is going: revokes its space, and it gets none any more.
    pub(crate) fn forget(&self, id: u32) {
        let mut table = self.table();
        let space = table.space_of(id);
        if let Some(space) = space.filter(|_| !self.has(Mutant::NoRevokeOnUnref)) {
            self.remove(&mut table, space, "unref");
        }
        self.events.forget_owner(OwnerId::Resource(id));
        table.forget(id);
    }

    /// From now on context `ctx`, whose jobs `cancel` ends, can have a space.
    pub(crate) fn adopt_context(&self, ctx: u32, cancel: Arc<Cancel>) {
        self.table().adopt_context(ctx, cancel);
    }

    /// A job of context `ctx` comes: the space that it is in fault mode with, if it is.
    pub(crate) fn use_context(&self, ctx: u32) -> Option<Arc<Faulting>> {
        self.table().use_context(ctx)
    }

    /// Context `ctx` is going: revokes its space.
    pub(crate) fn forget_context(&self, ctx: u32) {
        let mut table = self.table();
        if let Some(space) = table.space_of_context(ctx) {
            self.remove(&mut table, space, "context destroyed");
        }
        self.events.forget_owner(OwnerId::Context(ctx));
        table.forget_context(ctx);
    }

    fn remove_all(&self, table: &mut Table, why: &'static str) {
        for space in table.spaces() {
            self.remove(table, space, why);
        }
    }

    /// Revokes all spaces.
    pub(crate) fn revoke_all(&self, why: &'static str) {
        self.remove_all(&mut self.table(), why);
    }

    /// Revokes the space `id`, because the host has lost it, and tells the guest.
    pub(crate) fn lose_space(&self, id: u32) {
        self.lose_one(&mut self.table(), id);
    }

    /// What [`Self::forget`] does, of all resources.
    pub(crate) fn reset(&self) {
        let mut table = self.table();
        self.remove_all(&mut table, "reset");
        table.forget_all();
        drop(table);
        self.events.clear();
        self.state.store(device_state::OK, Ordering::Relaxed);
    }

    /// The context whose space a command names.
    pub(crate) fn client_of(&self, bytes: &[u8]) -> Option<u32> {
        self.table().client_of(command::space(bytes))
    }

    /// Counts of the space of a resource; of none they are 0.
    pub(crate) fn space_counts(&self, resource: u32) -> SpaceCounts {
        self.table().counts_of(resource).unwrap_or_default()
    }

    /// The same of the address space of a context.
    pub(crate) fn counts(&self, space: &Faulting) -> SpaceCounts {
        self.table().counts(space.id).unwrap_or_default()
    }

    /// Waits until no access in a space stalls, or the queue is stopped.
    pub(crate) fn wait_for_stalls(&self, space: u32) {
        let stalled = || {
            let table = self.table();
            table.faulting(space).is_some_and(|s| s.pending() > 0)
        };
        while self.ring.is_open() && stalled() {
            std::thread::sleep(mutant::WINDOW);
        }
    }

    /// Faults that are not resolved.
    pub(crate) fn pending_faults(&self) -> u64 {
        self.table().pending() as u64
    }

    /// Takes note of a command that was taken from a queue of `ring` descriptors, in which `more`
    /// are.
    pub(crate) fn note(&self, backlog: &mut Backlog, bytes: &[u8], ring: u16, more: u16) {
        let kind = command::kind(bytes);
        let counted = matches!(kind, MAP | INVALIDATE);
        let client = if counted { self.client_of(bytes) } else { None };
        let map = client.filter(|_| kind == MAP);
        let since = backlog.take(more.min(ring), map);
        let counters = &self.counters;
        counters.ring.store(ring.into(), Ordering::Relaxed);
        if let Some(client) = client.filter(|_| map.is_none()) {
            let ahead = backlog.maps_since(since, client);
            counters.maps_ahead.fetch_max(ahead, Ordering::Relaxed);
        }
    }

    /// Carries out a command; returns the status, of those that have one.
    pub(crate) fn execute(&self, bytes: &[u8], ram: &GuestRam) -> Option<u32> {
        let limits = self.accepted()?;
        self.act(command::parse(bytes, &limits), bytes, ram)
    }

    /// Bytes of the longest command.
    pub(crate) fn longest(&self) -> usize {
        let entries = self.limits.as_ref().map_or(0, |l| l.max_entries as usize);
        size_of::<wire::Map>() + entries * size_of::<wire::MapEntry>()
    }

    /// What a mutant does after it has acknowledged an INVALIDATE, if there is a page to write to.
    pub(crate) fn stray(&self, bytes: &[u8]) -> Option<impl FnOnce() + Send + 'static + use<>> {
        let command = command::parse(bytes, &self.accepted()?).ok()?;
        let command::Command::Invalidate { space, start, last } = command else {
            return None;
        };
        let area = self.alias(space, start, last)?;
        let mut before = vec![0; PAGE as usize];
        area.read(0, &mut before).ok()?;
        let ring = self.ring.clone();
        Some(move || {
            for _ in 0..2000 {
                if !ring.is_open() {
                    return;
                }
                let _ = area.write(0, &before);
                std::thread::sleep(mutant::WINDOW / 50);
            }
        })
    }

    /// The number of the next command, after writing it to the log.
    pub(crate) fn begin(&self, bytes: &[u8], attack: &Attack) -> u64 {
        let cmd = self.commands.fetch_add(1, Ordering::Relaxed);
        let kind = command::kind(bytes);
        let word = |at: usize| {
            let word = bytes.get(at..at + 8)?;
            word.try_into().ok().map(u64::from_le_bytes)
        };
        self.log.write(|| Event::Command {
            cmd,
            kind: names::command(kind).into(),
            space: command::space(bytes),
            start: word(16).filter(|_| matches!(kind, MAP | INVALIDATE)),
            length: word(24).filter(|_| kind == MAP),
            last: word(24).filter(|_| kind == INVALIDATE),
            malformed: match &self.accepted() {
                Some(limits) => command::parse(bytes, limits).is_err(),
                None => true,
            },
            bytes: bytes.len() as u64,
            adversary: attack.name().map(Into::into),
        });
        cmd
    }
}
