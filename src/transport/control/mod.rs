// SPDX-License-Identifier: GPL-2.0

//! The control queue: requests, responses, fences, and the end of a device.
//! # The path of a command
//!
//! A command is a [`Message`], owned in turn by who makes it, by the virtqueue, by the interrupt
//! handler, and by a worker that runs its [`Completion`] and frees it. Fences are signalled in the
//! interrupt; everything that may sleep or free memory of others is the worker's.
//!
//! # Room in the ring
//!
//! A sender takes a [`Credit`] for the most descriptors that its command can take before it takes
//! any lock, so that adding to the ring cannot fail for lack of room. One file gets a quarter of
//! the ring at most. [`TEARDOWN_RESERVE`] descriptors are kept for teardown; such a command never
//! waits, it is put into a backlog if need be.
//!
//! # The end of a device
//!
//! A device that breaks the ring, answers a command that releases memory with something that cannot
//! be, answers nothing at all, or is removed is *lost*: waiters return, no more commands are sent,
//! and a worker resets it. One command that is not answered, or not properly, fails for its sender
//! alone ([`patience`]). Only when the reset has returned is the device known not to write, and
//! only then are the fences signalled with an error, the commands completed as aborted, and what
//! they hold released. A device that does not return from its reset for [`loss::RESET_TIMEOUT_MS`]
//! gets its fences signalled nevertheless, so that others can go on; its memory then stays, and so
//! does the module: removal waits for the reset.
//!
//! # Files
//!
//! - [`command`]: what a command is;
//! - [`credit`]: room in the ring;
//! - here: the ring;
//! - [`responses`]: what the device says;
//! - [`patience`]: how long who waits for what;
//! - [`loss`]: the end of a device.

mod command;
mod credit;
mod loss;
mod patience;
mod responses;

pub(crate) use self::{
    command::{
        Command,
        Completion,
        Expect,
        HostFence,
        JobContext,
        JobOf,
        Request,
        Response, //
    },
    credit::{
        Credit,
        RingQuota, //
    },
    loss::OnReset,
};

use self::{
    command::{
        Owned,
        Shared, //
    },
    credit::{
        Line,
        Room, //
    }, //
};
use super::{
    event::Events,
    knobs::Knobs,
    mirror::Mirror, //
};
use crate::{
    kapi::{
        dma::{
            Fence,
            UnpublishedFence, //
        },
        sync::{
            WaitQueue,
            Workqueue, //
        },
        virtio::{
            self,
            device::F_INDIRECT_DESC,
            Binding,
            Message,
            Notification,
            Pieces,
            Queue,
            QueueSetup, //
        },
    },
    protocol::virtio_gpu::FLAG_FENCE,
    trace, //
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
                Relaxed, //
            },
            Atomic, AtomicFlag,
        },
        Arc,
        SpinLockIrq, //
    },
    time::{
        Instant,
        Monotonic, //
    },
    workqueue::{
        DelayedWork,
        Work, //
    },
};
use zerocopy::IntoBytes;

/// Descriptors kept for teardown.
const TEARDOWN_RESERVE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Commands can be sent.
    Running,
    /// The device may still write to memory, but is not trusted any more.
    Lost,
    /// The device has been reset.
    Reset,
    /// The machine sleeps, and the device knows nothing of the driver.
    #[cfg(CONFIG_PM_SLEEP)]
    Asleep,
}

