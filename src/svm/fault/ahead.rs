// SPDX-License-Identifier: GPL-2.0

//! Mapping what a job will touch next, while it is busy with what it has.
//!
//! A job that goes through memory in order has a fault for each granule, and would wait each time
//! from its access to the resolution. So the thread that has served one goes on with the granules
//! behind it, as long as no other fault waits. One that the device has meanwhile on these pages is
//! put aside ([`Svm::park`]), so that no second thread looks them up.
//!
//! That a fault is put aside should not cost it more than the time of a lookup. So what is in a
//! file, in swap or with a userfaultfd is not waited for here, nor is the end of a change of the
//! pages, nor room in the queue. What remains is what the kernel itself does: reclaim, migration,
//! the return of a page by another device, whoever has `mmap_lock` for writing, and the ends of the
//! changes that HMM's sequence number has to stand for ([`crate::mirror::Windows`]).

use super::{
    attempt::Attempt,
    Svm,
    Unconfirmed, //
};
use crate::{
    kapi::mm::{
        Area,
        FaultWait, //
    },
    mirror::{
        Wanted,
        Window, //
    },
    protocol::mirror::{
        access,
        resolution, //
    },
    transport::event::Fault,
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::ordering::Relaxed,
        Arc, //
    }, //
};

/// How long a lookup of pages that keep changing may take, in milliseconds.
const TIMEOUT_MS: u32 = 1;

impl Svm {
    /// Resolves a fault in a window that was put aside.
    fn resolve_parked(&self, window: &Window, fault: &Fault) {
        let page = (fault.address as usize).saturating_sub(window.start()) >> PAGE_SHIFT;
        let write = fault.access == access::WRITE;
        if window.is_reachable(page, write) {
            self.counts.faults.fetch_add(1, Relaxed);
            self.resolve(fault, resolution::OK, Some(&self.counts.coalesced));
        } else {
            self.put_back(*fault);
        }
    }

    /// Maps memory from `address` on for writing, `granules` granules of it, ahead of the faults of
    /// `stream`, if it is of the same area as before. It is no error if that is not possible.
    pub(super) fn map_ahead(
        self: &Arc<Self>,
        stream: u32,
        address: usize,
        area: &Area,
        granules: usize,
    ) {
        let mut address = address;
        for _ in 0..granules {
            if address >= area.end || !area.is_private_anonymous() || !self.is_quiet() {
                return;
            }
            match self.map_granule_ahead(stream, address, area) {
                Ok(Some(next)) => address = next,
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Maps the rest of the granule of `address`; returns its end, or `None` if it could not be
    /// mapped up to there.
    fn map_granule_ahead(
        self: &Arc<Self>,
        stream: u32,
        address: usize,
        area: &Area,
    ) -> Result<Option<usize>> {
        let refused = self.shortages.lock().is_any();
        if refused || self.exact || area.has_userfaultfd() || area.is_random() {
            return Ok(None);
        }
        let window = self.windows.window(address)?;
        let page = (address - window.start()) >> PAGE_SHIFT;
        let area_end = (area.end - window.start()) >> PAGE_SHIFT;
        let end = window.granule(page).end.min(area_end);
        // Those that the device has are not to be looked up for more than it has.
        let end = window.first_reachable(page..end, true);
        if end == page {
            return Ok(None);
        }
        let number = address >> PAGE_SHIFT;
        let Some(ahead) = self.go_ahead(number..number + (end - page)) else {
            return Ok(None);
        };
        let mut wanted = Wanted {
            ask: page..end,
            around: page..end,
            wait: FaultWait::Not,
            ..Self::wanted_alone(area, page, true)
        };
        let mut next = number;
        let attempt = self.attempt(&window, area, &mut wanted, TIMEOUT_MS, |wanted, lookup| {
            next = number + (lookup.usable_end(page, true) - page);
            self.streams.lock().goes_on_at(stream, number, next);
            window.commit(wanted, lookup, None)
        });
        let Ok(Attempt::Sent(sent)) = attempt else {
            self.streams.lock().goes_on_at(stream, next, number);
            return Ok(None);
        };
        self.counts.pages.fetch_add(sent.pages() as u64, Relaxed);
        let reached = window.reachable_end(wanted.ask, true);
        let behind = number + (reached - page);
        self.streams.lock().goes_on_at(stream, next, behind);
        if sent.pages() > 0 {
            self.in_vain.lock().mapped(number..behind);
        }
        ahead.finish(|fault| self.resolve_parked(&window, &fault));
        self.confirm_later(Unconfirmed {
            window,
            sent,
            ahead: true,
        });
        Ok((reached == end).then_some(behind << PAGE_SHIFT))
    }
}
