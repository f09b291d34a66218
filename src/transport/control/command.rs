// SPDX-License-Identifier: GPL-2.0

//! A command: how it is made, what goes with it, and how it ends.

use crate::{
    kapi::{
        dma::DriverFence,
        drm::event::ReservedEvent,
        virtio::{
            Chunks,
            Message, //
        },
    },
    protocol::virtio_gpu::{
        response,
        Header,
        FLAG_FENCE,
        FLAG_INFO_RING_IDX, //
    },
    resource::mapping::Landing,
};
use kernel::{
    list::ListArc,
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag, //
        },
        Arc,
        SpinLockIrq, //
    },
};
use zerocopy::IntoBytes;

use super::credit::Share;

/// `Shared::verdict` of a command that is on its way.
pub(super) const PENDING: u32 = 0;
/// `Shared::verdict` of a command that the device did not answer.
pub(super) const ABORTED: u32 = 1;

/// A command of the control queue.
pub(crate) type Command = Message<Shared, Owned>;

/// What everybody who waits for a command sees of it.
#[pin_data]
pub(crate) struct Shared {
    /// What the device answered: a [`response`], or [`PENDING`] or [`ABORTED`]. Judged once, because
    /// the device can change its answer afterwards.
    pub(super) verdict: Atomic<u32>,
    /// When the answer must have come, as in [`Control::now`]; 0 for no limit. Changed under the
    /// control queue's lock.
    pub(super) deadline: Atomic<i64>,
    /// The context whose job it is, or 0.
    pub(super) job_of: u32,
    /// The device may answer only when the jobs are done that use what this takes away.
    pub(super) after_jobs: AtomicFlag,
    /// Set if the answer is [`response::ERR_UNSPEC`], before the fence is signalled.
    pub(super) lost_on_error: Option<Arc<AtomicFlag>>,
    /// Signalled when the answer comes. Protects the fence only.
    #[pin]
    fence: SpinLockIrq<Option<DriverFence>>,
    /// Sent when the fence is signalled.
    event: Option<ReservedEvent>,
    /// Memory that the device has written when it answers.
    landing: Option<Landing>,
}

impl Shared {
    /// Gives the fence, if there is one, its place in its timeline.
    pub(super) fn set_sequence(&self, seqno: u64) {
        if let Some(fence) = &mut *self.fence.lock() {
            fence.set_sequence(seqno);
        }
    }

    /// The device has answered: what it has written is there for the CPU. May be called in any
    /// context, before the fence is signalled.
    pub(super) fn land(&self) {
        if let Some(landing) = &self.landing {
            landing.sync_for_cpu();
        }
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

/// What goes with a command to its end.
pub(crate) struct Owned {
    pub(super) header: Header,
    /// Descriptors taken from the ring.
    pub(super) slots: usize,
    /// Where they are counted, unless the command takes something away.
    pub(super) share: Option<Arc<Share>>,
    /// The place in [`Inner::in_flight`].
    pub(super) index: usize,
    pub(super) expect: Expect,
    /// The [`response`] that means success.
    pub(super) success: u32,
    pub(super) finish: Option<KBox<dyn Finish>>,
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
    /// A fence to signal when the answer comes, of which the host knows nothing: it answers when it
    /// has carried the command out. Not together with `fence`.
    pub(crate) signals: Option<DriverFence>,
    /// An event to send when the fence is signalled.
    pub(crate) event: Option<ReservedEvent>,
    /// Memory that the device has written when it answers.
    pub(crate) landing: Option<Landing>,
    /// The answer may take as long as a job.
    pub(crate) job: bool,
    /// To be set if the answer is [`response::ERR_UNSPEC`].
    pub(crate) lost_on_error: Option<Arc<AtomicFlag>>,
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
            signals: None,
            event: None,
            landing: None,
            job: false,
            lost_on_error: None,
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
        let fence = fence.or(self.signals);
        let after_jobs = self.after_jobs;
        let lost_on_error = self.lost_on_error;
        let event = self.event;
        let landing = self.landing;
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
                lost_on_error,
                fence <- new_spinlock_irq!(fence, "Command::fence"),
                event,
                landing,
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
