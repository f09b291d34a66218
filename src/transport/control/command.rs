// SPDX-License-Identifier: GPL-2.0

//! A command: how it is made, what goes with it, and how it ends.

use crate::{
    kapi::{
        dma::{
            map::SyncForCpu,
            DriverFence, //
        },
        drm::event::ReservedEvent,
        ida::Id,
        sync::WaitQueue,
        virtio::{
            Chunks,
            Message, //
        },
    },
    protocol::virtio_gpu::{
        command,
        response,
        Header,
        FLAG_FENCE,
        FLAG_INFO_RING_IDX, //
    },
    transport::status::{
        ABORTED,
        PENDING, //
    },
};
use core::{
    marker::PhantomData,
    ops::Deref, //
};
use kernel::{
    list::ListArc,
    new_spinlock, new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic,
            AtomicFlag, //
        },
        Arc,
        SpinLock,
        SpinLockIrq, //
    },
};
use zerocopy::IntoBytes;

use super::{
    commands::CommandToHost,
    credit::{
        Part,
        RingQuota, //
    }, //
};

/// `Shared::status` of a command whose response says nothing that can be understood.
pub(super) const INVALID: u32 = ABORTED - 1;

/// A command of the control queue.
pub(crate) type Command = Message<Shared, Owned>;

/// What all who wait for a command see of it.
#[pin_data]
pub(crate) struct Shared {
    /// The device's response: a [`response`], or [`PENDING`], [`ABORTED`] or [`INVALID`].
    /// Validated once, because the device can change its response afterwards.
    pub(super) status: Atomic<u32>,
    /// When a job must have ended, 0 for no limit or if its time has not begun, or another command
    /// must have been responded to, as in [`Transport::now`]. Changed under the control queue's
    /// lock.
    pub(super) deadline: Atomic<i64>,
    /// Whose job it is, if it is one.
    pub(super) job: Option<JobOf>,
    /// The context that it destroys, if it does.
    pub(super) destroys: Option<u32>,
    /// The number of the command's fence, or, without one, that of the next one: whether another
    /// command was before it. Set under the control queue's lock, when it goes into the ring.
    pub(super) order: Atomic<u64>,
    /// Descriptors that it has, or that are kept for it. Set as `order`.
    pub(super) slots: Atomic<usize>,
    /// How many of them are beyond the room that was taken for it. Under the control queue's lock.
    pub(super) overdrawn: Atomic<usize>,
    /// It is a job, and its context is gone from the host. Set under the control queue's lock.
    pub(super) abandoned: AtomicFlag,
    /// What undoes it was refused, as it was not responded to yet. Set under the control queue's
    /// lock.
    pub(super) undone_early: AtomicFlag,
    /// Who waits for the response.
    #[pin]
    pub(super) wait: WaitQueue,
    /// Signalled when the response comes. Protects the fence only.
    #[pin]
    fence: SpinLockIrq<Option<DriverFence>>,
    /// Sent when the fence is signalled.
    event: Option<ReservedEvent>,
}

impl Shared {
    /// Has `fence` signalled when the response comes.
    pub(super) fn set_fence(&self, fence: DriverFence) {
        // There was none.
        let _ = self.fence.lock().replace(fence);
    }

    /// Signals the fence, if there is one, unless that was done. May be called in any context, but
    /// not with a lock of the queue held: whoever waits for the fence may be called from here.
    pub(super) fn signal(&self, outcome: Result) {
        let fence = self.fence.lock().take();
        if let Some(fence) = fence {
            fence.signal(outcome);
            if let Some(event) = &self.event {
                event.send();
            }
        }
    }
}

/// What the jobs of a context have in common.
#[pin_data]
pub(crate) struct JobContext {
    /// A job was sent. Under the control queue's lock.
    had_jobs: AtomicFlag,
    /// The host responds to jobs when it has accepted them. Under the control queue's lock.
    fault_mode: AtomicFlag,
    /// A job touched what it may not, or took too long: the host takes no more.
    lost: AtomicFlag,
    /// When the file was closed, as in [`Transport::now`]; 0 before.
    closed_at: Atomic<i64>,
    /// Until when the host may go on with the context's jobs, as in [`Transport::now`]; 0 as long
    /// as the host was not asked to destroy the context.
    ends_by: Atomic<i64>,
    /// Has the host destroy the context, and end its jobs; made with the context, so that this
    /// needs no memory. `None` before the host has the context. Protects only itself; taken once.
    #[pin]
    destroy: SpinLock<Option<ListArc<Command>>>,
}

