// SPDX-License-Identifier: GPL-2.0

//! Pages that the device has alone, for atomic accesses in which the processors take no part.
//!
//! The kernel takes the page from the page tables of the process, and its folio stays locked until
//! MAP was sent. Whoever touches the page meanwhile waits for the folio, and then has it back by a
//! notification like all others, whose INVALIDATE is behind the MAP. That the kernel tells of the
//! taking, too, changes nothing for the space that it is for: what the device reaches is the same
//! page. All others, other spaces of the process included, lose the page as by any other change.
//!
//! # Progress
//!
//! A processor and a device that both want the page take it from each other. The processor's access
//! follows the fault by which it gets the page back. The device's follows the resolution of its own
//! fault, but later than an INVALIDATE could: so a page that is touched stays with the device for
//! the rest of a *slice* that began with its MAP. Whoever touches it waits so much longer, with the
//! folio and `mmap_lock` held, for the time of the module's parameter `exclusive_slice_us` at most.

use super::{
    range::count,
    table::Reach,
    window::{
        Committed,
        Lookup,
        Sent,
        Window, //
    },
    NotifierLock,
    Space, //
};
use crate::{
    kapi::{
        mm::{
            Change,
            ExclusivePage,
            Invalidation,
            Owner, //
        },
        sync::monotonic_ns, //
    },
    module_parameters,
    protocol::mirror::{
        access,
        MapEntry, //
    },
    trace,
    transport::mirror::MirrorQueue, //
};
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::atomic::ordering::Relaxed,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// The longest slice, in microseconds: what holds a folio is not to sleep for longer.
const MOST_SLICE_US: u32 = 10_000;

/// How many slices are known of at a time: about as many faults as can be resolved in one.
const SLICES: usize = 16;

/// A slice, in nanoseconds.
fn slice_ns() -> i64 {
    let us = module_parameters::exclusive_slice_us.value();
    i64::from(us.min(MOST_SLICE_US)) * 1000
}

/// The pages of a process that were made exclusive last, and when.
pub(super) struct Slices {
    /// Page numbers, and times of the monotonic clock in nanoseconds.
    begun: [Option<(usize, i64)>; SLICES],
    /// The place of the oldest.
    next: usize,
}

impl Slices {
    pub(super) const fn new() -> Self {
        Self {
            begun: [None; SLICES],
            next: 0,
        }
    }

    /// Page `page` is the device's from `now` on.
    fn begin(&mut self, page: usize, now: i64) {
        self.take(page);
        if let Some(place) = self.begun.get_mut(self.next) {
            *place = Some((page, now));
        }
        self.next = (self.next + 1) % SLICES;
    }

    /// When the slice of page `page` has begun, if that is known. It is not known any more
    /// afterwards.
    fn take(&mut self, page: usize) -> Option<i64> {
        let is_of =
            |place: &&mut Option<(usize, i64)>| matches!(place, Some((of, _)) if *of == page);
        let place = self.begun.iter_mut().find(is_of)?;
        place.take().map(|(_, begun)| begun)
    }
}

/// The time in which a device may use a page that a processor wants back.
pub(super) struct SliceEnd(i64);

impl SliceEnd {
    /// Waits for it, for a slice at most.
    pub(super) fn wait(self) {
        let left = (self.0 - monotonic_ns()).min(slice_ns());
        if left > 0 {
            fsleep(Delta::from_nanos(left));
        }
    }
}

impl Space {
    /// Whom pages are made exclusive for that are mapped in the space.
    pub(super) fn owner(&self) -> Owner {
        Owner::of(self)
    }
}

/// The end of the slice of the page that `change` is about, if a processor has touched it; the
/// change is one of a whole address space. May be called by a callback, after
/// [`Invalidation::supersede`].
pub(super) fn slice_end(lock: &NotifierLock, change: &Invalidation<'_>) -> Option<SliceEnd> {
    let page = change.first >> PAGE_SHIFT;
    let is_touch = change.change() == Change::Clear && change.last >> PAGE_SHIFT == page;
    if !is_touch || !change.may_block() {
        return None;
    }
    let begun = lock.commits.lock().slices.take(page)?;
    let end = begun + slice_ns();
    (end > monotonic_ns()).then_some(SliceEnd(end))
}

impl Window {
    /// Whether the device has page `page` alone.
    pub(crate) fn is_exclusive(&self, page: usize) -> bool {
        let mut reach = [Reach::Nothing];
        self.range()
            .with_table(|table| table.reach(page..page + 1, &mut reach));
        reach[0] == Reach::Exclusive
    }

