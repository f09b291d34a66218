// SPDX-License-Identifier: GPL-2.0

//! The end of an address space.
//!
//! Whoever begins it only marks it: from then on nothing is mapped, no fault is served, and threads
//! that wait for a page give up. The rest waits for the device, for changes of the process's memory
//! that are under way, and for the threads, which a debugger may have stopped; so it is done on a
//! queue of its own, where an address space waits for no other. The file is closed long before.

use super::Svm;
use crate::{
    gpu::ReachedBy,
    kapi::sync::ModuleWorkqueue, //
};
use kernel::{
    sync::{
        atomic::ordering::{
            Full,
            Relaxed, //
        },
        Arc, //
    },
    workqueue::WorkItem, //
};

/// What address spaces end on; it lives as long as the module.
pub(crate) static QUEUE: ModuleWorkqueue = ModuleWorkqueue::new();

impl Svm {
    /// The file is being closed, and the host was told to destroy the context.
    pub(crate) fn close(self: &Arc<Self>) {
        self.begin_end();
    }

    /// Ends the address space. Does not wait for the device, nor for threads.
    pub(super) fn begin_end(self: &Arc<Self>) {
        if self.ending.xchg(true, Full) {
            return;
        }
        self.space.close(&mut self.lock.commits.lock());
        self.windows.close();
        self.close_inbox();
        if !QUEUE.enqueue::<Arc<Self>, 1>(self.clone()) {
            // The module is being unloaded, and does not wait for this thread.
            self.end();
        }
    }

    fn end(&self) {
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
            self.windows.clear();
        }
        self.stop_workers();
    }
}

impl WorkItem<1> for Svm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.end();
    }
}
