// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What exists in the device: resources, contexts, and the work that is queued on them.
//!
//! All of it is behind one lock, and says what commands need to know of jobs: which resources a job
//! can touch, and which commands wait for it. What jobs need of memory they hold themselves, so
//! that they run without the lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use virtgpu_protocol::compute::Op;
use virtgpu_protocol::virtio_gpu::{response, Header, FLAG_FENCE};

use crate::cancel::Cancel;
use crate::device::timelines::{Pool, Timeline, Which};
use crate::memory::hostmem::{HostBlob, HostMemory};
use crate::memory::image::{Copying, Image};
use crate::memory::lent::Lent;
use crate::memory::segments::Segments;
use crate::mirror::stall::Faulting;
use crate::misbehave::adversary::Attack;
use crate::queues::control::Response;
use crate::queues::control::Ticket;
use crate::virgl::Rendering;

/// What a resource is made of.
#[derive(Debug)]
pub(crate) enum Storage {
    /// A blob in guest memory, of this many entries.
    Guest(Arc<Segments>, u64),
    /// A blob whose guest memory was detached.
    Detached,
    /// A blob in host memory.
    Host {
        blob: Arc<HostBlob>,
        memory: Arc<Segments>,
        /// Where in the window the guest sees it.
        shown: Option<u64>,
        /// Whether it can be anything but zero.
        written: bool,
    },
    /// A blob whose memory is what a space maps.
    Mirrored(Arc<Segments>),
    /// Storage of the renderer, and the guest memory behind it.
    Rendered(Option<(Arc<Segments>, u64)>),
    /// Storage of the host, and the guest memory that is copied from and to, of this many entries.
    Image(Arc<Image>, Option<(Arc<Segments>, u64)>),
}

/// A resource.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) storage: Storage,
    pub(crate) size: u64,
    pub(crate) mappable: bool,
    pub(crate) uuid: Option<[u8; 16]>,
    /// UNREF came, its response has not gone out.
    pub(crate) dying: bool,
    /// What jobs in fault mode have borrowed of its memory, by their contexts.
    pub(crate) lent: BTreeMap<u32, Arc<Lent>>,
}

impl Resource {
    /// Revokes the memory that was lent to the jobs in fault mode: those of a context, or all.
    pub(crate) fn revoke(&mut self, ctx: Option<u32>) {
        self.lent.retain(|of, lent| {
            let keep = ctx.is_some_and(|ctx| ctx != *of);
            if !keep {
                lent.revoke();
            }
            keep
        });
    }

    /// What jobs can touch.
    pub(crate) fn memory(&self) -> Option<&Arc<Segments>> {
        match &self.storage {
            Storage::Guest(memory, _)
            | Storage::Host { memory, .. }
            | Storage::Mirrored(memory) => Some(memory),
            Storage::Detached | Storage::Rendered(_) | Storage::Image(..) => None,
        }
    }

    /// Guest memory: bytes and entries.
    pub(crate) fn guest(&self) -> (u64, u64) {
        match &self.storage {
            Storage::Guest(memory, entries)
            | Storage::Rendered(Some((memory, entries)))
            | Storage::Image(_, Some((memory, entries))) => (memory.size(), *entries),
            _ => (0, 0),
        }
    }
}

/// A context.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) capset: u32,
    /// It is the renderer's.
    pub(crate) virgl: bool,
    pub(crate) attached: BTreeSet<u32>,
    /// Ends its jobs.
    pub(crate) cancel: Arc<Cancel>,
    /// A job touched what it may not.
    pub(crate) lost: bool,
    /// CTX_DESTROY came, its response has not gone out.
    pub(crate) dying: bool,
    /// Jobs that are not over.
    pub(crate) jobs: usize,
    /// What they count for, see [`Live::ops`].
    pub(crate) ops: usize,
}

/// What a job does.
#[derive(Debug)]
pub(crate) enum Work {
    /// Operations of its context.
    Ops(Vec<Op>),
    /// A copy between an image and guest memory.
    Copy(Copying),
}

/// A job.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) ctx: u32,
    /// Its response goes out when it is over, if it is not out already.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) work: Work,
    /// The attached resources that it names, which stay until it is over.
    pub(crate) memory: BTreeMap<u32, Arc<Segments>>,
    pub(crate) cancel: Arc<Cancel>,
    /// It is one of a context in fault mode.
    pub(crate) faulting: Option<FaultingJob>,
}

/// What a job of a context in fault mode has.
#[derive(Debug)]
pub(crate) struct FaultingJob {
    /// The address space of the context.
    pub(crate) space: Arc<Faulting>,
    pub(crate) ring: u8,
    /// What the guest knows it by.
    pub(crate) fence: u64,
    /// How its request was mistreated.
    pub(crate) attack: Attack,
    /// The attached resources that it names.
    pub(crate) lent: BTreeMap<u32, Arc<Lent>>,
}

