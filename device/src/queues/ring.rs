// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! One queue of the guest: when the device may write to it, and how chains are given back.
//!
//! The thread that serves a queue opens its [`GuestRing`] when it begins, and the frontend's thread
//! closes it when the driver stops the queue. Workers, timers and the thread of another queue want
//! to respond at any time in between and after. All of them meet at the lock of the ring: nothing
//! is written to the guest while the ring is closed, nor as a response to what was taken before it
//! was closed, for which each time it is opened is a new generation.
//!
//! Under the lock of a ring only those of its vring and of the event log are taken.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost_user_backend::VringT;
use virtio_queue::{Queue as Virtqueue, QueueT};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryError,
};
use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

use super::vring::Vring;
use crate::log::{Event, EventLog, Name};
use crate::memory::ram::Memory;
use crate::misbehave::adversary::Attack;

/// A queue of the device.
pub(crate) trait Queue: Sized + 'static {
    /// What is kept under the lock of the ring.
    type State: Default + Send;

    /// The queue begins to work.
    fn opened(state: &mut Self::State, generation: u64, log: &EventLog);
}

/// A queue from which requests are taken, each of which is given back with a response.
pub(crate) trait Responding: Queue {
    /// What must be known of a request to respond to it.
    type Request: Send + 'static;
    /// A response.
    type Response: Send + 'static;

    /// The bytes of a response for buffers of `capacity` bytes, which it may exceed: the rest of it
    /// is not written.
    fn encode(request: &Self::Request, response: &Self::Response, capacity: u64) -> Vec<u8>;

    /// What the log says of a request that gets no response, because the queue has stopped.
    fn dropped(request: &Self::Request) -> Event;

    /// What the log says of a response of which `used` bytes are written.
    fn responded(
        request: &Self::Request,
        response: &Self::Response,
        used: u32,
        adversary: Option<Name>,
    ) -> Event;

    /// The chain at `head` is about to be given back.
    fn given_back(_state: &mut Self::State, _head: u16) {}
}

/// A request that was taken from a queue, and where the response to it goes.
#[derive(Clone, Debug)]
pub(crate) struct Ticket<R> {
    /// The time the queue was opened that the request came after.
    pub(crate) generation: u64,
    /// Head of the descriptor chain.
    pub(crate) head: u16,
    /// Device-writable buffers: guest address and length.
    pub(crate) writable: Vec<(u64, u32)>,
    /// How the request is mistreated.
    pub(crate) attack: Attack,
    /// What it is.
    pub(crate) request: R,
}

/// What the lock of a ring protects.
pub(crate) struct Inner<S> {
    /// The queue, while it works.
    pub(crate) vring: Option<Vring>,
    /// Counts the times the queue was opened.
    generation: u64,
    /// What this queue keeps.
    pub(crate) state: S,
}

/// A queue of the guest that the device writes to.
pub(crate) struct GuestRing<Q: Queue> {
    pub(super) memory: GuestMemoryAtomic<Memory>,
    pub(super) log: Arc<EventLog>,
    inner: Mutex<Inner<Q::State>>,
}

