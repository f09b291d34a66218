// SPDX-License-Identifier: GPL-2.0

//! The control queue: requests, answers, fences, and the end of a device.
//!
//! # Ways of a command
//!
//! A command is a [`Message`], owned in turn by who makes it, by the virtqueue, by the interrupt
//! handler, and by a worker that runs its [`Finish`] and frees it. Fences are signalled in the
//! interrupt; everything that may sleep or free memory of others is the worker's.
//!
//! # Room in the ring
//!
//! A sender takes a [`Credit`] for the most descriptors that its command can take before it takes
//! any lock, so that adding to the ring cannot fail for lack of room. One file gets a quarter of
//! the ring at most. [`TEARDOWN_RESERVE`] descriptors are kept for commands that take something
//! away; such a command never waits, it is put into a backlog if need be.
//!
//! # The end of a device
//!
//! A device that breaks the protocol, does not answer in time, or is removed is *lost*: waiters
//! return, no more commands are sent, and a worker resets it. Only when the reset has returned is
//! the device known not to write, and only then are the fences signalled with an error, the
//! commands finished as aborted, and what they hold released. A device that does not return from
//! its reset for [`RESET_TIMEOUT_MS`] gets its fences signalled nevertheless, so that others can
//! go on; its memory then stays, and so does the module: removal waits for the reset.

use crate::{
    kapi::{
        dma::{
            fence::Signalling,
            DriverFence, //
        },
        sync::{
            cancel_delayed_sync,
            WaitQueue,
            Workqueue, //
        },
        virtio::{
            self,
            queue,
            Chunks,
            Message,
            Queue,
            QueueHandler, //
        },
    },
    protocol::virtio_gpu::{
        response,
        Header,
        FLAG_FENCE,
        FLAG_INFO_RING_IDX, //
    },
};
use kernel::{
    device, impl_has_delayed_work, impl_has_work,
    list::{
        List,
        ListArc, //
    },
    new_delayed_work, new_spinlock_irq, new_work,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic, AtomicFlag,
        },
        Arc,
        ArcBorrow,
        SpinLockIrq, //
    },
    time::{
        msecs_to_jiffies,
        Instant,
        Monotonic, //
    },
    workqueue::{
        DelayedWork,
        Work,
        WorkItem, //
    },
};
use zerocopy::IntoBytes;

/// Descriptors kept for commands that take something away.
const TEARDOWN_RESERVE: usize = 16;
/// How long a reset may take until others are not kept waiting any longer.
const RESET_TIMEOUT_MS: u32 = 10_000;
/// How often the watchdog looks.
const WATCHDOG_MS: u32 = 1_000;
/// `Shared::verdict` of a command that is on its way.
const PENDING: u32 = 0;
/// `Shared::verdict` of a command that the device did not answer.
const ABORTED: u32 = 1;

/// A command of the control queue.
pub(crate) type Command = Message<Shared, Owned>;

/// What everybody who waits for a command sees of it.
#[pin_data]
pub(crate) struct Shared {
    /// What the device answered: a [`response`], or [`PENDING`] or [`ABORTED`]. Judged once, because
    /// the device can change its answer afterwards.
    verdict: Atomic<u32>,
    /// When the answer must have come, as in [`Control::now`]; 0 for no limit. Changed under the
    /// control queue's lock.
    deadline: Atomic<i64>,
    /// The context whose job it is, or 0.
    job_of: u32,
    /// The device may answer only when the jobs are done that use what this takes away.
    after_jobs: AtomicFlag,
    /// Signalled when the answer comes. Protects the fence only.
    #[pin]
    fence: SpinLockIrq<Option<DriverFence>>,
}

/// What goes with a command to its end.
pub(crate) struct Owned {
    header: Header,
    /// Descriptors taken from the ring.
    slots: usize,
    /// Where they are counted, unless the command takes something away.
    share: Option<Arc<Share>>,
    /// The place in [`Inner::in_flight`].
    index: usize,
    expect: Expect,
    /// The [`response`] that means success.
    success: u32,
    finish: Option<KBox<dyn Finish>>,
}

/// Whether the device may refuse a command.
pub(crate) enum Expect {
    /// It may.
    Anything,
    /// It may not: a device that does is not to be trusted.
    Success,
    /// It may only if it has refused the other command, which this one undoes.
    SuccessUnlessFailed(Arc<Command>),
}

/// What is left to do when a command has come to its end.
pub(crate) trait Finish: Send {
    /// Called once, by the control queue's worker, which no fence waits for.
    ///
    /// Either the device has answered, or it has been reset: in both cases it is done with the
    /// command. `self` is dropped afterwards.
    fn finish(&mut self, answer: &Answer);
}

