// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A flag that ends jobs early, and a sleep that it interrupts.
//!
//! Each context has one, and one is for copies of no context. Whoever destroys the context, resets
//! the device or stops its mirror queue sets it; workers look at it between pieces of work, sleep
//! on it, and wait on it for what others do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Set once, never cleared.
#[derive(Debug, Default)]
pub struct Cancel {
    set: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Cancel {
    /// Sets the flag and wakes all sleepers.
    pub fn set(&self) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.set.store(true, Ordering::Release);
        drop(guard);
        self.changed.notify_all();
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Waits until `done` returns something, or the flag is set: then there is nothing. It is
    /// called again after each [`Self::wake`].
    pub(crate) fn wait_for<T>(&self, mut done: impl FnMut() -> Option<T>) -> Option<T> {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_set() {
            if let Some(found) = done() {
                return Some(found);
            }
            guard = self
                .changed
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Has all who wait look again, after something has changed that they wait for.
    pub(crate) fn wake(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Sleeps for `duration` or until the flag is set; returns whether it is.
    pub fn sleep(&self, duration: Duration) -> bool {
        let end = Instant::now() + duration;
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_set() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self
                .changed
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_waiting() {
        let cancel = Cancel::default();
        let found = AtomicBool::new(false);
        let look = || found.load(Ordering::Relaxed).then_some(7);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| cancel.wait_for(look));
            found.store(true, Ordering::Relaxed);
            cancel.wake();
            assert_eq!(waiter.join().unwrap(), Some(7));
            let waiter = scope.spawn(|| cancel.wait_for(|| None::<u32>));
            cancel.set();
            assert_eq!(waiter.join().unwrap(), None);
        });
        assert_eq!(cancel.wait_for(look), None);
    }

    #[test]
    fn interrupts_sleep() {
        let cancel = Cancel::default();
        assert!(!cancel.sleep(Duration::from_millis(1)));
        let start = Instant::now();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| cancel.sleep(Duration::from_secs(60)));
            cancel.set();
            assert!(sleeper.join().unwrap());
        });
        assert!(cancel.sleep(Duration::from_secs(60)));
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
