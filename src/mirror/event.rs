// SPDX-License-Identifier: GPL-2.0

//! Events: a program learns that registered memory is gone.
//!
//! A notifier callback must neither allocate nor take the locks of others, so it only records what
//! happened in the registration's [`RangeEvents`] and puts that into the file's [`EventSender`]; a
//! worker sends it. What happens before that widens the pending event: one event covers all the
//! addresses concerned, with the worst of the reasons. The registration allocates the first event;
//! the worker replaces what it has sent.
//!
//! # A reader that is slow
//!
//! A file has room for about a hundred events. What does not fit stays pending, and whoever reads
//! events has the worker look again, so no event is lost and the driver never waits for the reader.
//! If there is no memory for an event, the worker looks again after [`RETRY_MS`].
//!
//! # The end
//!
//! After GEM_CLOSE nothing is sent for the registration. What was sent before can still be read:
//! `poll` may have promised it. The worker holds nothing of the file; closing the file waits for
//! it, which takes no longer than an allocation. That is also why it need not be on a queue of its
//! own: neither memory reclaim nor the device ever waits for it.

use crate::{
    kapi::{
        drm::event::{
            Event,
            EventQueue,
            Payload,
            Unsent, //
        },
        sync::{
            cancel_delayed_sync,
            jiffies,
            system_workqueue, //
        }, //
    },
    protocol::uapi::{
        event_reason,
        UserptrEvent,
        EVENT_USERPTR, //
    },
};
use core::ops::Range;
use kernel::{
    impl_has_delayed_work,
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        List,
        ListArc,
        ListLinks,
        TryNewListArc, //
    },
    new_delayed_work,
    new_spinlock,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        Arc,
        SpinLock, //
    },
    workqueue::{
        DelayedWork,
        WorkItem, //
    }, //
};

/// How long the worker waits for memory, in milliseconds.
const RETRY_MS: u32 = 100;

impl Payload for UserptrEvent {
    const TYPE: u32 = EVENT_USERPTR;
}

/// Why memory is gone. After all but the first nothing of the registration is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// The process has unmapped it.
    Unmap,
    /// The process has ended or called exec.
    MmGone,
    /// The device is lost.
    Lost,
}

impl Reason {
    fn on_wire(self) -> u32 {
        match self {
            Self::Unmap => event_reason::UNMAP,
            Self::MmGone => event_reason::MM_GONE,
            Self::Lost => event_reason::LOST,
        }
    }
}

/// What happened and was not sent yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PendingEvent {
    reason: Reason,
    /// Pages.
    first: usize,
    end: usize,
}

impl PendingEvent {
    fn merge(self, other: Self) -> Self {
        Self {
            reason: self.reason.max(other.reason),
            first: self.first.min(other.first),
            end: self.end.max(other.end),
        }
    }
}

/// The handle that a registration's events name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handle {
    /// There is none yet. What happens meanwhile is sent afterwards.
    Unknown,
    Open(u32),
    Closed,
}

struct State {
    handle: Handle,
    pending: Option<PendingEvent>,
    /// The worst that was reported, if it leaves nothing of the registration.
    ended: Option<Reason>,
    /// For the next event. `None` if there was no memory.
    event: Option<Event<UserptrEvent>>,
}

