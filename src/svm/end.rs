// SPDX-License-Identifier: GPL-2.0

//! The end of an address space.
//!
//! Whoever begins it only marks it: from then on nothing is mapped, no fault is served, and threads
//! that wait for a page do so no longer. The rest waits for the device, and for changes of the
//! process's memory that are under way; so it is done on a queue of its own, where an address space
//! waits for no other. The file is closed long before.
//!
//! The threads may have been stopped by a signal or a debugger, for as long as another process
//! likes; the last that has seen the end has them all ended. One that is stopped between the two is
//! waited for after all, which is why that is done on another queue: no end of an address space
//! waits for it.
//!
//! The threads are there before the device knows the space, so that the process may end while the
//! ioctl still waits for that. Then the rest waits for the ioctl: what it adds is to be removed.

use super::Svm;
use crate::{
    gpu::ReachedBy,
    kapi::sync::ModuleWorkqueue, //
};
use kernel::{
    sync::{
        atomic::ordering::Relaxed,
        Arc, //
    },
    workqueue::WorkItem, //
};

/// What address spaces end on; it lives as long as the module.
pub(crate) static QUEUE: ModuleWorkqueue = ModuleWorkqueue::new();

/// What their threads are ended on; it lives as long as there are any.
pub(crate) static STOPS: ModuleWorkqueue = ModuleWorkqueue::new();

/// How far the life of an address space has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The ioctl that enables it has not come to its end.
    Beginning,
    /// It is in use.
    Begun,
    /// It is being marked; whether the ioctl has come to its end meanwhile.
    Marking { begun: bool },
    /// The ioctl has not come to its end, and does the rest.
    Marked,
    /// The rest is being done, or is done.
    Ending,
}

impl Svm {
    /// The file is being closed, and the host was told to destroy the context.
    pub(crate) fn close(self: &Arc<Self>) {
        self.begin_end();
    }

    /// Ends the address space. Does not wait for the device, nor for threads.
    pub(super) fn begin_end(self: &Arc<Self>) {
        {
            let mut phase = self.phase.lock();
            let begun = match *phase {
                Phase::Beginning => false,
                Phase::Begun => true,
                _ => return,
            };
            *phase = Phase::Marking { begun };
        }
        self.space.close(&mut self.lock.commits.lock());
        self.windows.close();
        self.close_inbox();
        let mut phase = self.phase.lock();
        let begun = matches!(*phase, Phase::Marking { begun: true });
        *phase = if begun { Phase::Ending } else { Phase::Marked };
        drop(phase);
        if begun {
            self.queue_end();
        }
    }

    /// The ioctl that enables the address space has come to its end, whatever its outcome.
    pub(super) fn has_begun(self: &Arc<Self>) {
        let mut phase = self.phase.lock();
        let is_marked = *phase == Phase::Marked;
        *phase = match *phase {
            Phase::Beginning => Phase::Begun,
            Phase::Marking { .. } => Phase::Marking { begun: true },
            Phase::Marked => Phase::Ending,
            other => other,
        };
        drop(phase);
        if is_marked {
            self.queue_end();
        }
    }

    fn queue_end(self: &Arc<Self>) {
        if !QUEUE.enqueue::<Arc<Self>, 1>(self.clone()) {
            // The module is being unloaded, and does not wait for this thread.
            self.end();
        }
    }

    fn end(self: &Arc<Self>) {
        // Behind all MAPs, and it resolves all faults. A lost device has the space until it is
        // reset.
        let ended = self.space.destroy();
        self.windows.space_ended(ended);
        if ended.is_ok() {
            // The device fails what they have not done yet.
            self.jobs.abort();
            if self.added.load(Relaxed) {
                let by = ReachedBy::Context(self.context.id());
                self.gpu.mappings.remove(by);
            }
        }
        // Nothing but this thread waits for what a busy process does to its memory.
        self.windows.remove_notifiers();
        if ended.is_ok() {
            // Callbacks may have put pages into quarantine if the device was lost just then; but it
            // has ended the space, and the reset does not see the windows any more.
            self.windows.device_reset();
            self.windows.clear();
        }
        if self.set_ended() {
            self.queue_stop();
        }
    }

    /// Has a worker end the threads.
    pub(super) fn queue_stop(self: &Arc<Self>) {
        // The queue is there as long as there are threads.
        let queued = STOPS.enqueue::<Arc<Self>, 2>(self.clone());
        debug_assert!(queued);
    }
}

impl WorkItem<1> for Svm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.end();
    }
}

impl WorkItem<2> for Svm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.stop_workers();
    }
}
