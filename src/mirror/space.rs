// SPDX-License-Identifier: GPL-2.0

//! Spaces: what the device sees of a resource without memory entries, or of the memory of a context
//! in fault mode, page by page.
//!
//! See `docs/protocol.md`. The device enforces what a space allows, which it does not for memory
//! entries.

use super::Commits;
use crate::{
    gpu::{
        Counters,
        Gpu, //
    },
    kapi::{
        ida::Id,
        mm::Owner, //
    },
    protocol::{
        mirror::{
            access,
            status,
            MapEntry, //
        },
        runs::Merger, //
    },
    transport::event::SpaceOwner,
    transport::mirror::{
        MirrorCommand,
        MirrorCredit,
        MirrorQueue,
        MirrorQuota,
        Posted,
        SpaceOf,
        SpaceSlot,
        Ticket,
        MAP_DESCRIPTORS,
        MAX_ENTRIES, //
    },
};
use kernel::{
    list::{
        List,
        ListArc, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic,
            AtomicFlag, //
        },
        Arc,
        Mutex, //
    },
};

/// MAP commands of pinned memory that are on their way at a time.
const BATCH: usize = 16;

/// Whether the device has dropped a space.
pub(crate) struct Loss(AtomicFlag);

impl SpaceOwner for Loss {
    fn space_lost(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// The space of a resource or a context.
pub(crate) struct Space {
    queue: MirrorQueue,
    slot: SpaceSlot,
    counters: Arc<Counters>,
    id: Id,
    write: bool,
    max_entries: usize,
    /// Ends the space; made with it, so that the end needs no memory. `None` if there is nothing to
    /// end. Protects only itself; taken where spaces begin and end.
    destroy: Pin<KBox<Mutex<Option<ListArc<MirrorCommand>>>>>,
    /// The owner of the space of pinned memory; mirrored memory is its own owner.
    loss: Arc<Loss>,
    /// No MAP is sent any more. Set and read with the lock of the tables held.
    closed: AtomicFlag,
    /// INVALIDATE commands that were sent, and those of them that the device has acknowledged.
    invalidations: Atomic<u64>,
    acknowledgements: Atomic<u64>,
}

/// The error for a [`status`] that is not OK.
pub(super) fn to_result(response: u32) -> Result {
    match response {
        status::OK => Ok(()),
        status::NO_MEMORY => Err(ENOMEM),
        status::LIMIT => Err(ENOSPC),
        _ => Err(EIO),
    }
}

impl Space {
    /// A space that the device does not know yet, which it may write only with `write`. It is one
    /// of the file that `quota` is of, and its commands take room of that.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if the device has no mirror queue, [`ENOSPC`] if it has no more spaces for
    /// the file, [`ENOMEM`].
    pub(crate) fn new(gpu: &Gpu, quota: &Arc<MirrorQuota>, write: bool) -> Result<Self> {
        let mirror = gpu.features.mirror.ok_or(EOPNOTSUPP)?;
        Ok(Self {
            slot: SpaceSlot::new(&gpu.transport, quota, mirror.max_spaces as usize)?,
            queue: MirrorQueue::new(&gpu.transport, quota),
            counters: gpu.counters.clone(),
            id: gpu.space_ids.allocate_cyclic()?,
            write,
            max_entries: MAX_ENTRIES.min(mirror.max_entries as usize),
            destroy: KBox::pin_init(new_mutex!(None, "Space::destroy"), GFP_KERNEL)?,
            loss: Arc::new(Loss(AtomicFlag::new(false)), GFP_KERNEL)?,
            closed: AtomicFlag::new(false),
            invalidations: Atomic::new(0),
            acknowledgements: Atomic::new(0),
        })
    }

    /// Whom pages are made exclusive for that are mapped in the space.
    pub(super) fn owner(&self) -> Owner {
        Owner::of(self)
    }

    /// An owner of the space that remembers its loss.
    pub(crate) fn loss(&self) -> &Arc<Loss> {
        &self.loss
    }

    /// Whether the device has dropped the space, of which [`Space::loss`] was the owner.
    pub(crate) fn is_lost(&self) -> bool {
        self.loss.0.load(Relaxed)
    }

    /// From now on no MAP is sent to windows of the space.
    pub(crate) fn close(&self, _commits: &mut Commits) {
        self.closed.store(true, Relaxed);
    }

    /// Whether [`Space::close`] was called.
    pub(crate) fn is_closed(&self, _commits: &Commits) -> bool {
        self.closed.load(Relaxed)
    }

    /// The id on the wire.
    pub(crate) fn id(&self) -> u32 {
        self.id.get()
    }

    fn access(&self) -> u32 {
        if self.write {
            access::READ | access::WRITE
        } else {
            access::READ
        }
    }

    /// The mirror queue.
    pub(crate) fn queue(&self) -> &MirrorQueue {
        &self.queue
    }

    /// Most entries of a [`Space::map`].
    pub(crate) fn max_entries(&self) -> usize {
        self.max_entries
    }

    /// Entries for which there is room in the file's quota of the ring, however they are spread
    /// over commands.
    pub(crate) fn max_fragments(&self) -> usize {
        (self.queue.quota() / MAP_DESCRIPTORS) * self.max_entries
    }

    /// Has the device create the space, of `size` bytes, for what `of` says: a resource that it has
    /// created without entries, or a context. Waits for the response. `owner` learns what the
    /// device says of the space.
    ///
    /// # Errors
    ///
    /// That of the device, [`ENOMEM`], [`EBUSY`], [`ENODEV`].
    pub(crate) fn create(
        &self,
        of: SpaceOf,
        size: u64,
        owner: Option<Arc<dyn SpaceOwner>>,
    ) -> Result {
        let create = MirrorQueue::space_create(self.id.get(), of, size, self.access())?;
        let destroy = MirrorQueue::space_destroy(self.id.get())?;
        if let Some(owner) = owner {
            self.queue.add_owner(self.id.get(), owner)?;
        }
        let created = create.clone_arc();
        let mut credit = self.queue.credit(create.descriptors())?;
        // Also for a space whose creation is never responded to.
        *self.destroy.lock() = Some(destroy);
        self.counters.spaces.add(1);
        let sent = self.queue.add(create, &mut credit);
        let outcome = match sent {
            Ok(()) => match (self.queue.wait(&created)?, of) {
                // The device has no faults for contexts of this kind.
                (status::INVALID, SpaceOf::Context(_)) => Err(EOPNOTSUPP),
                (response, _) => to_result(response),
            },
            Err(e) => Err(e),
        };
        if outcome.is_err() {
            let destroy = self.destroy.lock().take();
            drop(destroy);
            self.counters.ended_spaces.add(1);
        }
        outcome
    }

    /// An entry of `len` bytes at `addr`, with the rights of the space.
    pub(crate) fn entry(&self, addr: u64, len: u32) -> MapEntry {
        MapEntry {
            addr: addr.into(),
            length: len.into(),
            access: self.access().into(),
        }
    }

    /// A command that maps `entries`, from byte `start` of the space on.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn map(&self, start: u64, entries: &[MapEntry]) -> Result<ListArc<MirrorCommand>> {
        MirrorQueue::map(self.id.get(), start, entries)
    }

    /// Maps pinned memory: `runs` of addresses and bytes, from the start of the space on. Waits for
    /// the device. Returns the number of entries.
    ///
    /// # Errors
    ///
    /// That of the device, [`ENOMEM`], [`EBUSY`], [`ENODEV`].
    pub(crate) fn map_fixed(&self, runs: impl Iterator<Item = (u64, u64)>) -> Result<u64> {
        let mut batch = FixedMap {
            space: self,
            entries: KVec::with_capacity(self.max_entries, GFP_KERNEL)?,
            start: 0,
            sent: KVec::new(),
            count: 0,
        };
        let mut merger = Merger::new();
        for (addr, len) in runs {
            merger.push(addr, len, |run| {
                batch.push(self.entry(run.addr, run.length))
            })?;
        }
        merger.flush(|run| batch.push(self.entry(run.addr, run.length)))?;
        batch.send()?;
        batch.wait()?;
        Ok(batch.count)
    }

    /// Sends INVALIDATE for bytes `first` to `last`, see [`MirrorQueue::post_invalidate`].
    pub(crate) fn post_invalidate(&self, first: u64, last: u64) -> Posted {
        let posted = self.queue.post_invalidate(self.id.get(), first, last);
        if matches!(posted, Posted::Sent(..)) {
            self.invalidations.fetch_add(1, Relaxed);
        }
        posted
    }

    /// Sends INVALIDATE for bytes `first` to `last`, see [`MirrorQueue::invalidate`].
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost.
    pub(crate) fn invalidate(&self, first: u64, last: u64) -> Result<Ticket> {
        let ticket = self.queue.invalidate(self.id.get(), first, last)?;
        self.invalidations.fetch_add(1, Relaxed);
        Ok(ticket)
    }

    /// INVALIDATE commands that were sent so far.
    pub(crate) fn invalidations(&self) -> u64 {
        self.invalidations.load(Relaxed)
    }

    /// Those of them that the device has acknowledged.
    pub(crate) fn acknowledgements(&self) -> u64 {
        self.acknowledgements.load(Relaxed)
    }

    /// Waits until the device has acknowledged an INVALIDATE, see
    /// [`MirrorQueue::wait_invalidated`].
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost.
    pub(super) fn wait_acknowledged(&self, ticket: Ticket) -> Result {
        self.queue.wait_invalidated(ticket)?;
        self.acknowledgements.fetch_add(1, Relaxed);
        self.counters.acknowledgements.add(1);
        Ok(())
    }

    /// Ends the space, if the device knows it, and waits until it has.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, and may still use what was mapped.
    pub(crate) fn destroy(&self) -> Result {
        Self::destroy_all(core::iter::once(self))
    }

    /// Ends spaces of one device, as far as it knows them, and waits until all have ended.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, and may still use what was mapped into any of them.
    pub(crate) fn destroy_all<'a>(spaces: impl Iterator<Item = &'a Space> + Clone) -> Result {
        let mut commands = List::new();
        let mut count = 0;
        for space in spaces.clone() {
            space.queue.remove_owner(space.id.get());
            let destroy = space.destroy.lock().take();
            if let Some(destroy) = destroy {
                commands.push_back(destroy);
                count += 1;
            }
        }
        let Some(first) = spaces.clone().next() else {
            return Ok(());
        };
        first.queue.destroy(commands)?;
        // Not before the device has ended them. A lost one has them until it is reset.
        first.counters.ended_spaces.add(count);
        // Nor later: whoever has closed a registration may make another one. References to the
        // space can be held by who looks through all of them.
        spaces.for_each(|space| space.slot.give_back());
        Ok(())
    }
}

