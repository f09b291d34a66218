// SPDX-License-Identifier: GPL-2.0

//! The mirror queue: what the device may reach of mirrored memory.
//!
//! MAP and SPACE_CREATE are sent where one may wait, with room in the ring taken ahead.
//! INVALIDATE is sent from notifier callbacks, on which memory reclaim waits: its commands are
//! allocated with the queue, descriptors are kept for them, and a response is taken in the
//! interrupt. One command is one descriptor, and the used entry is the whole answer.
//!
//! Who waits is woken for what it waits for, and not for what others do: there are places for each
//! command that is on its way and for each who wants room ([`room`]), although not one of its own for
//! each.
//!
//! How a device ends is the transport's matter; see `transport::loss`.

mod room;

pub(crate) use self::room::MirrorQuota;

use self::room::{
    NewWaiter,
    Room, //
};
use super::{
    event::SpaceOwner,
    Transport, //
};
use crate::{
    kapi::{
        sync::WaitQueue,
        virtio::{
            Chunks,
            Message,
            Notification,
            Pieces,
            Queue, //
        },
    },
    protocol::mirror::{
        command,
        space_kind,
        status,
        Header,
        Invalidate,
        Map,
        MapEntry,
        SpaceCreate,
        SpaceDestroy,
        MIN_QUEUE_SIZE,
        RESERVED_DESCRIPTORS, //
    },
};
use kernel::{
    list::{
        List,
        ListArc, //
    },
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic, //
        },
        Arc,
        SpinLockIrq, //
    },
};
use zerocopy::IntoBytes;

/// Descriptors kept for INVALIDATE.
const INVALIDATES: usize = 24;
const RESERVED: usize = RESERVED_DESCRIPTORS as usize;
/// Descriptors kept for commands that end a space.
const DESTROYS: usize = RESERVED - INVALIDATES;
/// Most INVALIDATE commands that can be on their way, if the ring has room.
const MAX_INVALIDATES: usize = 128;
/// Places to wait at for responses to other commands, and for room.
const PLACES: usize = 32;
/// Most entries of a MAP, however many the device takes: what fits a page with the rest.
pub(crate) const MAX_ENTRIES: usize = 252;

/// Most descriptors of a MAP: two parts of the command, and the status.
pub(crate) const MAP_DESCRIPTORS: usize = 3;

/// `Shared::status` of a command that is on its way.
const PENDING: u32 = u32::MAX;
/// `Shared::status` of a command that the device did not answer.
const ABORTED: u32 = u32::MAX - 1;

/// A command of the mirror queue.
pub(crate) type MirrorCommand = Message<Shared, Owned>;

/// What all who wait for a command see of it.
#[pin_data]
pub(crate) struct Shared {
    /// A [`status`], [`PENDING`] or [`ABORTED`]. Validated once, because the device can change its
    /// answer afterwards.
    status: Atomic<u32>,
    /// The number of one that is no INVALIDATE, which says where its response is waited for. Set
    /// when it is put into the ring.
    number: Atomic<u64>,
}

/// Whose the descriptors of a command are.
enum Source {
    /// It is not on its way.
    Nowhere,
    /// Those of a file's quota.
    Quota(Arc<MirrorQuota>),
    /// Those kept for commands that end a space.
    Destroys,
    /// Those kept for INVALIDATE.
    Invalidates,
    /// One that MAP has left.
    Room,
}

/// What goes with a command.
pub(crate) struct Owned {
    /// Descriptors of the ring.
    slots: usize,
    source: Source,
    /// The place in [`Inner::invalidates`].
    place: Option<usize>,
}

/// Those who wait for something of a kind, at one of `N` places, 128 at most.
#[pin_data]
struct Crowd<const N: usize> {
    #[pin]
    places: [WaitQueue; N],
}

impl<const N: usize> Crowd<N> {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            places <- pin_init::pin_init_array_from_fn(|_| WaitQueue::new()),
        })
    }

    /// Where number `number` is waited for.
    fn at(&self, number: u64) -> &WaitQueue {
        &self.places[(number % N as u64) as usize]
    }

    /// The set of that place.
    fn place(number: u64) -> u128 {
        const { assert!(N <= 128) };
        1 << (number % N as u64)
    }

    /// Makes those at the places of a set look again.
    fn wake(&self, mut places: u128) {
        while places != 0 {
            self.at(places.trailing_zeros().into()).wake_all();
            places &= places - 1;
        }
    }

    /// Makes all look again.
    fn wake_all(&self) {
        self.places.iter().for_each(WaitQueue::wake_all);
    }
}

/// Who is to look again when the lock is free.
#[derive(Default)]
struct Woken {
    /// Places of [`Mirror::acknowledgements`], [`Mirror::answers`] and [`Mirror::room`].
    acknowledgements: u128,
    answers: u128,
    room: u128,
    /// Those of [`Mirror::places`] and [`Mirror::destroys`].
    places: bool,
    destroys: bool,
}