impl JobContext {
    /// Neither lost nor closed.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                had_jobs: AtomicFlag::new(false),
                fault_mode: AtomicFlag::new(false),
                lost: AtomicFlag::new(false),
                closed_at: Atomic::new(0),
                ends_by: Atomic::new(0),
                destroy <- new_spinlock!(None, "JobContext::destroy"),
            }),
            GFP_KERNEL,
        )
    }

    /// The host has the context, which `destroy` destroys.
    pub(crate) fn set_made(&self, destroy: ListArc<Command>) {
        // There was none.
        let _ = self.destroy.lock().replace(destroy);
    }

    /// The command that has the host destroy the context, unless it was taken before. The host may
    /// go on with the context's jobs until `ends_by`.
    pub(super) fn take_destroy(&self, ends_by: i64) -> Option<ListArc<Command>> {
        let mut destroy = self.destroy.lock();
        if destroy.is_some() {
            self.set_ends_by(ends_by);
        }
        destroy.take()
    }

    pub(super) fn set_ends_by(&self, ends_by: i64) {
        self.ends_by.store(ends_by, Relaxed);
    }

    /// Until when the host may go on with the context's jobs, if it was asked to destroy the
    /// context.
    pub(super) fn ends_by(&self) -> Option<i64> {
        let at = self.ends_by.load(Relaxed);
        (at != 0).then_some(at)
    }

    /// Whether a job for a context in fault mode, or for one that is not, as `fault_mode` says, can
    /// be sent now; remembers that one was. Called with the control queue's lock held.
    pub(super) fn takes_job(&self, fault_mode: bool) -> bool {
        if self.fault_mode.load(Relaxed) != fault_mode {
            return false;
        }
        self.had_jobs.store(true, Relaxed);
        true
    }

    /// Has the context take only jobs for fault mode, or only others. Returns whether that was
    /// possible: it is not if there ever was a job. Called with the control queue's lock held.
    pub(super) fn set_fault_mode(&self, fault_mode: bool) -> bool {
        let possible = !self.had_jobs.load(Relaxed);
        if possible {
            self.fault_mode.store(fault_mode, Relaxed);
        }
        possible
    }

    /// Whether the context takes no more jobs.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Acquire)
    }

    /// The context takes no more jobs.
    pub(crate) fn set_lost(&self) {
        self.lost.store(true, Release);
    }

    pub(super) fn set_closed(&self, now: i64) {
        // Once: the last reference to the context may be a job's.
        let _ = self.closed_at.cmpxchg(0, now.max(1), Relaxed);
    }

    /// When the file was closed, unless it was not, or its jobs are cancelled.
    pub(super) fn closed_at(&self) -> Option<i64> {
        let at = self.closed_at.load(Relaxed);
        (at != 0 && at != CANCELLED).then_some(at)
    }

    /// The jobs are cancelled: their fences are signalled, and the context takes no more.
    pub(super) fn set_cancelled(&self) {
        self.set_lost();
        self.closed_at.store(CANCELLED, Relaxed);
    }
}

/// [`JobContext::closed_at`] of one whose jobs are cancelled.
const CANCELLED: i64 = i64::MAX;

/// Whose job a command is. Its response may take any time.
pub(crate) struct JobOf {
    /// The context's id, which no other context has as long as this command is not responded to.
    pub(super) context: u32,
    pub(super) of: Arc<JobContext>,
    /// The job is on a ring of the context's own, and waits for no other context's jobs.
    pub(super) on_ring: bool,
    /// A response [`response::ERR_UNSPEC`] says that the context is lost.
    pub(super) lost_on_error: bool,
    /// The context is in fault mode: the host responds when it has accepted the job.
    pub(super) fault_mode: bool,
}

impl JobOf {
    /// A job of the context with id `context`. The command's [`Completion`] must keep the id from
    /// being used again.
    pub(crate) fn new(context: u32, of: Arc<JobContext>) -> Self {
        Self {
            context,
            of,
            on_ring: false,
            lost_on_error: false,
            fault_mode: false,
        }
    }

    /// The context is in fault mode.
    pub(crate) fn in_fault_mode(mut self) -> Self {
        self.fault_mode = true;
        self
    }

    /// The host says by [`response::ERR_UNSPEC`] that the context is lost.
    pub(crate) fn lost_on_error(mut self, lost_on_error: bool) -> Self {
        self.lost_on_error = lost_on_error;
        self
    }
}