struct Inner {
    state: State,
    /// `None` before the start and after the removal.
    queue: Option<Queue<Shared, Owned>>,
    /// Never used, but the device counts on it.
    cursor: Option<Queue<Shared, Owned>>,
    /// Who waits for room.
    line: Line,
    /// Descriptors for teardown.
    reserve: usize,
    next_fence: u64,
    /// The highest fence that was answered.
    answered_fence: u64,
    /// [`Shared::order`] of the last fence of the device's common timeline that has succeeded.
    common_answered: u64,
    /// The commands in the ring, and in `pending`; as many places as the ring has descriptors.
    in_flight: KVec<Option<Arc<Command>>>,
    /// The free places.
    places: KVec<usize>,
    /// Commands that have their numbers, but found no descriptors. No other command overtakes them.
    pending: List<Command>,
    /// Teardown that waits for descriptors.
    backlog: List<Command>,
    /// Commands that were refused before what they undo was answered, in the order in which they
    /// were sent.
    early: List<Command>,
    /// Commands that must not be completed before the reset.
    held: List<Command>,
    /// Commands in the ring that are no jobs.
    commands: usize,
    /// Descriptors of jobs in the ring whose contexts are gone from the host.
    abandoned: usize,
    /// When the device has last answered, or has begun to have something to answer, or when the
    /// watchdog has last found that jobs run; as in [`Control::now`].
    quiet_since: i64,
    /// Who waits for room for a job, for longer than the time limit.
    starved: usize,
    /// Asks whether the device answers anything; made ahead, sent by the watchdog.
    probe: Option<ListArc<Command>>,
    /// The one that was sent last, until it is answered.
    probed: Option<Arc<Command>>,
    /// Since when the device has something to answer, and the probe was to be sent, as in
    /// [`Control::now`]; `None` again as soon as it answers anything, or the watchdog finds that jobs run.
    asked_at: Option<i64>,
    /// The watchdog is pending or running.
    watching: bool,
    /// Commands that the device has answered, ever.
    answered: u64,
}

/// How long a device may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// To answer anything while something is to be answered that is not a job, in milliseconds. Waits
    /// are bounded by it, too.
    pub(crate) answer_ms: u32,
    /// To end a job, in milliseconds, until its context is lost; 0 for no limit.
    pub(crate) job_ms: u32,
    /// How long others may wait for a job, in milliseconds.
    pub(crate) grace_ms: u32,
}

/// The control queue of a device.
#[pin_data]
pub(crate) struct Control {
    binding: Arc<Binding>,
    vdev: ARef<virtio::Device>,
    timeouts: Timeouts,
    epoch: Instant<Monotonic>,
    on_reset: Arc<dyn OnReset>,
    knobs: Knobs,
    lost: AtomicFlag,
    /// Protects the ring and the counts. Taken in the interrupt; the innermost lock but for
    /// [`Shared::fence`] and `done`.
    #[pin]
    inner: SpinLockIrq<Inner>,
    /// Protects the list of commands that wait for their [`Completion`].
    #[pin]
    done: SpinLockIrq<List<Command>>,
    /// Answered commands that are completed, ever. Changed by the worker only.
    completed: Atomic<u64>,
    /// Waiters for `completed`.
    #[pin]
    completion_wait: WaitQueue,
    /// The descriptors of the ring.
    room: Room,
    /// The mirror queue; without ring if the device has none.
    #[pin]
    pub(super) mirror: Mirror,
    /// The event queue; without ring if the device has none.
    #[pin]
    pub(super) events: Events,
    /// The configuration space has changed since the worker has looked.
    changed: AtomicFlag,
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
    #[pin]
    event_work: Work<Control, 5>,
}

