// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The time from an event in memory to the return of a call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::setup::Result;

/// The processor that most interrupts come to, for who waits for one.
const WAITER: usize = 0;
/// The processor of who looks at memory all the time.
const WATCHER: usize = 1;

/// Nanoseconds from the moment at which another processor sees that `written` is true, to the
/// return of `wait`; 0 if the other one was late, because the host did not let it run.
pub(super) fn after(
    written: impl Fn() -> bool + Sync,
    wait: impl FnOnce() -> Result,
) -> Result<f64> {
    let started = AtomicBool::new(false);
    let _here = Pin::new(WAITER)?;
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let pinned = Pin::new(WATCHER);
            started.store(true, Ordering::Release);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !written() {
                if Instant::now() > deadline {
                    return Err("the job has written nothing");
                }
                std::hint::spin_loop();
            }
            let seen = Instant::now();
            pinned.map(|_| seen).map_err(|_| "no second processor")
        });
        while !started.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        wait()?;
        let woken = Instant::now();
        let written = watcher.join().map_err(|_| "the watcher panicked")??;
        Ok(woken.saturating_duration_since(written).as_nanos() as f64)
    })
}

/// Keeps the calling thread on one processor.
struct Pin {
    before: libc::cpu_set_t,
}

impl Pin {
    fn new(processor: usize) -> std::io::Result<Self> {
        // SAFETY: Sets of processors are plain bits.
        let (mut before, mut only): (libc::cpu_set_t, libc::cpu_set_t) =
            unsafe { std::mem::zeroed() };
        // SAFETY: The set has the size that is said, and bits for that many processors.
        let got = unsafe {
            libc::CPU_SET(processor, &mut only);
            libc::sched_getaffinity(0, size_of_val(&before), &mut before)
        };
        if got != 0 {
            return Err(std::io::Error::last_os_error());
        }
        set_affinity(&only)?;
        Ok(Self { before })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = set_affinity(&self.before);
    }
}

/// Of the calling thread.
fn set_affinity(processors: &libc::cpu_set_t) -> std::io::Result<()> {
    // SAFETY: The set has the size that is said.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(processors), processors) };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
