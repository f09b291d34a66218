// SPDX-License-Identifier: GPL-2.0

//! The mirror queue as a file uses it: credits, commands, and waits for what the device says to
//! them.

use super::{
    message,
    room::{
        MirrorQuota,
        NewWaiter, //
    },
    Mirror,
    MirrorCommand,
    Source,
    Ticket,
    Woken,
    DESTROYS,
    MAX_ENTRIES, //
};
use crate::{
    kapi::{
        sync::WaitQueue,
        virtio::{
            Chunks,
            Message,
            Notification,
            Pieces, //
        },
    },
    protocol::mirror::{
        command,
        space_kind,
        FaultResolve,
        Header,
        Invalidate,
        Map,
        MapEntry,
        SpaceCreate,
        SpaceDestroy,
        SPACE_FAULTS, //
    },
    transport::{
        event::SpaceOwner,
        status::{
            ABORTED,
            PENDING, //
        },
        Transport, //
    },
};
use kernel::{
    list::{
        List,
        ListArc, //
    },
    prelude::*,
    sync::{
        atomic::ordering::{
            Acquire,
            Relaxed, //
        },
        Arc, //
    },
};
use zerocopy::IntoBytes;

/// The right to send MAPs or a SPACE_CREATE.
pub(crate) struct MirrorCredit {
    queue: MirrorQueue,
    slots: usize,
    /// They are of those kept for exclusive pages, and not of the file's quota.
    exclusive: bool,
}

impl MirrorCredit {
    /// Descriptors for which it is good.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// The part of the credit that `command` takes.
    fn spend(&mut self, command: &MirrorCommand) -> Result<usize> {
        let slots = command.descriptors();
        self.slots = self.slots.checked_sub(slots).ok_or(ENOSPC)?;
        Ok(slots)
    }
}

impl Drop for MirrorCredit {
    fn drop(&mut self) {
        if self.slots > 0 {
            self.queue.mirror().change(|inner, woken| {
                if self.exclusive {
                    inner.return_exclusive(&self.queue.quota, self.slots);
                } else {
                    inner.return_to_quota(&self.queue.quota, self.slots);
                    inner.give_out(woken);
                }
            });
        }
    }
}

/// An INVALIDATE for which there was no place: as long as this is there, those who have a share of
/// the ring leave a descriptor for it.
struct InvalidateWaits<'a>(&'a Mirror);

impl<'a> InvalidateWaits<'a> {
    fn new(mirror: &'a Mirror) -> Self {
        mirror.inner.lock().invalidates_waiting += 1;
        Self(mirror)
    }
}

impl Drop for InvalidateWaits<'_> {
    fn drop(&mut self) {
        self.0.change(|inner, woken| {
            inner.invalidates_waiting -= 1;
            inner.give_out(woken);
        });
    }
}

/// What a space belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SpaceOf {
    /// The resource with this id: addresses are offsets in it.
    Resource(u32),
    /// The context with this id: addresses are those of the process, and an access to what is not
    /// mapped is a fault.
    Context(u32),
}

/// What became of an INVALIDATE.
pub(crate) enum Posted {
    /// It is on its way, and the device may have to be told.
    Sent(Ticket, Option<Notification>),
    /// All commands are on their way.
    Full,
    /// The device is lost.
    Lost,
}

/// The mirror queue of a device that has one, as a file uses it.
#[derive(Clone)]
pub(crate) struct MirrorQueue {
    transport: Arc<Transport>,
    quota: Arc<MirrorQuota>,
}

impl MirrorQueue {
    /// The queue of `transport`, which was started with one, for the file that `quota` is of.
    pub(crate) fn new(transport: &Arc<Transport>, quota: &Arc<MirrorQuota>) -> Self {
        Self {
            transport: transport.clone(),
            quota: quota.clone(),
        }
    }

    fn mirror(&self) -> &Mirror {
        &self.transport.mirror
    }