/// An INVALIDATE on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    place: usize,
    number: u64,
}

struct Place {
    /// Here when it is not on its way.
    command: Option<ListArc<MirrorCommand>>,
    /// The number of the use that is on its way, or 0.
    number: u64,
}

struct Inner {
    /// `None` before the start and after the removal.
    queue: Option<Queue<Shared, Owned>>,
    /// Descriptors for MAP and SPACE_CREATE.
    room: Room,
    /// Descriptors for commands that end a space.
    reserve: usize,
    /// Descriptors for INVALIDATE.
    invalidate_reserve: usize,
    invalidates: KVec<Place>,
    /// Those of them with a command.
    free_places: KVec<usize>,
    /// INVALIDATEs for which there was no place, or no descriptor.
    invalidates_waiting: usize,
    next_number: u64,
    /// Commands on their way that are no INVALIDATEs.
    others: usize,
    /// Commands that the device has used, ever.
    used: u64,
}

/// The mirror queue of a device, as part of its [`Transport`].
#[pin_data]
pub(super) struct Mirror {
    /// Protects the ring, the counts and the places. Taken in the interrupt, and by notifier
    /// callbacks.
    #[pin]
    inner: SpinLockIrq<Inner>,
    /// Waiters for acknowledgements of INVALIDATE, by the place of the command.
    #[pin]
    acknowledgements: Crowd<MAX_INVALIDATES>,
    /// Waiters for the used entries of other commands, by their numbers.
    #[pin]
    answers: Crowd<PLACES>,
    /// Waiters for credits, by their numbers.
    #[pin]
    room: Crowd<PLACES>,
    /// Waiters for a place of an INVALIDATE and its descriptor.
    #[pin]
    places: WaitQueue,
    /// Waiters for a descriptor of those that end a space.
    #[pin]
    destroys: WaitQueue,
}

fn message(request: &[u8], payload: Chunks, answered: bool) -> Result<ListArc<MirrorCommand>> {
    Message::new(
        request,
        payload,
        if answered { size_of::<u32>() } else { 0 },
        Chunks::new(),
        pin_init!(Shared {
            status: Atomic::new(PENDING),
            number: Atomic::new(0),
        }),
        Owned {
            slots: 0,
            source: Source::Nowhere,
            place: None,
        },
    )
}