impl<Q: Queue> GuestRing<Q> {
    /// One that is closed.
    pub(crate) fn new(memory: GuestMemoryAtomic<Memory>, log: Arc<EventLog>) -> Self {
        Self {
            memory,
            log,
            inner: Mutex::new(Inner {
                vring: None,
                generation: 0,
                state: Q::State::default(),
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner<Q::State>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it, if it is closed; returns the generation of requests taken from now on. Not unless
    /// `going`: who stops the queue says so before closing this.
    pub(crate) fn open(&self, vring: &Vring, going: impl FnOnce() -> bool) -> Option<u64> {
        let mut inner = self.lock();
        if !going() {
            return None;
        }
        if inner.vring.is_none() {
            inner.vring = Some(vring.clone());
            inner.generation += 1;
            let generation = inner.generation;
            Q::opened(&mut inner.state, generation, &self.log);
        }
        Some(inner.generation)
    }

    /// Closes it; returns whether it was open.
    pub(crate) fn close(&self) -> bool {
        self.lock().vring.take().is_some()
    }

    /// Whether it is open.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().vring.is_some()
    }
}

impl<Q: Responding> GuestRing<Q> {
    /// Whether the queue that the request came from is still open; otherwise it is forgotten.
    pub(crate) fn is_open_for(&self, ticket: &Ticket<Q::Request>) -> bool {
        let inner = self.lock();
        let open = inner.vring.is_some() && inner.generation == ticket.generation;
        if !open {
            self.log.write(|| Q::dropped(&ticket.request));
        }
        open
    }

    /// Responds to a request, unless something else is to happen to it.
    pub(crate) fn send(self: &Arc<Self>, mut ticket: Ticket<Q::Request>, response: Q::Response) {
        let Some(delay) = ticket.attack.take_delay() else {
            return self.send_now(&ticket, &response);
        };
        let ring = self.clone();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            ring.send_now(&ticket, &response);
        });
    }

    fn send_now(&self, ticket: &Ticket<Q::Request>, response: &Q::Response) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let current = |_: &&Vring| inner.generation == ticket.generation;
        let Some(vring) = inner.vring.as_ref().filter(current) else {
            self.log.write(|| Q::dropped(&ticket.request));
            return;
        };
        let capacity = ticket.writable.iter().map(|(_, l)| u64::from(*l)).sum();
        let mut bytes = Q::encode(&ticket.request, response, capacity);
        bytes.truncate(capacity.try_into().unwrap_or(usize::MAX));
        let mut twisted = ticket.attack.twist(bytes, capacity, ticket.head);
        if ticket.attack.is_silent() {
            twisted.bytes.clear();
            twisted.heads.clear();
        }
        let memory = self.memory.memory();
        let written = scatter(&memory, &ticket.writable, &twisted.bytes);
        let used = twisted.used.unwrap_or(written);
        self.log.write(|| {
            let adversary = ticket.attack.name().map(Into::into);
            Q::responded(&ticket.request, response, used, adversary)
        });
        // The guest may offer it again as soon as it sees it.
        let heads = twisted.heads.iter();
        for head in heads.filter_map(|head| u16::try_from(*head).ok()) {
            Q::given_back(&mut inner.state, head);
        }
        give_back(vring, &memory, &twisted.heads, used);
    }
}

/// Writes to device-writable buffers; returns how much could be.
pub(super) fn scatter(memory: &Memory, writable: &[(u64, u32)], mut bytes: &[u8]) -> u32 {
    let mut used = 0;
    for (addr, length) in writable {
        let (now, later) = bytes.split_at(bytes.len().min(*length as usize));
        if memory.write_slice(now, GuestAddress(*addr)).is_err() {
            break;
        }
        used += now.len() as u32;
        bytes = later;
    }
    used
}

/// Puts chains into the used ring, and interrupts the guest if it wants that.
pub(super) fn give_back(vring: &Vring, memory: &Memory, heads: &[u32], used: u32) {
    let mut state = vring.get_mut();
    let mut interrupt = false;
    for head in heads {
        let result = match u16::try_from(*head) {
            Ok(head) if head < state.get_queue().size() => state
                .add_used(head, used)
                .map_err(|error| error.to_string()),
            _ => {
                interrupt = true;
                add_impossible(state.get_queue_mut(), memory, *head, used)
                    .map_err(|error| error.to_string())
            }
        };
        if let Err(error) = result {
            log::warn!("used ring: {error}");
        }
    }
    if interrupt || !heads.is_empty() && state.needs_notification().unwrap_or(true) {
        if let Err(error) = state.signal_used_queue() {
            log::warn!("interrupt: {error}");
        }
    }
}

/// Puts a descriptor that does not exist into the used ring.
fn add_impossible(
    queue: &mut Virtqueue,
    memory: &Memory,
    head: u32,
    used: u32,
) -> Result<(), GuestMemoryError> {
    let next = queue.next_used();
    let ring = GuestAddress(queue.used_ring());
    let slot = 4 + 8 * u64::from(next % queue.size());
    let element = [U32::new(head), U32::new(used)];
    memory.write_slice(element.as_bytes(), ring.unchecked_add(slot))?;
    queue.set_next_used(next.wrapping_add(1));
    let index = u16::to_le(queue.next_used());
    memory.store(index, ring.unchecked_add(2), Ordering::Release)
}
