// SPDX-License-Identifier: GPL-2.0

//! Objects that are dropped where no one waits for it, and registrations of user memory whose last
//! reference went in a worker.
//!
//! Dropping an object may take long: an imported one waits for the reservation of its dma-buf,
//! which others hold as long as they like, and a large one has many pages to give back. Every
//! client waits for the worker that learns of the response to UNREF, so each object has a work of
//! its own, on another queue.
//!
//! The rest is about registrations.
//! Ending one waits for the device, and removing a notifier waits for all invalidations of a
//! process's memory, which that process can keep up for as long as it likes. So this must not be
//! done by a worker that others wait for. A file has a list of what it has to release, and a work
//! that goes through the list, so that a file waits for its own registrations only; several spaces
//! are ended at a time. The work is on a queue that neither the device's reset nor its removal
//! waits for: the mappings keep what a lost device may still reach until it has been reset.
//! USERPTR_REGISTER waits while too many of the file's registrations are being released.

use super::Resource;
use crate::{
    gpu::Gpu,
    kapi::{
        drm::gem::Owned,
        sync::{
            ModuleWorkqueue,
            WaitQueue, //
        },
    },
    transport::control::Response, //
};
use kernel::{
    impl_has_work,
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        List,
        ListArc,
        ListLinks,
        TryNewListArc, //
    },
    new_spinlock,
    new_work,
    prelude::*,
    sync::{
        Arc,
        SpinLock, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// What registrations are released on; it lives as long as the module.
pub(crate) static QUEUE: ModuleWorkqueue = ModuleWorkqueue::new();

/// What objects are dropped on, which are no registrations, and memory of others is unmapped on; it
/// lives as long as the module. Not the queue of the registrations, where a work may wait for the
/// memory of a process.
pub(crate) static DROPS: ModuleWorkqueue = ModuleWorkqueue::new();

/// Most registrations of a file that are being released when another is made.
const MAX_PENDING: usize = 64;

/// An object without references, until the host has responded to RESOURCE_UNREF.
#[pin_data]
pub(super) struct PendingUnref {
    /// Protects only itself.
    #[pin]
    pub(super) state: SpinLock<UnrefState>,
    /// In a list of [`Releases`].
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
    /// Drops the object.
    #[pin]
    drop_work: Work<PendingUnref, 1>,
}

impl_has_work! {
    impl HasWork<Self, 1> for PendingUnref { self.drop_work }
}
impl_list_arc_safe! {
    impl ListArcSafe<0> for PendingUnref { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for PendingUnref { using ListLinks { self.links }; }
}

impl PendingUnref {
    /// There is no object yet.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new() -> Result<Arc<Self>> {
        let state = UnrefState {
            object: None,
            in_release: None,
            waiter: false,
            ended: None,
        };
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock!(state, "PendingUnref::state"),
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
                drop_work <- new_work!("PendingUnref::drop_work"),
            }),
            GFP_KERNEL,
        )
    }

    /// The object is being released by a worker; that is over when it is dropped.
    fn set_in_release(&self, in_release: InRelease) {
        let old = self.state.lock().in_release.replace(in_release);
        drop(old);
    }

    /// Drops the object.
    pub(super) fn empty(&self) {
        let mut state = self.state.lock();
        let (object, in_release) = (state.object.take(), state.in_release.take());
        drop(state);
        drop(object);
        drop(in_release);
    }

    /// Has the object dropped where no one waits for it.
    pub(super) fn empty_later(self: &Arc<Self>) {
        if !DROPS.enqueue::<Arc<Self>, 1>(self.clone()) {
            // The module is being unloaded, and does not wait for this thread.
            self.empty();
        }
    }
}

impl WorkItem<1> for PendingUnref {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.empty();
    }
}

/// What becomes of such an object.
pub(super) struct UnrefState {
    pub(super) object: Option<Owned<Resource>>,
    /// Counts an object that is released by a worker.
    in_release: Option<InRelease>,
    /// A thread waits for the response, and will drop the object.
    pub(super) waiter: bool,
    /// How UNREF ended.
    pub(super) ended: Option<Response>,
}

