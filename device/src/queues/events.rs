// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The event queue: what the device says unasked.
//!
//! An event waits until the driver has put a buffer into the queue. Meanwhile the space that it
//! names can end, and then the event must not be sent any more: the guest may use the number of the
//! space, or the resource that it belonged to, for another.

use std::collections::VecDeque;

use vhost_user_backend::VringT;
use virtgpu_protocol::mirror as wire;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;
use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

use super::ring::{give_back, scatter, GuestRing, Inner, Queue};
use super::vring::Vring;
use crate::log::{Event, EventLog};

/// Events that wait for a buffer; more are lost, but for those that the guest waits for, of which
/// it allows no more.
const MOST: usize = 4096;

/// What a space belongs to, as far as events that name it are forgotten with that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerId {
    Resource(u32),
    Context(u32),
}

/// An event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// What is written.
    pub(crate) event: wire::Event,
    /// The used length.
    pub(crate) used: u32,
    /// It is none of a device that behaves.
    pub(crate) adversary: bool,
    /// Whose space it names, if it is to be forgotten with that.
    pub(crate) owner: Option<OwnerId>,
}

impl Record {
    /// The space `id` is lost.
    pub(crate) fn space_lost(id: u32) -> Self {
        Self {
            event: wire::Event {
                kind: U32::new(wire::event::SPACE_LOST),
                space_id: U32::new(id),
                ..Default::default()
            },
            used: size_of::<wire::Event>() as u32,
            adversary: false,
            owner: None,
        }
    }

    /// Whether the guest waits for it.
    fn is_owed(&self) -> bool {
        let kind = self.event.kind.get();
        !self.adversary && matches!(kind, wire::event::FAULT | wire::event::RING_DONE)
    }
}

/// The event queue.
pub(crate) struct Events;

/// Its ring.
pub(crate) type EventRing = GuestRing<Events>;

impl Queue for Events {
    /// Events that wait for a buffer, oldest first.
    type State = VecDeque<Record>;

    fn opened(_: &mut VecDeque<Record>, _: u64, _: &EventLog) {}
}

impl EventRing {
    /// There are buffers in the queue. Not unless `going`: who stops it says so before closing
    /// this.
    pub(crate) fn kicked(&self, vring: &Vring, going: impl FnOnce() -> bool) {
        if self.open(vring, going).is_some() {
            self.flush(&mut self.lock());
        }
    }

    /// Forgets what waits.
    pub(crate) fn clear(&self) {
        self.lock().state.clear();
    }

    /// Forgets what waits and names a space.
    pub(crate) fn forget(&self, space: u32) {
        let waiting = &mut self.lock().state;
        waiting.retain(|record| record.event.space_id.get() != space);
    }

    /// Forgets what waits and names a space that `owner` has had.
    pub(crate) fn forget_owner(&self, owner: OwnerId) {
        let waiting = &mut self.lock().state;
        waiting.retain(|record| record.owner != Some(owner));
    }

    /// Events that wait for a buffer, and those of them that name a space.
    pub(crate) fn waiting(&self, space: u32) -> (usize, usize) {
        let waiting = &self.lock().state;
        let own = waiting.iter().filter(|r| r.event.space_id.get() == space);
        (waiting.len(), own.count())
    }

    /// Tells the guest, as soon as there is a buffer.
    pub(crate) fn post(&self, record: Record) {
        let mut inner = self.lock();
        if inner.state.len() >= MOST && !record.is_owed() {
            log::warn!("an event is lost: the driver takes none");
            return;
        }
        inner.state.push_back(record);
        self.flush(&mut inner);
    }

    fn flush(&self, inner: &mut Inner<VecDeque<Record>>) {
        let Some(vring) = inner.vring.clone() else {
            return;
        };
        // A ring that is filled as fast as it is emptied, with buffers that are too short, ends,
        // too.
        let mut left = 2 * usize::from(vring.get_ref().get_queue().size());
        while let Some(record) = inner.state.front() {
            let memory = self.memory.memory();
            let more = left.checked_sub(1);
            let chain = more.and_then(|_| {
                let mut state = vring.get_mut();
                let queue = state.get_queue_mut();
                queue.pop_descriptor_chain(memory.clone().into_inner())
            });
            let Some(chain) = chain else {
                // The driver is to say when it adds one.
                let filled = vring.enable_notification().unwrap_or(false);
                match more {
                    Some(more) if filled => left = more,
                    _ => break,
                }
                continue;
            };
            left = left.saturating_sub(1);
            let head = u32::from(chain.head_index());
            let writable: Vec<_> = chain.writable().map(|d| (d.addr().0, d.len())).collect();
            let room: u64 = writable.iter().map(|(_, length)| u64::from(*length)).sum();
            let bytes = record.event.as_bytes();
            if room < bytes.len() as u64 {
                log::warn!("a buffer of the event queue is too short");
                give_back(&vring, &memory, &[head], 0);
                continue;
            }
            scatter(&memory, &writable, bytes);
            self.log.write(|| Event::EventSent {
                kind: record.event.kind.get(),
                space: record.event.space_id.get(),
                adversary: record.adversary,
            });
            give_back(&vring, &memory, &[head], record.used);
            inner.state.pop_front();
        }
    }
}
