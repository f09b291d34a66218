// SPDX-License-Identifier: GPL-2.0

//! Telling a program that registered memory is gone.
//!
//! A notifier callback must neither allocate nor take the locks of others, so it only notes what
//! happened in the registration's [`Notice`] and puts that into the file's [`Outbox`]; a worker
//! sends it. What happens before that widens the note: one event tells of one range with
//! everything in it, and of the worst that happened. The memory for the first event comes with
//! the registration; the worker replaces what it has sent.
//!
//! # A reader that is slow
//!
//! A file has room for about a hundred events. What does not fit stays noted, and whoever reads
//! events has the worker look again, so nothing is lost and nobody waits for the reader. If there
//! is no memory for an event, the worker looks again after [`RETRY_MS`].
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
    /// The process has given up its address space.
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

/// What happened and has not been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    reason: Reason,
    /// Pages.
    first: usize,
    end: usize,
}

impl Note {
    fn merge(self, other: Self) -> Self {
        Self {
            reason: self.reason.max(other.reason),
            first: self.first.min(other.first),
            end: self.end.max(other.end),
        }
    }
}

/// What a registration's events are called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handle {
    /// There is none yet. What happens meanwhile is told afterwards.
    Unknown,
    Open(u32),
    Closed,
}

struct State {
    handle: Handle,
    note: Option<Note>,
    /// The worst that was noted, if it leaves nothing of the registration.
    ended: Option<Reason>,
    /// For the next event. `None` if there was no memory.
    event: Option<Event<UserptrEvent>>,
}