/// What goes with a command to its end.
pub(crate) struct Owned {
    pub(super) header: Header,
    /// Where its descriptors are counted, unless the command is teardown.
    pub(super) taken_from: Option<(Arc<RingQuota>, Part)>,
    /// The place in [`Inner::in_flight`].
    pub(super) index: usize,
    pub(super) expect: Expect,
    /// The [`response`] that means success.
    pub(super) success: u32,
    pub(super) completion: Option<Arc<dyn Completion>>,
    /// Memory that the device has written when it responds.
    pub(super) sync_for_cpu: Option<KBox<dyn SyncForCpu>>,
    /// As [`Request::about`].
    pub(super) id: Option<Arc<Id>>,
    /// How the device has refused it too early, if it has.
    pub(super) refused: Option<u32>,
}

/// What the host knows of the fence of a command.
pub(crate) enum HostFence {
    /// Nothing: it responds when it has carried the command out, or, for a job, when it has read
    /// it.
    Unknown,
    /// It signals it when all is done that came before, on the device's common timeline.
    Common,
    /// The same on this ring of the context.
    Ring(u8),
}

/// Whether the device may refuse a command.
pub(crate) enum Expect {
    /// It may.
    Anything,
    /// It may not: a device that does is not to be trusted.
    Success,
    /// It may only if it has refused the other command, which this one undoes. If it has not yet
    /// responded to that one, this one is kept until it has, and sent again if need be.
    SuccessUnlessFailed(Arc<Command>),
}

/// What a command keeps as long as the device may use it, and what is left to do with it when the
/// command has come to its end.
pub(crate) trait Completion: Send + Sync {
    /// Called once, by the control queue's worker, which no fence waits for.
    ///
    /// Either the device has responded, or it has been reset: in both cases it is done with the
    /// command. Without more to do, what was kept is dropped.
    fn complete(self: Arc<Self>, _response: &Response) {}
}

/// Something that is kept, and nothing else.
struct Kept<T> {
    _kept: T,
}

impl<T: Send + Sync> Completion for Kept<T> {}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// The device has responded with a [`response`] `OK_*`.
    Ok(u32),
    /// The device has responded with a [`response`] `ERR_*`.
    Error(u32),
    /// The device's response makes no sense, and it may or may not have done what it was asked.
    Invalid,
    /// The device was reset.
    Aborted,
}

impl Response {
    /// The error that userspace gets for a response.
    pub(crate) fn to_result(self) -> Result<u32> {
        match self {
            Response::Ok(kind) => Ok(kind),
            Response::Error(kind) => Err(match kind {
                response::ERR_OUT_OF_MEMORY => ENOMEM,
                response::ERR_INVALID_PARAMETER => EINVAL,
                _ => EIO,
            }),
            Response::Invalid => Err(EIO),
            Response::Aborted => Err(ENODEV),
        }
    }
}

/// How a command of kind `C` is made; [`ControlQueue::add`](super::ControlQueue::add) and its
/// siblings send it.
pub(crate) struct Request<'a, C> {
    /// Type and context; fence and ring are added on sending.
    header: Header,
    fixed: &'a [u8],
    payload: Chunks,
    response_data: Chunks,
    fence: HostFence,
    event: Option<ReservedEvent>,
    sync_for_cpu: Option<KBox<dyn SyncForCpu>>,
    job: Option<JobOf>,
    completion: Option<Arc<dyn Completion>>,
    id: Option<Arc<Id>>,
    kind: PhantomData<C>,
}

impl<'a, C: CommandToHost> Request<'a, C> {
    /// A request for the context with this id, or 0, with nothing but the fixed part.
    pub(crate) fn new(context: u32, fixed: &'a C::Fixed) -> Self {
        Self {
            header: Header::new(C::COMMAND, context),
            fixed: fixed.as_bytes(),
            payload: Chunks::new(),
            response_data: Chunks::new(),
            fence: HostFence::Unknown,
            event: None,
            sync_for_cpu: None,
            job: None,
            completion: None,
            id: None,
            kind: PhantomData,
        }
    }

    /// Adds the variable part.
    pub(crate) fn payload(&mut self, payload: Chunks) {
        self.payload = payload;
    }

    /// Makes room for a variable part of the response.
    pub(crate) fn response_data(&mut self, data: Chunks) {
        self.response_data = data;
    }