struct Waiting {
    /// Registrations that the device may still reach.
    alive: List<PendingUnref>,
    /// Registrations of which the device knows nothing any more.
    ended: List<PendingUnref>,
    /// Registrations that were handed over and are not gone.
    pending: usize,
}

/// The registrations of a file that are being released by a worker.
#[pin_data]
pub(crate) struct Releases {
    /// Protects the lists and the count; nothing is taken inside.
    #[pin]
    waiting: SpinLock<Waiting>,
    /// Waiters for a lower count.
    #[pin]
    wait: WaitQueue,
    #[pin]
    work: Work<Releases, 1>,
    /// Ends registrations that the device may still reach, and releases them.
    end_all: fn(List<PendingUnref>),
}

impl_has_work! {
    impl HasWork<Self, 1> for Releases { self.work }
}

impl Releases {
    /// Nothing to release. Registrations that the device may still reach are to be ended by
    /// `end_all`, which waits for the device and for notifier callbacks.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(end_all: fn(List<PendingUnref>)) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                waiting <- new_spinlock!(
                    Waiting {
                        alive: List::new(),
                        ended: List::new(),
                        pending: 0,
                    },
                    "Releases::waiting"
                ),
                wait <- WaitQueue::new(),
                work <- new_work!("Releases::work"),
                end_all,
            }),
            GFP_KERNEL,
        )
    }

    /// Waits until so few of the file's registrations are being released that one more may be made.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if that takes longer than a response may, [`ERESTARTSYS`] on a fatal signal,
    /// [`ENODEV`].
    pub(crate) fn wait_for_room(&self, gpu: &Gpu) -> Result {
        // What jobs that are over still hold counts, too.
        gpu.control.settle();
        self.wait.wait_killable_timeout(
            || self.waiting.lock().pending < MAX_PENDING || gpu.transport.is_lost(),
            gpu.transport.response_timeout_ms(),
        )?;
        gpu.transport.check()
    }

    /// Has the worker end the registration in `pending`, and then release it.
    pub(super) fn end(self: &Arc<Self>, pending: Arc<PendingUnref>) {
        pending.set_in_release(InRelease::new(self));
        self.hand_over(pending, |waiting| &mut waiting.alive);
    }

    /// Has the worker drop the object in `pending`, of which the device knows nothing any more.
    pub(super) fn drop_later(self: &Arc<Self>, pending: Arc<PendingUnref>) {
        self.hand_over(pending, |waiting| &mut waiting.ended);
    }

    fn hand_over(
        self: &Arc<Self>,
        pending: Arc<PendingUnref>,
        list: impl FnOnce(&mut Waiting) -> &mut List<PendingUnref>,
    ) {
        // It is in no list: it gets here once alive, and once when it is not.
        if let Ok(pending) = ListArc::try_from_arc(pending) {
            list(&mut self.waiting.lock()).push_back(pending);
        }
        if !QUEUE.enqueue::<Arc<Self>, 1>(self.clone()) {
            // The module is being unloaded, and does not wait for this thread.
            self.release();
        }
    }

    fn release(&self) {
        loop {
            let (alive, mut ended) = {
                let mut waiting = self.waiting.lock();
                let Waiting { alive, ended, .. } = &mut *waiting;
                (
                    core::mem::replace(alive, List::new()),
                    core::mem::replace(ended, List::new()),
                )
            };
            if alive.is_empty() && ended.is_empty() {
                break;
            }
            // First what releases memory at once.
            while let Some(pending) = ended.pop_front() {
                pending.into_arc().empty();
            }
            if !alive.is_empty() {
                (self.end_all)(alive);
            }
        }
    }
}

impl WorkItem<1> for Releases {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.release();
    }
}

/// A registration that is being released by a worker, to be dropped when it is gone.
pub(super) struct InRelease(Arc<Releases>);

impl InRelease {
    fn new(releases: &Arc<Releases>) -> Self {
        releases.waiting.lock().pending += 1;
        Self(releases.clone())
    }
}

impl Drop for InRelease {
    fn drop(&mut self) {
        self.0.waiting.lock().pending -= 1;
        self.0.wait.wake_all();
    }
}