/// An element of a timeline.
#[derive(Debug)]
pub(crate) enum Item {
    Job(Job),
    /// What the renderer works on.
    Rendering(Ticket, Rendering),
    /// A response that must not overtake those before it.
    Response(Ticket, Response),
}

/// The elements of a timeline, and whether a worker is, or is called, to take one.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    pub(crate) items: VecDeque<Item>,
    pub(crate) busy: bool,
}

/// A job that is not over, as far as others wait for it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) ctx: u32,
    /// The resources that it can touch.
    pub(crate) reads: BTreeSet<u32>,
    /// Those of them that it can write.
    pub(crate) writes: BTreeSet<u32>,
    /// What it counts for among those that wait: one for itself and each operation.
    pub(crate) ops: usize,
    /// What ends it, if its context is gone and no one is to learn of its end.
    pub(crate) abandoned: Option<Arc<Cancel>>,
}

impl Live {
    /// Whether the context of this id waits for it.
    pub(crate) fn is_of(&self, ctx: u32) -> bool {
        self.ctx == ctx && self.abandoned.is_none()
    }
}

/// The rest of a command that waits until jobs are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Unref(u32),
    Detach {
        ctx: u32,
        resource: u32,
        /// The last job before: it may be attached again since.
        last: u64,
    },
    DestroyContext(u32),
    DetachBacking(u32),
    /// Of an image: it is not used for new copies already.
    DetachImage {
        resource: u32,
        entries: u64,
        /// The last job before: there may be other memory since.
        last: u64,
    },
    Map {
        resource: u32,
        offset: u64,
    },
    Unmap(u32),
}

impl Action {
    /// Whether its response is the permission to use memory for something else.
    pub(crate) fn ends_access(self) -> bool {
        match self {
            Self::Unref(_)
            | Self::Detach { .. }
            | Self::DestroyContext(_)
            | Self::DetachBacking(_)
            | Self::DetachImage { .. } => true,
            Self::Map { .. } | Self::Unmap(_) => false,
        }
    }
}

/// Whether the guest can see the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// The frontend has not been asked yet.
    Unknown,
    /// It has been asked.
    Asked,
    /// It can.
    There,
    /// It cannot.
    Missing,
}

/// What exists in the device.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) resources: HashMap<u32, Resource>,
    pub(crate) contexts: HashMap<u32, Context>,
    pub(crate) host: HostMemory,
    pub(crate) window: Window,
    pub(crate) lanes: HashMap<Timeline, Lane>,
    pub(crate) live: HashMap<u64, Live>,
    /// Ends the jobs of no context.
    pub(crate) cancel: Arc<Cancel>,
    /// What the live jobs count for.
    pub(crate) queued_ops: usize,
    /// Memory entries of the resources.
    pub(crate) entries: u64,
    /// Bytes of the storage of images.
    pub(crate) image_bytes: u64,
    /// What waits for jobs, and the request to respond to then, if that has not been done.
    pub(crate) deferred: VecDeque<(Option<Ticket>, Action)>,
    /// Resets so far.
    pub(crate) resets: u64,
    /// Jobs ever queued.
    pub(crate) jobs: u64,
    /// UUIDs ever given.
    pub(crate) uuids: u64,

    /// Workers of jobs that may stall.
    pub(crate) stallers: Pool,
    /// All others.
    pub(crate) workers: Pool,
    /// Jobs being executed right now.
    pub(crate) running: usize,
}

impl State {
    pub(crate) fn new(host: HostMemory) -> Self {
        let window = if host.size() == 0 {
            Window::Missing
        } else {
            Window::Unknown
        };
        Self {
            resources: HashMap::new(),
            contexts: HashMap::new(),
            host,
            window,
            lanes: HashMap::new(),
            live: HashMap::new(),
            cancel: Arc::default(),
            queued_ops: 0,
            entries: 0,
            image_bytes: 0,
            deferred: VecDeque::new(),
            resets: 0,
            jobs: 0,
            uuids: 0,
            stallers: Pool::default(),
            workers: Pool::default(),
            running: 0,
        }
    }

    /// The workers of a kind.
    pub(crate) fn pool(&mut self, which: Which) -> &mut Pool {
        match which {
            Which::Others => &mut self.workers,
            Which::Faulting => &mut self.stallers,
        }
    }

    /// The resource, unless it is dying.
    pub(crate) fn resource(&mut self, id: u32) -> Option<&mut Resource> {
        self.resources.get_mut(&id).filter(|r| !r.dying)
    }

    /// The context, unless it is dying.
    pub(crate) fn context(&mut self, id: u32) -> Option<&mut Context> {
        self.contexts.get_mut(&id).filter(|c| !c.dying)
    }

