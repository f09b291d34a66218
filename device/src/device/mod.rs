// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The device as a whole: what its threads share, and its life from reset to reset.
//!
//! There is a thread for the control queue, which carries out requests; one for the mirror queue
//! (see [`crate::mirror`]); workers, which run jobs, those of contexts in fault mode workers of
//! their own; one for the renderer (see `virgl`); and the one of the frontend's socket, which
//! starts and stops queues.
//!
//! Locks are taken in this order: `Device::serve`, the state, the table of spaces, a
//! ring (see `queues::ring`), its vring. The thread of the mirror queue does not take the state,
//! and has a lock of its own like `Device::serve`. The socket's thread takes any of them; no one
//! who holds one waits for that thread.

mod jobs;
pub(crate) mod state;
pub(crate) mod timelines;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use virtgpu_protocol::compute::Stat;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use zerocopy::little_endian::U64;

use crate::log::{Event, EventLog};
use crate::memory::hostmem::HostMemory;
use crate::memory::ram::{GuestRam, Memory};
use crate::mirror::backlog::Backlog;
use crate::mirror::stall::Faulting;
use crate::mirror::Mirror;
use crate::options::Options;
use crate::queues::chain::RequestBuffer;
use crate::queues::control::ControlRing;
use crate::virgl::Virgl;

use state::{Action, Resource, State, Storage, Window};

/// Counts since the process was started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commands: AtomicU64,
    pub(crate) create_blob_ns: AtomicU64,
    pub(crate) unref_ns: AtomicU64,
}

/// The device.
pub struct Device {
    pub(crate) options: Options,
    pub(crate) log: Arc<EventLog>,
    pub(crate) memory: GuestMemoryAtomic<Memory>,
    /// What resources may be made of.
    ram: RwLock<Arc<GuestRam>>,
    /// The file of the host-visible window.
    pub(crate) memfd: Arc<std::fs::File>,
    /// Held while the control queue is served.
    pub(crate) serve: Mutex<RequestBuffer>,
    pub(crate) state: Mutex<State>,
    /// Work for a worker.
    pub(crate) work: Condvar,
    /// Work for one of jobs that may stall.
    pub(crate) stalling_work: Condvar,
    /// A job is over.
    pub(crate) over: Condvar,
    pub(crate) control: Arc<ControlRing>,
    pub(crate) counters: Counters,
    pub(crate) mirror: Mirror,
    /// OpenGL, if there is any.
    pub(crate) virgl: Option<Virgl>,
    /// The driver has accepted the mirror extension.
    mirrored: AtomicBool,
    shut_down: AtomicBool,
}

impl Device {
    /// A device without memory and driver yet.
    ///
    /// # Errors
    ///
    /// If there is no memory for the window, or the renderer does not start.
    pub fn new(mut options: Options, log: Arc<EventLog>) -> std::io::Result<Arc<Self>> {
        let memory = GuestMemoryAtomic::new(Memory::new());
        let host = HostMemory::new(options.hostmem)?;
        let virgl = if options.virgl_renderer {
            let (virgl, capsets) = Virgl::start()?;
            options.capsets.extend(capsets);
            Some(virgl)
        } else {
            None
        };
        Ok(Arc::new(Self {
            mirror: Mirror::new(options.mirror, options.mutants.clone(), &memory, &log),
            virgl,
            mirrored: AtomicBool::new(false),
            options,
            ram: RwLock::new(Arc::new(GuestRam::new(Arc::new(Memory::new()), None))),
            memfd: host.memfd().clone(),
            serve: Mutex::default(),
            state: Mutex::new(State::new(host)),
            work: Condvar::new(),
            stalling_work: Condvar::new(),
            over: Condvar::new(),
            control: Arc::new(ControlRing::new(memory.clone(), log.clone())),
            counters: Counters::default(),
            shut_down: AtomicBool::new(false),
            memory,
            log,
        }))
    }