/// What is to happen when a device has been reset.
pub(crate) trait OnReset: Send + Sync {
    /// Called once, when the device is known not to access memory any more, and the commands that
    /// it knew have been finished. May sleep.
    fn reset(&self);
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The device has answered with a [`response`] `OK_*`.
    Ok(u32),
    /// The device has answered with a [`response`] `ERR_*`.
    Error(u32),
    /// The device was reset.
    Aborted,
}

impl Answer {
    /// The error that userspace gets for an answer.
    pub(crate) fn to_result(self) -> Result<u32> {
        match self {
            Answer::Ok(kind) => Ok(kind),
            Answer::Error(kind) => Err(match kind {
                response::ERR_OUT_OF_MEMORY => ENOMEM,
                response::ERR_INVALID_PARAMETER => EINVAL,
                _ => EIO,
            }),
            Answer::Aborted => Err(ENODEV),
        }
    }
}

/// A file's part of the ring.
pub(crate) struct Share {
    /// Descriptors in use; changed under the control queue's lock.
    used: Atomic<usize>,
}

impl Share {
    /// An unused share.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                used: Atomic::new(0),
            },
            GFP_KERNEL,
        )?)
    }
}

/// The right to add a command to the ring.
pub(crate) struct Credit {
    control: Arc<Control>,
    share: Arc<Share>,
    slots: usize,
}

impl Credit {
    /// Splits off a credit for `slots` of the descriptors.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it has fewer.
    pub(crate) fn split(&mut self, slots: usize) -> Result<Self> {
        self.slots = self.slots.checked_sub(slots).ok_or(EINVAL)?;
        Ok(Self {
            control: self.control.clone(),
            share: self.share.clone(),
            slots,
        })
    }

    /// Turns the credit into descriptors in use.
    fn spend(mut self) -> (usize, Arc<Share>) {
        (core::mem::take(&mut self.slots), self.share.clone())
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if self.slots > 0 {
            let mut inner = self.control.inner.lock();
            inner.free += self.slots;
            self.share
                .used
                .store(self.share.used.load(Relaxed) - self.slots, Relaxed);
            self.control.send_backlog(&mut inner);
            drop(inner);
            self.control.wait.wake_all();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Commands can be sent.
    Running,
    /// The device may still write to memory, but is not trusted any more.
    Lost,
    /// The device has been reset.
    Reset,
}

struct Inner {
    state: State,
    /// `None` before the start and after the removal.
    queue: Option<Queue<Control, Shared, Owned>>,
    /// Never used, but the device counts on it.
    cursor: Option<Queue<Control, Shared, Owned>>,
    /// Descriptors for ordinary commands.
    free: usize,
    /// Descriptors for commands that take something away.
    reserve: usize,
    /// Descriptors in the ring.
    ring_size: usize,
    next_fence: u64,
    /// The commands in the ring; as many places as the ring has descriptors.
    in_flight: KVec<Option<Arc<Command>>>,
    /// Commands that take something away, waiting for descriptors.
    backlog: List<Command>,
    /// Commands that must not be finished before the reset.
    held: List<Command>,
    /// The watchdog is pending or running.
    watching: bool,
}

/// How long a device may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// To answer a command that is not a job, in milliseconds. Waits are bounded by it, too.
    pub(crate) answer_ms: u32,
    /// To end a job, in milliseconds; 0 for no limit.
    pub(crate) job_ms: u32,
}

/// The control queue of a device.
#[pin_data]
pub(crate) struct Control {
    vdev: ARef<virtio::Device>,
    timeouts: Timeouts,
    epoch: Instant<Monotonic>,
    on_reset: Arc<dyn OnReset>,
    lost: AtomicFlag,
    /// Protects the ring and the counts. Taken in the interrupt; the innermost lock but for
    /// [`Shared::fence`] and `done`.
    #[pin]
    inner: SpinLockIrq<Inner>,
    /// Protects the list of commands that wait for their [`Finish`].
    #[pin]
    done: SpinLockIrq<List<Command>>,
    /// Waiters for credits and answers.
    #[pin]
    wait: WaitQueue,
    workqueue: Workqueue,
    reset_workqueue: Workqueue,
    #[pin]
    finish_work: Work<Control, 1>,
    #[pin]
    reset_work: Work<Control, 2>,
    #[pin]
    reset_overdue: DelayedWork<Control, 3>,
    #[pin]
    watchdog: DelayedWork<Control, 4>,
}

impl_has_work! {
    impl HasWork<Self, 1> for Control { self.finish_work }
    impl HasWork<Self, 2> for Control { self.reset_work }
}
impl_has_delayed_work! {
    impl HasDelayedWork<Self, 3> for Control { self.reset_overdue }
    impl HasDelayedWork<Self, 4> for Control { self.watchdog }
}

/// How a command is made; [`Control::add`] and its siblings send it.
pub(crate) struct Request<'a> {
    /// Type and context; fence and ring are added on sending.
    pub(crate) header: Header,
    /// The fixed part, which begins with a header.
    pub(crate) fixed: &'a [u8],
    /// The variable part.
    pub(crate) payload: Chunks,
    /// Bytes of the fixed part of the answer.
    pub(crate) response_len: usize,
    /// The variable part of the answer.
    pub(crate) reply: Chunks,
    /// A fence to signal when the answer comes, and the ring of the context it belongs to.
    pub(crate) fence: Option<(DriverFence, Option<u8>)>,
    /// The answer may take as long as a job.
    pub(crate) job: bool,
    /// The answer may have to wait for jobs.
    pub(crate) after_jobs: bool,
    /// The [`response`] that means success.
    pub(crate) success: u32,
    /// Whether the device may refuse it.
    pub(crate) expect: Expect,
    /// What is left to do then.
    pub(crate) finish: Option<KBox<dyn Finish>>,
}