    /// Most descriptors of a [`MirrorQueue::credit`]: a file's quota.
    pub(crate) fn quota(&self) -> usize {
        self.mirror().inner.lock().room.most()
    }

    /// Has `owner` called if the device drops space `space_id`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn add_owner(&self, space_id: u32, owner: Arc<dyn SpaceOwner>) -> Result {
        self.transport.events.add_owner(space_id, owner)
    }

    /// Removes the owner of space `space_id`, which learns of no faults and jobs any more.
    pub(crate) fn remove_owner(&self, space_id: u32) {
        self.transport.events.remove_owner(space_id);
    }

    /// A command that creates a space of `size` bytes for what `of` says.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn space_create(
        space_id: u32,
        of: SpaceOf,
        size: u64,
        access: u32,
    ) -> Result<ListArc<MirrorCommand>> {
        let (kind, id, flags) = match of {
            SpaceOf::Resource(id) => (space_kind::RESOURCE, id, 0),
            SpaceOf::Context(id) => (space_kind::CONTEXT, id, SPACE_FAULTS),
        };
        let request = SpaceCreate {
            hdr: Header::new(command::SPACE_CREATE, space_id),
            kind: kind.into(),
            id: id.into(),
            size: size.into(),
            access: access.into(),
            flags: flags.into(),
        };
        message(request.as_bytes(), Chunks::new(), true)
    }

    /// A command that resolves fault `fault_id` of a space, as `status`, a [`resolution`], says.
    ///
    /// [`resolution`]: crate::protocol::mirror::resolution
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn fault_resolve(
        space_id: u32,
        fault_id: u64,
        status: u32,
    ) -> Result<ListArc<MirrorCommand>> {
        let request = FaultResolve {
            hdr: Header::new(command::FAULT_RESOLVE, space_id),
            fault_id: fault_id.into(),
            status: status.into(),
            padding: 0.into(),
        };
        message(request.as_bytes(), Chunks::new(), false)
    }

    /// A command that ends a space.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn space_destroy(space_id: u32) -> Result<ListArc<MirrorCommand>> {
        let request = SpaceDestroy {
            hdr: Header::new(command::SPACE_DESTROY, space_id),
        };
        message(request.as_bytes(), Chunks::new(), false)
    }

    /// A command that maps `entries` one after the other, from byte `start` of the space on.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EINVAL`] if there are more than [`MAX_ENTRIES`].
    pub(crate) fn map(
        space_id: u32,
        start: u64,
        entries: &[MapEntry],
    ) -> Result<ListArc<MirrorCommand>> {
        if entries.len() > MAX_ENTRIES {
            return Err(EINVAL);
        }
        let length: u64 = entries.iter().map(|e| u64::from(e.length.get())).sum();
        let request = Map {
            hdr: Header::new(command::MAP, space_id),
            start: start.into(),
            length: length.into(),
            nr_entries: (entries.len() as u32).into(),
            padding: 0.into(),
        };
        let mut payload = Chunks::expecting(size_of_val(entries));
        payload.append(entries.as_bytes(), Pieces::new(1, usize::MAX))?;
        message(request.as_bytes(), payload, true)
    }

    /// Takes room for commands that take `slots` descriptors in all, if there is any now. Does not
    /// sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`E2BIG`] if `slots` is more than a file's quota.
    pub(crate) fn try_credit(&self, slots: usize) -> Result<Option<MirrorCredit>> {
        let mut inner = self.mirror().inner.lock();
        if slots > inner.room.most() {
            return Err(E2BIG);
        }
        self.transport.check()?;
        let has_room = inner.take(&self.quota, slots);
        drop(inner);
        Ok(has_room.then(|| self.granted(slots)))
    }

    /// As [`MirrorQueue::credit`] for who must not wait: if others do, there is room that is kept
    /// for this, which comes back as soon as the device has done what it was used for. `None` if
    /// that is in use, or the file has its part of it. Does not sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`E2BIG`] if `slots` is more than a file's quota.
    pub(crate) fn exclusive_credit(&self, slots: usize) -> Result<Option<MirrorCredit>> {
        if let Some(credit) = self.try_credit(slots)? {
            return Ok(Some(credit));
        }
        if !self
            .mirror()
            .inner
            .lock()
            .take_exclusive(&self.quota, slots)
        {
            return Ok(None);
        }
        let mut credit = self.granted(slots);
        credit.exclusive = true;
        Ok(Some(credit))
    }

    /// The room that was taken.
    fn granted(&self, slots: usize) -> MirrorCredit {
        MirrorCredit {
            queue: self.clone(),
            slots,
            exclusive: false,
        }
    }

    /// Waits for room for commands that take `slots` descriptors in all.
    ///
    /// Must be called before any lock is taken that a notifier callback takes.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`ERESTARTSYS`] on a fatal signal, [`ENOMEM`], [`E2BIG`]
    /// if `slots` is more than a file's quota, [`EBUSY`] if the device has not done anything for a
    /// whole time-out, or nothing of this file's where only its own quota is in the way.
    pub(crate) fn credit(&self, slots: usize) -> Result<MirrorCredit> {
        if let Some(credit) = self.try_credit(slots)? {
            return Ok(credit);
        }
        let mirror = self.mirror();
        let new = NewWaiter::new(slots)?;
        let waiter = new.waiter().clone();
        let (number, mut before) = mirror.change(|inner, woken| {
            let number = inner.wait_in_line(&self.quota, new, &mut woken.room);
            (number, inner.progress(&self.quota))
        });
        let outcome = loop {
            let waited = mirror.room.at(number).wait_killable_timeout(
                || waiter.is_granted() || self.transport.is_lost(),
                self.transport.response_timeout_ms(),
            );
            // The line may be long.
            let now = mirror.inner.lock().progress(&self.quota);
            if waited != Err(EBUSY) || core::mem::replace(&mut before, now) == now {
                break waited;
            }
        };
        if !waiter.is_granted() {
            mirror.change(|inner, woken| inner.leave(&self.quota, number, &mut woken.room));
        }
        // At the last moment, perhaps.
        if waiter.is_granted() {
            return Ok(self.granted(slots));
        }
        outcome?;
        Err(ENODEV)
    }

    /// Sends a command, and tells the device. Does not sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`ENOSPC`] if the credit does not cover the command.
    pub(crate) fn add(&self, command: ListArc<MirrorCommand>, credit: &mut MirrorCredit) -> Result {
        self.put_unkicked(command, credit)?;
        self.kick();
        Ok(())
    }

    /// As [`MirrorQueue::add`] for one of several commands; [`MirrorQueue::kick`] tells the device
    /// of all.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn put_unkicked(
        &self,
        mut command: ListArc<MirrorCommand>,
        credit: &mut MirrorCredit,
    ) -> Result {
        let slots = credit.spend(&command)?;
        let owned = Message::owned(&mut command);
        owned.slots = slots;
        owned.source = if credit.exclusive {
            Source::Exclusives(self.quota.clone())
        } else {
            Source::Quota(self.quota.clone())
        };
        self.put(command)
    }

    /// Tells the device of what was put into the ring. To be called without locks, as this is an
    /// exit to the host.
    pub(crate) fn kick(&self) {
        drop(self.kick_prepare());
    }

    /// What is left to do for the device to see what was put into the ring.
    fn kick_prepare(&self) -> Option<Notification> {
        self.mirror().inner.lock().queue.as_mut()?.kick_prepare()
    }

    fn put(&self, command: ListArc<MirrorCommand>) -> Result {
        let mut inner = self.mirror().inner.lock();
        inner.others += 1;
        command.shared.number.store(inner.next_number, Relaxed);
        inner.next_number += 1;
        let outcome = match inner.queue.as_mut() {
            Some(queue) if !self.transport.is_lost() => queue.add(command, usize::MAX),
            _ => Err((command, ENODEV)),
        };
        let Err((mut command, e)) = outcome else {
            return Ok(());
        };
        let mut woken = Woken::default();
        inner.return_slots(&mut command, &mut woken);
        inner.give_out(&mut woken);
        drop(inner);
        self.mirror().wake_some(&woken);
        if e != ENODEV {
            // There is room, by the credit. Without memory to map the command for the device it
            // would be another's fault, but nothing can be promised any more.
            self.transport.lose(c"its mirror queue is broken");
        }
        Err(ENODEV)
    }

    /// Whether the device has responded to a command, or never will.
    pub(crate) fn has_response(command: &MirrorCommand) -> bool {
        command.shared.status.load(Acquire) != PENDING
    }

    /// Waits for the response to a command, uninterruptibly but not longer than the time-out, after
    /// which the device is lost. Returns its [`status`].
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost.
    pub(crate) fn wait(&self, command: &MirrorCommand) -> Result<u32> {
        let status = || command.shared.status.load(Acquire);
        let place = self
            .mirror()
            .responses
            .at(command.shared.number.load(Relaxed));
        self.wait_for(place, || status() != PENDING)?;
        match status() {
            PENDING | ABORTED => Err(ENODEV),
            status => Ok(status),
        }
    }

    fn wait_for(&self, queue: &WaitQueue, done: impl Fn() -> bool) -> Result {
        let transport = &self.transport;
        let condition = || done() || transport.is_lost();
        let limit = transport.response_timeout_ms();
        if !queue.wait_timeout(condition, limit) {
            // It need not have said so, if it has not responded to all.
            let sane = self.mirror().used();
            if !sane || !done() {
                transport.lose(c"it did not respond to a mirror command in time");
            }
        }
        if done() {
            Ok(())
        } else {
            Err(ENODEV)
        }
    }

    /// Sends INVALIDATE for bytes `first` to `last` of a space. Does not sleep, allocates nothing.
    /// The device is told when the caller drops the notification, after its locks.
    pub(crate) fn post_invalidate(&self, space_id: u32, first: u64, last: u64) -> Posted {
        let request = Invalidate {
            hdr: Header::new(command::INVALIDATE, space_id),
            start: first.into(),
            last: last.into(),
        };
        let mut inner = self.mirror().inner.lock();
        if self.transport.is_lost() || inner.queue.is_none() {
            return Posted::Lost;
        }
        if !inner.has_place() {
            return Posted::Full;
        }
        let Some(place) = inner.free_places.pop() else {
            return Posted::Full;
        };
        let Some(mut command) = inner.invalidates[place].command.take() else {
            return Posted::Full;
        };
        let number = inner.next_number;
        inner.invalidates[place].number = number;
        inner.next_number += 1;
        let owned = Message::owned(&mut command);
        owned.slots = 1;
        owned.source = if inner.invalidate_reserve > 0 {
            inner.invalidate_reserve -= 1;
            Source::Invalidates
        } else {
            inner.room.take_one();
            Source::Room
        };
        Message::patch_request(&mut command, 0, request.as_bytes());
        let outcome = match inner.queue.as_mut() {
            Some(queue) => queue.add(command, usize::MAX).map(|_| queue.kick_prepare()),
            None => Err((command, ENODEV)),
        };
        let (mut command, _) = match outcome {
            Ok(notification) => return Posted::Sent(Ticket { place, number }, notification),
            Err(refused) => refused,
        };
        let mut woken = Woken::default();
        if let Some(place) = inner.return_slots(&mut command, &mut woken) {
            inner.put_back(place, command);
        }
        drop(inner);
        self.transport.lose(c"its mirror queue is broken");
        Posted::Lost
    }

    /// Waits until INVALIDATE can be sent, sends it, and tells the device.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, which it is when it responds to nothing in time.
    pub(crate) fn invalidate(&self, space_id: u32, first: u64, last: u64) -> Result<Ticket> {
        // Others leave a descriptor until it is sent.
        let mut waits = None;
        loop {
            match self.post_invalidate(space_id, first, last) {
                Posted::Sent(ticket, notification) => {
                    drop(notification);
                    return Ok(ticket);
                }
                Posted::Lost => return Err(ENODEV),
                Posted::Full => {
                    waits.get_or_insert_with(|| InvalidateWaits::new(self.mirror()));
                    self.wait_while_responding(&self.mirror().places, || {
                        self.mirror().inner.lock().has_place()
                    })?;
                }
            }
        }
    }

    /// Waits until INVALIDATE can be sent, or could a moment ago.
    ///
    /// # Errors
    ///
    /// As [`MirrorQueue::invalidate`].
    pub(crate) fn wait_for_place(&self) -> Result {
        let mirror = self.mirror();
        let _waits = InvalidateWaits::new(mirror);
        self.wait_while_responding(&mirror.places, || mirror.inner.lock().has_place())
    }

    /// Waits uninterruptibly for what the device's responses to others bring about. Each of those
    /// has a time limit and a waiter, so there is none here as long as it responds.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, which it is when it responds to nothing in time.
    fn wait_while_responding(&self, queue: &WaitQueue, mut done: impl FnMut() -> bool) -> Result {
        let (mirror, transport) = (self.mirror(), &self.transport);
        let mut used = mirror.inner.lock().used;
        loop {
            let condition = || transport.is_lost() || done();
            if queue.wait_timeout(condition, transport.response_timeout_ms()) {
                return transport.check();
            }
            // It need not have said so, if it has not responded to all.
            let sane = mirror.used();
            let now = mirror.inner.lock().used;
            if !sane || core::mem::replace(&mut used, now) == now {
                transport.lose(c"it did not respond to a mirror command in time");
            }
        }
    }

    /// Waits until the device has acknowledged an INVALIDATE, uninterruptibly but not longer than
    /// the time-out, after which the device is lost.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost.
    pub(crate) fn wait_invalidated(&self, ticket: Ticket) -> Result {
        let acknowledged = || {
            let inner = self.mirror().inner.lock();
            let place = inner.invalidates.get(ticket.place);
            place.is_none_or(|place| place.number != ticket.number)
        };
        let place = self.mirror().acknowledgements.at(ticket.place as u64);
        self.wait_for(place, acknowledged)
    }

    /// Sends commands that end spaces, as many at a time as there are descriptors kept for them,
    /// and waits for their responses.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost.
    pub(crate) fn destroy(&self, mut commands: List<MirrorCommand>) -> Result {
        while !commands.is_empty() {
            self.destroy_some(&mut commands)?;
        }
        Ok(())
    }

    fn destroy_some(&self, commands: &mut List<MirrorCommand>) -> Result {
        let mirror = self.mirror();
        let mut taken = 0;
        let wanted = commands.iter().take(DESTROYS).count();
        // Who has one does not wait for more.
        let waited = self.wait_while_responding(&mirror.destroys, || {
            let mut inner = mirror.inner.lock();
            if taken == 0 {
                taken = inner.reserve.min(wanted);
                inner.reserve -= taken;
            }
            taken > 0
        });
        // The device may have been lost since, of which `put` takes care.
        if taken == 0 {
            return waited.and(Err(ENODEV));
        }
        let mut sent: [Option<Arc<MirrorCommand>>; DESTROYS] = [const { None }; DESTROYS];
        let mut outcome = Ok(());
        for place in &mut sent[..taken] {
            let Some(mut command) = commands.pop_front() else {
                break;
            };
            let owned = Message::owned(&mut command);
            owned.slots = 1;
            owned.source = Source::Destroys;
            let reference = command.clone_arc();
            // Also after a failure, which returns the descriptor.
            match self.put(command) {
                Ok(()) => *place = Some(reference),
                Err(e) => outcome = Err(e),
            }
        }
        self.kick();
        for reference in sent.iter().flatten() {
            outcome = outcome.and(self.wait(reference).map(drop));
        }
        outcome
    }
}
