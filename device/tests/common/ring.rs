// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The driver's side of a virtqueue, with places for commands and responses.

use std::collections::HashMap;
use std::sync::atomic::{fence, Ordering};
use std::time::Instant;

use super::PATIENCE;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

/// Descriptors.
pub const SIZE: u16 = 64;
/// Bytes of a response's buffer.
pub const RESPONSE: u64 = 0x1000;

/// Where a ring and its slots are in guest memory.
#[derive(Clone, Copy)]
pub struct Layout {
    pub index: usize,
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
    /// A slot is for a command and its response, which is in the last [`RESPONSE`] bytes.
    pub slots: u64,
    pub slot: u64,
}

pub struct Ring {
    pub layout: Layout,
    memory: GuestMemoryMmap<()>,
    kick: EventFd,
    call: EventFd,
    avail: u16,
    used: u16,
    /// Free slots; a slot has two descriptors, command and response.
    free: Vec<u16>,
    /// Bytes of the used length of each response.
    responses: HashMap<u16, u32>,
    /// Heads in the order in which they came back.
    pub order: Vec<u16>,
}

impl Ring {
    pub fn new(memory: &GuestMemoryMmap<()>, layout: Layout) -> Self {
        Self {
            layout,
            memory: memory.clone(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            avail: 0,
            used: 0,
            free: Vec::new(),
            responses: HashMap::new(),
            order: Vec::new(),
        }
    }

    /// What a frontend says when a driver comes.
    pub fn start(&mut self, frontend: &mut Frontend) {
        let layout = self.layout;
        self.avail = 0;
        self.used = 0;
        self.free = (0..SIZE / 2).rev().map(|slot| slot * 2).collect();
        self.responses.clear();
        self.order.clear();
        for place in [layout.avail, layout.used] {
            self.memory
                .write_slice(&[0; 0x1000], GuestAddress(place))
                .unwrap();
        }
        let region = self.memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        let base = region.userspace_addr;
        frontend.set_vring_num(layout.index, SIZE).unwrap();
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: base + layout.descriptors,
            used_ring_addr: base + layout.used,
            avail_ring_addr: base + layout.avail,
            log_addr: None,
        };
        frontend.set_vring_addr(layout.index, &config).unwrap();
        frontend.set_vring_base(layout.index, 0).unwrap();
        frontend.set_vring_call(layout.index, &self.call).unwrap();
        frontend.set_vring_kick(layout.index, &self.kick).unwrap();
        frontend.set_vring_enable(layout.index, true).unwrap();
    }

    /// What a frontend says when a driver goes.
    pub fn stop(&mut self, frontend: &mut Frontend) {
        frontend.set_vring_enable(self.layout.index, false).unwrap();
        frontend.get_vring_base(self.layout.index).unwrap();
    }

    pub fn descriptor(&self, index: u16, addr: u64, length: usize, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = self.layout.descriptors + 16 * u64::from(index);
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Makes the chain at `head` available. The device hears of it if it wants to.
    pub fn make_available(&mut self, head: u16) {
        let at = self.layout.avail + 4 + 2 * u64::from(self.avail % SIZE);
        self.memory
            .write_obj(head.to_le(), GuestAddress(at))
            .unwrap();
        let old = self.avail;
        self.avail = self.avail.wrapping_add(1);
        fence(Ordering::SeqCst);
        let index = self.avail.to_le();
        self.memory
            .store(
                index,
                GuestAddress(self.layout.avail + 2),
                Ordering::Release,
            )
            .unwrap();
        fence(Ordering::SeqCst);
        let event = GuestAddress(self.layout.used + 4 + 8 * u64::from(SIZE));
        let event: u16 = self.memory.load(event, Ordering::Relaxed).unwrap();
        let ahead = self.avail.wrapping_sub(u16::from_le(event));
        // virtio's vring_need_event().
        if ahead.wrapping_sub(1) < self.avail.wrapping_sub(old) {
            self.kick.write(1).unwrap();
        }
    }

    /// How often the chain at `head` came back.
    pub fn times_back(&mut self, head: u16) -> usize {
        self.collect();
        self.order.iter().filter(|back| **back == head).count()
    }

    /// A free slot: the head of its chain.
    pub fn slot(&mut self) -> u16 {
        let start = Instant::now();
        loop {
            if let Some(head) = self.free.pop() {
                return head;
            }
            assert!(start.elapsed() < PATIENCE, "no free slot");
            self.collect();
            // Responses that no test asks for any more.
            let done: Vec<u16> = self.responses.keys().copied().collect();
            for head in done {
                self.responses.remove(&head);
                self.free.push(head);
            }
        }
    }

    /// Where the command at `head` is.
    pub fn place(&self, head: u16) -> u64 {
        self.layout.slots + self.layout.slot * u64::from(head / 2)
    }

    /// Where its response is.
    pub fn response_place(&self, head: u16) -> u64 {
        self.place(head) + self.layout.slot - RESPONSE
    }

    /// Posts a command with `room` bytes for the response; returns its head. The response's buffer
    /// is full of ones before.
    pub fn post(&mut self, command: &[u8], room: usize) -> u16 {
        let head = self.slot();
        let (at, response) = (self.place(head), self.response_place(head));
        assert!(at + command.len() as u64 <= response);
        self.memory.write_slice(command, GuestAddress(at)).unwrap();
        self.memory
            .write_slice(&vec![0xff; room], GuestAddress(response))
            .unwrap();
        let flags = u16::from(room > 0);
        self.descriptor(head, at, command.len(), flags, head + 1);
        self.descriptor(head + 1, response, room, 2, 0);
        self.make_available(head);
        head
    }

    /// Posts a buffer of `room` bytes for the device to write to.
    pub fn post_buffer(&mut self, room: usize) -> u16 {
        let head = self.slot();
        self.descriptor(head, self.response_place(head), room, 2, 0);
        self.make_available(head);
        head
    }

    /// Takes what is in the used ring.
    pub fn collect(&mut self) {
        let index: u16 = self
            .memory
            .load(GuestAddress(self.layout.used + 2), Ordering::Acquire)
            .unwrap();
        let index = u16::from_le(index);
        while self.used != index {
            let at = self.layout.used + 4 + 8 * u64::from(self.used % SIZE);
            let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            let length: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            self.used = self.used.wrapping_add(1);
            self.order.push(u32::from_le(head) as u16);
            self.responses
                .insert(u32::from_le(head) as u16, u32::from_le(length));
        }
    }

    /// Whether the command at `head` is back.
    pub fn is_back(&mut self, head: u16) -> bool {
        self.collect();
        self.responses.contains_key(&head)
    }

    /// The used length of, and the bytes in, the buffer of `head`, if it is back by now.
    pub fn poll(&mut self, head: u16) -> Option<(u32, Vec<u8>)> {
        self.collect();
        let length = self.responses.remove(&head)?;
        let mut bytes = vec![0; u64::from(length).min(RESPONSE) as usize];
        let at = GuestAddress(self.response_place(head));
        self.memory.read_slice(&mut bytes, at).unwrap();
        self.free.push(head);
        Some((length, bytes))
    }
}