impl<'a> Request<'a> {
    /// A request without variable parts, answered by a bare header.
    pub(crate) fn new<T: IntoBytes + zerocopy::Immutable>(header: Header, fixed: &'a T) -> Self {
        Self {
            header,
            fixed: fixed.as_bytes(),
            payload: Chunks::new(),
            response_len: size_of::<Header>(),
            reply: Chunks::new(),
            fence: None,
            job: false,
            after_jobs: false,
            success: response::OK_NODATA,
            expect: Expect::Anything,
            finish: None,
        }
    }

    /// Says that success is a `kind` with a fixed part of type `T`.
    pub(crate) fn answered_by<T>(&mut self, kind: u32) {
        self.success = kind;
        self.response_len = size_of::<T>();
    }

    /// Allocates the command.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn build(self) -> Result<ListArc<Command>> {
        let mut header = self.header;
        let fence = self.fence.map(|(fence, ring)| {
            header.flags = (header.flags.get() | FLAG_FENCE).into();
            if let Some(ring) = ring {
                header.flags = (header.flags.get() | FLAG_INFO_RING_IDX).into();
                header.ring_idx = ring;
            }
            fence
        });
        let after_jobs = self.after_jobs;
        let job_of = if self.job { header.ctx_id.get() } else { 0 };
        Message::new(
            self.fixed,
            self.payload,
            self.response_len,
            self.reply,
            pin_init!(Shared {
                verdict: Atomic::new(PENDING),
                deadline: Atomic::new(0),
                job_of,
                after_jobs: AtomicFlag::new(after_jobs),
                fence <- new_spinlock_irq!(fence, "Command::fence"),
            }),
            Owned {
                header,
                slots: 0,
                share: None,
                index: 0,
                expect: self.expect,
                success: self.success,
                finish: self.finish,
            },
        )
    }
}