    /// As [`Window::commit`], for a lookup of one page, for writing: the device gets the page
    /// alone.
    ///
    /// # Errors
    ///
    /// Those of [`Window::commit`] and of [`ExclusivePage::take`].
    pub(crate) fn commit_exclusive(
        &self,
        lookup: &Lookup<'_>,
        resolve: (u64, u32),
    ) -> Result<Committed> {
        let range = self.range();
        let queue = range.space.queue();
        let page = lookup.around.start;
        let found = *lookup.pages.first().ok_or(EINVAL)?;
        let address = self.start() + (page << PAGE_SHIFT);
        // All that allocates comes before the folio is locked.
        let (id, how) = resolve;
        let resolution = MirrorQueue::fault_resolve(range.space.id(), id, how)?;
        let entry = MapEntry {
            addr: found.phys().into(),
            length: (PAGE_SIZE as u32).into(),
            access: access::EXCLUSIVE.into(),
        };
        let command = range.space.map(address as u64, &[entry])?;
        let mut sent = KVec::with_capacity(1, GFP_KERNEL)?;
        sent.push((command.clone_arc(), page..page + 1), GFP_KERNEL)?;
        let slots = command.descriptors() + resolution.descriptors();

        let mut spare = self.missing_granule(page)?;
        if lookup.look.is_stale() {
            return Ok(Committed::Stale);
        }
        let alone = ExclusivePage::take(address, range.space.owner())?;
        // Not ahead of that, which may wait for a file system, or for `mmap_lock` that one has who
        // does, and room is others', too. Nor is it waited for with the folio locked: if what is
        // kept for this is in use, another has a page.
        let Some(mut credit) = queue.exclusive_credit(slots)? else {
            drop(alone);
            drop(queue.credit(slots)?);
            return Ok(Committed::Stale);
        };
        let mut commits = range.lock.commits.lock();
        if range.space.is_closed(&commits) {
            return Ok(Committed::Closed);
        }
        let refused = range.look(&mut commits, |table| -> Result<Option<Committed>> {
            let mut now = [Reach::Nothing];
            table.reach(page..page + 1, &mut now);
            // Taking the page may have changed it, or split a huge one, as other changes do.
            if lookup.look.is_stale()
                || alone.phys() != found.phys()
                || range.gpu.knobs.loses_race()
            {
                return Ok(Some(Committed::Stale));
            }
            if now[0] == Reach::Ending {
                return Ok(Some(Committed::Revoking));
            }
            if !table.has_granule(page) {
                match spare.take() {
                    Some(granule) => table.add(granule),
                    None => return Ok(Some(Committed::Stale)),
                }
            }
            // Pages of a lost device may be in quarantine, and must not be replaced.
            range.gpu.transport.check()?;
            // MAPs that others have made for what was mapped before would take the right away.
            self.committed.fetch_add(1, Relaxed);
            table.set_reachable(page, &[found], &[Reach::Exclusive]);
            queue.put_unkicked(command, &mut credit)?;
            queue.put_unkicked(resolution, &mut credit)?;
            Ok(None)
        })?;
        if let Some(refused) = refused {
            drop(commits);
            drop(alone);
            if matches!(refused, Committed::Stale) {
                count(&range.counters.retries, 1);
                range.gpu.counters.lookup_retries.add(1);
            }
            return Ok(refused);
        }
        commits.slices.begin(address >> PAGE_SHIFT, monotonic_ns());
        drop(commits);
        // Whoever touches the page from here on finds the MAP ahead of its INVALIDATE.
        drop(alone);
        // An exit to the host, hence without the lock of the folio.
        queue.kick();
        count(&range.counters.maps, 1);
        count(&range.counters.entries, 1);
        range.gpu.counters.maps.add(1);
        let device = range.gpu.transport.name();
        let number = address >> PAGE_SHIFT;
        trace::map(device, range.space.id(), &(number..number + 1), 1);
        Ok(Committed::Sent(Sent(sent)))
    }
}

#[kunit_tests(virtgpu_userptr_exclusive)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_told_of_once() {
        let mut slices = Slices::new();
        slices.begin(7, 100);
        slices.begin(8, 200);
        assert_eq!(slices.take(9), None);
        assert_eq!(slices.take(7), Some(100));
        assert_eq!(slices.take(7), None);
        assert_eq!(slices.take(8), Some(200));
    }

    #[test]
    fn the_last_slice_of_a_page_counts() {
        let mut slices = Slices::new();
        slices.begin(7, 100);
        slices.begin(7, 300);
        assert_eq!(slices.take(7), Some(300));
        assert_eq!(slices.take(7), None);
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut slices = Slices::new();
        for page in 0..=SLICES {
            slices.begin(page, page as i64);
        }
        assert_eq!(slices.take(0), None);
        assert_eq!(slices.take(1), Some(1));
        assert_eq!(slices.take(SLICES), Some(SLICES as i64));
    }
}
