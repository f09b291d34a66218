// SPDX-License-Identifier: GPL-2.0

//! Shared virtual memory: jobs use any pointer of the process.
//!
//! A context in fault mode has the whole address space of the process that enabled it. The device
//! reaches none of it at first. An access to a page that it does not reach stalls; the device sends
//! a FAULT, a thread of the process looks the page up as if the process had touched it ([`fault`]),
//! sends MAP for it and resolves the fault. Nothing is pinned, registered or referenced: what the
//! kernel does to the memory arrives by the notifiers of its windows ([`crate::mirror::Windows`]),
//! which tell the device before it happens.
//!
//! # What waits for what
//!
//! A job that is stalled may stay so for any time: its page may be behind a userfaultfd. So it has
//! no fence of the kernel. The host responds when it has accepted the job, and says by RING_DONE
//! when the job is over ([`jobs`]); programs wait by SVM_WAIT ([`wait`]) or read events. Nothing
//! that memory reclaim waits for depends on a fault: a device acknowledges INVALIDATE whatever is
//! stalled.
//!
//! # The end
//!
//! An address space ends with its file, with its process, or with the device, whichever comes first
//! ([`end`]). The threads end last, on a queue for which no one waits, since one that waits for a
//! process that is stopped ends when that goes on.

mod end;
mod fault;
mod inbox;
mod jobs;
mod query;
mod shortage;
mod stream;
mod vain;
mod wait;

pub(crate) use self::{
    end::{
        QUEUE,
        STOPS, //
    },
    jobs::{
        JobGuard,
        Kept,
        DROPS, //
    },
    wait::{
        Comparison,
        Until, //
    }, //
};

use self::{
    end::Phase,
    inbox::{
        Inbox,
        Worker, //
    },
    jobs::Jobs,
    query::Counts,
    shortage::Shortages,
    stream::Streams,
    vain::InVain, //
};
use crate::{
    context::Context,
    gpu::{
        Gpu,
        Reachable,
        ReachedBy, //
    },
    kapi::{
        drm::event::{
            BlankEvent,
            Payload,
            ReservedEvent, //
        },
        mm::{
            is_current,
            task_size, //
        },
        sync::KillableMutex,
        task::UserWorker, //
    },
    mirror::{
        NotifierLock,
        Space,
        Windows, //
    },
    protocol::{
        mirror::job_result,
        uapi::{
            svm_reason,
            SvmEvent,
            EVENT_SVM,
            SVM_NO_RING, //
        }, //
    },
    transport::{
        event::{
            Fault,
            Noted,
            RingDone,
            SpaceOwner, //
        },
        mirror::{
            MirrorQuota,
            SpaceOf, //
        }, //
    },
};
use kernel::{
    current,
    impl_has_work,
    mm::Mm,
    new_spinlock,
    new_spinlock_irq,
    new_work,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::Relaxed,
            Atomic,
            AtomicFlag, //
        },
        Arc,
        SpinLock,
        SpinLockIrq, //
    },
    workqueue::Work, //
};

/// Threads that serve faults, if the program does not say.
const WORKERS: usize = 2;

/// The end of the addresses that a process has unless it asks for higher ones.
const MOST_ADDRESSES: usize = (1 << 47) - PAGE_SIZE;

impl Payload for SvmEvent {
    const TYPE: u32 = EVENT_SVM;
}

/// What a program asks of its address space.
pub(crate) struct Params {
    /// Threads that serve faults, 0 for the usual number.
    pub(crate) workers: usize,
    /// A fault maps its own page only.
    pub(crate) exact: bool,
    /// Sent when the context is lost.
    pub(crate) event: Option<BlankEvent<SvmEvent>>,
    /// What the event repeats.
    pub(crate) cookie: u64,
}

/// Why an address space is of no use any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    /// An [`svm_reason`].
    pub(crate) reason: u32,
    /// The access that was not possible, or 0.
    pub(crate) access: u32,
    /// The ring of its job, or [`SVM_NO_RING`].
    pub(crate) ring: u32,
    /// Its address, or 0.
    pub(crate) address: u64,
}

impl Loss {
    /// The loss for which `fault` is refused.
    fn of(fault: &Fault, reason: u32) -> Self {
        Self {
            reason,
            access: fault.access,
            // No stream is ring -1, which is that of no ring.
            ring: fault.stream.wrapping_sub(1),
            address: fault.address,
        }
    }

    /// A loss that no access has caused.
    fn without_access(reason: u32) -> Self {
        Self {
            reason,
            access: 0,
            ring: SVM_NO_RING,
            address: 0,
        }
    }
}