impl Control {
    /// A control queue without ring; [`Control::start`] sets it up.
    ///
    /// When the device has been reset, `on_reset` is called.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(
        vdev: &virtio::Device<device::Core<'_>>,
        timeouts: Timeouts,
        on_reset: Arc<dyn OnReset>,
    ) -> Result<Arc<Self>> {
        let workqueue = Workqueue::new(c"virtgpu-control")?;
        let reset_workqueue = Workqueue::new(c"virtgpu-reset")?;
        Arc::pin_init(
            try_pin_init!(Self {
                vdev: vdev.into(),
                timeouts,
                epoch: Instant::now(),
                on_reset,
                lost: AtomicFlag::new(false),
                inner <- new_spinlock_irq!(Inner {
                    state: State::Running,
                    queue: None,
                    cursor: None,
                    free: 0,
                    reserve: 0,
                    ring_size: 0,
                    next_fence: 1,
                    in_flight: KVec::new(),
                    backlog: List::new(),
                    held: List::new(),
                    watching: false,
                }, "Control::inner"),
                done <- new_spinlock_irq!(List::new(), "Control::done"),
                wait <- WaitQueue::new(),
                workqueue,
                reset_workqueue,
                finish_work <- new_work!("Control::finish_work"),
                reset_work <- new_work!("Control::reset_work"),
                reset_overdue <- new_delayed_work!("Control::reset_overdue"),
                watchdog <- new_delayed_work!("Control::watchdog"),
            }),
            GFP_KERNEL,
        )
    }

    /// Finds the queues of the device, which is being probed, and makes it ready.
    ///
    /// # Errors
    ///
    /// Those of the transport, [`ENOMEM`], and [`EINVAL`] if the ring is too small.
    pub(crate) fn start(self: &Arc<Self>, vdev: &virtio::Device<device::Core<'_>>) -> Result {
        let [queue, cursor] = queue::find_queues(vdev, self.clone(), [c"control", c"cursor"])?;
        let ring_size = queue.size();
        if ring_size < 2 * TEARDOWN_RESERVE {
            return Err(EINVAL);
        }
        let mut in_flight = KVec::with_capacity(ring_size, GFP_KERNEL)?;
        for _ in 0..ring_size {
            in_flight.push(None, GFP_KERNEL)?;
        }
        {
            let mut inner = self.inner.lock();
            inner.queue = Some(queue);
            inner.cursor = Some(cursor);
            inner.in_flight = in_flight;
            inner.ring_size = ring_size;
            inner.free = ring_size - TEARDOWN_RESERVE;
            inner.reserve = TEARDOWN_RESERVE;
        }
        vdev.ready();
        Ok(())
    }

    /// The most descriptors that one command may take: a file's part of the ring.
    pub(crate) fn max_descriptors(&self) -> usize {
        self.inner.lock().ring_size / 4
    }

    /// Whether the device is lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Acquire)
    }

    /// Fails if the device is lost.
    ///
    /// # Errors
    ///
    /// [`ENODEV`].
    pub(crate) fn check(&self) -> Result {
        if self.is_lost() {
            return Err(ENODEV);
        }
        Ok(())
    }

    /// Waits for room for a command of `slots` descriptors.
    ///
    /// Must be called before any lock is taken that the end of a job may need.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`ERESTARTSYS`] on a fatal signal, [`EBUSY`] if jobs kept
    /// the ring full for the time of a whole time-out, [`E2BIG`] if `slots` is more than a file
    /// gets.
    pub(crate) fn credit(self: &Arc<Self>, share: &Arc<Share>, slots: usize) -> Result<Credit> {
        if slots > self.max_descriptors() {
            return Err(E2BIG);
        }
        let mut taken = false;
        let waited = self.wait.wait_killable_timeout(
            || {
                taken = taken || self.try_credit(share, slots);
                taken || self.is_lost()
            },
            self.timeouts.answer_ms,
        );
        if !taken {
            waited?;
            return Err(ENODEV);
        }
        Ok(Credit {
            control: self.clone(),
            share: share.clone(),
            slots,
        })
    }

    fn try_credit(&self, share: &Share, slots: usize) -> bool {
        let mut inner = self.inner.lock();
        let used = share.used.load(Relaxed);
        if inner.free < slots || used + slots > inner.ring_size / 4 {
            return false;
        }
        inner.free -= slots;
        share.used.store(used + slots, Relaxed);
        true
    }

    /// Puts a command into the ring; [`Control::kick`] tells the device. Does not sleep.
    ///
    /// Its fence, if it has one, gets its number here, so that numbers ascend in each timeline.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost. The command then is dropped unseen by the device.
    pub(crate) fn add(self: &Arc<Self>, command: ListArc<Command>, credit: Credit) -> Result {
        let mut command = command;
        let (slots, share) = credit.spend();
        let owned = Message::owned(&mut command);
        owned.slots = slots;
        owned.share = Some(share);

        let mut inner = self.inner.lock();
        let outcome = self.add_locked(&mut inner, command);
        drop(inner);
        outcome.map_err(|(mut command, e)| {
            self.return_slots(&mut self.inner.lock(), Message::owned(&mut command));
            self.wait.wake_all();
            // Dropping the command may free memory of others, hence not under the lock.
            drop(command);
            e
        })
    }

    fn add_locked(
        self: &Arc<Self>,
        inner: &mut Inner,
        mut command: ListArc<Command>,
    ) -> Result<(), (ListArc<Command>, Error)> {
        if inner.state != State::Running || inner.queue.is_none() {
            return Err((command, ENODEV));
        }
        let Some(index) = inner.in_flight.iter().position(Option::is_none) else {
            return Err((command, ENOSPC));
        };

        let owned = Message::owned(&mut command);
        owned.index = index;
        let mut header = owned.header;
        if header.flags.get() & FLAG_FENCE != 0 {
            header.fence_id = inner.next_fence.into();
            Message::owned(&mut command).header = header;
            if let Some(fence) = &mut *command.shared.fence.lock() {
                fence.set_sequence(inner.next_fence);
            }
        }
        Message::patch_request(&mut command, 0, header.as_bytes());

        let reference = command.clone_arc();
        let job_of = reference.shared.job_of;
        let Some(queue) = inner.queue.as_mut() else {
            return Err((command, ENODEV));
        };
        if let Err((command, e)) = queue.add(command) {
            if e == ENOMEM || e == ENOSPC {
                return Err((command, e));
            }
            dev_err!(self.vdev, "device lost: its ring is broken\n");
            self.lose_locked(inner);
            return Err((command, ENODEV));
        }
        inner.in_flight[index] = Some(reference);
        if header.flags.get() & FLAG_FENCE != 0 {
            inner.next_fence += 1;
        }
        let limit = if job_of == 0 {
            self.timeouts.answer_ms
        } else {
            self.timeouts.job_ms
        };
        if limit != 0 {
            self.watch(inner, index, limit);
        }
        Ok(())
    }

    /// Milliseconds since the device was found.
    fn now(&self) -> i64 {
        self.epoch.elapsed().as_millis()
    }

    /// Has the watchdog look after the command in place `index`, which must be answered within
    /// `limit_ms`.
    fn watch(self: &Arc<Self>, inner: &mut Inner, index: usize, limit_ms: u32) {
        if let Some(command) = &inner.in_flight[index] {
            let deadline = self.now() + i64::from(limit_ms);
            command.shared.deadline.store(deadline, Relaxed);
        }
        self.arm_watchdog(inner);
    }

    fn arm_watchdog(self: &Arc<Self>, inner: &mut Inner) {
        if !inner.watching {
            inner.watching = true;
            let delay = msecs_to_jiffies(WATCHDOG_MS);
            let _ = self
                .reset_workqueue
                .enqueue_delayed::<Arc<Self>, 4>(self.clone(), delay);
        }
    }

    /// The context is being destroyed: its jobs must end now.
    pub(crate) fn bound_jobs(self: &Arc<Self>, context_id: u32) {
        let mut inner = self.inner.lock();
        for index in 0..inner.in_flight.len() {
            let unbound = inner.in_flight[index].as_ref().is_some_and(|command| {
                command.shared.job_of == context_id && command.shared.deadline.load(Relaxed) == 0
            });
            if unbound {
                self.watch(&mut inner, index, self.timeouts.answer_ms);
            }
        }
    }

    /// Tells the device that there are new commands.
    pub(crate) fn kick(&self) {
        let mut inner = self.inner.lock();
        if inner.state == State::Running {
            if let Some(queue) = inner.queue.as_mut() {
                queue.kick();
            }
        }
    }

    /// Sends a command that takes something away. Cannot fail, and does not sleep unless the
    /// device has been reset; then the command is finished on the spot.
    pub(crate) fn teardown(self: &Arc<Self>, command: ListArc<Command>) {
        command.shared.after_jobs.store(true, Relaxed);
        let mut inner = self.inner.lock();
        match inner.state {
            State::Running => {
                inner.backlog.push_back(command);
                self.send_backlog(&mut inner);
            }
            State::Lost => inner.held.push_back(command),
            State::Reset => {
                drop(inner);
                let mut command = command;
                Self::abort(&command);
                Self::finish(&mut command);
            }
        }
    }

    fn send_backlog(self: &Arc<Self>, inner: &mut Inner) {
        if inner.state != State::Running {
            return;
        }
        let mut added = false;
        while let Some(mut command) = inner.backlog.pop_front() {
            let slots = command.descriptors();
            if inner.reserve >= slots {
                inner.reserve -= slots;
            } else if inner.free >= slots {
                inner.free -= slots;
            } else {
                inner.backlog.push_front(command);
                break;
            }
            Message::owned(&mut command).slots = slots;
            match self.add_locked(inner, command) {
                Ok(()) => added = true,
                Err((mut command, _)) => {
                    // No memory to map it for the device: the next answer, or the watchdog, tries
                    // again.
                    self.return_slots(inner, Message::owned(&mut command));
                    if inner.state == State::Running {
                        inner.backlog.push_front(command);
                        self.arm_watchdog(inner);
                    } else {
                        inner.held.push_back(command);
                    }
                    break;
                }
            }
        }
        if added && inner.state == State::Running {
            if let Some(queue) = inner.queue.as_mut() {
                queue.kick();
            }
        }
    }

    fn return_slots(&self, inner: &mut Inner, owned: &mut Owned) {
        let slots = core::mem::take(&mut owned.slots);
        match owned.share.take() {
            Some(share) => {
                inner.free += slots;
                // The owner of the command holds a reference elsewhere or is gone; either way the
                // last one may be dropped here, which frees nothing but the counter.
                share.used.store(share.used.load(Relaxed) - slots, Relaxed);
            }
            None => {
                let reserve = (TEARDOWN_RESERVE - inner.reserve).min(slots);
                inner.reserve += reserve;
                inner.free += slots - reserve;
            }
        }
    }

    /// Waits for the answer to a command, uninterruptibly but not longer than the time-out, after
    /// which the device is lost, unless it may be waiting for jobs.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`EBUSY`] if it may be waiting for jobs. It may still know
    /// of everything in the command.
    pub(crate) fn wait(self: &Arc<Self>, command: &Command) -> Result<Answer> {
        let answered = || command.shared.verdict.load(Acquire) != PENDING;
        if !self
            .wait
            .wait_timeout(|| answered() || self.is_lost(), self.timeouts.answer_ms)
        {
            if command.shared.after_jobs.load(Relaxed) {
                // The watchdog goes on watching.
                return Err(EBUSY);
            }
            self.lose(c"it did not answer a command in time");
        }
        match command.shared.verdict.load(Acquire) {
            PENDING | ABORTED => Err(ENODEV),
            _ => Ok(Self::answer(command)),
        }
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    ///
    /// Those of [`Control::credit`], [`Control::add`] and [`Control::wait`], and that of the
    /// answer.
    pub(crate) fn call(
        self: &Arc<Self>,
        share: &Arc<Share>,
        command: ListArc<Command>,
    ) -> Result<Arc<Command>> {
        let reference = command.clone_arc();
        let credit = self.credit(share, command.descriptors())?;
        self.add(command, credit)?;
        self.kick();
        self.wait(&reference)?.to_result()?;
        Ok(reference)
    }

    /// How a command ended; only for one that has.
    fn answer(command: &Command) -> Answer {
        match command.shared.verdict.load(Acquire) {
            PENDING | ABORTED => Answer::Aborted,
            kind if kind < response::ERR_UNSPEC => Answer::Ok(kind),
            kind => Answer::Error(kind),
        }
    }

    /// Gives the device up.
    ///
    /// May be called in any context, any number of times.
    pub(crate) fn lose(self: &Arc<Self>, why: &CStr) {
        let mut inner = self.inner.lock();
        if inner.state != State::Running {
            return;
        }
        dev_err!(self.vdev, "device lost: {}\n", why);
        self.lose_locked(&mut inner);
        drop(inner);
        self.wait.wake_all();
    }

    fn lose_locked(self: &Arc<Self>, inner: &mut Inner) {
        inner.state = State::Lost;
        self.lost.store(true, Release);
        let mut backlog = List::new();
        core::mem::swap(&mut backlog, &mut inner.backlog);
        inner.held.push_all_back(&mut backlog);
        let _ = self.reset_workqueue.enqueue::<Arc<Self>, 2>(self.clone());
        let delay = msecs_to_jiffies(RESET_TIMEOUT_MS);
        let _ = self
            .reset_workqueue
            .enqueue_delayed::<Arc<Self>, 3>(self.clone(), delay);
    }

    /// Lets nobody wait for the device any longer: it is being removed.
    pub(crate) fn retire(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        if inner.state == State::Running {
            self.lose_locked(&mut inner);
        }
        drop(inner);
        self.wait.wake_all();
    }

    /// Ends all use of the device: on return it has been reset, all
    /// commands are finished, the queues are gone, and no work runs.
    pub(crate) fn stop(self: &Arc<Self>) {
        self.retire();
        self.reset_workqueue.flush();
        cancel_delayed_sync::<Self, 3>(self);
        cancel_delayed_sync::<Self, 4>(self);
        self.workqueue.flush();
        let queues = {
            let mut inner = self.inner.lock();
            (inner.queue.take(), inner.cursor.take())
        };
        drop(queues);
    }

    /// Takes used commands from the ring.
    ///
    /// Returns them, and whether the device can be trusted further.
    fn collect(&self, inner: &mut Inner) -> (List<Command>, bool) {
        let mut answered = List::new();
        let mut sane = true;
        if inner.state != State::Running {
            return (answered, true);
        }
        loop {
            let Some(queue) = inner.queue.as_mut() else {
                break;
            };
            queue.disable_callback();
            while let Some((mut command, len)) =
                inner.queue.as_mut().and_then(|queue| queue.take_used())
            {
                self.return_slots(inner, Message::owned(&mut command));
                match Self::judge(&mut command, len) {
                    Some(verdict) => {
                        let index = Message::owned(&mut command).index;
                        drop(inner.in_flight[index].take());
                        command.shared.verdict.store(verdict, Release);
                        answered.push_back(command);
                    }
                    None => {
                        // It stays among those in flight, for its fence.
                        sane = false;
                        inner.held.push_back(command);
                    }
                }
            }
            let Some(queue) = inner.queue.as_mut() else {
                break;
            };
            if queue.is_broken() {
                sane = false;
                break;
            }
            if queue.enable_callback() {
                break;
            }
        }
        (answered, sane)
    }

    /// What `len` bytes say in answer to `command`; `None` if they are no answer to it.
    fn judge(command: &mut ListArc<Command>, len: u32) -> Option<u32> {
        let asked = Message::owned(command).header;
        let len = len as usize;
        if len < size_of::<Header>() || len > command.writable_len() {
            return None;
        }
        let mut header = Header::default();
        command.read_response(header.as_mut_bytes());
        if !is_answer_to(&asked, &header) {
            return None;
        }
        let kind = header.kind.get();
        let allowed = if kind < response::ERR_UNSPEC {
            kind == Message::owned(command).success && len == command.writable_len()
        } else {
            match &Message::owned(command).expect {
                Expect::Anything => true,
                Expect::Success => false,
                Expect::SuccessUnlessFailed(other) => {
                    matches!(Self::answer(other), Answer::Error(_))
                }
            }
        };
        allowed.then_some(kind)
    }

    /// Changes what the device may answer to a command that was not sent yet.
    pub(crate) fn set_expect(command: &mut ListArc<Command>, expect: Expect) {
        Message::owned(command).expect = expect;
    }

    /// How a command ended, if it has.
    pub(crate) fn ended(command: &Command) -> Option<Answer> {
        (command.shared.verdict.load(Acquire) != PENDING).then(|| Self::answer(command))
    }

    /// Gives up on a command that the device never answered, and never will: whoever waits for it
    /// does so no longer.
    fn abort(command: &Command) {
        command.shared.verdict.store(ABORTED, Release);
        let fence = command.shared.fence.lock().take();
        if let Some(fence) = fence {
            fence.signal(Err(ENODEV));
        }
    }

    fn finish(command: &mut ListArc<Command>) {
        let answer = Self::answer(command);
        if let Some(mut finish) = Message::owned(command).finish.take() {
            finish.finish(&answer);
        }
    }
}

