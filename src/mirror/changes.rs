// SPDX-License-Identifier: GPL-2.0

//! Which addresses of a process are being changed, and which are being looked up.
//!
//! The kernel's own sequence number of an interval notifier tells only whether *anything* in an
//! address space is being changed, and whoever begins a lookup waits until nothing is. A process
//! that frees memory on several threads may have that so for seconds. Here a lookup of some
//! addresses waits for changes of these addresses alone, and only they make it stale.
//!
//! Both lists have a fixed length, since notifier callbacks cannot allocate. For a change that has
//! no place the caller falls back to the sequence number.

use crate::kapi::mm::ChangeId;
use core::ops::Range;
use kernel::prelude::*;

/// Most changes that have a place at the same time, about one for each thread that frees memory.
pub(super) const CHANGES: usize = 64;

/// Most lookups at the same time: four times as many as there are threads which serve faults at
/// most. Prefetches have the same places.
pub(super) const LOOKS: usize = 32;

struct Change {
    id: ChangeId,
    addresses: Range<usize>,
}

struct Look {
    addresses: Range<usize>,
    stale: bool,
}

/// A lookup that has begun and is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LookId(usize);

/// The changes and lookups of an address space.
pub(super) struct Changes {
    /// Never grows beyond its capacity.
    changes: KVec<Change>,
    /// Has [`LOOKS`] places.
    looks: KVec<Option<Look>>,
    /// Threads that wait for a change or a lookup to end.
    pub(super) waiting: usize,
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Changes {
    /// No changes, no lookups.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new() -> Result<Self> {
        let mut looks = KVec::with_capacity(LOOKS, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..LOOKS {
            looks.push(None, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self {
            changes: KVec::with_capacity(CHANGES, GFP_KERNEL_ACCOUNT)?,
            looks,
            waiting: 0,
        })
    }

    /// Makes all lookups of some of `addresses` stale that have begun.
    pub(super) fn supersede(&mut self, addresses: &Range<usize>) {
        for look in self.looks.iter_mut().flatten() {
            look.stale |= overlap(&look.addresses, addresses);
        }
    }

    /// A change of `addresses` begins, of which [`Changes::end`] will tell the end. Returns whether
    /// there is a place for it. Lookups that have begun become stale in any case.
    pub(super) fn begin(&mut self, id: ChangeId, addresses: Range<usize>) -> bool {
        self.supersede(&addresses);
        // The kernel tells the beginning of a change twice where it takes address 0 for none.
        if let Some(change) = self.changes.iter_mut().find(|change| change.id == id) {
            let start = change.addresses.start.min(addresses.start);
            let end = change.addresses.end.max(addresses.end);
            change.addresses = start..end;
            return true;
        }
        let change = Change { id, addresses };
        self.changes.push_within_capacity(change).is_ok()
    }

    /// A change has ended. Returns whether it has had a place.
    pub(super) fn end(&mut self, id: ChangeId) -> bool {
        let place = self.changes.iter().position(|change| change.id == id);
        place.is_some_and(|place| self.changes.remove(place).is_ok())
    }

    /// No change is told of any more, nor the end of one.
    pub(super) fn close(&mut self) {
        self.changes.clear();
    }

    /// A lookup of `addresses` begins, unless they are being changed, or there are too many
    /// lookups.
    pub(super) fn begin_look(&mut self, addresses: &Range<usize>) -> Option<LookId> {
        let mut changes = self.changes.iter();
        if changes.any(|change| overlap(&change.addresses, addresses)) {
            return None;
        }
        let index = self.looks.iter().position(Option::is_none)?;
        *self.looks.get_mut(index)? = Some(Look {
            addresses: addresses.clone(),
            stale: false,
        });
        Some(LookId(index))
    }

    /// Whether any of the addresses of a lookup may have changed since it has begun.
    pub(super) fn is_stale(&self, id: LookId) -> bool {
        let look = self.looks.get(id.0).and_then(Option::as_ref);
        look.is_none_or(|look| look.stale)
    }

    /// A lookup ends, and is not used any more.
    pub(super) fn end_look(&mut self, id: LookId) {
        if let Some(place) = self.looks.get_mut(id.0) {
            *place = None;
        }
    }
}