    /// Guest memory, to be filled by the frontend's messages.
    #[must_use]
    pub fn memory(&self) -> GuestMemoryAtomic<Memory> {
        self.memory.clone()
    }

    /// Takes note of a change of guest memory. Resources that exist keep what they have.
    pub fn memory_changed(&self) {
        let memory = self.memory.memory().into_inner();
        let ram = Arc::new(GuestRam::new(memory, Some(&self.memfd)));
        self.mirror.memory_changed(&ram);
        *self.ram.write().unwrap_or_else(PoisonError::into_inner) = ram;
    }

    /// Guest RAM as of now.
    pub(crate) fn ram(&self) -> Arc<GuestRam> {
        let ram = self.ram.read().unwrap_or_else(PoisonError::into_inner);
        ram.clone()
    }

    /// Takes note of whether the driver has accepted the mirror extension, and faults.
    pub(crate) fn set_mirrored(&self, mirrored: bool, faulting: bool) {
        self.mirrored.store(mirrored, Ordering::Release);
        self.mirror.set_faulting(mirrored && faulting);
    }

    /// Most faults of a space that are not resolved, 0 if there are no faults on offer.
    pub(crate) fn max_faults(&self) -> u32 {
        let limits = self.mirror.limits.as_ref();
        limits.map_or(0, |limits| limits.max_faults)
    }