/// The address space of a process, as jobs of a context use it.
#[pin_data(PinnedDrop)]
pub(crate) struct Svm {
    gpu: Arc<Gpu>,
    context: Arc<Context>,
    /// The process's.
    mm: ARef<Mm>,
    space: Arc<Space>,
    /// The lock of the windows' tables.
    lock: Arc<NotifierLock>,
    /// The end of the addresses.
    end: usize,
    exact: bool,
    cookie: u64,
    /// What the device has touched, and the notifiers.
    windows: Windows,
    /// Held while pages are revoked because the device has no room or has refused them, and while
    /// that is acknowledged.
    #[pin]
    revoking: KillableMutex<()>,
    /// Faults that are to be served, and who does that. Taken in the interrupt.
    #[pin]
    inbox: SpinLockIrq<Inbox>,
    /// Protects only itself.
    #[pin]
    streams: SpinLock<Streams>,
    /// Protects only itself.
    #[pin]
    in_vain: SpinLock<InVain>,
    /// Protects only itself.
    #[pin]
    shortages: SpinLock<Shortages>,
    /// How often room was made in the device since it has accepted a MAP.
    made_in_vain: Atomic<u32>,
    /// Pages that were evicted last, but for those that threads have asked for again whose MAPs
    /// were refused. Changed under `revoking`.
    unclaimed: Atomic<usize>,
    /// Jobs that are not over.
    jobs: Arc<Jobs>,
    /// The address from which on memory is evicted the next time.
    hand: Atomic<usize>,
    /// Why it is lost, if it is. Protects only itself.
    #[pin]
    loss: SpinLock<Option<Loss>>,
    /// Sent when it is lost.
    event: Option<BlankEvent<SvmEvent>>,
    counts: Counts,
    /// It is among what the device can reach.
    added: AtomicFlag,
    /// Protects only itself.
    #[pin]
    phase: SpinLock<Phase>,
    #[pin]
    end_work: Work<Svm, 1>,
    #[pin]
    stop_work: Work<Svm, 2>,
}

impl_has_work! {
    impl HasWork<Self, 1> for Svm { self.end_work }
    impl HasWork<Self, 2> for Svm { self.stop_work }
}

impl Svm {
    /// Puts `context` into fault mode, for the address space of the current process. The tables are
    /// under `lock`, and commands take room of `quota`. [`Svm::close`] is to be called when the
    /// file is closed.
    ///
    /// # Errors
    ///
    /// - [`EOPNOTSUPP`] if the device or the kernel cannot do this, or not for this kind of
    ///   context;
    /// - [`EBUSY`] if the context ever had jobs, or there are too many threads;
    /// - [`ENOSPC`] if the device has no more spaces;
    /// - [`ERESTARTNOINTR`] if a signal came first;
    /// - [`ENOMEM`], [`EINTR`], [`ENODEV`], that of the device.
    pub(crate) fn enable(
        gpu: &Arc<Gpu>,
        context: Arc<Context>,
        lock: &Arc<NotifierLock>,
        quota: &Arc<MirrorQuota>,
        params: Params,
    ) -> Result<Arc<Self>> {
        let max_faults = gpu.features.faults.ok_or(EOPNOTSUPP)?;
        let mm: ARef<Mm> = {
            let task = current!();
            let mm: &Mm = task.mm().ok_or(EFAULT)?;
            mm.into()
        };
        let end = task_size().min(MOST_ADDRESSES);
        let space = Arc::new(Space::new(gpu, quota, true)?, GFP_KERNEL)?;
        let Params {
            workers,
            exact,
            event,
            cookie,
        } = params;
        let inbox = Inbox::new(max_faults)?;
        let in_vain = InVain::new(max_faults)?;
        let jobs = Jobs::new()?;
        // The first notifier of a process is inserted only if no signal is pending, and the system
        // call can begin anew.
        let windows = Windows::new(gpu, lock, &space, &mm, end);
        let windows = windows.map_err(|e| if e == EINTR { ERESTARTNOINTR } else { e })?;
        let this = Arc::pin_init(
            pin_init!(Self {
                gpu: gpu.clone(),
                context,
                mm,
                space,
                lock: lock.clone(),
                end,
                exact,
                cookie,
                windows,
                revoking <- KillableMutex::new(
                    (),
                    c"Svm::revoking",
                    kernel::static_lock_class!(),
                ),
                inbox <- new_spinlock_irq!(inbox, "Svm::inbox"),
                streams <- new_spinlock!(Streams::new(), "Svm::streams"),
                in_vain <- new_spinlock!(in_vain, "Svm::in_vain"),
                shortages <- new_spinlock!(Shortages::none(), "Svm::shortages"),
                made_in_vain: Atomic::new(0),
                unclaimed: Atomic::new(0),
                jobs,
                hand: Atomic::new(0),
                loss <- new_spinlock!(None, "Svm::loss"),
                event,
                counts: Counts::new(),
                added: AtomicFlag::new(false),
                phase <- new_spinlock!(Phase::Beginning, "Svm::phase"),
                end_work <- new_work!("Svm::end_work"),
                stop_work <- new_work!("Svm::stop_work"),
            }),
            GFP_KERNEL,
        )?;
        gpu.counters.address_spaces.add(1);
        let workers = if workers == 0 { WORKERS } else { workers };
        let begun = this.begin(workers);
        if begun.is_err() {
            this.close();
        }
        this.has_begun();
        begun.map(|()| this)
    }

