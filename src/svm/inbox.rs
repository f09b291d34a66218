// SPDX-License-Identifier: GPL-2.0

//! Faults between the interrupt that brings them and the thread that serves them.
//!
//! The device has a bounded number of faults that are not resolved, so the places for them are
//! there before the first one comes, and the interrupt puts the buffer back at once. A thread that
//! has nothing to do is noted as idle under the same lock; only such a thread is woken, since a
//! wake would have one that waits for a userfaultfd ask for the same page once more.
//!
//! The response to a MAP can wait until there is no fault to serve, since the device faults again
//! where it has failed. But it is not forgotten: what has not been mapped is not in the table.

use super::Svm;
use crate::{
    kapi::task::{
        UserWork,
        UserWorker, //
    },
    mirror::{
        Sent,
        Window, //
    },
    protocol::{
        mirror::{
            access,
            status, //
        },
        uapi::{
            svm_reason,
            SVM_MAX_WORKERS, //
        }, //
    },
    transport::event::{
        Fault,
        Noted, //
    },
};
use core::ops::Range;
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc, //
};

/// Faults that are not resolved, and the threads that serve them.
pub(super) struct Inbox {
    /// Faults that no thread has taken, the oldest first. Never grows beyond its capacity.
    waiting: KVec<Fault>,
    /// The ids of those that are not resolved. Never grows beyond its capacity.
    unresolved: KVec<u64>,
    /// Never grows beyond its capacity.
    workers: KVec<UserWorker<Worker>>,
    /// Those that sleep for want of something to do: a set of indices.
    idle: u32,
    /// MAPs that were sent along with the resolutions of faults, and whose responses no one has
    /// looked at; the oldest first. Never grows beyond its capacity.
    unconfirmed: KVec<Unconfirmed>,
    /// The pages, by number, that a thread maps ahead of the faults on them; and such faults, which
    /// are not to be served before it has done so. Never grows beyond its capacity.
    ahead: Option<Range<usize>>,
    parked: KVec<Fault>,
    /// No fault is taken any more, and no thread is to wait for one.
    closed: bool,
    /// The threads that have seen that, or end with the process: a set of indices.
    left: u32,
    /// The threads are all that is left of the address space.
    ended: bool,
}

/// MAPs of a window.
pub(super) struct Unconfirmed {
    pub(super) window: Arc<Window>,
    pub(super) sent: Sent,
    /// No fault asked for them.
    pub(super) ahead: bool,
}

/// Most MAPs whose responses no one has looked at.
const UNCONFIRMED: usize = 16;

impl Inbox {
    /// No faults, `most` of which the device may have on the way at once.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(most: usize) -> Result<Self> {
        Ok(Self {
            waiting: KVec::with_capacity(most, GFP_KERNEL)?,
            unresolved: KVec::with_capacity(most, GFP_KERNEL)?,
            workers: KVec::with_capacity(SVM_MAX_WORKERS as usize, GFP_KERNEL)?,
            idle: 0,
            unconfirmed: KVec::with_capacity(UNCONFIRMED, GFP_KERNEL)?,
            ahead: None,
            parked: KVec::with_capacity(most, GFP_KERNEL)?,
            closed: false,
            left: 0,
            ended: false,
        })
    }

    /// Whether the threads can be ended without a wait for one that a signal or a debugger has
    /// stopped, unless that happens now.
    fn can_stop(&self) -> bool {
        self.ended && self.left.count_ones() as usize == self.workers.len()
    }

    /// Has a thread that has nothing to do look again.
    fn wake_one(&mut self) {
        if self.idle != 0 {
            let index = self.idle.trailing_zeros();
            self.idle &= !(1 << index);
            if let Some(worker) = self.workers.get(index as usize) {
                worker.wake();
            }
        }
    }
}

/// A thread of the process that serves faults.
pub(super) struct Worker {
    svm: Arc<Svm>,
    index: usize,
}

impl Worker {
    /// Number `index` of those that serve the faults of `svm`.
    pub(super) fn new(svm: &Arc<Svm>, index: usize) -> Self {
        Self {
            svm: svm.clone(),
            index,
        }
    }