    /// Whether the resource is the renderer's.
    pub(crate) fn is_rendered(&self, id: u32) -> bool {
        let resource = self.resources.get(&id);
        resource.is_some_and(|r| matches!(r.storage, Storage::Rendered(_)))
    }

    /// Where the guest memory is kept that is copied from and to.
    ///
    /// # Errors
    ///
    /// The response, if there is no such resource, or none that can have such memory.
    pub(crate) fn backing(&mut self, id: u32) -> Result<&mut Option<(Arc<Segments>, u64)>, u32> {
        let resource = self.resource(id);
        match resource.map(|resource| &mut resource.storage) {
            None => Err(response::ERR_INVALID_RESOURCE_ID),
            Some(Storage::Rendered(backing) | Storage::Image(_, backing)) => Ok(backing),
            Some(_) => Err(response::ERR_INVALID_PARAMETER),
        }
    }

    /// A job is over, or will not begin; returns what was known of it.
    pub(crate) fn forget(&mut self, job: u64) -> Option<Live> {
        let live = self.live.remove(&job)?;
        self.queued_ops -= live.ops;
        let context = self.contexts.get_mut(&live.ctx);
        if let Some(context) = context.filter(|_| live.abandoned.is_none()) {
            context.jobs = context.jobs.saturating_sub(1);
            context.ops = context.ops.saturating_sub(live.ops);
        }
        Some(live)
    }

    /// Ends all jobs early.
    pub(crate) fn cancel_all(&mut self) {
        std::mem::take(&mut self.cancel).set();
        let abandoned = self.live.values().filter_map(|job| job.abandoned.as_ref());
        let cancels = self.contexts.values().map(|context| &context.cancel);
        cancels.chain(abandoned).for_each(|cancel| cancel.set());
    }

    /// The jobs that `action` waits for.
    pub(crate) fn jobs_before(&self, action: Action) -> impl Iterator<Item = u64> + '_ {
        let waits = move |id: u64, job: &Live| match action {
            Action::Unref(resource) | Action::Unmap(resource) | Action::DetachBacking(resource) => {
                job.reads.contains(&resource)
            }
            Action::Detach {
                ctx,
                resource,
                last,
            } => id <= last && job.is_of(ctx) && job.reads.contains(&resource),
            Action::DetachImage { resource, last, .. } => {
                id <= last && job.reads.contains(&resource)
            }
            Action::DestroyContext(ctx) => job.is_of(ctx),
            Action::Map { resource, .. } => job.writes.contains(&resource),
        };
        let jobs = self.live.iter().filter(move |(id, job)| waits(**id, job));
        jobs.map(|(id, _)| *id)
    }

    /// Whether `action` has to wait.
    pub(crate) fn is_blocked(&self, action: Action) -> bool {
        // A command must not overtake one that names what it ends access to.
        let detaches = |f: &dyn Fn(u32, u32) -> bool| {
            self.deferred.iter().any(|(_, earlier)| {
                matches!(*earlier, Action::Detach { ctx, resource, .. } if f(ctx, resource))
            })
        };
        let others = match action {
            Action::Unref(id) => {
                detaches(&|_, resource| resource == id) || self.moves(id).is_some()
            }
            Action::Unmap(id) => self.moves(id).is_some(),
            Action::DetachBacking(_) | Action::DetachImage { .. } | Action::Detach { .. } => false,
            Action::DestroyContext(ctx) => detaches(&|of, _| of == ctx),
            Action::Map { resource, .. } => {
                matches!(self.window, Window::Unknown | Window::Asked)
                    || self.moves(resource).is_some()
            }
        };
        others || self.jobs_before(action).next().is_some()
    }

    /// Whether the resource will be in the window when all is done that waits: none, if nothing
    /// waits that changes it.
    fn moves(&self, id: u32) -> Option<bool> {
        self.deferred
            .iter()
            .rev()
            .find_map(|(_, action)| match *action {
                Action::Map { resource, .. } if resource == id => Some(true),
                Action::Unmap(resource) if resource == id => Some(false),
                _ => None,
            })
    }

    /// Whether the resource is in the window for a command that comes now.
    pub(crate) fn is_shown(&self, id: u32) -> bool {
        let shown =
            |resource: &Resource| matches!(resource.storage, Storage::Host { shown: Some(_), .. });
        self.moves(id)
            .unwrap_or_else(|| self.resources.get(&id).is_some_and(shown))
    }

    /// Whether a response with this header has to wait for others on its timeline.
    pub(crate) fn is_behind(&self, header: &Header) -> bool {
        header.flags.get() & FLAG_FENCE != 0
            && self
                .lanes
                .get(&Timeline::of(header))
                .is_some_and(|lane| lane.busy || !lane.items.is_empty())
    }
}
