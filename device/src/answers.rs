// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Answers on the control queue.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost_user_backend::VringT;
use virtgpu_protocol::virtio_gpu::{response, Header, FLAG_FENCE, FLAG_INFO_RING_IDX};
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryError,
};
use zerocopy::little_endian::{U32, U64};
use zerocopy::IntoBytes;

use crate::event_log::{Event, EventLog};
use crate::names;
use crate::ram::Memory;
use crate::request::Ticket;
use crate::vring::Vring;

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// A response type.
    pub kind: u32,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer that is only a header.
    #[must_use]
    pub fn plain(kind: u32) -> Self {
        Self {
            kind,
            body: Vec::new(),
        }
    }

    /// Success.
    #[must_use]
    pub fn ok() -> Self {
        Self::plain(response::OK_NODATA)
    }

    /// The answer on the wire, header included, to a request with header `to`.
    #[must_use]
    pub fn encode(&self, to: &Header) -> Vec<u8> {
        let mut header = Header::new(self.kind, 0);
        if to.flags.get() & FLAG_FENCE != 0 {
            header.flags = U32::new(to.flags.get() & (FLAG_FENCE | FLAG_INFO_RING_IDX));
            header.fence_id = U64::new(to.fence_id.get());
            header.ctx_id = to.ctx_id;
            header.ring_idx = to.ring_idx;
        }
        [header.as_bytes(), &self.body].concat()
    }
}

#[derive(Default)]
struct Inner {
    vring: Option<Vring>,
    /// Counts the times the queue was opened.
    generation: u64,
    /// Heads that are with the device.
    out: HashSet<u16>,
}

/// The answering side of the control queue.
///
/// Nothing is written to the guest while it is closed, nor as an answer to a request from before
/// it was closed.
pub struct Answers {
    memory: GuestMemoryAtomic<Memory>,
    log: Arc<EventLog>,
    inner: Mutex<Inner>,
}

impl Answers {
    /// Closed.
    #[must_use]
    pub fn new(memory: GuestMemoryAtomic<Memory>, log: Arc<EventLog>) -> Self {
        Self {
            memory,
            log,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it, if it is closed; returns the generation of requests taken from now on. Not unless
    /// `going`: who stops the queue says so before closing this.
    pub fn open(&self, vring: &Vring, going: impl FnOnce() -> bool) -> Option<u64> {
        let mut inner = self.lock();
        if !going() {
            return None;
        }
        if inner.vring.is_none() {
            inner.vring = Some(vring.clone());
            inner.generation += 1;
            inner.out.clear();
            let generation = inner.generation;
            self.log.write(|| Event::Open { generation });
        }
        Some(inner.generation)
    }

    /// Closes it.
    pub fn close(&self) {
        self.lock().vring = None;
    }

    /// Takes a request from the queue that is open; false if the one at this head has not been
    /// given back. Such a ring is broken, and what it offers would be kept without end.
    pub fn take(&self, head: u16) -> bool {
        self.lock().out.insert(head)
    }

    /// Whether the queue that the request came from is still open; otherwise it is forgotten.
    pub(crate) fn is_open_for(&self, ticket: &Ticket) -> bool {
        let inner = self.lock();
        let open = inner.vring.is_some() && inner.generation == ticket.generation;
        if !open {
            self.log.write(|| Event::Dropped { req: ticket.req });
        }
        open
    }

    /// Answers a request, unless something else is to happen to it.
    pub fn send(self: &Arc<Self>, ticket: &Ticket, answer: &Response) {
        let mut ticket = ticket.clone();
        let Some(delay) = ticket.attack.take_delay() else {
            return self.send_now(&ticket, answer);
        };
        let (answers, answer) = (self.clone(), answer.clone());
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            answers.send_now(&ticket, &answer);
        });
    }

    fn send_now(&self, ticket: &Ticket, answer: &Response) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let current = |_: &&Vring| inner.generation == ticket.generation;
        let Some(vring) = inner.vring.as_ref().filter(current) else {
            self.log.write(|| Event::Dropped { req: ticket.req });
            return;
        };
        let capacity: u64 = ticket.writable.iter().map(|(_, l)| u64::from(*l)).sum();
        let mut bytes = answer.encode(&ticket.header);
        if bytes.len() as u64 > capacity && !answer.body.is_empty() {
            bytes = Response::plain(response::ERR_INVALID_PARAMETER).encode(&ticket.header);
        }
        bytes.truncate(capacity.try_into().unwrap_or(usize::MAX));
        let mut twisted = ticket.attack.twist(bytes, capacity, ticket.head);
        if ticket.attack.is_silent() {
            twisted.bytes.clear();
            twisted.heads.clear();
        }
        let memory = self.memory.memory();
        let written = scatter(&memory, &ticket.writable, &twisted.bytes);
        let used = twisted.used.unwrap_or(written);
        self.log.write(|| Event::Response {
            req: ticket.req,
            cmd: names::command(ticket.command()).into(),
            kind: names::response(answer.kind).into(),
            fence: fence(&ticket.header),
            used,
            adversary: ticket.attack.name().map(Into::into),
        });
        // The guest may offer it again as soon as it sees it.
        let heads = twisted.heads.iter();
        for head in heads.filter_map(|head| u16::try_from(*head).ok()) {
            inner.out.remove(&head);
        }
        give_back(vring, &memory, &twisted.heads, used);
    }
}

/// Writes to device-writable buffers; returns how much could be.
pub(crate) fn scatter(memory: &Memory, writable: &[(u64, u32)], mut bytes: &[u8]) -> u32 {
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

/// The fence of a request, if it has one.
#[must_use]
pub fn fence(header: &Header) -> Option<u64> {
    (header.flags.get() & FLAG_FENCE != 0).then_some(header.fence_id.get())
}

/// Puts chains into the used ring, and interrupts the guest if it wants that.
pub(crate) fn give_back(vring: &Vring, memory: &Memory, heads: &[u32], used: u32) {
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
    queue: &mut Queue,
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
