// SPDX-License-Identifier: GPL-2.0

//! Progress of processors and a device that both want a page which the device is to have alone.
//!
//! A processor and a device that both want the page take it from each other. The processor's access
//! follows the fault by which it gets the page back. The device's follows the resolution of its own
//! fault, but later than an INVALIDATE could: so a page that is touched stays with the device for
//! the rest of a *slice* that began with its MAP. Whoever touches it waits so much longer, with the
//! folio and `mmap_lock` held, for the time of the module's parameter `exclusive_slice_us` at most.

use super::NotifierLock;
use crate::{
    kapi::{
        mm::{
            Change,
            Invalidation, //
        },
        sync::monotonic_ns, //
    },
    module_parameters, //
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
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
    pub(super) fn begin(&mut self, page: usize, now: i64) {
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

#[kunit_tests(virtgpu_userptr_slices)]
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