/// Whether `got` is a well-formed answer to a request with header `asked`.
fn is_answer_to(asked: &Header, got: &Header) -> bool {
    let kind = got.kind.get();
    let known = (response::OK_NODATA..=response::OK_MAP_INFO).contains(&kind)
        || (response::ERR_UNSPEC..=response::ERR_INVALID_PARAMETER).contains(&kind);
    let fenced = asked.flags.get() & FLAG_FENCE != 0;
    known
        && (!fenced
            || (got.flags.get() & FLAG_FENCE != 0 && got.fence_id.get() == asked.fence_id.get()))
}

impl QueueHandler for Control {
    fn used(this: ArcBorrow<'_, Self>, _index: u32) {
        let this: Arc<Self> = this.into();
        let _section = Signalling::begin();

        let mut inner = this.inner.lock();
        let (mut answered, sane) = this.collect(&mut inner);
        if sane {
            if inner.state == State::Running {
                this.send_backlog(&mut inner);
            }
        } else if inner.state == State::Running {
            dev_err!(this.vdev, "device lost: it broke the protocol\n");
            this.lose_locked(&mut inner);
        }
        drop(inner);

        // Not under the lock: whoever waits for a fence may be called from here.
        let mut done = List::new();
        while let Some(command) = answered.pop_front() {
            let fence = command.shared.fence.lock().take();
            if let Some(fence) = fence {
                fence.signal(match Self::answer(&command) {
                    Answer::Ok(_) => Ok(()),
                    _ => Err(EIO),
                });
            }
            done.push_back(command);
        }
        this.wait.wake_all();
        if !done.is_empty() {
            this.done.lock().push_all_back(&mut done);
            let _ = this.workqueue.enqueue::<Arc<Self>, 1>(this.clone());
        }
    }
}

