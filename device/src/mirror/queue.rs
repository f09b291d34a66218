// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The mirror queue: giving commands back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

use crate::adversary::Attack;
use crate::answers::{give_back, scatter};
use crate::event_log::{Event, EventLog};
use crate::ram::Memory;
use crate::vring::Vring;

/// Where the answer to a command goes.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    /// Number of the command, for logs.
    pub(crate) cmd: u64,
    /// The time the queue was opened that the command came after.
    pub(crate) generation: u64,
    /// Head of the descriptor chain.
    pub(crate) head: u16,
    /// Device-writable buffers: guest address and length.
    pub(crate) writable: Vec<(u64, u32)>,
    /// How it is mistreated.
    pub(crate) attack: Attack,
}

#[derive(Default)]
struct Inner {
    vring: Option<Vring>,
    /// Counts the times the queue was opened.
    generation: u64,
}

/// The answering side of the mirror queue.
///
/// Nothing is written to the guest while it is closed, nor as an answer to a command from before it
/// was closed.
pub(crate) struct Replies {
    memory: GuestMemoryAtomic<Memory>,
    log: Arc<EventLog>,
    inner: Mutex<Inner>,
}

impl Replies {
    /// Closed.
    pub(crate) fn new(memory: GuestMemoryAtomic<Memory>, log: Arc<EventLog>) -> Self {
        Self {
            memory,
            log,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it, if it is closed; returns the generation of commands taken from now on. Not unless
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
            self.log.write(|| Event::MirrorOpen { generation });
        }
        Some(inner.generation)
    }

    /// Whether it is open.
    pub(super) fn is_open(&self) -> bool {
        self.lock().vring.is_some()
    }

    /// Closes it; returns whether it was open.
    pub(crate) fn close(&self) -> bool {
        self.lock().vring.take().is_some()
    }

    /// Gives a command back, with a status if it has one, unless something else is to happen.
    pub(crate) fn send(self: &Arc<Self>, mut ticket: Ticket, status: Option<u32>) {
        let Some(delay) = ticket.attack.take_delay() else {
            return self.send_now(&ticket, status);
        };
        let replies = self.clone();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            replies.send_now(&ticket, status);
        });
    }

    fn send_now(&self, ticket: &Ticket, status: Option<u32>) {
        let inner = self.lock();
        let current = |_: &&Vring| inner.generation == ticket.generation;
        let Some(vring) = inner.vring.as_ref().filter(current) else {
            self.log.write(|| Event::CommandDropped { cmd: ticket.cmd });
            return;
        };
        let capacity: u64 = ticket.writable.iter().map(|(_, l)| u64::from(*l)).sum();
        let mut bytes = status.map_or(Vec::new(), |s| U32::new(s).as_bytes().to_vec());
        bytes.truncate(capacity.try_into().unwrap_or(usize::MAX));
        let mut twisted = ticket.attack.twist(bytes, capacity, ticket.head);
        if ticket.attack.is_silent() {
            twisted.bytes.clear();
            twisted.heads.clear();
        }
        let memory = self.memory.memory();
        let written = scatter(&memory, &ticket.writable, &twisted.bytes);
        let used = twisted.used.unwrap_or(written);
        self.log.write(|| Event::Reply {
            cmd: ticket.cmd,
            status,
            used,
            adversary: ticket.attack.name().map(Into::into),
        });
        give_back(vring, &memory, &twisted.heads, used);
    }
}
