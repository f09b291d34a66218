// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A thread that has the processor whenever nothing else has it. The kernel is never idle then: its
//! idle loop, which executes more instructions the longer it waits, is none of a driver's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::setup::Result;

/// The thread; ends on drop.
pub(super) struct Busy {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    pub(super) fn new() -> Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let (seen, (tell, told)) = (end.clone(), std::sync::mpsc::channel());
        let thread = std::thread::spawn(move || {
            let parameters = libc::sched_param { sched_priority: 0 };
            // SAFETY: Of the calling thread; the parameters outlive the call.
            let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters) };
            let _ = tell.send(match result {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
            // Not std::hint::spin_loop(), which an emulated processor may take for an end of its
            // turn.
            while !seen.load(Ordering::Relaxed) {}
        });
        let busy = Self {
            end,
            thread: Some(thread),
        };
        told.recv()??;
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
