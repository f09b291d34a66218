// SPDX-License-Identifier: GPL-2.0

//! What has happened to an address space, for SVM_QUERY.
//!
//! Each number is exact, but they are read one after the other while jobs go on: two of them need
//! not be of the same moment.

use super::Svm;
use crate::{
    protocol::uapi::{
        svm_state,
        SvmQuery,
        SVM_NO_RING, //
    },
    transport::event::SpaceOwner,
};
use kernel::sync::atomic::{
    ordering::Relaxed,
    Atomic, //
};

/// Numbers that only grow.
pub(crate) struct Counts {
    /// Faults that were served.
    pub(super) faults: Atomic<u64>,
    /// Those of them whose page was there already.
    pub(super) coalesced: Atomic<u64>,
    /// Pages that were asked for.
    pub(super) pages: Atomic<u64>,
    /// Times that windows were evicted.
    pub(super) evictions: Atomic<u64>,
    /// Pages that the device was given alone.
    pub(super) exclusive: Atomic<u64>,
    /// Faults that were refused.
    pub(super) bad: Atomic<u64>,
}

impl Counts {
    pub(super) fn new() -> Self {
        let zero = || Atomic::new(0u64);
        Self {
            faults: zero(),
            coalesced: zero(),
            pages: zero(),
            evictions: zero(),
            exclusive: zero(),
            bad: zero(),
        }
    }
}

impl Svm {
    /// State and counts.
    pub(crate) fn query(&self) -> SvmQuery {
        // In case that the worker has not come to it yet.
        self.look();
        let mut out = SvmQuery {
            state: svm_state::ACTIVE,
            ring: SVM_NO_RING,
            va_end: self.end as u64,
            faults: self.counts.faults.load(Relaxed),
            coalesced: self.counts.coalesced.load(Relaxed),
            pages: self.counts.pages.load(Relaxed),
            evictions: self.counts.evictions.load(Relaxed),
            exclusive: self.counts.exclusive.load(Relaxed),
            bad: self.counts.bad.load(Relaxed),
            invalidations: self.space.invalidations(),
            ..Default::default()
        };
        if let Some(loss) = *self.loss.lock() {
            out.state = svm_state::LOST;
            out.reason = loss.reason;
            out.access = loss.access;
            out.ring = loss.ring;
            out.addr = loss.address;
        }
        let mut at = 0;
        while let Some((number, window)) = self.windows.next(at) {
            at = number + 1;
            let counters = window.counters();
            out.mapped_bytes += window.mapped_bytes();
            out.maps += counters.maps.load(Relaxed);
            out.entries += counters.entries.load(Relaxed);
            out.retries += counters.retries.load(Relaxed);
        }
        out
    }
}
