// SPDX-License-Identifier: GPL-2.0

//! Pages of which only the physical address is kept.
//!
//! A driver whose device uses pages of a process without references has to tell the kernel of what
//! the device has written, and has to keep pages from being used again if the device is lost. Both
//! are asked of an address which, if the driver's notifier callbacks do what they promise, is still
//! that of the process's page. Nothing here relies on that promise: a page that was freed has no
//! references, which is noticed. As everywhere in the kernel where pages are found by address, one
//! thing is not: that the memory is taken out of the machine in this moment, which pages that are
//! in use prevent.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h); mm/page_idle.c finds pages in the
//! same way.

use crate::kapi::bindings;
use core::ops::Range;
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};

/// The physical address of a page, and flags of whoever tracks it, in eight bytes; or no page, and
/// flags.
///
/// There is no reference on the page until [`TrackedPage::keep`] takes one, which lasts until
/// [`TrackedPage::release`]. It is not put when this is dropped: the page is never used again then,
/// which is what a device asks for that may still write it.
///
/// # Invariants
///
/// With [`TrackedPage::KEPT`], this owns a reference on the folio of the page at the address.
#[derive(Default)]
#[repr(transparent)]
pub(crate) struct TrackedPage(u64);

impl TrackedPage {
    /// The bits of [`TrackedPage::word`] that are flags, and free to be used.
    pub(crate) const FLAGS: u64 = Self::KEPT - 1;

    const KEPT: u64 = PAGE_SIZE as u64 >> 1;
    const ADDRESS: u64 = !(PAGE_SIZE as u64 - 1);

    /// Appends pages to `pages`, `count` of them, or as many as there is room for: the first with
    /// this word, and the others with the same, or, if they `follow` each other in memory, with the
    /// addresses behind it. Does not allocate.
    pub(crate) fn append(pages: &mut KVec<Self>, count: usize, word: u64, follow: bool) {
        let step = if follow { PAGE_SIZE as u64 } else { 0 };
        let room = pages.spare_capacity_mut();
        let count = count.min(room.len());
        let mut word = word & !Self::KEPT;
        for place in &mut room[..count] {
            // INVARIANT: The flag is not set: the size of a page changes no bit below its own.
            place.write(Self(word));
            word = word.wrapping_add(step);
        }
        // SAFETY: There was room for so many, and they were written.
        unsafe { pages.inc_len(count) }
    }

    /// Address and flags.
    #[inline]
    pub(crate) fn word(&self) -> u64 {
        self.0 & !Self::KEPT
    }

    /// Sets address and flags. The address stays as long as there is a reference.
    #[inline]
    pub(crate) fn set(&mut self, word: u64) {
        // INVARIANT: With a reference, neither that flag nor the address change.
        self.0 = if self.0 & Self::KEPT != 0 {
            self.0 & !Self::FLAGS | word & Self::FLAGS
        } else {
            word & !Self::KEPT
        };
    }

    /// Takes away flags.
    #[inline]
    pub(crate) fn clear(&mut self, flags: u64) {
        // INVARIANT: Neither the flag nor the address change.
        self.0 &= !(flags & Self::FLAGS);
    }

    /// Physical address, in bytes.
    #[inline]
    pub(crate) fn phys(&self) -> u64 {
        self.0 & Self::ADDRESS
    }

    /// Tells the kernel that a device has written the page, or the one that is `behind` pages
    /// behind it, unless it was told of that folio last. Does not sleep. The kernel warns if the
    /// page was freed.
    pub(crate) fn mark_dirty(&self, behind: usize, dirtied: &mut Dirtied) {
        let phys = self.phys().wrapping_add((behind as u64) << PAGE_SHIFT);
        if !dirtied.folio().contains(&phys) {
            // SAFETY: Any address may be asked for, see the head of this file; `dirtied` is as the
            // last call has left it, or empty.
            unsafe { bindings::kapi_page_mark_dirty(phys, &mut dirtied.0) };
        }
    }

    /// Takes a reference on the page's folio, unless there is one already. Does not sleep. The
    /// kernel warns if the page was freed, and there is none then.
    pub(crate) fn keep(&mut self) {
        // SAFETY: Any address may be asked for, see the head of this file.
        if self.0 & Self::KEPT == 0 && unsafe { bindings::kapi_page_get(self.phys()) } {
            // INVARIANT: The reference is this one's from now on.
            self.0 |= Self::KEPT;
        }
    }

    /// Puts the reference that [`TrackedPage::keep`] has taken, if there is one. May be called in
    /// any context.
    pub(crate) fn release(&mut self) {
        if self.0 & Self::KEPT != 0 {
            // INVARIANT: The reference is put below.
            self.0 &= !Self::KEPT;
            // SAFETY: By the type invariant there was a reference, on the folio of this page: one
            // that has references is not split.
            unsafe { bindings::kapi_page_put(self.phys()) }
        }
    }
}

/// What the kernel was told of last. Not to be kept for longer than a lock: the memory beside may
/// be taken out of the machine.
#[derive(Default)]
pub(crate) struct Dirtied(bindings::kapi_dirtied);

impl Dirtied {
    /// The physical addresses of the folio, which is dirty as a whole.
    pub(crate) fn folio(&self) -> Range<u64> {
        let folio = &self.0.folio;
        folio.addr..folio.addr + folio.length
    }
}

#[kunit_tests(virtgpu_userptr_tracked)]
mod tests {
    use super::*;
    use kernel::page::Page;

    /// Calls `with` for a page that is there, by its address.
    fn with_page(with: impl FnOnce(u64)) -> Result {
        let page = Page::alloc_page(GFP_KERNEL)?;
        let mut run = bindings::kapi_run::default();
        // SAFETY: There is one page, and a place for one run.
        unsafe { bindings::kapi_pages_to_runs(&mut page.as_ptr(), 1, &mut run) };
        with(run.addr);
        Ok(())
    }

    #[test]
    fn address_stays_with_the_reference() -> Result {
        with_page(|phys| {
            let mut page = TrackedPage::default();
            page.set(phys | 5);
            page.keep();
            assert_eq!(page.word(), phys | 5);
            page.set(3);
            page.clear(1);
            assert_eq!(page.word(), phys | 2);
            page.release();
            page.set(3);
            assert_eq!(page.word(), 3);
        })
    }

    #[test]
    fn pages_are_appended_as_far_as_there_is_room() -> Result {
        const PAGE: u64 = PAGE_SIZE as u64;
        let mut pages = KVec::with_capacity(4, GFP_KERNEL)?;
        TrackedPage::append(&mut pages, 2, 7 * PAGE | 5, true);
        TrackedPage::append(&mut pages, 9, u64::MAX, false);
        let words = [
            7 * PAGE | 5,
            8 * PAGE | 5,
            !TrackedPage::KEPT,
            !TrackedPage::KEPT,
        ];
        assert!(pages.iter().map(TrackedPage::word).eq(words));
        // Nothing is put.
        pages.iter_mut().for_each(TrackedPage::release);
        Ok(())
    }

    #[test]
    fn flags_do_not_reach_the_reference() -> Result {
        with_page(|phys| {
            let mut page = TrackedPage::default();
            page.set(phys | (PAGE_SIZE as u64 - 1));
            assert_eq!(page.word(), phys | TrackedPage::FLAGS);
            page.clear(u64::MAX);
            assert_eq!(page.word(), phys);
            // Nothing is put.
            page.release();
        })
    }
}