impl Mirror {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_spinlock_irq!(Inner {
                queue: None,
                room: Room::new(),
                reserve: 0,
                invalidate_reserve: 0,
                invalidates: KVec::new(),
                free_places: KVec::new(),
                invalidates_waiting: 0,
                next_number: 1,
                others: 0,
                used: 0,
            }, "Mirror::inner"),
            acknowledgements <- Crowd::new(),
            answers <- Crowd::new(),
            room <- Crowd::new(),
            places <- WaitQueue::new(),
            destroys <- WaitQueue::new(),
        })
    }

    /// Takes the queue of a device that is being probed.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the ring is too small, [`ENOMEM`].
    pub(super) fn start(&self, queue: Queue<Shared, Owned>) -> Result {
        let size = queue.size();
        if size < usize::from(MIN_QUEUE_SIZE) {
            return Err(EINVAL);
        }
        let count = (size / 2).min(MAX_INVALIDATES);
        let mut invalidates = KVec::with_capacity(count, GFP_KERNEL)?;
        let mut free_places = KVec::with_capacity(count, GFP_KERNEL)?;
        for place in 0..count {
            let mut command = message(Invalidate::default().as_bytes(), Chunks::new(), false)?;
            Message::owned(&mut command).place = Some(place);
            let new = Place {
                command: Some(command),
                number: 0,
            };
            invalidates.push(new, GFP_KERNEL)?;
            free_places.push(place, GFP_KERNEL)?;
        }
        let mut inner = self.inner.lock();
        inner.room.set(size - RESERVED);
        inner.reserve = DESTROYS;
        inner.invalidate_reserve = INVALIDATES;
        inner.invalidates = invalidates;
        inner.free_places = free_places;
        inner.queue = Some(queue);
        Ok(())
    }

    /// The device is lost: waiters look again.
    pub(super) fn wake(&self) {
        self.acknowledgements.wake_all();
        self.answers.wake_all();
        self.room.wake_all();
        self.places.wake_all();
        self.destroys.wake_all();
    }

    fn wake_some(&self, woken: &Woken) {
        self.acknowledgements.wake(woken.acknowledgements);
        self.answers.wake(woken.answers);
        self.room.wake(woken.room);
        if woken.places {
            self.places.wake_all();
        }
        if woken.destroys {
            self.destroys.wake_all();
        }
    }

    /// Calls `with` with the lock held, and has those look again afterwards who are to.
    fn change<R>(&self, with: impl FnOnce(&mut Inner, &mut Woken) -> R) -> R {
        let mut woken = Woken::default();
        let outcome = with(&mut self.inner.lock(), &mut woken);
        self.wake_some(&woken);
        outcome
    }

    /// The device has been reset: aborts what it never answered.
    pub(super) fn reset(&self) {
        let mut unanswered: List<MirrorCommand> = List::new();
        let mut inner = self.inner.lock();
        let mut woken = Woken::default();
        while let Some(mut command) = inner.queue.as_mut().and_then(|q| q.detach_unused()) {
            command.shared.status.store(ABORTED, Release);
            match inner.return_slots(&mut command, &mut woken) {
                Some(place) => inner.put_back(place, command),
                None => unanswered.push_back(command),
            }
        }
        drop(inner);
        self.wake();
        drop(unanswered);
    }

    /// Removes the queue: the device is gone.
    pub(super) fn take_queue(&self) -> Option<Queue<Shared, Owned>> {
        self.inner.lock().queue.take()
    }

    /// The device has used commands. Returns whether it keeps to the protocol.
    pub(super) fn used(&self) -> bool {
        let mut sane = true;
        let mut answered: List<MirrorCommand> = List::new();
        let mut woken = Woken::default();
        let mut inner = self.inner.lock();
        loop {
            let Some(queue) = inner.queue.as_mut() else {
                break;
            };
            queue.disable_callback();
            while let Some((mut command, len)) = inner.queue.as_mut().and_then(|q| q.take_used()) {
                let status = Self::validate(&command, len);
                sane &= status.is_some();
                inner.used += 1;
                let place = inner.return_slots(&mut command, &mut woken);
                command
                    .shared
                    .status
                    .store(status.unwrap_or(ABORTED), Release);
                // Whoever waits for what was answered wrongly waits for the device to be lost.
                match place.filter(|_| status.is_some()) {
                    Some(place) => {
                        inner.invalidates[place].number = 0;
                        inner.put_back(place, command);
                    }
                    None => answered.push_back(command),
                }
            }
            // Who has hit many registrations at once waits for all, and each interrupt costs more
            // than an acknowledgement. Other waiters are not to be delayed, though.
            let delayed = inner.others == 0;
            let Some(queue) = inner.queue.as_mut() else {
                break;
            };
            if queue.is_broken() {
                sane = false;
                break;
            }
            if delayed && queue.enable_callback_delayed() || !delayed && queue.enable_callback() {
                break;
            }
        }
        inner.give_out(&mut woken);
        drop(inner);
        self.wake_some(&woken);
        drop(answered);
        sane
    }

    /// What `len` bytes say in response to `command`; `None` if they are no response to it.
    fn validate(command: &MirrorCommand, len: u32) -> Option<u32> {
        let wanted = command.writable_len();
        if wanted == 0 {
            return (len == 0).then_some(status::OK);
        }
        if len as usize != wanted {
            return None;
        }
        let mut response = 0u32.to_le_bytes();
        command.read_response(&mut response);
        let response = u32::from_le_bytes(response);
        (response <= status::LIMIT).then_some(response)
    }
}

impl Inner {
    /// Returns the descriptors of a command, and notes who waits for them and for it; says where it
    /// belongs if it is kept. [`Inner::give_out`] is to be called before the lock is free.
    fn return_slots(
        &mut self,
        command: &mut ListArc<MirrorCommand>,
        woken: &mut Woken,
    ) -> Option<usize> {
        let number = command.shared.number.load(Relaxed);
        let owned = Message::owned(command);
        let slots = core::mem::take(&mut owned.slots);
        let source = core::mem::replace(&mut owned.source, Source::Nowhere);
        let place = owned.place;
        match place {
            Some(place) => {
                woken.acknowledgements |= Crowd::<MAX_INVALIDATES>::place(place as u64);
            }
            None => {
                self.others -= 1;
                woken.answers |= Crowd::<PLACES>::place(number);
            }
        }
        match source {
            Source::Nowhere => {}
            // The last reference, if it is, frees nothing but the counts.
            Source::Quota(quota) => self.return_to_quota(&quota, slots),
            Source::Destroys => {
                self.reserve += slots;
                woken.destroys = true;
            }
            Source::Invalidates => self.invalidate_reserve += slots,
            Source::Room => self.room.put_one(),
        }
        place
    }

    /// Gives room that has become free to those who wait for it.
    fn give_out(&mut self, woken: &mut Woken) {
        self.grant(&mut woken.room);
        woken.places |= self.invalidates_waiting > 0 && self.has_place();
    }

    /// Whether an INVALIDATE can be sent.
    fn has_place(&self) -> bool {
        self.invalidate_reserve + self.room.free() > 0 && !self.free_places.is_empty()
    }