/// Finishes answered commands.
impl WorkItem<1> for Control {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        loop {
            let command = this.done.lock().pop_front();
            let Some(mut command) = command else {
                break;
            };
            Self::finish(&mut command);
        }
    }
}

/// Resets a lost device, and finishes what it held.
impl WorkItem<2> for Control {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.vdev.reset();
        this.vdev.synchronize_callbacks();

        let mut unanswered = List::new();
        let places = {
            let mut inner = this.inner.lock();
            inner.state = State::Reset;
            while let Some(mut command) =
                inner.queue.as_mut().and_then(|queue| queue.detach_unused())
            {
                this.return_slots(&mut inner, Message::owned(&mut command));
                unanswered.push_back(command);
            }
            unanswered.push_all_back(&mut inner.held);
            inner.in_flight.len()
        };

        // All fences before anything that may wait for others.
        let mut aborted = List::new();
        {
            let _section = Signalling::begin();
            while let Some(command) = unanswered.pop_front() {
                Self::abort(&command);
                aborted.push_back(command);
            }
        }
        this.wait.wake_all();
        for index in 0..places {
            let command = this.inner.lock().in_flight[index].take();
            drop(command);
        }

        // Commands that were answered before come first.
        this.workqueue.flush();
        while let Some(mut command) = aborted.pop_front() {
            Self::finish(&mut command);
        }
        this.on_reset.reset();
        this.wait.wake_all();
    }
}

