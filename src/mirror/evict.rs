// SPDX-License-Identifier: GPL-2.0

//! Eviction: where the device has no room for a MAP, the driver invalidates pages that were used
//! longest ago.
//!
//! It evicts only pages of the same file that no job uses, and none that the job at hand needs.
//! They are still wanted: the next job that uses them has them mapped again.
//!
//! Other threads may map such pages again before the device has acknowledged INVALIDATE. So a page
//! is marked, and INVALIDATE is put into the ring, under one hold of the file's lock: a MAP that
//! comes after clears the mark, and then the acknowledgement says nothing about that page.

use super::{
    range::MirroredRange,
    table::Having, //
};
use crate::{
    kapi::{
        sync::KillableMutex,
        task::check_not_killed, //
    },
    transport::mirror::Posted, //
};
use core::ops::Range;
use kernel::{
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc,
        Mutex, //
    }, //
};

/// Ranges by the time when they were used last, and by space.
pub(super) type Oldest = RBTree<(u64, u32), Arc<MirroredRange>>;

/// The mirrored ranges of a file that have a space, and the time that tells which was used last.
#[pin_data]
pub(crate) struct Residents {
    /// Counts jobs and prefetches.
    clock: Atomic<u64>,
    /// Held while pages are evicted, by one thread at a time: an acknowledgement must not be taken
    /// for that of another INVALIDATE.
    #[pin]
    evicting: KillableMutex<()>,
    /// By space. Protects the list only; memory is allocated with it held.
    #[pin]
    ranges: Mutex<RBTree<u32, Arc<MirroredRange>>>,
}

impl Residents {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            clock: Atomic::new(1),
            evicting <- KillableMutex::new(
                (),
                c"Residents::evicting",
                kernel::static_lock_class!(),
            ),
            ranges <- new_mutex!(RBTree::new(), "Residents::ranges"),
        })
    }

    /// The time of a job or a prefetch that begins.
    pub(crate) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Relaxed)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.lock().is_empty()
    }

    /// A range has a space from now on.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn add(&self, range: &Arc<MirroredRange>) -> Result {
        let node = RBTreeNode::new(range.space.id(), range.clone(), GFP_KERNEL)?;
        let old = self.ranges.lock().insert(node);
        drop(old);
        Ok(())
    }

    /// The space of a range ends.
    pub(super) fn remove(&self, range: &MirroredRange) {
        let node = self.ranges.lock().remove_node(&range.space.id());
        drop(node);
    }

    /// Evicts `pages` pages, or as many as there are, of ranges that were last used before `since`:
    /// the least recently used first. Returns how many. Waits for the device.
    ///
    /// `oldest`, which is empty, gets references to the ranges. They may be the last ones when it
    /// is dropped, so that it must outlive all locks of the caller.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`ENOMEM`], [`EINTR`] on a fatal signal.
    pub(super) fn evict(&self, since: u64, pages: usize, oldest: &mut Oldest) -> Result<usize> {
        let _evicting = self.evicting.lock()?;
        {
            let ranges = self.ranges.lock();
            for range in ranges.values() {
                let used = range.used.load(Relaxed);
                if used < since && range.is_idle() {
                    let key = (used, range.space.id());
                    oldest.try_create_and_insert(key, range.clone(), GFP_KERNEL)?;
                }
            }
        }
        let mut done = 0;
        for range in oldest.values() {
            if done >= pages {
                break;
            }
            done += range.evict(0..range.pages)?;
        }
        Ok(done)
    }
}

/// What was revoked.
pub(super) struct Revoked {
    pub(super) pages: usize,
    /// INVALIDATE commands that were sent for that.
    pub(super) commands: u64,
}

impl MirroredRange {
    /// Evicts those of the pages `which` that the device reaches, as long as no job uses them.
    /// Returns their number.
    ///
    /// # Errors
    ///
    /// As [`MirroredRange::revoke`].
    pub(super) fn evict(&self, which: Range<usize>) -> Result<usize> {
        let Revoked { pages, .. } = self.revoke(which, check_not_killed)?;
        self.gpu.counters.evicted_pages.add(pages as u64);
        Ok(pages)
    }

    /// Revokes those of the pages `which` that the device reaches, granule by granule, as long as
    /// no job uses them. One thread at a time does this.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, and what `proceed` fails with, which is called before each
    /// granule.
    pub(super) fn revoke(
        &self,
        which: Range<usize>,
        proceed: impl Fn() -> Result,
    ) -> Result<Revoked> {
        let mut at = which.start;
        let mut revoked = Revoked {
            pages: 0,
            commands: 0,
        };
        while at < which.end {
            // Each granule is a round trip.
            proceed()?;
            let mut guard = self.lock.commits.lock();
            // Jobs are queued with the lock held.
            if !self.is_idle() {
                break;
            }
            let next = self.look(&mut guard, |table| {
                table.next_part(at..which.end, Having::Reachable)
            });
            let reachable = self.look(&mut guard, |table| table.reachable_in(next.clone()));
            let Some(part) = reachable else {
                at = next.end;
                continue;
            };
            let (first, last) = self.bytes(&part);
            match self.space.post_invalidate(first, last) {
                Posted::Sent(ticket, notification) => {
                    let evicted = self.look(&mut guard, |table| table.evict(part.clone()));
                    drop(guard);
                    // An exit to the host, outside of the lock.
                    drop(notification);
                    revoked.pages += evicted;
                    revoked.commands += 1;
                    self.space.wait_acknowledged(ticket)?;
                    self.set_evicted(part.clone());
                    at = part.end;
                }
                Posted::Full => {
                    drop(guard);
                    self.space.queue().wait_for_place()?;
                }
                Posted::Lost => return Err(ENODEV),
            }
        }
        Ok(revoked)
    }
}
