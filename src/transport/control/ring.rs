// SPDX-License-Identifier: GPL-2.0

//! What the control queue consists of, and its start. It does not know the device: [`Transport`]
//! has both.
//!
//! [`Transport`]: crate::transport::Transport

use super::{
    command::{
        Command,
        Owned,
        Request,
        Shared, //
    },
    commands,
    credit::{
        Line,
        Room, //
    }, //
};
use crate::{
    kapi::{
        sync::WaitQueue,
        virtio::Queue, //
    },
    protocol::virtio_gpu::GetCapsetInfo,
    transport::state::State, //
};
use kernel::{
    list::{
        List,
        ListArc, //
    },
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc,
        SpinLockIrq, //
    },
};

/// Descriptors kept for teardown.
pub(super) const TEARDOWN_RESERVE: usize = 16;

/// What the lock of the control queue protects.
pub(in crate::transport) struct Inner {
    /// What becomes of commands. Changed by [`Transport`] only.
    pub(in crate::transport) state: State,
    /// `None` before the start and after the removal.
    pub(super) queue: Option<Queue<Shared, Owned>>,
    /// Never used, but the device counts on it.
    pub(super) cursor: Option<Queue<Shared, Owned>>,
    /// Who waits for room.
    pub(super) line: Line,
    /// Descriptors for teardown.
    pub(super) reserve: usize,
    pub(super) next_fence: u64,
    /// The highest fence that was responded to.
    pub(super) responded_fence: u64,
    /// [`Shared::order`] of the last fence of the device's common timeline that has succeeded.
    pub(super) common_responded: u64,
    /// The commands in the ring, and in `pending`; as many places as the ring has descriptors.
    pub(super) in_flight: KVec<Option<Arc<Command>>>,
    /// The free places.
    pub(super) places: KVec<usize>,
    /// Commands that have their numbers, but found no descriptors. No other command overtakes them.
    pub(super) pending: List<Command>,
    /// Teardown that waits for descriptors.
    pub(super) backlog: List<Command>,
    /// Commands that were refused before what they undo was responded to, in the order in which
    /// they were sent.
    pub(super) early: List<Command>,
    /// Commands that must not be completed before the reset.
    pub(super) held: List<Command>,
    /// Commands in the ring that are no jobs.
    pub(super) commands: usize,
    /// Descriptors of jobs in the ring whose contexts are gone from the host.
    pub(super) abandoned: usize,
    /// When the device has last responded, or has begun to have something to respond to, or when
    /// the watchdog has last found that jobs run; as in [`Transport::now`].
    pub(super) quiet_since: i64,
    /// Who waits for room for a job, for longer than the time limit.
    pub(super) starved: usize,
    /// Asks whether the device responds to anything; made ahead, sent by the watchdog.
    pub(super) probe: Option<ListArc<Command>>,
    /// The one that was sent last, until it is responded to.
    pub(super) probed: Option<Arc<Command>>,
    /// Since when the device has something to respond to, and the probe was to be sent, as in
    /// [`Transport::now`]; `None` again as soon as it responds to anything, or the watchdog finds
    /// that jobs run.
    pub(super) asked_at: Option<i64>,
    /// The watchdog is pending or running. Changed by [`Transport`] only.
    pub(in crate::transport) watching: bool,
    /// Commands that the device has responded to, ever.
    pub(super) responded: u64,
}

/// The control queue of a device, as part of its [`Transport`].
#[pin_data]
pub(crate) struct Control {
    /// Protects the ring and the counts, and the state of the device. Taken in the interrupt; the
    /// innermost lock but for [`Shared::fence`] and `done`.
    #[pin]
    pub(in crate::transport) inner: SpinLockIrq<Inner>,
    /// Protects the list of commands that wait for their [`Completion`].
    #[pin]
    pub(super) done: SpinLockIrq<List<Command>>,
    /// Commands with a response that are completed, ever. Changed by the worker only.
    pub(super) completed: Atomic<u64>,
    /// Waiters for `completed`.
    #[pin]
    pub(super) completion_wait: WaitQueue,
    /// The descriptors of the ring.
    pub(super) room: Room,
}

impl Control {
    /// A control queue without ring; [`Control::start`] gives it one.
    pub(in crate::transport) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_spinlock_irq!(Inner {
                state: State::Running,
                queue: None,
                cursor: None,
                line: Line::new(),
                reserve: 0,
                next_fence: 1,
                responded_fence: 0,
                common_responded: 0,
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
                responded: 0,
            }, "Control::inner"),
            done <- new_spinlock_irq!(List::new(), "Control::done"),
            completed: Atomic::new(0),
            completion_wait <- WaitQueue::new(),
            room: Room::new(),
        })
    }

    /// Takes the queues of a device that is being probed, and has commands sent from now on. A
    /// command takes one descriptor with `indirect`; if bytes are limited, `bytes` are for what is
    /// in the ring.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and [`EINVAL`] if the ring is too small.
    pub(in crate::transport) fn start(
        &self,
        queue: Queue<Shared, Owned>,
        cursor: Queue<Shared, Owned>,
        indirect: bool,
        bytes: Option<usize>,
    ) -> Result {
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
        let probe =
            Request::<commands::GetCapsetInfo>::new(0, &GetCapsetInfo::default()).build()?;
        let mut inner = self.inner.lock();
        inner.queue = Some(queue);
        inner.cursor = Some(cursor);
        let before = (
            core::mem::replace(&mut inner.in_flight, in_flight),
            core::mem::replace(&mut inner.places, places),
            inner.probe.replace(probe),
            inner.probed.take(),
        );
        self.room.start(ring_size, indirect, bytes);
        inner.reserve = TEARDOWN_RESERVE;
        inner.commands = 0;
        inner.abandoned = 0;
        inner.asked_at = None;
        inner.state = State::Running;
        drop(inner);
        drop(before);
        Ok(())
    }
}
