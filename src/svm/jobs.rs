// SPDX-License-Identifier: GPL-2.0

//! Jobs of a context in fault mode, from their submission to RING_DONE.
//!
//! A job has no fence. It is noted before it is sent, since its end may be reported before the
//! response that it was accepted has been looked at: the two come through different queues. What a
//! job keeps, its buffers and an event, is dropped by a worker, as the interrupt must not do that.

use super::Svm;
use crate::{
    context::Context,
    kapi::{
        drm::event::ReservedEvent,
        sync::{
            ModuleWorkqueue,
            WaitQueue, //
        }, //
    },
    protocol::{
        mirror::job_result,
        virtio_gpu::MAX_RINGS, //
    },
    transport::{
        control::{
            Completion,
            Response, //
        },
        event::{
            Noted,
            RingDone,
            SpaceOwner, //
        }, //
    },
};
use kernel::{
    impl_has_work,
    new_spinlock_irq,
    new_work,
    prelude::*,
    sync::{
        Arc,
        SpinLockIrq, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// What jobs that are over are dropped on; it lives as long as the module. Not the queue on which
/// address spaces end, which waits for what processes do to their memory.
pub(crate) static DROPS: ModuleWorkqueue = ModuleWorkqueue::new();

/// Most jobs of an address space that are not over.
const MOST: usize = 256;
/// Most rings of a context.
const RINGS: usize = MAX_RINGS as usize;

/// What a job keeps.
pub(crate) type Kept = KBox<dyn Send>;

/// A job that is not over.
struct Job {
    /// What the driver calls it.
    number: u64,
    /// What the device calls it; 0 if it was not sent yet.
    fence_id: u64,
    ring: u32,
    /// The device has said that it will run.
    accepted: bool,
    event: Option<ReservedEvent>,
    _kept: Kept,
}

struct Inner {
    /// Those that are not over, in the order of their numbers. Never grows beyond its capacity.
    running: KVec<Job>,
    /// Those that are over, and which a worker is to drop, in the order of their ends. Never grows
    /// beyond its capacity, since there are no more of both than [`MOST`].
    over: KVec<Job>,
    next: u64,
    /// What the device calls the last job that was sent, by ring; 0 if none was.
    last: [u64; RINGS],
    /// Jobs that are over, ever.
    ends: u64,
    /// How many of these a worker has dropped.
    dropped: u64,
    /// The end of the first job that was not a good one.
    failure: Option<RingDone>,
    /// There will be none any more.
    closed: bool,
}

impl Inner {
    fn find(&self, number: u64) -> Option<usize> {
        self.running.iter().position(|job| job.number == number)
    }

    /// The job at `index` is over, which its event says if it was `sent`.
    fn end(&mut self, index: usize, sent: bool) {
        let Ok(job) = self.running.remove(index) else {
            return;
        };
        self.ends += 1;
        if let Some(event) = job.event.as_ref().filter(|_| sent) {
            event.send();
        }
        // There is room for all.
        let _ = self.over.push_within_capacity(job);
    }

    fn has_room(&self) -> bool {
        self.running.len() + self.over.len() < MOST
    }
}

/// The jobs of an address space.
#[pin_data]
pub(super) struct Jobs {
    /// Protects the lists and counts. Taken in the interrupt; a file's event is sent with it held.
    #[pin]
    inner: SpinLockIrq<Inner>,
    /// Waiters for the end of jobs.
    #[pin]
    pub(super) wait: WaitQueue,
    #[pin]
    drop_work: Work<Jobs, 1>,
}

impl_has_work! {
    impl HasWork<Self, 1> for Jobs { self.drop_work }
}

/// A job that was noted. Unless [`JobGuard::sent`] is called, it is forgotten when this is dropped.
pub(crate) struct JobGuard {
    svm: Arc<Svm>,
    number: u64,
    was_sent: bool,
}

impl JobGuard {
    /// The job that [`Jobs::add`] has noted.
    pub(super) fn new(svm: &Arc<Svm>, number: u64) -> Self {
        Self {
            svm: svm.clone(),
            number,
            was_sent: false,
        }
    }

    /// What is to be done when the device has responded to the job, which is one of `context`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn completion(&self, context: &Arc<Context>) -> Result<Arc<dyn Completion>> {
        let accepted = Acceptance {
            _context: context.clone(),
            svm: self.svm.clone(),
            number: self.number,
        };
        Ok(Arc::new(accepted, GFP_KERNEL)?)
    }

    /// The device calls the job `fence_id`. Called with the control queue's lock held.
    pub(crate) fn publish(&self, fence_id: u64) {
        let mut guard = self.svm.jobs.inner.lock();
        let inner = &mut *guard;
        let index = inner.find(self.number);
        if let Some(job) = index.and_then(|index| inner.running.get_mut(index)) {
            job.fence_id = fence_id;
            inner.last[job.ring as usize] = fence_id;
        }
    }

    /// The job is on its way.
    pub(crate) fn sent(mut self) {
        self.was_sent = true;
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        if !self.was_sent {
            self.svm.jobs.end(self.number, false);
        }
    }
}

/// The response to a job says whether it was accepted.
struct Acceptance {
    /// Has its id as long as the device may use it.
    _context: Arc<Context>,
    svm: Arc<Svm>,
    number: u64,
}

impl Completion for Acceptance {
    fn complete(self: Arc<Self>, response: &Response) {
        let jobs = &self.svm.jobs;
        match response {
            Response::Ok(_) => {}
            // That ends all jobs, and says why.
            Response::Aborted => return,
            _ => {
                jobs.refuse(self.number);
                self.svm.look();
                return;
            }
        }
        let mut inner = jobs.inner.lock();
        let index = inner.find(self.number);
        if let Some(job) = index.and_then(|index| inner.running.get_mut(index)) {
            job.accepted = true;
        }
    }
}

impl Jobs {
    /// No job.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new() -> Result<Arc<Self>> {
        let running = KVec::with_capacity(MOST, GFP_KERNEL)?;
        let over = KVec::with_capacity(MOST, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                inner <- new_spinlock_irq!(Inner {
                    running,
                    over,
                    next: 1,
                    last: [0; RINGS],
                    ends: 0,
                    dropped: 0,
                    failure: None,
                    closed: false,
                }, "Svm::jobs"),
                wait <- WaitQueue::new(),
                drop_work <- new_work!("Jobs::drop_work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Notes a job for ring `ring`, which keeps `kept` to its end, and then sends `event`; unless
    /// there are too many, which gives both back.
    ///
    /// # Errors
    ///
    /// [`EIO`] if there will be no jobs any more.
    pub(super) fn add(
        self: &Arc<Self>,
        ring: u32,
        event: Option<ReservedEvent>,
        kept: Kept,
    ) -> Result<Result<u64, (Option<ReservedEvent>, Kept)>> {
        let mut inner = self.inner.lock();
        if inner.closed {
            // What is given back may be dropped only without the lock.
            drop(inner);
            return Err(EIO);
        }
        if !inner.has_room() {
            return Ok(Err((event, kept)));
        }
        let number = inner.next;
        inner.next += 1;
        let job = Job {
            number,
            fence_id: 0,
            ring,
            accepted: false,
            event,
            _kept: kept,
        };
        // There is room.
        let _ = inner.running.push_within_capacity(job);
        Ok(Ok(number))
    }

    /// Whether [`Jobs::add`] would say more than that there are too many.
    pub(super) fn has_room(&self) -> bool {
        let inner = self.inner.lock();
        inner.closed || inner.has_room()
    }

    /// What the device calls the last job that was sent on a ring; 0 if none was.
    pub(super) fn last_of_ring(&self, ring: u32) -> u64 {
        self.inner.lock().last[ring as usize % RINGS]
    }

    /// Whether the jobs of a ring are over up to the one that the device calls `last`. It may have
    /// refused a job at once that was sent behind another, so that their number does not tell.
    pub(super) fn are_over(&self, ring: u32, last: u64) -> bool {
        let is_one = |job: &Job| job.ring == ring && (1..=last).contains(&job.fence_id);
        !self.inner.lock().running.iter().any(is_one)
    }

    /// How many jobs are over, ever.
    pub(super) fn ends(&self) -> u64 {
        self.inner.lock().ends
    }

    /// The end of the first job that was not a good one.
    pub(super) fn failure(&self) -> Option<RingDone> {
        self.inner.lock().failure
    }

    /// The device has refused a job: it is over, and was not a good one.
    fn refuse(self: &Arc<Self>, number: u64) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if let Some(index) = inner.find(number) {
            let ring = inner.running.get(index).map_or(0, |job| job.ring);
            inner.failure.get_or_insert(RingDone {
                ring,
                fence_id: 0,
                result: job_result::FAILED,
                address: 0,
            });
            inner.end(index, true);
        }
        drop(guard);
        self.ended();
    }

    /// A job is over, or was never `sent`.
    fn end(self: &Arc<Self>, number: u64, sent: bool) {
        let mut inner = self.inner.lock();
        if let Some(index) = inner.find(number) {
            inner.end(index, sent);
        }
        drop(inner);
        self.ended();
    }

    /// Has those look again who wait for jobs, and what is over dropped.
    fn ended(self: &Arc<Self>) {
        self.wait.wake_all();
        if !DROPS.enqueue::<Arc<Self>, 1>(self.clone()) {
            // The module is being unloaded, so that this is no interrupt.
            self.drop_over();
        }
    }

    fn drop_over(&self) {
        loop {
            let job = self.inner.lock().over.remove(0);
            if job.is_err() {
                break;
            }
            drop(job);
            self.inner.lock().dropped += 1;
            self.wait.wake_all();
        }
    }

    /// Waits until a worker has dropped what the jobs that are over by now have kept, but no longer
    /// than `ms` milliseconds.
    pub(super) fn settle(&self, ms: u32) {
        let ends = self.ends();
        let settled = || self.inner.lock().dropped >= ends;
        self.wait.wait_timeout(settled, ms);
    }

    /// Takes note of RING_DONE, in the interrupt.
    pub(super) fn note_end(self: &Arc<Self>, done: RingDone) -> Noted {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Noted::Done;
        }
        let is_it = |job: &Job| job.ring == done.ring && job.fence_id == done.fence_id;
        let Some(index) = inner.running.iter().position(is_it) else {
            return Noted::Refused;
        };
        // Those before it on its ring were not accepted, or else they would be over.
        let is_before =
            |job: &&Job| job.ring == done.ring && job.fence_id != 0 && job.fence_id < done.fence_id;
        let overtakes = inner
            .running
            .iter()
            .filter(is_before)
            .any(|job| job.accepted);
        if overtakes || done.fence_id == 0 || done.result > job_result::CANCELLED {
            return Noted::Refused;
        }
        let is_bad = matches!(done.result, job_result::FAILED | job_result::FAULTED);
        let is_first = is_bad && inner.failure.is_none();
        if is_first {
            inner.failure = Some(done);
        }
        inner.end(index, true);
        drop(inner);
        self.ended();
        if is_first {
            Noted::Look
        } else {
            Noted::Done
        }
    }

    /// There are no jobs any more: the device does not run them, or is gone.
    pub(super) fn abort(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        while !inner.running.is_empty() {
            let last = inner.running.len() - 1;
            inner.end(last, true);
        }
        drop(inner);
        self.ended();
    }
}

impl WorkItem<1> for Jobs {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.drop_over();
    }
}
