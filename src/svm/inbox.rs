// SPDX-License-Identifier: GPL-2.0

//! Faults between the interrupt that brings them and the thread that serves them.
//!
//! The device has a bounded number of faults that are not resolved, so the places for them are
//! there before the first one comes, and the interrupt puts the buffer back at once. A thread that
//! has nothing to do is noted as idle under the same lock; only such a thread is woken, since a
//! wake would have one that waits for a userfaultfd ask for the same page once more.

use super::Svm;
use crate::{
    kapi::task::{
        UserWork,
        UserWorker, //
    },
    protocol::{
        mirror::access,
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
use kernel::{
    page::PAGE_SIZE,
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
    /// No fault is taken any more, and no thread is to wait for one.
    closed: bool,
}

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
            closed: false,
        })
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
}

impl UserWork for Worker {
    fn is_due(&self) -> bool {
        let mut inbox = self.svm.inbox.lock();
        let is_due = !inbox.waiting.is_empty() && !inbox.closed;
        if is_due {
            // It may have been woken by others.
            inbox.idle &= !(1 << self.index);
        } else {
            inbox.idle |= 1 << self.index;
        }
        is_due
    }

    fn run(&self) {
        let fault = self.svm.inbox.lock().waiting.remove(0);
        if let Ok(fault) = fault {
            self.svm.serve(fault);
        }
    }

    fn killed(&self) {
        self.svm.process_ends();
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
        for worker in &inbox.workers {
            worker.interrupt();
        }
    }

    /// Ends the threads, and waits for that. On return no thread is in the address space.
    pub(super) fn stop_workers(&self) {
        let workers = core::mem::take(&mut self.inbox.lock().workers);
        drop(workers);
    }

    /// The process ends, or calls exec.
    fn process_ends(self: &Arc<Self>) {
        self.lose(super::Loss::without_access(svm_reason::MM_GONE));
        self.begin_end();
    }
}