/// What a program has yet to be told of a registration.
#[pin_data]
pub(crate) struct Notice {
    outbox: Arc<Outbox>,
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
    impl ListArcSafe<0> for Notice { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for Notice { using ListLinks { self.links }; }
}

/// Why something is still to be told.
enum Blocked {
    /// Until userspace has read.
    NoRoom,
    /// Until there is memory.
    NoMemory,
}

impl Notice {
    /// For a registration of `pages` pages at `addr`, whose events go through `outbox` to `queue`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(
        outbox: &Arc<Outbox>,
        queue: &Arc<EventQueue>,
        addr: u64,
        pages: usize,
        cookie: u64,
    ) -> Result<Arc<Self>> {
        let event = Event::new()?;
        Arc::pin_init(
            pin_init!(Self {
                outbox: outbox.clone(),
                queue: queue.clone(),
                addr,
                pages,
                cookie,
                state <- new_spinlock!(
                    State {
                        handle: Handle::Unknown,
                        note: None,
                        ended: None,
                        event: Some(event),
                    },
                    "Notice::state"
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
        let due = state.note.is_some();
        drop(state);
        if due {
            self.outbox.add(self);
        }
    }

    /// The handle is closed: nothing more is sent.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.handle = Handle::Closed;
        let due = state.note.take().is_some();
        let event = state.event.take();
        drop(state);
        drop(event);
        if due {
            // The worker takes it out.
            self.outbox.resume();
        }
    }

    /// Notes that the pages `which` are gone. May be called by notifier callbacks.
    pub(super) fn tell(self: &Arc<Self>, reason: Reason, which: Range<usize>) {
        let mut state = self.state.lock();
        let old_news = state.ended.is_some_and(|ended| reason <= ended);
        if old_news || state.handle == Handle::Closed {
            return;
        }
        if reason != Reason::Unmap {
            state.ended = Some(reason);
        }
        let new = Note {
            reason,
            first: which.start,
            end: which.end,
        };
        state.note = Some(state.note.map_or(new, |note| note.merge(new)));
        let due = state.handle != Handle::Unknown;
        drop(state);
        if due {
            self.outbox.add(self);
        }
    }

    /// Notes that the device is lost. May be called by whoever resets it.
    pub(super) fn tell_loss(self: &Arc<Self>) {
        self.tell(Reason::Lost, 0..self.pages);
    }

    /// Sends what is noted. Called by the worker only.
    fn send(&self) -> Result<(), Blocked> {
        self.allocate()?;
        let mut state = self.state.lock();
        let (Some(note), Handle::Open(handle)) = (state.note, state.handle) else {
            return Ok(());
        };
        let Some(event) = state.event.take() else {
            return Ok(());
        };
        let payload = UserptrEvent {
            bo_handle: handle,
            reason: note.reason.on_wire(),
            addr: self.addr + ((note.first as u64) << PAGE_SHIFT),
            size: ((note.end - note.first) as u64) << PAGE_SHIFT,
            cookie: self.cookie,
            ..Default::default()
        };
        match self.queue.send(event, payload) {
            Ok(()) => state.note = None,
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
    notices: List<Notice>,
    /// The file is being closed.
    closed: bool,
}

/// The registrations of a file of which there is something to tell.
#[pin_data]
pub(crate) struct Outbox {
    /// Protects the list, and that the work is not enqueued after the end. Taken by notifier
    /// callbacks.
    #[pin]
    due: SpinLock<Due>,
    #[pin]
    work: DelayedWork<Outbox, 1>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for Outbox { self.work }
}

impl Outbox {
    /// Nothing to tell.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                due <- new_spinlock!(
                    Due {
                        notices: List::new(),
                        closed: false,
                    },
                    "Outbox::due"
                ),
                work <- new_delayed_work!("Outbox::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Has the worker send what `notice` notes, which was noted before.
    fn add(self: &Arc<Self>, notice: &Arc<Notice>) {
        let mut due = self.due.lock();
        if due.closed {
            return;
        }
        // One that is in the list leaves it, under this lock, before the worker looks at it. One
        // that the worker has found blocked goes back, and the worker looks again.
        if let Ok(notice) = ListArc::try_from_arc(notice.clone()) {
            due.notices.push_back(notice);
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

    fn take(&self) -> Option<Arc<Notice>> {
        let mut due = self.due.lock();
        due.notices.pop_front().map(ListArc::into_arc)
    }

    /// The file is being closed: nothing is sent any more, and on return no worker runs.
    pub(crate) fn close(self: &Arc<Self>) {
        self.due.lock().closed = true;
        cancel_delayed_sync::<Self, 1>(self);
        // What is in the list keeps the outbox, too.
        while let Some(notice) = self.take() {
            drop(notice);
        }
    }
}

/// Sends what can be sent.
impl WorkItem<1> for Outbox {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let mut blocked = List::new();
        let mut no_memory = false;
        // To the end also if there is no room: those whose handle was closed are to go.
        while let Some(notice) = this.take() {
            if let Err(why) = notice.send() {
                no_memory |= matches!(why, Blocked::NoMemory);
                // Otherwise it was put into the list again.
                if let Ok(notice) = ListArc::try_from_arc(notice) {
                    blocked.push_back(notice);
                }
            }
        }
        let mut due = this.due.lock();
        // The oldest first.
        blocked.push_all_back(&mut due.notices);
        core::mem::swap(&mut blocked, &mut due.notices);
        if no_memory {
            this.enqueue(&due, RETRY_MS);
        }
    }
}

#[kunit_tests(virtgpu_userptr_event)]
mod tests {
    use super::*;

    fn note(reason: Reason, first: usize, end: usize) -> Note {
        Note { reason, first, end }
    }

    #[test]
    fn ranges_are_covered() {
        let merged = note(Reason::Unmap, 7, 9).merge(note(Reason::Unmap, 2, 3));
        assert_eq!(merged, note(Reason::Unmap, 2, 9));
        let merged = merged.merge(note(Reason::Unmap, 4, 12));
        assert_eq!(merged, note(Reason::Unmap, 2, 12));
    }

    #[test]
    fn the_worst_is_told() {
        let all = note(Reason::MmGone, 0, 16);
        assert_eq!(note(Reason::Unmap, 3, 4).merge(all), all);
        assert_eq!(all.merge(note(Reason::Lost, 0, 16)).reason, Reason::Lost);
    }
}