/// The events of a registration that are to be sent.
#[pin_data]
pub(crate) struct RangeEvents {
    sender: Arc<EventSender>,
    queue: Arc<EventQueue>,
    addr: u64,
    pages: usize,
    cookie: u64,
    /// Held while an event is sent, so that none is after the handle is closed. Taken by notifier
    /// callbacks.
    #[pin]
    state: SpinLock<State>,
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for RangeEvents { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for RangeEvents { using ListLinks { self.links }; }
}

/// Why an event is still pending.
enum Blocked {
    /// Until userspace has read.
    NoRoom,
    /// Until there is memory.
    NoMemory,
}

impl RangeEvents {
    /// For a registration of `pages` pages at `addr`, whose events go through `sender` to `queue`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(
        sender: &Arc<EventSender>,
        queue: &Arc<EventQueue>,
        addr: u64,
        pages: usize,
        cookie: u64,
    ) -> Result<Arc<Self>> {
        let event = Event::new()?;
        Arc::pin_init(
            pin_init!(Self {
                sender: sender.clone(),
                queue: queue.clone(),
                addr,
                pages,
                cookie,
                state <- new_spinlock!(
                    State {
                        handle: Handle::Unknown,
                        pending: None,
                        ended: None,
                        event: Some(event),
                    },
                    "RangeEvents::state"
                ),
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// The handle is known: events can be sent.
    pub(super) fn open(self: &Arc<Self>, handle: u32) {
        let mut state = self.state.lock();
        // Another thread may have guessed the handle and closed it.
        if state.handle == Handle::Unknown {
            state.handle = Handle::Open(handle);
        }
        let due = state.pending.is_some();
        drop(state);
        if due {
            self.sender.add(self);
        }
    }

    /// The handle is closed: nothing more is sent.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.handle = Handle::Closed;
        let due = state.pending.take().is_some();
        let event = state.event.take();
        drop(state);
        drop(event);
        if due {
            // The worker takes it out.
            self.sender.resume();
        }
    }

    /// Records that the pages `which` are gone. May be called by notifier callbacks.
    pub(super) fn report(self: &Arc<Self>, reason: Reason, which: Range<usize>) {
        let mut state = self.state.lock();
        let old_news = state.ended.is_some_and(|ended| reason <= ended);
        if old_news || state.handle == Handle::Closed {
            return;
        }
        if reason != Reason::Unmap {
            state.ended = Some(reason);
        }
        let new = PendingEvent {
            reason,
            first: which.start,
            end: which.end,
        };
        state.pending = Some(state.pending.map_or(new, |pending| pending.merge(new)));
        let due = state.handle != Handle::Unknown;
        drop(state);
        if due {
            self.sender.add(self);
        }
    }

    /// Records that the device is lost. May be called by whoever resets it.
    pub(super) fn report_loss(self: &Arc<Self>) {
        self.report(Reason::Lost, 0..self.pages);
    }

    /// Sends what is pending. Called by the worker only.
    fn send(&self) -> Result<(), Blocked> {
        self.allocate()?;
        let mut state = self.state.lock();
        let (Some(pending), Handle::Open(handle)) = (state.pending, state.handle) else {
            return Ok(());
        };
        let Some(event) = state.event.take() else {
            return Ok(());
        };
        let payload = UserptrEvent {
            bo_handle: handle,
            reason: pending.reason.on_wire(),
            addr: self.addr + ((pending.first as u64) << PAGE_SHIFT),
            size: ((pending.end - pending.first) as u64) << PAGE_SHIFT,
            cookie: self.cookie,
            ..Default::default()
        };
        match self.queue.send(event, payload) {
            Ok(()) => state.pending = None,
            Err(Unsent::NoRoom(event)) => {
                state.event = Some(event);
                return Err(Blocked::NoRoom);
            }
            Err(Unsent::Closed(event)) => state.event = Some(event),
        }
        drop(state);
        // Ahead; if this fails, it is done when there is something to send.
        let _ = self.allocate();
        Ok(())
    }

    /// Makes sure of memory for an event, unless none will be sent.
    fn allocate(&self) -> Result<(), Blocked> {
        {
            let state = self.state.lock();
            if state.event.is_some() || state.handle == Handle::Closed {
                return Ok(());
            }
        }
        let event = Event::new().map_err(|_| Blocked::NoMemory)?;
        let mut state = self.state.lock();
        // Only the worker takes it, and this is the worker.
        state.event = Some(event);
        Ok(())
    }
}

struct Due {
    ranges: List<RangeEvents>,
    /// The file is being closed.
    closed: bool,
}

/// The registrations of a file that have events to send.
#[pin_data]
pub(crate) struct EventSender {
    /// Protects the list, and that the work is not enqueued after the end. Taken by notifier
    /// callbacks.
    #[pin]
    due: SpinLock<Due>,
    #[pin]
    work: DelayedWork<EventSender, 1>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for EventSender { self.work }
}

impl EventSender {
    /// Nothing to send.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                due <- new_spinlock!(
                    Due {
                        ranges: List::new(),
                        closed: false,
                    },
                    "EventSender::due"
                ),
                work <- new_delayed_work!("EventSender::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Has the worker send what is pending in `events`.
    fn add(self: &Arc<Self>, events: &Arc<RangeEvents>) {
        let mut due = self.due.lock();
        if due.closed {
            return;
        }
        // One that is in the list leaves it, under this lock, before the worker looks at it. One
        // that the worker has found blocked goes back, and the worker looks again.
        if let Ok(events) = ListArc::try_from_arc(events.clone()) {
            due.ranges.push_back(events);
        }
        self.enqueue(&due, 0);
    }

    /// Has the worker look again: there may be room.
    pub(crate) fn resume(self: &Arc<Self>) {
        self.enqueue(&self.due.lock(), 0);
    }

    fn enqueue(self: &Arc<Self>, due: &Due, delay_ms: u32) {
        if !due.closed {
            // If it is enqueued already, the worker has not begun.
            let delay = jiffies(delay_ms);
            let _ = system_workqueue().enqueue_delayed::<Arc<Self>, 1>(self.clone(), delay);
        }
    }

    fn take(&self) -> Option<Arc<RangeEvents>> {
        let mut due = self.due.lock();
        due.ranges.pop_front().map(ListArc::into_arc)
    }

    /// The file is being closed: nothing is sent any more, and on return no worker runs.
    pub(crate) fn close(self: &Arc<Self>) {
        self.due.lock().closed = true;
        cancel_delayed_sync::<Self, 1>(self);
        // What is in the list keeps the sender, too.
        while let Some(events) = self.take() {
            drop(events);
        }
    }
}

/// Sends what can be sent.
impl WorkItem<1> for EventSender {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let mut blocked = List::new();
        let mut no_memory = false;
        // To the end also if there is no room: those whose handle was closed are to go.
        while let Some(events) = this.take() {
            if let Err(why) = events.send() {
                no_memory |= matches!(why, Blocked::NoMemory);
                // Otherwise it was put into the list again.
                if let Ok(events) = ListArc::try_from_arc(events) {
                    blocked.push_back(events);
                }
            }
        }
        let mut due = this.due.lock();
        // The oldest first.
        blocked.push_all_back(&mut due.ranges);
        core::mem::swap(&mut blocked, &mut due.ranges);
        if no_memory {
            this.enqueue(&due, RETRY_MS);
        }
    }
}

#[kunit_tests(virtgpu_userptr_event)]
mod tests {
    use super::*;

    fn pending(reason: Reason, first: usize, end: usize) -> PendingEvent {
        PendingEvent { reason, first, end }
    }

    #[test]
    fn ranges_are_covered() {
        let merged = pending(Reason::Unmap, 7, 9).merge(pending(Reason::Unmap, 2, 3));
        assert_eq!(merged, pending(Reason::Unmap, 2, 9));
        let merged = merged.merge(pending(Reason::Unmap, 4, 12));
        assert_eq!(merged, pending(Reason::Unmap, 2, 12));
    }

    #[test]
    fn the_worst_is_told() {
        let all = pending(Reason::MmGone, 0, 16);
        assert_eq!(pending(Reason::Unmap, 3, 4).merge(all), all);
        assert_eq!(all.merge(pending(Reason::Lost, 0, 16)).reason, Reason::Lost);
    }
}