    /// Says what the host knows of the fence, which
    /// [`ControlQueue::send_fenced`](super::ControlQueue::send_fenced) gives the command, and sends
    /// `event` when it is signalled.
    pub(crate) fn fence(&mut self, fence: HostFence, event: Option<ReservedEvent>) {
        self.fence = fence;
        self.event = event;
    }

    /// The device writes `memory` before it responds: the CPU is to see that before the fence is
    /// signalled.
    pub(crate) fn sync_for_cpu(&mut self, memory: KBox<dyn SyncForCpu>) {
        self.sync_for_cpu = Some(memory);
    }

    /// Says whose job the command is.
    pub(crate) fn job(&mut self, job: JobOf) {
        self.job = Some(job);
    }

    /// Names the resource or context that the command is about, whose id is not used again before
    /// it is responded to.
    pub(crate) fn about(&mut self, id: &Arc<Id>) {
        self.id = Some(id.clone());
    }

    /// Says what is kept, and left to do when the command has come to its end.
    pub(crate) fn then(&mut self, completion: Arc<dyn Completion>) {
        self.completion = Some(completion);
    }

    /// Nothing is left to do at the end but to drop `kept`.
    ///
    /// # Errors
    ///
    /// - [`ENOMEM`];
    /// - [`EINVAL`] if something is left to do, or to drop, already.
    pub(crate) fn keep(&mut self, kept: impl Send + Sync + 'static) -> Result {
        if self.completion.is_some() {
            return Err(EINVAL);
        }
        self.completion = Some(Arc::new(Kept { _kept: kept }, GFP_KERNEL)?);
        Ok(())
    }

    /// Allocates the command.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn build(self) -> Result<ListArc<Command>> {
        let mut header = self.header;
        let flags = match self.fence {
            HostFence::Unknown => 0,
            HostFence::Common => FLAG_FENCE,
            HostFence::Ring(ring) => {
                header.ring_idx = ring;
                FLAG_FENCE | FLAG_INFO_RING_IDX
            }
        };
        header.flags = (header.flags.get() | flags).into();
        let job = self.job.map(|job| JobOf {
            on_ring: matches!(self.fence, HostFence::Ring(_)),
            ..job
        });
        let destroys = (header.kind.get() == command::CTX_DESTROY).then(|| header.ctx_id.get());
        let event = self.event;
        Message::new(
            self.fixed,
            self.payload,
            size_of::<C::Response>(),
            self.response_data,
            pin_init!(Shared {
                status: Atomic::new(PENDING),
                deadline: Atomic::new(0),
                job,
                destroys,
                order: Atomic::new(0),
                slots: Atomic::new(0),
                overdrawn: Atomic::new(0),
                abandoned: AtomicFlag::new(false),
                undone_early: AtomicFlag::new(false),
                wait <- WaitQueue::new(),
                fence <- new_spinlock_irq!(None, "Command::fence"),
                event,
            }),
            Owned {
                header,
                taken_from: None,
                index: 0,
                expect: Expect::Anything,
                success: C::SUCCESS,
                completion: self.completion,
                sync_for_cpu: self.sync_for_cpu,
                id: self.id,
                refused: None,
            },
        )
    }
    /// As [`Request::build`], for a command whose response is to be read.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn build_to_read(self) -> Result<(ListArc<Command>, Sent<C>)> {
        let command = self.build()?;
        let sent = Sent {
            command: command.clone_arc(),
            kind: PhantomData,
        };
        Ok((command, sent))
    }
}

/// A command of kind `C`, for those who read the response.
pub(crate) struct Sent<C> {
    command: Arc<Command>,
    kind: PhantomData<fn() -> C>,
}

impl<C> Clone for Sent<C> {
    fn clone(&self) -> Self {
        Self {
            command: self.command.clone(),
            kind: PhantomData,
        }
    }
}

impl<C> Deref for Sent<C> {
    type Target = Command;

    fn deref(&self) -> &Command {
        &self.command
    }
}

impl<C> Sent<C> {
    /// The command, whatever kind it is.
    pub(crate) fn command(&self) -> &Arc<Command> {
        &self.command
    }
}

impl<C: CommandToHost> Sent<C> {
    /// The fixed part of the response to a command that has succeeded.
    pub(crate) fn response(&self) -> C::Response {
        let mut response = C::Response::default();
        self.command.read_response(response.as_mut_bytes());
        response
    }
}