impl_has_work! {
    impl HasWork<Self, 1> for Control { self.finish_work }
    impl HasWork<Self, 2> for Control { self.reset_work }
    impl HasWork<Self, 5> for Control { self.event_work }
}
impl_has_delayed_work! {
    impl HasDelayedWork<Self, 3> for Control { self.reset_overdue }
    impl HasDelayedWork<Self, 4> for Control { self.watchdog }
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
        binding: &Arc<Binding>,
        timeouts: Timeouts,
        on_reset: Arc<dyn OnReset>,
    ) -> Result<Arc<Self>> {
        let workqueue = Workqueue::new(c"virtgpu-control")?;
        let reset_workqueue = Workqueue::new(c"virtgpu-reset")?;
        Arc::pin_init(
            try_pin_init!(Self {
                binding: binding.clone(),
                vdev: binding.device().into(),
                timeouts,
                epoch: Instant::now(),
                on_reset,
                knobs: Knobs::new(),
                lost: AtomicFlag::new(false),
                inner <- new_spinlock_irq!(Inner {
                    state: State::Running,
                    queue: None,
                    cursor: None,
                    line: Line::new(),
                    reserve: 0,
                    next_fence: 1,
                    answered_fence: 0,
                    common_answered: 0,
                    in_flight: KVec::new(),
                    places: KVec::new(),
                    pending: List::new(),
                    backlog: List::new(),
                    early: List::new(),
                    held: List::new(),
                    commands: 0,
                    abandoned: 0,
                    quiet_since: 0,
                    starved: 0,
                    probe: None,
                    probed: None,
                    asked_at: None,
                    watching: false,
                    answered: 0,
                }, "Control::inner"),
                done <- new_spinlock_irq!(List::new(), "Control::done"),
                completed: Atomic::new(0),
                completion_wait <- WaitQueue::new(),
                room: Room::new(),
                mirror <- Mirror::new(),
                events <- Events::new(),
                changed: AtomicFlag::new(false),
                workqueue,
                reset_workqueue,
                finish_work <- new_work!("Control::finish_work"),
                reset_work <- new_work!("Control::reset_work"),
                reset_overdue <- new_delayed_work!("Control::reset_overdue"),
                watchdog <- new_delayed_work!("Control::watchdog"),
                event_work <- new_work!("Control::event_work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Finds the queues of the device, which is being probed, and makes it ready. With `mirror` it
    /// has the mirror queue and the event queue, which gets so many buffers.
    ///
    /// # Errors
    ///
    /// Those of the transport, [`ENOMEM`], and [`EINVAL`] if the ring is too small.
    pub(crate) fn start(self: &Arc<Self>, queues: QueueSetup<'_>, mirror: Option<usize>) -> Result {
        let (queue, cursor, unready) = if let Some(event_slots) = mirror {
            let names = [c"control", c"cursor", c"mirror", c"event"];
            let ([queue, cursor, mirror, event], unready) = queues.find(self.clone(), names)?;
            self.mirror.start(mirror.carrying())?;
            self.events.start(event.carrying(), event_slots)?;
            (queue.carrying(), cursor.carrying(), unready)
        } else {
            let names = [c"control", c"cursor"];
            let ([queue, cursor], unready) = queues.find(self.clone(), names)?;
            (queue.carrying(), cursor.carrying(), unready)
        };
        let ring_size = queue.size();
        if ring_size < 2 * TEARDOWN_RESERVE {
            return Err(EINVAL);
        }
        let mut in_flight = KVec::with_capacity(ring_size, GFP_KERNEL)?;
        let mut places = KVec::with_capacity(ring_size, GFP_KERNEL)?;
        for place in 0..ring_size {
            in_flight.push(None, GFP_KERNEL)?;
            places.push(place, GFP_KERNEL)?;
        }
        let probe = Self::new_probe()?;
        {
            let mut inner = self.inner.lock();
            inner.queue = Some(queue);
            inner.cursor = Some(cursor);
            let before = (
                core::mem::replace(&mut inner.in_flight, in_flight),
                core::mem::replace(&mut inner.places, places),
                inner.probe.replace(probe),
                inner.probed.take(),
            );
            let indirect = self.vdev.has_feature(F_INDIRECT_DESC);
            let bytes = self.binding.message_room();
            self.room.start(ring_size, indirect, bytes);
            inner.reserve = TEARDOWN_RESERVE;
            inner.commands = 0;
            inner.abandoned = 0;
            inner.asked_at = None;
            inner.state = State::Running;
            drop(inner);
            drop(before);
        }
        unready.ready();
        self.events.kick();
        Ok(())
    }

    /// The most parts that one command may have, request and answer included.
    pub(crate) fn max_descriptors(&self) -> usize {
        self.room.max_descriptors()
    }

    /// How many pieces the variable parts of a command may have that takes `others` descriptors
    /// besides, and how long they may be.
    pub(crate) fn pieces(&self, others: usize) -> Pieces {
        let count = self.max_descriptors().saturating_sub(others);
        Pieces::new(count, self.binding.max_piece())
    }

    /// The highest fence that the device has answered, and the highest that it was sent.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn fences(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.answered_fence, inner.next_fence - 1)
    }

    /// What is made to happen to the queues.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn knobs(&self) -> &Knobs {
        &self.knobs
    }

    /// The name of the device, as in `/sys/bus/virtio/devices`.
    pub(crate) fn name(&self) -> &CStr {
        let device: &device::Device = (*self.vdev).as_ref();
        device.name()
    }

    /// How long the device may take to answer, in milliseconds.
    pub(crate) fn answer_timeout_ms(&self) -> u32 {
        self.timeouts.answer_ms
    }

    /// How long jobs may keep others waiting, in milliseconds.
    pub(crate) fn grace_ms(&self) -> u32 {
        self.timeouts.grace_ms
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

    /// Puts a command into the ring; the device is told when what is returned is dropped, which
    /// must be after all locks. Does not sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`ENOMEM`] if its memory cannot be mapped for the device. The
    /// command then is dropped unseen by the device.
    pub(crate) fn send(
        self: &Arc<Self>,
        command: ListArc<Command>,
        credit: Credit,
    ) -> Result<Option<Notification>> {
        let sent = self.add_and(command, credit, |_, _| (), |queue| queue.kick_prepare());
        sent.map(|((), notification)| notification)
    }

    /// As [`Control::send`] for one of several commands; [`Control::kick`] tells the device of all.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn add(self: &Arc<Self>, command: ListArc<Command>, credit: Credit) -> Result {
        self.add_and(command, credit, |_, _| (), |_| None).map(drop)
    }

    /// As [`Control::send`], but not before the teardown that waits for descriptors: this one
    /// restores what such a command ends. Returns when the command is in the ring, so that nothing
    /// that needs it comes before it.
    ///
    /// # Errors
    ///
    /// As there; after [`EBUSY`], if that takes longer than a response may, and [`ERESTARTSYS`], on
    /// a fatal signal, the command is sent nevertheless.
    pub(crate) fn add_behind_teardown(
        self: &Arc<Self>,
        command: ListArc<Command>,
        credit: Credit,
    ) -> Result {
        let mut inner = self.inner.lock();
        if inner.backlog.is_empty() || inner.state != State::Running {
            drop(inner);
            return self.send(command, credit).map(drop);
        }
        let reference = command.clone_arc();
        let mut command = command;
        let (slots, quota, part) = credit.spend();
        command.shared.slots.store(slots, Relaxed);
        Message::owned(&mut command).taken_from = Some((quota, part));
        self.note_waiting(&mut inner);
        inner.backlog.push_back(command);
        drop(inner);
        self.wait_sent(&reference)
    }

    /// As [`Control::send`]; `fence` is signalled when the response comes. It gets its number here,
    /// so that numbers ascend in each timeline, and only then others can have it.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn send_fenced(
        self: &Arc<Self>,
        command: ListArc<Command>,
        fence: UnpublishedFence,
        credit: Credit,
    ) -> Result<(ARef<Fence>, Option<Notification>)> {
        let publish = |shared: &Shared, number| {
            let (promise, published) = fence.publish(number);
            shared.set_fence(promise);
            published
        };
        self.add_and(command, credit, publish, |queue| queue.kick_prepare())
    }

    /// Puts a command into the ring, and does `then` before others can add to it. `publish` gets the
    /// command's number; what it returns is dropped if the command is.
    fn add_and<R>(
        self: &Arc<Self>,
        command: ListArc<Command>,
        credit: Credit,
        publish: impl FnOnce(&Shared, u64) -> R,
        then: impl FnOnce(&mut Queue<Shared, Owned>) -> Option<Notification>,
    ) -> Result<(R, Option<Notification>)> {
        let mut command = command;
        let (slots, quota, part) = credit.spend();
        command.shared.slots.store(slots, Relaxed);
        Message::owned(&mut command).taken_from = Some((quota, part));

        let mut inner = self.inner.lock();
        match self.accept(&mut inner, command, publish) {
            Ok(published) => {
                let notification = inner.queue.as_mut().and_then(then);
                Ok((published, notification))
            }
            Err((mut command, e)) => {
                self.return_slots(&mut inner, &mut command);
                // Others may have the room. What waits for descriptors is the watchdog's: the caller
                // may hold locks, under which the device must not be notified.
                self.room.serve(&mut inner.line);
                if !inner.pending.is_empty() || !inner.backlog.is_empty() {
                    self.arm_watchdog(&mut inner);
                }
                drop(inner);
                // Dropping the command may free memory of others, hence not under the lock.
                drop(command);
                Err(e)
            }
        }
    }

    /// Gives a command its numbers and puts it into the ring, or behind those that wait for it. Either
    /// way it is sent.
    fn accept<R>(
        self: &Arc<Self>,
        inner: &mut Inner,
        mut command: ListArc<Command>,
        publish: impl FnOnce(&Shared, u64) -> R,
    ) -> Result<R, (ListArc<Command>, Error)> {
        if inner.state != State::Running || inner.queue.is_none() {
            return Err((command, ENODEV));
        }
        // Under the lock, by which `cancel_jobs` finds those that are accepted.
        let job = command.shared.job.as_ref();
        if job.is_some_and(|job| job.of.is_lost()) {
            return Err((command, EIO));
        }
        // Each has taken a descriptor, so there are enough places.
        let Some(index) = inner.places.pop() else {
            return Err((command, ENOSPC));
        };

        let number = inner.next_fence;
        let owned = Message::owned(&mut command);
        owned.index = index;
        let fenced = owned.header.flags.get() & FLAG_FENCE != 0;
        if fenced {
            owned.header.fence_id = number.into();
        }
        let header = owned.header;
        Message::patch_request(&mut command, 0, header.as_bytes());
        command.shared.order.store(number, Relaxed);
        let published = publish(&command.shared, number);

        let reference = command.clone_arc();
        let added = if inner.pending.is_empty() {
            self.put(inner, command)
        } else {
            Err((command, ENOSPC))
        };
        match added {
            Ok(()) => {}
            // There was no memory for a table of descriptors, here or for one before, and there are
            // not enough others. It goes in turn, as soon as there are.
            Err((command, e)) if e == ENOSPC => {
                inner.pending.push_back(command);
                self.arm_watchdog(inner);
            }
            Err(refused) => {
                // There is room: it was just taken from there.
                let _ = inner.places.push_within_capacity(index);
                return Err(refused);
            }
        }
        if fenced {
            inner.next_fence += 1;
        }
        self.note_sent(inner, &reference);
        inner.in_flight[index] = Some(reference);
        Ok(published)
    }

    /// Puts a command that has its numbers into the ring.
    ///
    /// Without memory for a table it takes a descriptor for each part: those beyond what was taken
    /// for it must be free, or for teardown, what is kept for that.
    fn put(
        self: &Arc<Self>,
        inner: &mut Inner,
        command: ListArc<Command>,
    ) -> Result<(), (ListArc<Command>, Error)> {
        let Some(queue) = inner.queue.as_mut() else {
            return Err((command, ENODEV));
        };
        if self.knobs.lacks_descriptors() {
            return Err((command, ENOSPC));
        }
        let reference = command.clone_arc();
        let mut command = command;
        let owned = Message::owned(&mut command);
        let (header, quota) = (owned.header, owned.taken_from.as_ref());
        let quota = quota.map(|(quota, _)| quota.clone());
        let slots = reference.shared.slots.load(Relaxed);
        let beyond = reference.descriptors().saturating_sub(slots);
        let (mut common, mut kept) = (0, 0);
        if self.room.take_beyond(beyond) {
            common = beyond;
        } else if quota.is_none() && inner.reserve >= beyond {
            kept = beyond;
        }
        let added = queue.add(command, slots + common + kept);
        let taken = added.as_ref().map_or(0, |taken| *taken);
        let more = taken.saturating_sub(slots);
        kept = kept.min(more);
        inner.reserve -= kept;
        let overdrawn = more - kept;
        self.room.overdraw(quota.as_deref(), common, overdrawn);
        match added {
            Ok(_) => {
                if more != 0 {
                    reference.shared.slots.store(taken, Relaxed);
                    reference.shared.overdrawn.store(overdrawn, Relaxed);
                }
                trace::command(self.name(), &header, reference.descriptors());
                Ok(())
            }
            Err((command, e)) if e == ENOMEM || e == ENOSPC => Err((command, e)),
            Err((command, _)) => {
                dev_err!(self.vdev, "device lost: its ring is broken\n");
                self.lose_locked(inner);
                Err((command, ENODEV))
            }
        }
    }

    /// Milliseconds since the device was found.
    fn now(&self) -> i64 {
        self.epoch.elapsed().as_millis()
    }

    /// Tells the device that there are new commands.
    pub(crate) fn kick(&self) {
        let mut inner = self.inner.lock();
        let queue = inner.queue.as_mut();
        let notification = queue.and_then(|queue| queue.kick_prepare());
        drop(inner);
        drop(notification);
    }

    /// Sends a teardown command. Cannot fail, and does not sleep unless the
    /// device has been reset; then the command is completed on the spot.
    pub(crate) fn teardown(self: &Arc<Self>, command: ListArc<Command>) {
        let mut inner = self.inner.lock();
        let mut command = command;
        let state = inner.state;
        match state {
            State::Running if Self::follows_early(&mut inner, &mut command) => {
                inner.early.push_back(command);
            }
            State::Running => {
                self.note_waiting(&mut inner);
                inner.backlog.push_back(command);
                let notification = self.go_on(&mut inner);
                drop(inner);
                drop(notification);
            }
            State::Lost => inner.held.push_back(command),
            #[cfg(CONFIG_PM_SLEEP)]
            State::Asleep => inner.held.push_back(command),
            State::Reset => {
                drop(inner);
                let mut command = command;
                Self::abort(&command);
                Self::complete(&mut command);
            }
        }
    }

    /// Sends what waits for descriptors, as far as there are any, and gives others room. Returns what
    /// is left to do when the lock is dropped.
    fn go_on(self: &Arc<Self>, inner: &mut Inner) -> Option<Notification> {
        if inner.state != State::Running {
            return None;
        }
        let mut added = self.send_pending(inner);
        if inner.pending.is_empty() {
            added |= self.send_backlog(inner);
        }
        self.room.serve(&mut inner.line);
        let queue = inner.queue.as_mut().filter(|_| added);
        queue.and_then(|queue| queue.kick_prepare())
    }

    /// Sends what has its numbers. Returns whether it has sent anything.
    fn send_pending(self: &Arc<Self>, inner: &mut Inner) -> bool {
        let mut added = false;
        while let Some(command) = inner.pending.pop_front() {
            let Err((command, _)) = self.put(inner, command) else {
                added = true;
                continue;
            };
            inner.pending.push_front(command);
            // The next answer, or the watchdog, tries again.
            if inner.state == State::Running {
                self.arm_watchdog(inner);
            } else {
                self.hold_unsent(inner);
            }
            break;
        }
        added
    }

    /// Sends teardown that waits, and what must not come before it. Returns whether it has
    /// sent anything.
    fn send_backlog(self: &Arc<Self>, inner: &mut Inner) -> bool {
        let mut added = false;
        while let Some(mut command) = inner.backlog.pop_front() {
            let has_room = Message::owned(&mut command).taken_from.is_some();
            if !has_room {
                // One that counts for more, by its bytes, would never find them in the reserve.
                let slots = self.room.slots(&command).min(TEARDOWN_RESERVE);
                if inner.reserve >= slots {
                    inner.reserve -= slots;
                } else if !self.room.take_for_teardown(slots) {
                    inner.backlog.push_front(command);
                    break;
                }
                command.shared.slots.store(slots, Relaxed);
            }
            let reference = has_room.then(|| command.clone_arc());
            match self.accept(inner, command, |_, _| ()) {
                Ok(()) => {
                    added = true;
                    if let Some(sent) = reference {
                        sent.shared.wait.wake_all();
                    }
                }
                Err((mut command, _)) => {
                    // No memory to map it for the device: the next answer, or the watchdog, tries
                    // again.
                    if !has_room || inner.state != State::Running {
                        self.return_slots(inner, &mut command);
                    }
                    if inner.state == State::Running {
                        inner.backlog.push_front(command);
                        self.arm_watchdog(inner);
                    } else {
                        command.shared.wait.wake_all();
                        inner.held.push_back(command);
                    }
                    break;
                }
            }
            if !inner.pending.is_empty() {
                break;
            }
        }
        added
    }

    /// The device is lost: what it does not have is held until the reset.
    fn hold_unsent(&self, inner: &mut Inner) {
        while let Some(mut command) = inner.pending.pop_front() {
            self.return_slots(inner, &mut command);
            inner.held.push_back(command);
        }
        while let Some(mut command) = inner.backlog.pop_front() {
            if Message::owned(&mut command).taken_from.is_some() {
                self.return_slots(inner, &mut command);
            }
            inner.held.push_back(command);
        }
        let mut early = List::new();
        core::mem::swap(&mut early, &mut inner.early);
        inner.held.push_all_back(&mut early);
    }
}
