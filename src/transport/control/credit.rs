// SPDX-License-Identifier: GPL-2.0

//! Room in the ring, taken ahead.

use super::{
    Control,
    Inner,
    Owned,
    TEARDOWN_RESERVE, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc, //
    },
};

/// A file's part of the ring.
pub(crate) struct Share {
    /// Descriptors in use; changed under the control queue's lock.
    used: Atomic<usize>,
}

impl Share {
    /// An unused share.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                used: Atomic::new(0),
            },
            GFP_KERNEL,
        )?)
    }
}

/// The right to add a command to the ring.
pub(crate) struct Credit {
    control: Arc<Control>,
    share: Arc<Share>,
    slots: usize,
}

impl Credit {
    /// Splits off a credit for `slots` of the descriptors.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it has fewer.
    pub(crate) fn split(&mut self, slots: usize) -> Result<Self> {
        self.slots = self.slots.checked_sub(slots).ok_or(EINVAL)?;
        Ok(Self {
            control: self.control.clone(),
            share: self.share.clone(),
            slots,
        })
    }

    /// Turns the credit into descriptors in use.
    pub(super) fn spend(mut self) -> (usize, Arc<Share>) {
        (core::mem::take(&mut self.slots), self.share.clone())
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if self.slots > 0 {
            let mut inner = self.control.inner.lock();
            inner.free += self.slots;
            self.share
                .used
                .store(self.share.used.load(Relaxed) - self.slots, Relaxed);
            let notification = self.control.send_backlog(&mut inner);
            drop(inner);
            drop(notification);
            self.control.wait.wake_all();
        }
    }
}

impl Control {
    /// Waits for room for a command of `slots` descriptors.
    ///
    /// Must be called before any lock is taken that the end of a job may need.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`ERESTARTSYS`] on a fatal signal, [`EBUSY`] if jobs kept
    /// the ring full for the time of a whole time-out, [`E2BIG`] if `slots` is more than a file
    /// gets.
    pub(crate) fn credit(self: &Arc<Self>, share: &Arc<Share>, slots: usize) -> Result<Credit> {
        self.credit_within(share, slots, self.timeouts.answer_ms)
    }

    /// As [`Control::credit`], but waits for `ms` milliseconds at most.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn credit_within(
        self: &Arc<Self>,
        share: &Arc<Share>,
        slots: usize,
        ms: u32,
    ) -> Result<Credit> {
        if slots > self.max_descriptors() {
            return Err(E2BIG);
        }
        let mut taken = false;
        let waited = self.wait.wait_killable_timeout(
            || {
                taken = taken || self.try_credit(share, slots);
                taken || self.is_lost()
            },
            ms,
        );
        if !taken {
            waited?;
            return Err(ENODEV);
        }
        Ok(Credit {
            control: self.clone(),
            share: share.clone(),
            slots,
        })
    }

    fn try_credit(&self, share: &Share, slots: usize) -> bool {
        let mut inner = self.inner.lock();
        let used = share.used.load(Relaxed);
        // The last part is for those who have nothing in the ring: a few files full of jobs that
        // never end must not keep all others from sending anything.
        let kept = if used == 0 { 0 } else { inner.ring_size / 8 };
        if inner.free < slots + kept || used + slots > inner.ring_size / 4 {
            return false;
        }
        inner.free -= slots;
        share.used.store(used + slots, Relaxed);
        true
    }

    pub(super) fn return_slots(&self, inner: &mut Inner, owned: &mut Owned) {
        let slots = core::mem::take(&mut owned.slots);
        match owned.share.take() {
            Some(share) => {
                inner.free += slots;
                // The owner of the command holds a reference elsewhere or is gone; either way the
                // last one may be dropped here, which frees nothing but the counter.
                share.used.store(share.used.load(Relaxed) - slots, Relaxed);
            }
            None => {
                let reserve = (TEARDOWN_RESERVE - inner.reserve).min(slots);
                inner.reserve += reserve;
                inner.free += slots - reserve;
            }
        }
    }
}
