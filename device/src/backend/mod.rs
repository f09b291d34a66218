// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The vhost-user side of the device: features, configuration space, and who serves which queue.
//!
//! The library calls [`GpuBackend`] from the thread of the frontend's socket, with messages that
//! start and stop queues and change guest memory, and from three more threads with kicks: that of
//! the control queue, that of the mirror queue, and one for the cursor and the event queue. Where
//! the guest waits for the mirror queue in the middle of reclaim, it must not wait behind the
//! control queue.
//!
//! A queue can be stopped while a thread serves it. Those of the control and the mirror queue look
//! whether their queue is ready before each chain; the socket's thread makes it unready first, and
//! then waits for the command at hand. To close the ring of events it waits for the write at hand.

mod frontend;
pub mod serve;

use std::io;
use std::num::Wrapping;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vhost::vhost_user::message::{
    VhostUserMMap, VhostUserMMapFlags, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};
use vhost_user_backend::{VhostUserBackend, VringT};
use virtgpu_protocol::mirror;
use virtgpu_protocol::virtio_gpu::{feature, Config, SHM_ID_HOST_VISIBLE};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier,
};
use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

use crate::device::state::Window;
use crate::device::Device;
use crate::log::Event;
use crate::memory::ram::Memory;
use crate::mirror::{command, Serving};
use crate::misbehave::adversary::Attack;
use crate::queues::chain::MAX_REQUEST;
use crate::queues::vring::Vring;
use crate::queues::{control, mirror as mirror_queue};
use frontend::Channel;

/// The queues: control, cursor, mirror, events.
pub const QUEUES: usize = 4;
/// The control queue.
const CONTROL: u32 = 0;
/// The mirror queue.
const MIRROR: u32 = mirror::MIRROR_QUEUE as u32;
/// The event queue.
const EVENTS: u32 = mirror::EVENT_QUEUE as u32;
/// `Config::events_read`: a display has changed.
const EVENT_DISPLAY: u32 = 1;
/// How often the cursor queue is emptied for one kick.
const CURSOR_ROUNDS: usize = 16;
/// The largest configuration space a frontend may ask for.
const CONFIG_SIZE: usize = 256;

/// The device, as the vhost-user library sees it.
pub struct GpuBackend {
    device: Arc<Device>,
    /// The channel for requests to the frontend.
    frontend: Mutex<Option<Backend>>,
    acked: AtomicU64,
    requests: AtomicU64,
    events: AtomicU32,
    /// For what the library cannot say.
    channel: Mutex<Option<Channel>>,
}

impl GpuBackend {
    /// Presents `device`.
    #[must_use]
    pub fn new(device: Arc<Device>) -> Self {
        let channel = device.options.adversary.changes_config().then(Channel::new);
        let channel = channel.transpose().unwrap_or_else(|error| {
            log::warn!("configuration change: {error}");
            None
        });
        Self {
            channel: Mutex::new(channel),
            device,
            frontend: Mutex::new(None),
            acked: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            events: AtomicU32::new(0),
        }
    }