    /// The thread serves no faults any more. The last one has a worker end them all.
    fn leave(&self) {
        let mut inbox = self.svm.inbox.lock();
        let before = inbox.left;
        inbox.left |= 1 << self.index;
        let is_last = inbox.left != before && inbox.can_stop();
        drop(inbox);
        if is_last {
            self.svm.queue_stop();
        }
    }
}

impl UserWork for Worker {
    fn is_due(&self) -> bool {
        let mut inbox = self.svm.inbox.lock();
        if inbox.closed {
            drop(inbox);
            self.leave();
            return false;
        }
        let is_due = !inbox.waiting.is_empty() || !inbox.unconfirmed.is_empty();
        if is_due {
            // It may have been woken by others.
            inbox.idle &= !(1 << self.index);
        } else {
            inbox.idle |= 1 << self.index;
        }
        is_due
    }

    fn run(&self) {
        let mut inbox = self.svm.inbox.lock();
        // A fault on a page whose MAP has failed comes back until that is seen.
        let has_response = |oldest: &Unconfirmed| oldest.sent.has_response();
        let fault = match inbox.unconfirmed.first().is_some_and(has_response) {
            true => None,
            false => inbox.waiting.remove(0).ok(),
        };
        if let Some(fault) = fault {
            drop(inbox);
            self.svm.serve(fault);
        } else if let Ok(unconfirmed) = inbox.unconfirmed.remove(0) {
            drop(inbox);
            self.svm.confirm(&unconfirmed);
        }
    }

    fn killed(&self) {
        self.svm.process_ends();
        self.leave();
    }
}

/// Pages that a thread maps ahead of the faults on them. When this is dropped, those that have come
/// meanwhile are served before others.
pub(super) struct Ahead<'a>(&'a Svm);

impl Ahead<'_> {
    /// The pages are mapped: calls `resolve` for each fault that has come meanwhile.
    pub(super) fn finish(self, resolve: impl Fn(Fault)) {
        let svm = self.0;
        core::mem::forget(self);
        let mut parked = {
            let mut inbox = svm.inbox.lock();
            inbox.ahead = None;
            // As long as there is no room, none of another thread's are put aside.
            core::mem::take(&mut inbox.parked)
        };
        parked.iter().copied().for_each(resolve);
        parked.clear();
        // Another thread may have come to its end meanwhile, and taken what has no memory.
        if parked.capacity() > 0 {
            core::mem::swap(&mut svm.inbox.lock().parked, &mut parked);
        }
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox.lock();
        inbox.ahead = None;
        while let Some(fault) = inbox.parked.pop() {
            // There is room: they are some of those that are not resolved.
            let _ = inbox.waiting.insert_within_capacity(0, fault);
            inbox.wake_one();
        }
    }
}

impl Svm {
    /// Adds a thread. Before any fault can come.
    pub(super) fn add_worker(&self, worker: UserWorker<Worker>) -> Result {
        let mut inbox = self.inbox.lock();
        match inbox.workers.push_within_capacity(worker) {
            Ok(()) => Ok(()),
            Err(worker) => {
                drop(inbox);
                drop(worker);
                Err(ENOSPC)
            }
        }
    }

    /// Takes note of a fault, in the interrupt.
    pub(super) fn note_fault(&self, fault: Fault) -> Noted {
        let known = matches!(fault.access, access::READ | access::WRITE | access::ATOMIC);
        let aligned = fault.address % PAGE_SIZE as u64 == 0;
        let inside = fault.address < self.end as u64 && fault.stream <= self.context.rings();
        if !known || !aligned || !inside {
            return Noted::Refused;
        }
        let mut inbox = self.inbox.lock();
        if inbox.closed {
            return Noted::Done;
        }
        if inbox.unresolved.contains(&fault.id)
            || inbox.unresolved.push_within_capacity(fault.id).is_err()
            || inbox.waiting.push_within_capacity(fault).is_err()
        {
            return Noted::Refused;
        }
        inbox.wake_one();
        Noted::Done
    }

    /// A fault that was not served is to be served by whoever comes next.
    pub(super) fn put_back(&self, fault: Fault) {
        let mut inbox = self.inbox.lock();
        if !inbox.closed {
            // There is room: it is one of those that are not resolved.
            let _ = inbox.waiting.push_within_capacity(fault);
            inbox.wake_one();
        }
    }

