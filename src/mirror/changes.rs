// SPDX-License-Identifier: GPL-2.0

//! Which addresses of a process are being changed, and which are being looked up.
//!
//! The kernel's own sequence number of an interval notifier tells only whether *anything* in an address
//! space is being changed, and whoever begins a lookup waits until nothing is. A process that frees
//! memory on several threads may have that so for seconds. Here a lookup of some addresses waits for
//! changes of these addresses alone, and only they make it stale.
//!
//! Both lists have a fixed length, since notifier callbacks cannot allocate. For a change that has no place
//! the caller falls back to the sequence number.

use crate::kapi::mm::ChangeId;
use core::ops::Range;

/// Most changes that have a place at the same time: one for each thread that frees memory.
pub(super) const CHANGES: usize = 16;

/// Most lookups at the same time: twice as many as there are threads which serve faults at most.
pub(super) const LOOKS: usize = 16;

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
    changes: [Option<Change>; CHANGES],
    looks: [Option<Look>; LOOKS],
    /// Threads that wait for a change or a lookup to end.
    pub(super) waiting: usize,
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Changes {
    /// No changes, no lookups.
    pub(super) fn new() -> Self {
        Self {
            changes: [const { None }; CHANGES],
            looks: [const { None }; LOOKS],
            waiting: 0,
        }
    }

    /// Makes all lookups of some of `addresses` stale that have begun.
    pub(super) fn supersede(&mut self, addresses: &Range<usize>) {
        for look in self.looks.iter_mut().flatten() {
            look.stale |= overlap(&look.addresses, addresses);
        }
    }

    /// A change of `addresses` begins, of which [`Changes::end`] will tell the end. Returns whether there is
    /// a place for it. Lookups that have begun become stale in any case.
    pub(super) fn begin(&mut self, id: ChangeId, addresses: Range<usize>) -> bool {
        self.supersede(&addresses);
        let place = self.changes.iter_mut().find(|place| place.is_none());
        let Some(place) = place else {
            return false;
        };
        *place = Some(Change { id, addresses });
        true
    }

    /// A change has ended. Returns whether it has had a place.
    pub(super) fn end(&mut self, id: ChangeId) -> bool {
        let is_it = |change: &mut Change| change.id == id;
        let mut places = self.changes.iter_mut();
        places.any(|place| place.take_if(is_it).is_some())
    }

    /// A lookup of `addresses` begins, unless they are being changed, or there are too many lookups.
    pub(super) fn begin_look(&mut self, addresses: &Range<usize>) -> Option<LookId> {
        let mut changes = self.changes.iter().flatten();
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