/// Lets others go on although the device has not returned from its reset.
impl WorkItem<3> for Control {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let ring_size = {
            let inner = this.inner.lock();
            if inner.state != State::Lost {
                return;
            }
            inner.ring_size
        };
        dev_err!(
            this.vdev,
            "the device does not return from its reset; its memory is not released\n"
        );
        for index in 0..ring_size {
            let command = this.inner.lock().in_flight[index].clone();
            if let Some(command) = command {
                let fence = command.shared.fence.lock().take();
                if let Some(fence) = fence {
                    fence.signal(Err(ENODEV));
                }
            }
        }
    }
}

/// Notices a device that answers nothing.
impl WorkItem<4> for Control {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let silent = {
            let mut inner = this.inner.lock();
            if inner.state != State::Running {
                return;
            }
            // In case there was no memory for it, and no answer came since.
            this.send_backlog(&mut inner);

            let now = this.now();
            let mut watched = !inner.backlog.is_empty();
            let mut silent = false;
            let jobs = inner
                .in_flight
                .iter()
                .flatten()
                .any(|command| command.shared.job_of != 0);
            for command in inner.in_flight.iter().flatten() {
                let shared = &command.shared;
                if jobs && shared.after_jobs.load(Relaxed) {
                    // The jobs have deadlines of their own, or none.
                    let deadline = now + i64::from(this.timeouts.answer_ms);
                    shared.deadline.store(deadline, Relaxed);
                }
                let deadline = shared.deadline.load(Relaxed);
                watched |= deadline != 0;
                silent |= deadline != 0 && deadline < now;
            }
            inner.watching = false;
            if watched && !silent {
                this.arm_watchdog(&mut inner);
            }
            silent
        };
        if silent {
            this.lose(c"it did not answer a command in time");
        }
    }
}