    /// The virtio features on offer.
    fn offered(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            feature::RESOURCE_UUID,
            feature::RESOURCE_BLOB,
        ];
        if self.device.options.indirect {
            bits.push(VIRTIO_RING_F_INDIRECT_DESC);
        }
        if self.device.options.virgl {
            bits.extend([feature::VIRGL, feature::CONTEXT_INIT]);
        }
        if self.device.options.blob_alignment != 0 {
            bits.push(feature::BLOB_ALIGNMENT);
        }
        if self.device.mirror.limits.is_some() {
            bits.push(mirror::feature::MIRROR);
        }
        if self.device.max_faults() > 0 && self.device.options.virgl {
            bits.push(mirror::feature::PAGE_FAULT);
        }
        if self.device.options.access_platform {
            bits.push(VIRTIO_F_ACCESS_PLATFORM);
        }
        let bits = bits.into_iter().fold(0, |mask, bit| mask | (1u64 << bit));
        bits | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// Asks the frontend to map the window, which it forgets at a reset. On a thread of its own,
    /// because the response may come only after the frontend has had a response from us.
    ///
    /// Only when the driver wants to map something: QEMU 11.1 crashes now and then when the
    /// question meets a reset, so there had better be few.
    fn show_window(&self) {
        let mut state = self.device.lock();
        if state.window != Window::Unknown {
            return;
        }
        let frontend = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(frontend) = frontend.clone() else {
            state.window = Window::Missing;
            self.device.run_deferred(&mut state);
            return;
        };
        state.window = Window::Asked;
        drop(state);
        let device = self.device.clone();
        let ask = move || {
            let request = VhostUserMMap {
                shmid: SHM_ID_HOST_VISIBLE,
                fd_offset: 0,
                shm_offset: 0,
                len: device.options.hostmem,
                flags: VhostUserMMapFlags::WRITABLE.bits(),
                ..Default::default()
            };
            let mut there = false;
            loop {
                let resets = device.lock().resets;
                match frontend.shmem_map(&request, &*device.memfd) {
                    Ok(_) => there = true,
                    // After a reset that came in between it may be there still.
                    Err(error) if !there => log::error!("window: the frontend refuses: {error}"),
                    Err(_) => {}
                }
                if device.window_changed(there, resets) {
                    break;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn(ask) {
            log::error!("window: {error}");
            let resets = self.device.lock().resets;
            self.device.window_changed(false, resets);
        }
    }

    /// Does what the adversary wants after a command, which names a space or 0.
    fn after(&self, attack: &Attack, space: u32) {
        self.device.after(attack, space);
        let changes = attack.config_changes();
        if changes > 0 {
            self.events.fetch_or(EVENT_DISPLAY, Ordering::Relaxed);
        }
        self.announce_changes(changes + u64::from(attack.loses_device()));
    }

    /// Says that the configuration space has changed, that often.
    fn announce_changes(&self, count: u64) {
        let channel = self.channel.lock();
        let mut channel = channel.unwrap_or_else(PoisonError::into_inner);
        for _ in 0..count {
            let result = channel.as_mut().map(Channel::config_changed);
            if let Some(Err(error)) = result {
                log::warn!("configuration change: {error}");
            }
        }
    }

    /// Serves the control queue until it is empty.
    fn serve_control(&self, vring: &Vring) {
        let serve = self.device.serve.lock();
        let mut buffer = serve.unwrap_or_else(PoisonError::into_inner);
        let going = || vring.get_ref().get_queue().ready() && !self.device.is_shut_down();
        let Some(generation) = self.device.control.open(vring, going) else {
            return;
        };
        self.drain(vring, going, |chain, start| {
            let head = chain.head_index();
            if !self.device.control.take(head) {
                return log::warn!("request: descriptor {head} is with the device already");
            }
            let (writable, result) = buffer.read(chain, MAX_REQUEST);
            if let Err(error) = result {
                log::warn!("request: {error}");
            }
            let request = control::Request {
                req: self.requests.fetch_add(1, Ordering::Relaxed),
                header: buffer.header(),
            };
            let adversary = &self.device.options.adversary;
            let ticket = control::Ticket {
                generation,
                head,
                writable,
                attack: adversary.attack_request(request.command(), buffer.bytes()),
                request,
            };
            let attack = ticket.attack.clone();
            self.device.handle(ticket, buffer.bytes(), start);
            self.after(&attack, 0);
            if self.device.wants_window() {
                self.show_window();
            }
        });
    }

    /// Whether a queue of the extension is to be served.
    fn is_mirroring(&self, vring: &Vring) -> bool {
        let ready = vring.get_ref().get_queue().ready();
        ready && self.device.is_mirrored() && !self.device.is_shut_down()
    }

    /// Serves the mirror queue until it is empty.
    fn serve_mirror(&self, vring: &Vring) {
        let device = &self.device;
        let serve = device.mirror.serve.lock();
        let mut serve = serve.unwrap_or_else(PoisonError::into_inner);
        let Serving { buffer, backlog } = &mut *serve;
        let going = || self.is_mirroring(vring);
        let Some(generation) = device.mirror.ring.open(vring, going) else {
            return;
        };
        self.drain(vring, going, |chain, _| {
            let head = chain.head_index();
            let (writable, result) = buffer.read(chain, device.mirror.longest());
            if let Err(error) = result {
                log::warn!("command: {error}");
            }
            let bytes = match result {
                Ok(()) => buffer.bytes(),
                // What was read might be a command, but is not the one that was sent.
                Err(_) => &[],
            };
            let (ring, more) = self.waiting(vring);
            device.mirror.note(backlog, bytes, ring, more);
            let client = || device.mirror.client_of(bytes);
            let adversary = &device.options.adversary;
            let attack = adversary.attack_command(command::kind(bytes), client);
            let ticket = mirror_queue::Ticket {
                generation,
                head,
                writable,
                request: mirror_queue::Command {
                    cmd: device.mirror.begin(bytes, &attack),
                },
                attack,
            };
            let attack = ticket.attack.clone();
            device.mirror_command(ticket, bytes);
            self.after(&attack, command::space(bytes));
        });
    }

    /// Descriptors of a queue, and chains that are in it.
    fn waiting(&self, vring: &Vring) -> (u16, u16) {
        let memory = self.device.memory.memory();
        let state = vring.get_ref();
        let queue = state.get_queue();
        let next = Wrapping(queue.next_avail());
        let end = queue.avail_idx(&*memory, Ordering::Acquire);
        (queue.size(), end.map_or(0, |end| (end - next).0))
    }

    /// Calls `f` with each chain of a queue, and the time it was taken, until there is none or not
    /// `going`.
    fn drain(
        &self,
        vring: &Vring,
        going: impl Fn() -> bool,
        mut f: impl FnMut(DescriptorChain<Arc<Memory>>, Instant),
    ) {
        loop {
            let _ = vring.disable_notification();
            let mut any = false;
            while going() {
                let memory = self.device.memory.memory().into_inner();
                let start = Instant::now();
                let chain = vring.get_mut().get_queue_mut().pop_descriptor_chain(memory);
                let Some(chain) = chain else { break };
                any = true;
                f(chain, start);
            }
            let more = vring.enable_notification().unwrap_or(false);
            // A ring whose index jumped looks full and yields nothing: then wait for a kick.
            if !any || !more {
                break;
            }
        }
    }

    /// Gives back what is in the cursor queue; cursor commands have no response.
    fn serve_cursor(&self, vring: &Vring) {
        let memory = self.device.memory.memory().into_inner();
        let mut state = vring.get_mut();
        for _ in 0..CURSOR_ROUNDS {
            let mut heads = Vec::new();
            if let Ok(chains) = state.get_queue_mut().iter(memory.clone()) {
                heads.extend(chains.map(|chain| chain.head_index()));
            }
            if heads.is_empty() {
                break;
            }
            for head in &heads {
                let _ = state.add_used(*head, 0);
            }
            if state.needs_notification().unwrap_or(true) {
                let _ = state.signal_used_queue();
            }
            // The driver is to say when it adds more.
            if !state.enable_notification().unwrap_or(false) {
                break;
            }
        }
    }
}

impl VhostUserBackend for GpuBackend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        self.device.options.queue_size
    }

    fn features(&self) -> u64 {
        self.offered()
    }

    fn acked_features(&self, features: u64) {
        if self.acked.swap(features, Ordering::Relaxed) != features {
            self.device.log.write(|| Event::Features { bits: features });
            let has = |bit: u32| features & (1 << bit) != 0;
            let mirrored = has(mirror::feature::MIRROR);
            self.device
                .set_mirrored(mirrored, has(mirror::feature::PAGE_FAULT));
        }
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::CONFIG;
        // Not CONFIGURE_MEM_SLOTS: QEMU 11.1 drops the window at a reset and crashes at the next
        // start, when it wants to send REM_MEM_REG for memory that it does not have any more.
        if self.device.options.hostmem != 0 {
            features |= VhostUserProtocolFeatures::SHMEM;
        }
        features
    }

    fn reset_device(&self) {
        self.device.reset();
    }

    // The library sets it in the queues.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let options = &self.device.options;
        let config = Config {
            events_read: U32::new(self.events.load(Ordering::Relaxed)),
            events_clear: U32::ZERO,
            num_scanouts: U32::ZERO,
            num_capsets: U32::new(options.adversary.capsets(options.capsets.len() as u32)),
            blob_alignment: U32::new(self.device.options.blob_alignment),
        };
        let mut bytes = config.as_bytes().to_vec();
        if let Some(config) = self.device.mirror.config() {
            bytes.resize(mirror::CONFIG_OFFSET, 0);
            bytes.extend(config.as_bytes());
        }
        bytes.resize(CONFIG_SIZE, 0);
        let offset = offset as usize;
        let part = bytes.get(offset..offset.saturating_add(size as usize));
        part.map(<[u8]>::to_vec).unwrap_or_default()
    }