    fn begin(self: &Arc<Self>, workers: usize) -> Result {
        for index in 0..workers {
            let worker = UserWorker::new(Worker::new(self, index), c"virtgpu-svm");
            let worker = worker.map_err(|e| if e == EAGAIN { EBUSY } else { e })?;
            self.add_worker(worker)?;
        }
        self.context.set_fault_mode(true)?;
        let created = self.create_space();
        if created.is_err() {
            // No one has sent a job, as that takes what is returned.
            let _ = self.context.set_fault_mode(false);
        }
        created
    }

    fn create_space(self: &Arc<Self>) -> Result {
        let by = ReachedBy::Context(self.context.id());
        self.gpu.mappings.add(by, self.clone())?;
        let owner: Arc<dyn SpaceOwner> = self.clone();
        let of = SpaceOf::Context(self.context.id());
        let created = self.space.create(of, self.end as u64, Some(owner));
        match created {
            Ok(()) => self.added.store(true, Relaxed),
            // Nothing was mapped. Another one may follow before this one has ended.
            Err(_) => self.gpu.mappings.remove(by),
        }
        created
    }

    /// Notes a job for ring `ring`, which keeps `kept` to its end, and then sends `event`. Waits
    /// until there are few enough.
    ///
    /// # Errors
    ///
    /// - [`ERESTARTSYS`] on a fatal signal;
    /// - [`EIO`] if the context is lost, [`ENODEV`] if the device is.
    pub(crate) fn new_job(
        self: &Arc<Self>,
        ring: u32,
        event: Option<ReservedEvent>,
        kept: Kept,
    ) -> Result<JobGuard> {
        let (mut event, mut kept) = (event, kept);
        loop {
            self.check()?;
            (event, kept) = match self.jobs.add(ring, event, kept)? {
                Ok(number) => return Ok(JobGuard::new(self, number)),
                Err(back) => back,
            };
            let room = || self.jobs.has_room() || self.check().is_err();
            match self.jobs.wait.wait_killable_timeout(room, u32::MAX) {
                Err(e) if e != EBUSY => return Err(e),
                // Jobs may take any time.
                _ => {}
            }
        }
    }

    /// Waits until nothing is left of the jobs that are over by now.
    ///
    /// Waits for a worker, and no longer than for a response.
    pub(crate) fn settle(&self) {
        self.jobs.settle(self.gpu.transport.response_timeout_ms());
    }

    /// Fails in all but the process whose address space this is.
    ///
    /// # Errors
    ///
    /// [`EACCES`].
    pub(crate) fn check_process(&self) -> Result {
        if is_current(&self.mm) {
            Ok(())
        } else {
            Err(EACCES)
        }
    }

    /// Fails if the address space is of no use any more.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`EIO`] if the context is.
    pub(crate) fn check(&self) -> Result {
        self.gpu.transport.check()?;
        // A job may have failed of which the worker has not told yet.
        if self.loss.lock().is_some() || self.jobs.failure().is_some() {
            return Err(EIO);
        }
        self.context.check()
    }

    /// The context.
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The end of the addresses that jobs may use.
    pub(crate) fn va_end(&self) -> usize {
        self.end
    }

    /// The address space is of no use any more: the context takes no more jobs, and the program is
    /// told why. Only the first reason counts.
    fn lose(&self, loss: Loss) {
        {
            let mut place = self.loss.lock();
            if place.is_some() {
                return;
            }
            *place = Some(loss);
        }
        self.context.lose();
        if let Some(event) = &self.event {
            event.send(SvmEvent {
                reason: loss.reason,
                access: loss.access,
                addr: loss.address,
                cookie: self.cookie,
                ring: loss.ring,
                ..Default::default()
            });
        }
        self.jobs.wait.wake_all();
    }
}

#[pinned_drop]
impl PinnedDrop for Svm {
    fn drop(self: Pin<&mut Self>) {
        self.gpu.counters.gone_address_spaces.add(1);
    }
}

impl SpaceOwner for Svm {
    /// The device tells of the end of no job any more.
    fn space_lost(self: Arc<Self>) {
        self.lose(Loss::without_access(svm_reason::LOST));
        self.begin_end();
    }

    fn fault(&self, fault: Fault) -> Noted {
        self.note_fault(fault)
    }

    fn ring_done(&self, done: RingDone) -> Noted {
        self.jobs.note_end(done)
    }

    /// A job has failed.
    fn look(&self) {
        let Some(done) = self.jobs.failure() else {
            return;
        };
        self.lose(match done.result {
            // A fault that was refused has been reported before.
            job_result::FAULTED => Loss {
                reason: svm_reason::BAD_ADDRESS,
                access: 0,
                ring: done.ring,
                address: done.address,
            },
            _ => Loss {
                ring: done.ring,
                ..Loss::without_access(svm_reason::LOST)
            },
        });
    }
}

impl Reachable for Svm {
    /// Puts the pages in quarantine, and ends all jobs.
    fn release(&self) {
        self.windows.device_reset();
        self.lose(Loss::without_access(svm_reason::LOST));
        self.jobs.abort();
    }

    fn overdue(&self) {
        self.lose(Loss::without_access(svm_reason::LOST));
    }
}