    /// Whether it has.
    pub(crate) fn is_mirrored(&self) -> bool {
        self.mirrored.load(Ordering::Acquire)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a command waits for the window, and no one has asked for it.
    pub(crate) fn wants_window(&self) -> bool {
        let state = self.lock();
        state.window == Window::Unknown
            && state
                .deferred
                .iter()
                .any(|(_, action)| matches!(action, Action::Map { .. }))
    }

    /// Takes note of whether the guest can see the window, unless a reset came since there had been
    /// `resets` of them; returns whether it did.
    pub(crate) fn window_changed(&self, there: bool, resets: u64) -> bool {
        let mut state = self.lock();
        if there && state.resets != resets {
            return false;
        }
        state.window = match there {
            true => Window::There,
            false => Window::Missing,
        };
        self.run_deferred(&mut state);
        true
    }

    /// The device's counts, and those of the space of a resource; of resource 0 those of the
    /// address space of a job's context, if it has one.
    pub(crate) fn stat(&self, resource: u32, own: Option<&Faulting>) -> Stat {
        let space = match own.filter(|_| resource == 0) {
            Some(own) => self.mirror.counts(own),
            None => self.mirror.space_counts(resource),
        };
        let pending_faults = self.mirror.pending_faults();
        let state = self.lock();
        let mut guest = (0, 0);
        for resource in state.resources.values() {
            let (bytes, entries) = resource.guest();
            guest = (guest.0 + bytes, guest.1 + entries);
        }
        let counter = |counter: &AtomicU64| U64::new(counter.load(Ordering::Relaxed));
        Stat {
            resources: U64::new(state.resources.len() as u64),
            contexts: U64::new(state.contexts.len() as u64),
            commands: counter(&self.counters.commands),
            guest_bytes: U64::new(guest.0),
            guest_entries: U64::new(guest.1),
            host_bytes: U64::new(state.host.bytes_shown()),
            create_blob_ns: counter(&self.counters.create_blob_ns),
            unref_ns: counter(&self.counters.unref_ns),
            spaces: counter(&self.mirror.counters.spaces),
            maps: counter(&self.mirror.counters.maps),
            invalidates: counter(&self.mirror.counters.invalidates),
            mapped_pages: counter(&self.mirror.counters.mapped_pages),
            mirror_ring: counter(&self.mirror.counters.ring),
            maps_ahead: counter(&self.mirror.counters.maps_ahead),
            space_pages: U64::new(space.pages),
            space_maps: U64::new(space.maps),
            space_invalidates: U64::new(space.invalidates),
            faults: counter(&self.mirror.counters.faults),
            joined_faults: counter(&self.mirror.counters.joined),
            pending_faults: U64::new(pending_faults),
            exclusive_maps: counter(&self.mirror.counters.exclusive),
        }
    }

    /// Stops all jobs, forgets everything, and returns once nothing touches guest memory any more.
    /// The control queue must not be ready.
    pub fn reset(&self) {
        self.control.close();
        // The queue is not ready, so the control thread lets go after the command at hand.
        let serve = self.serve.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        state.cancel_all();
        let lanes = std::mem::take(&mut state.lanes);
        state.workers.clear();
        state.stallers.clear();
        let queued = lanes.into_values().flat_map(|lane| lane.items);
        let deferred = std::mem::take(&mut state.deferred);
        let tickets = queued
            .filter_map(state::Item::into_ticket)
            .chain(deferred.into_iter().filter_map(|(ticket, _)| ticket));
        for ticket in tickets {
            self.log.write(|| Event::Dropped {
                req: ticket.request.req,
            });
        }
        // Those who wait for it to draw are running jobs, too.
        if let Some(virgl) = &self.virgl {
            virgl.reset();
        }
        state = self.wait_for_jobs(state);
        self.mirror.reset();
        // Jobs that ended meanwhile found nothing to do after them.
        state.lanes.clear();
        state.workers.clear();
        state.stallers.clear();
        state.live.clear();
        state.queued_ops = 0;
        let resources = state.resources.len() as u64;
        let contexts = state.contexts.len() as u64;
        state.contexts.clear();
        for (_, resource) in std::mem::take(&mut state.resources) {
            release(&mut state, &resource);
        }
        // What was taken from images, while copies used it.
        state.entries = 0;
        state.resets += 1;
        if state.window == Window::There {
            state.window = Window::Unknown;
        }
        self.log.write(|| Event::Reset {
            resources,
            contexts,
        });
        drop(state);
        drop(serve);
    }

    /// Waits until no job runs.
    fn wait_for_jobs<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.running > 0 {
            state = self
                .over
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Revokes all spaces, stops all jobs, and returns once nothing touches guest memory on behalf
    /// of the mirror queue any more. That queue must not be ready.
    pub fn stop_mirror(&self) {
        let open = self.mirror.ring.close();
        // The queue is not ready, so the thread that serves it lets go after the command at hand.
        let serve = self.mirror.serve.lock();
        let mut serve = serve.unwrap_or_else(PoisonError::into_inner);
        serve.backlog = Backlog::default();
        self.mirror.revoke_all("stopped");
        if open {
            // Without the control queue having been stopped before, there may be jobs.
            let mut state = self.lock();
            state.cancel_all();
            for context in state.contexts.values_mut() {
                context.lost = true;
            }
            drop(self.wait_for_jobs(state));
            self.log.write(|| Event::MirrorClose);
        }
        drop(serve);
    }

    /// [`Self::reset`] for good, whatever state the control queue is in.
    pub fn shut_down(&self) {
        self.shut_down.store(true, Ordering::Release);
        self.mirror.events.close();
        self.mirror.end_hammer();
        self.stop_mirror();
        self.reset();
    }

    /// Whether [`Self::shut_down`] was called.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.shut_down.load(Ordering::Acquire)
    }

    /// Writes the last line of the log.
    pub fn end(&self) {
        let state = self.lock();
        self.log.write(|| Event::End {
            resources: state.resources.len() as u64,
            contexts: state.contexts.len() as u64,
            commands: self.counters.commands.load(Ordering::Relaxed),
        });
    }
}

/// Takes a resource that is gone off the books.
pub(crate) fn release(state: &mut State, resource: &Resource) {
    state.entries -= resource.guest().1;
    if let Storage::Image(..) = &resource.storage {
        state.image_bytes -= resource.size;
    }
    if let Storage::Host { blob, shown, .. } = &resource.storage {
        if let Some(offset) = shown {
            if let Err(error) = state.host.hide(blob, *offset, false) {
                log::error!("window: {error}");
            }
        }
        state.host.free(blob);
    }
}