    /// Keeps the command of an INVALIDATE for the next.
    fn put_back(&mut self, place: usize, command: ListArc<MirrorCommand>) {
        self.invalidates[place].command = Some(command);
        // There is room for all places.
        let _ = self.free_places.push_within_capacity(place);
    }
}

/// The right to send MAPs or a SPACE_CREATE.
pub(crate) struct MirrorCredit {
    queue: MirrorQueue,
    slots: usize,
}

impl MirrorCredit {
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
                inner.return_to_quota(&self.queue.quota, self.slots);
                inner.give_out(woken);
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

    /// Removes the owner of space `space_id`, which is not called any more.
    pub(crate) fn remove_owner(&self, space_id: u32) {
        self.transport.events.remove_owner(space_id);
    }

    /// A command that creates a space for resource `id`, of `size` bytes.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn space_create(
        space_id: u32,
        id: u32,
        size: u64,
        access: u32,
    ) -> Result<ListArc<MirrorCommand>> {
        let request = SpaceCreate {
            hdr: Header::new(command::SPACE_CREATE, space_id),
            kind: space_kind::RESOURCE.into(),
            id: id.into(),
            size: size.into(),
            access: access.into(),
            flags: 0.into(),
        };
        message(request.as_bytes(), Chunks::new(), true)
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

    /// Waits for room for commands that take `slots` descriptors in all.
    ///
    /// Must be called before any lock is taken that a notifier callback takes.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`ERESTARTSYS`] on a fatal signal, [`ENOMEM`], [`E2BIG`] if
    /// `slots` is more than a file's quota, [`EBUSY`] if the device has not done anything for a whole
    /// time-out, or nothing of this file's where only its own quota is in the way.
    pub(crate) fn credit(&self, slots: usize) -> Result<MirrorCredit> {
        let mirror = self.mirror();
        let credit = || MirrorCredit {
            queue: self.clone(),
            slots,
        };
        {
            let mut inner = mirror.inner.lock();
            if slots > inner.room.most() {
                return Err(E2BIG);
            }
            self.transport.check()?;
            if inner.take(&self.quota, slots) {
                drop(inner);
                return Ok(credit());
            }
        }
        let new = NewWaiter::new(slots)?;
        let waiter = new.waiter().clone();
        let (number, mut before) = mirror.change(|inner, woken| {
            let number = inner.wait_in_line(&self.quota, new, &mut woken.room);
            (number, inner.progress(&self.quota))
        });
        let outcome = loop {
            let waited = mirror.room.at(number).wait_killable_timeout(
                || waiter.is_granted() || self.transport.is_lost(),
                self.transport.answer_timeout_ms(),
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
            return Ok(credit());
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

    /// As [`MirrorQueue::add`] for one of several commands; [`MirrorQueue::kick`] tells the device of
    /// all.
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
        owned.source = Source::Quota(self.quota.clone());
        self.put(command)
    }

    /// Tells the device of what was put into the ring. To be called without locks, as this is an exit
    /// to the host.
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
            .answers
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
        let limit = transport.answer_timeout_ms();
        if !queue.wait_timeout(condition, limit) {
            // It need not have said so, if it has not answered all.
            let sane = self.mirror().used();
            if !sane || !done() {
                transport.lose(c"it did not answer a mirror command in time");
            }
        }
        if done() {
            Ok(())
        } else {
            Err(ENODEV)
        }
    }

    /// Sends INVALIDATE for bytes `first` to `last` of a space. Does not sleep, allocates nothing. The
    /// device is told when the caller drops the notification, after its locks.
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
    /// [`ENODEV`] if the device is lost, which it is when it answers nothing in time.
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
                    self.wait_while_answering(&self.mirror().places, || {
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
        self.wait_while_answering(&mirror.places, || mirror.inner.lock().has_place())
    }

    /// Waits uninterruptibly for what the device's answers to others bring about. Each of those has
    /// a time limit and a waiter, so there is none here as long as it answers.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, which it is when it answers nothing in time.
    fn wait_while_answering(&self, queue: &WaitQueue, mut done: impl FnMut() -> bool) -> Result {
        let (mirror, transport) = (self.mirror(), &self.transport);
        let mut used = mirror.inner.lock().used;
        loop {
            let condition = || transport.is_lost() || done();
            if queue.wait_timeout(condition, transport.answer_timeout_ms()) {
                return transport.check();
            }
            // It need not have said so, if it has not answered all.
            let sane = mirror.used();
            let now = mirror.inner.lock().used;
            if !sane || core::mem::replace(&mut used, now) == now {
                transport.lose(c"it did not answer a mirror command in time");
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
        let waited = self.wait_while_answering(&mirror.destroys, || {
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