    /// The frontend writes all of the space, whatever field the guest wrote.
    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let clear = 4usize.wrapping_sub(offset as usize);
        if let Some(&[a, b, c, d]) = bytes.get(clear..clear.wrapping_add(4)) {
            let mask = u32::from_le_bytes([a, b, c, d]);
            self.events.fetch_and(!mask, Ordering::Relaxed);
        }
        Ok(())
    }

    fn update_memory(&self, _memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        self.device.memory_changed();
        Ok(())
    }

    fn set_backend_req_fd(&self, backend: Backend) {
        *self.frontend.lock().unwrap_or_else(PoisonError::into_inner) = Some(backend);
        let channel = self.channel.lock();
        let mut channel = channel.unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = channel.as_mut().map(Channel::find) {
            log::warn!("configuration change: {error}");
        }
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        let mut sizes = [0; SHM_ID_HOST_VISIBLE as usize + 1];
        sizes[SHM_ID_HOST_VISIBLE as usize] = self.device.options.hostmem;
        Ok(VhostUserShMemConfig::new(1, &sizes))
    }

    /// The control queue and the mirror queue have threads of their own; the others share one.
    fn queues_per_thread(&self) -> Vec<u64> {
        let rest = (1 << QUEUES) - 1 - (1 << CONTROL) - (1 << MIRROR);
        vec![1 << CONTROL, rest, 1 << MIRROR]
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        match index {
            CONTROL => self.device.reset(),
            MIRROR => self.device.stop_mirror(),
            EVENTS => {
                self.device.mirror.events.close();
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        match (thread, event, vrings) {
            (0, 0, [control, ..]) => self.serve_control(control),
            (1, 0, [cursor, ..]) => self.serve_cursor(cursor),
            (1, 1, [_, events, ..]) => {
                let going = || self.is_mirroring(events);
                self.device.mirror.events.kicked(events, going);
            }
            (2, 0, [mirror, ..]) => self.serve_mirror(mirror),
            _ => {}
        }
        Ok(())
    }
}