#[kunit_tests(virtgpu_userptr_control)]
mod tests {
    use super::*;

    fn header(kind: u32, flags: u32, fence: u64) -> Header {
        let mut header = Header::new(kind, 1);
        header.flags = flags.into();
        header.fence_id = fence.into();
        header
    }

    #[test]
    fn plain_answers() {
        let asked = header(0x0102, 0, 0);
        assert!(is_answer_to(&asked, &header(response::OK_NODATA, 0, 0)));
        assert!(is_answer_to(&asked, &header(response::ERR_UNSPEC, 0, 0)));
        // A fence that was not asked for changes nothing.
        assert!(is_answer_to(
            &asked,
            &header(response::OK_NODATA, FLAG_FENCE, 9)
        ));
    }

    #[test]
    fn garbage() {
        let asked = header(0x0102, 0, 0);
        for kind in [0, 0x0102, 0x10ff, 0x1107, 0x11ff, 0x1206, u32::MAX] {
            assert!(!is_answer_to(&asked, &header(kind, 0, 0)));
        }
    }

    #[test]
    fn fences() {
        let asked = header(0x0207, FLAG_FENCE, 7);
        assert!(is_answer_to(
            &asked,
            &header(response::OK_NODATA, FLAG_FENCE, 7)
        ));
        assert!(!is_answer_to(&asked, &header(response::OK_NODATA, 0, 7)));
        assert!(!is_answer_to(
            &asked,
            &header(response::OK_NODATA, FLAG_FENCE, 8)
        ));
    }

    #[test]
    fn errors_of_answers() {
        assert_eq!(
            Answer::Ok(response::OK_NODATA).to_result(),
            Ok(response::OK_NODATA)
        );
        assert_eq!(
            Answer::Error(response::ERR_OUT_OF_MEMORY).to_result(),
            Err(ENOMEM)
        );
        assert_eq!(
            Answer::Error(response::ERR_INVALID_PARAMETER).to_result(),
            Err(EINVAL)
        );
        assert_eq!(Answer::Error(response::ERR_UNSPEC).to_result(), Err(EIO));
        assert_eq!(Answer::Aborted.to_result(), Err(ENODEV));
    }
}
