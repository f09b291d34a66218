// SPDX-License-Identifier: GPL-2.0

//! Room in the device: what is done when it refuses a MAP for want of memory.
//!
//! A part of what the device reaches is revoked, and whoever was refused tries again. So do threads
//! that were refused meanwhile, as many as what was revoked is enough for: if each took a part of
//! what the one before has left, that would be most of what the device reaches. A fault is refused
//! only if that cannot help: nothing was invalidated since its MAP was sent, by any thread, and
//! nothing is being invalidated.

use super::super::Svm;
use crate::{
    kapi::task::check_not_killed,
    mirror::{
        Response,
        Sent,
        Window,
        WINDOW, //
    },
    protocol::mirror::status,
};
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::atomic::ordering::Relaxed, //
};

/// How often room may be made, without a MAP between that the device accepts, before there is said
/// to be none: next to nothing of what the device reached is left then.
const MOST_IN_VAIN: u32 = 64;

/// How often pages have ceased to be reachable, so that the device may have room for others.
#[derive(Clone, Copy)]
pub(super) struct Room {
    acknowledgements: u64,
    evictions: u64,
}

impl Room {
    /// The same, but for so many INVALIDATE commands of who asks.
    pub(super) fn but_for(self, invalidations: u64) -> Self {
        Self {
            acknowledgements: self.acknowledgements + invalidations,
            ..self
        }
    }
}

impl Svm {
    /// Waits for the responses to MAPs, as [`Window::confirm`] does.
    pub(in crate::svm) fn confirm_sent(&self, window: &Window, sent: &Sent) -> Result<Response> {
        let response = window.confirm(sent, &self.revoking)?;
        if response.status == status::OK && sent.pages() > 0 {
            self.made_in_vain.store(0, Relaxed);
            self.shortages.lock().ahead.taken(sent.pages());
        }
        Ok(response)
    }

    /// Whether the device lacks room: MAPs for faults are small then, and confirmed before their
    /// faults are resolved.
    pub(super) fn is_scarce(&self) -> bool {
        self.shortages.lock().faults.is_on()
    }

    /// How many pages the device reaches, but for those that are being invalidated.
    pub(in crate::svm) fn reached_pages(&self) -> usize {
        let (mut at, mut bytes) = (0, 0);
        while let Some((number, window)) = self.windows.next(at) {
            at = number + 1;
            bytes += window.mapped_bytes();
        }
        (bytes >> PAGE_SHIFT) as usize
    }

    /// What may have made room in the device so far.
    pub(super) fn room(&self) -> Room {
        Room {
            acknowledgements: self.space.acknowledgements(),
            evictions: self.counts.evictions.load(Relaxed),
        }
    }

    /// Revokes a quarter of what the device reaches, going round through the address space from
    /// where it stopped the last time: what a job needs at once is not revoked over and over.
    /// Returns whether the device may have room that it had not when [`Svm::room`] was `before`, or
    /// soon will have: where nothing is left to be revoked, another thread may have done so. What
    /// is revoked may be what the device has refused to another thread, so that this alone does not
    /// go on for ever. The device has refused a MAP of `asked` pages.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`EINTR`] on a fatal signal.
    pub(super) fn make_room(&self, before: Room, asked: usize) -> Result<bool> {
        let revoking = self.revoking.lock()?;
        // Another thread has made room since, while this one waited for it. Whether that is enough
        // the device says.
        let left = self.unclaimed.load(Relaxed);
        if left > 0 && self.counts.evictions.load(Relaxed) != before.evictions {
            self.unclaimed.store(left.saturating_sub(asked), Relaxed);
            return Ok(true);
        }
        let reached = self.reached_pages();
        self.shortages.lock().refused_again(reached);
        // What is being invalidated is not counted, but takes room as yet.
        let least = reached.div_ceil(4).max(1);
        let start = self.hand.load(Relaxed);
        let (mut done, mut wrapped) = (0, false);
        let mut hand = start;
        while done < least {
            check_not_killed()?;
            let Some((number, window)) = self.windows.next(hand / WINDOW) else {
                if wrapped {
                    break;
                }
                (hand, wrapped) = (0, true);
                continue;
            };
            if number != hand / WINDOW {
                hand = number * WINDOW;
            }
            let first = (hand - window.start()) >> PAGE_SHIFT;
            let mut end = window.pages();
            // There may be very many in which there is nothing any more.
            if window.is_reached() {
                end = window.granule(first).end;
                done += window.evict(first..end)?;
            }
            // The last window is a shorter one.
            hand = if end == window.pages() {
                (number + 1) * WINDOW
            } else {
                window.start() + (end << PAGE_SHIFT)
            };
            if wrapped && hand > start {
                break;
            }
        }
        self.hand.store(hand, Relaxed);
        if done > 0 {
            self.counts.evictions.fetch_add(1, Relaxed);
        }
        self.unclaimed.store(done.saturating_sub(asked), Relaxed);
        let in_vain = self.made_in_vain.fetch_add(1, Relaxed);
        drop(revoking);
        let (sent, done) = (self.space.invalidations(), self.space.acknowledgements());
        let may_have_room = done != before.acknowledgements || sent != done;
        Ok(may_have_room && in_vain < MOST_IN_VAIN)
    }
}

const _: () = assert!(WINDOW % PAGE_SIZE == 0);