    /// Leaves it for later to look at the responses to MAPs, for whose failure there is a remedy:
    /// another fault.
    pub(super) fn confirm_later(&self, unconfirmed: Unconfirmed) {
        if unconfirmed.sent.pages() == 0 {
            return;
        }
        let mut inbox = self.inbox.lock();
        let oldest = match inbox.unconfirmed.len() == UNCONFIRMED {
            true => inbox.unconfirmed.remove(0).ok(),
            false => None,
        };
        // There is room.
        let _ = inbox.unconfirmed.push_within_capacity(unconfirmed);
        drop(inbox);
        if let Some(oldest) = oldest {
            self.confirm(&oldest);
        }
    }

    fn confirm(&self, unconfirmed: &Unconfirmed) {
        let Unconfirmed {
            window,
            sent,
            ahead,
        } = unconfirmed;
        // Without the device, or the space, no one faults.
        let Ok(response) = self.confirm_sent(window, sent) else {
            return;
        };
        let reached = match response.status {
            status::OK | status::NO_SUCH_SPACE => return,
            status::NO_MEMORY => Some(self.reached_pages()),
            _ => None,
        };
        let mut shortages = self.shortages.lock();
        let shortage = if *ahead {
            &mut shortages.ahead
        } else {
            &mut shortages.faults
        };
        match reached {
            Some(reached) => shortage.begin(reached),
            None => shortage.begin_for_ever(),
        }
    }

    /// Whether no fault waits for a thread.
    pub(super) fn is_quiet(&self) -> bool {
        let inbox = self.inbox.lock();
        inbox.waiting.is_empty() && !inbox.closed
    }

    /// The current thread is about to map pages `which`, by number, ahead of the faults on them.
    /// `None` if another thread is doing that.
    pub(super) fn go_ahead(&self, which: Range<usize>) -> Option<Ahead<'_>> {
        let mut inbox = self.inbox.lock();
        if inbox.ahead.is_some() || inbox.closed {
            return None;
        }
        inbox.ahead = Some(which);
        Some(Ahead(self))
    }

    /// Puts a fault aside if another thread is about to map the page.
    pub(super) fn park(&self, fault: &Fault) -> bool {
        let page = fault.address as usize >> PAGE_SHIFT;
        let mut inbox = self.inbox.lock();
        let is_ahead = inbox
            .ahead
            .as_ref()
            .is_some_and(|ahead| ahead.contains(&page));
        is_ahead && inbox.parked.push_within_capacity(*fault).is_ok()
    }

    /// The resolution of a fault was not sent after all.
    pub(super) fn remember_fault(&self, id: u64) {
        // There is room, unless the device has more faults than it may.
        let _ = self.inbox.lock().unresolved.push_within_capacity(id);
    }

    /// The resolution of a fault is about to be sent, after which the device may have another.
    pub(super) fn forget_fault(&self, id: u64) {
        self.inbox.lock().unresolved.retain(|other| *other != id);
    }

    /// Lets no thread serve faults any more, nor wait for a page.
    pub(super) fn close_inbox(&self) {
        let mut inbox = self.inbox.lock();
        inbox.closed = true;
        inbox.waiting.clear();
        inbox.parked.clear();
        for worker in &inbox.workers {
            worker.interrupt();
        }
    }

    /// Nothing but the threads is left of the address space. Returns whether they can be ended: as
    /// long as not, the last of them sees to it.
    pub(super) fn set_ended(&self) -> bool {
        let mut inbox = self.inbox.lock();
        inbox.ended = true;
        inbox.can_stop()
    }

    /// Ends the threads, and waits for that, which takes no time unless one was stopped just now:
    /// each is at its end, or has nothing to do. On return no thread is in the address space.
    pub(super) fn stop_workers(&self) {
        let workers = core::mem::take(&mut self.inbox.lock().workers);
        drop(workers);
        let unconfirmed = core::mem::take(&mut self.inbox.lock().unconfirmed);
        drop(unconfirmed);
    }

    /// The process ends, or calls exec.
    fn process_ends(self: &Arc<Self>) {
        self.lose(super::Loss::without_access(svm_reason::MM_GONE));
        self.begin_end();
    }
}
