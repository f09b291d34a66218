// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The mirror queue: taking commands and giving them back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtgpu_protocol::mirror as wire;
use virtgpu_protocol::mirror::command::{INVALIDATE, MAP, SPACE_DESTROY};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

pub(crate) use super::command::{kind, space};
use super::events::Record;
use super::{command, Mirror, PAGE};
use crate::adversary::Attack;
use crate::answers::{give_back, scatter};
use crate::device::Device;
use crate::event_log::{Event, EventLog};
use crate::mutant::{self, Mutant};
use crate::names;
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
    fn is_open(&self) -> bool {
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

impl Device {
    /// Carries out a command of the mirror queue and gives it back.
    pub(crate) fn mirror_command(&self, ticket: Ticket, bytes: &[u8]) {
        if let Some(status) = ticket.attack.exit() {
            self.end();
            std::process::exit(status);
        }
        let mirror = &self.mirror;
        if ticket.attack.is_ignored() {
            // Silent, too: this goes to the log.
            return mirror.replies.send(ticket, None);
        }
        ticket.attack.slow_down();
        let (kind, space) = (command::kind(bytes), command::space(bytes));
        let status = match ticket.attack.refused_status() {
            Some(code) if names::has_status(kind) => Some(code),
            _ if kind == INVALIDATE && mirror.has(Mutant::EarlyAck) => {
                mirror.replies.send(ticket, None);
                std::thread::sleep(mutant::WINDOW);
                mirror.execute(bytes, &self.ram());
                return;
            }
            _ if kind == INVALIDATE && mirror.has(Mutant::WriteAfterAck) => {
                let stray = mirror.stray(bytes);
                mirror.execute(bytes, &self.ram());
                mirror.replies.send(ticket, None);
                if let Some(stray) = stray {
                    std::thread::spawn(stray);
                }
                return;
            }
            _ => mirror.execute(bytes, &self.ram()),
        };
        mirror.replies.send(ticket, status);
        if kind == SPACE_DESTROY && mirror.has(Mutant::EventForDeadSpace) {
            mirror.events.post(Record::space_lost(space));
        }
    }

    /// What the adversary does after a command, which names a space or 0.
    pub(crate) fn after(&self, attack: &Attack, space: u32) {
        let mirror = &self.mirror;
        if attack.loses_device() {
            mirror.lose();
        }
        if attack.loses_space() && space != 0 {
            mirror.lose_space(space);
        }
        for _ in 0..attack.stale_events() {
            mirror.events.post(Record {
                adversary: true,
                ..Record::space_lost(space)
            });
        }
        for (bytes, used) in attack.garbage_events() {
            mirror.events.post(Record {
                event: bytes,
                used,
                adversary: true,
                resource: None,
            });
        }
    }
}

impl Mirror {
    /// Bytes of the longest command.
    pub(crate) fn longest(&self) -> usize {
        let entries = self.limits.as_ref().map_or(0, |l| l.max_entries as usize);
        size_of::<wire::Map>() + entries * size_of::<wire::MapEntry>()
    }

    /// What a mutant does after it has acknowledged an INVALIDATE, if there is a page to write to.
    fn stray(&self, bytes: &[u8]) -> Option<impl FnOnce() + Send + 'static + use<>> {
        let command = command::parse(bytes, &self.offered()?).ok()?;
        let command::Command::Invalidate { space, start, last } = command else {
            return None;
        };
        let area = self.alias(space, start, last)?;
        let mut before = vec![0; PAGE as usize];
        area.read(0, &mut before).ok()?;
        let replies = self.replies.clone();
        Some(move || {
            for _ in 0..2000 {
                if !replies.is_open() {
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
            malformed: match &self.offered() {
                Some(limits) => command::parse(bytes, limits).is_err(),
                None => true,
            },
            bytes: bytes.len() as u64,
            adversary: attack.name().map(Into::into),
        });
        cmd
    }
}