/// Entries on their way to the device.
struct FixedMap<'a> {
    space: &'a Space,
    entries: KVec<MapEntry>,
    /// Where they are mapped.
    start: u64,
    sent: KVec<Arc<MirrorCommand>>,
    count: u64,
}

impl FixedMap<'_> {
    fn push(&mut self, entry: MapEntry) -> Result {
        if self.entries.len() == self.space.max_entries {
            self.send()?;
        }
        self.count += 1;
        Ok(self.entries.push(entry, GFP_KERNEL)?)
    }

    fn send(&mut self) -> Result {
        if self.entries.is_empty() {
            return Ok(());
        }
        if self.sent.len() == BATCH {
            self.wait()?;
        }
        let command = self.space.map(self.start, &self.entries)?;
        self.sent.push(command.clone_arc(), GFP_KERNEL)?;
        let mut credit: MirrorCredit = self.space.queue.credit(command.descriptors())?;
        self.space.queue.add(command, &mut credit)?;
        self.start += self
            .entries
            .iter()
            .map(|e| u64::from(e.length.get()))
            .sum::<u64>();
        self.entries.clear();
        Ok(())
    }

    fn wait(&mut self) -> Result {
        for command in &self.sent {
            to_result(self.space.queue.wait(command)?)?;
        }
        self.sent.clear();
        Ok(())
    }
}
