// SPDX-License-Identifier: GPL-2.0

//! The mirror queue: what the device may reach of mirrored memory.
//!
//! MAP and SPACE_CREATE are sent where one may wait, with room in the ring taken ahead.
//! INVALIDATE is sent from notifier callbacks, on which memory reclaim waits: its commands are
//! allocated with the queue, descriptors are kept for them, and a response is taken in the
//! interrupt. One command is one descriptor, and the used entry is the whole response.
//!
//! Who waits is woken for what it waits for, and not for what others do: there are places for each
//! command that is on its way and for each who wants room ([`room`]), although not one of its own
//! for each.
//!
//! How a device ends is the transport's matter; see `transport::loss`.

mod queue;
mod room;
mod spaces;

pub(crate) use self::{
    queue::{
        MirrorCredit,
        MirrorQueue,
        Posted,
        SpaceOf, //
    },
    room::MirrorQuota,
    spaces::SpaceSlot, //
};

use self::room::Room;
use crate::{
    kapi::{
        sync::WaitQueue,
        virtio::{
            Chunks,
            Message,
            Queue, //
        },
    },
    protocol::mirror::{
        status,
        Invalidate,
        MIN_QUEUE_SIZE,
        RESERVED_DESCRIPTORS, //
    },
    transport::status::{
        ABORTED,
        PENDING, //
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
/// Descriptors kept for who has a page locked that a device is to have alone, and must not wait.
const EXCLUSIVES: usize = 2 * (MAP_DESCRIPTORS + 1);
/// Most INVALIDATE commands that can be on their way, if the ring has room.
const MAX_INVALIDATES: usize = 128;
/// Places to wait at for responses to other commands, and for room.
const PLACES: usize = 32;
/// Most entries of a MAP, however many the device takes: what fits a page with the rest.
pub(crate) const MAX_ENTRIES: usize = 252;

/// Most descriptors of a MAP: two parts of the command, and the status.
pub(crate) const MAP_DESCRIPTORS: usize = 3;

/// A command of the mirror queue.
pub(crate) type MirrorCommand = Message<Shared, Owned>;

/// What all who wait for a command see of it.
#[pin_data]
pub(crate) struct Shared {
    /// A [`status`], [`PENDING`] or [`ABORTED`]. Validated once, because the device can change its
    /// response afterwards.
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
    /// Those kept for exclusive pages, of which this file has some.
    Exclusives(Arc<MirrorQuota>),
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
    /// Places of [`Mirror::acknowledgements`], [`Mirror::responses`] and [`Mirror::room`].
    acknowledgements: u128,
    responses: u128,
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
    /// Spaces that files have.
    spaces: usize,
    /// Descriptors for commands that end a space.
    reserve: usize,
    /// Descriptors for INVALIDATE.
    invalidate_reserve: usize,
    /// Descriptors for exclusive pages.
    exclusive_reserve: usize,
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

/// The mirror queue of a device, as part of its [`Transport`](super::Transport).
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
    responses: Crowd<PLACES>,
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

fn message(request: &[u8], payload: Chunks, responded: bool) -> Result<ListArc<MirrorCommand>> {
    Message::new(
        request,
        payload,
        if responded { size_of::<u32>() } else { 0 },
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
                spaces: 0,
                reserve: 0,
                invalidate_reserve: 0,
                exclusive_reserve: 0,
                invalidates: KVec::new(),
                free_places: KVec::new(),
                invalidates_waiting: 0,
                next_number: 1,
                others: 0,
                used: 0,
            }, "Mirror::inner"),
            acknowledgements <- Crowd::new(),
            responses <- Crowd::new(),
            room <- Crowd::new(),
            places <- WaitQueue::new(),
            destroys <- WaitQueue::new(),
        })
    }

    /// Takes the queue of a device that is being probed, and that may have `faults`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the ring is too small, [`ENOMEM`].
    pub(super) fn start(&self, queue: Queue<Shared, Owned>, faults: bool) -> Result {
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
        let exclusives = if faults { EXCLUSIVES } else { 0 };
        inner.room.set(size - RESERVED - exclusives);
        inner.exclusive_reserve = exclusives;
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
        self.responses.wake_all();
        self.room.wake_all();
        self.places.wake_all();
        self.destroys.wake_all();
    }

    fn wake_some(&self, woken: &Woken) {
        self.acknowledgements.wake(woken.acknowledgements);
        self.responses.wake(woken.responses);
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

    /// The device has been reset: aborts what it never responded to.
    pub(super) fn reset(&self) {
        let mut outstanding: List<MirrorCommand> = List::new();
        let mut inner = self.inner.lock();
        let mut woken = Woken::default();
        while let Some(mut command) = inner.queue.as_mut().and_then(|q| q.detach_unused()) {
            command.shared.status.store(ABORTED, Release);
            match inner.return_slots(&mut command, &mut woken) {
                Some(place) => inner.put_back(place, command),
                None => outstanding.push_back(command),
            }
        }
        drop(inner);
        self.wake();
        drop(outstanding);
    }

    /// Removes the queue: the device is gone.
    pub(super) fn take_queue(&self) -> Option<Queue<Shared, Owned>> {
        self.inner.lock().queue.take()
    }

    /// The device has used commands. Returns whether it keeps to the protocol.
    pub(super) fn used(&self) -> bool {
        let mut sane = true;
        let mut responded: List<MirrorCommand> = List::new();
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
                // Whoever waits for what was responded to wrongly waits for the device to be lost.
                match place.filter(|_| status.is_some()) {
                    Some(place) => {
                        inner.invalidates[place].number = 0;
                        inner.put_back(place, command);
                    }
                    None => responded.push_back(command),
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
        drop(responded);
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
                woken.responses |= Crowd::<PLACES>::place(number);
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
            Source::Exclusives(quota) => self.return_exclusive(&quota, slots),
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
