// SPDX-License-Identifier: GPL-2.0

//! Invalidation: the notifier's callbacks, which the kernel calls before it changes page tables.
//!
//! The first pass marks the pages, so that no job relies on them any more, and sends INVALIDATE
//! unless a job is running that does. The second pass waits: for the jobs, which have
//! [`Transport::grace_ms`](crate::transport::Transport::grace_ms) milliseconds in all, and for
//! the device. INVALIDATE is sent after the lock was dropped: nothing can be mapped in the range
//! before the kernel has finished, and what was mapped before is ahead in the queue.
//!
//! What runs here may be what memory reclaim waits for: see [`IntervalHandler`] for what it must
//! not do.

use super::{
    event::Reason,
    range::{
        Jobs,
        MirroredRange,
        Pending, //
    },
    table::{
        Having,
        Table, //
    },
};
use crate::{
    kapi::mm::{
        Change,
        Dirtied,
        FinishNode,
        IntervalHandler,
        Invalidation,
        Start, //
    },
    trace,
    transport::mirror::Posted, //
};
use core::ops::Range;
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::Arc,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// The callbacks of a mirrored range.
pub(super) struct Handler(pub(super) Arc<MirroredRange>);

impl IntervalHandler for Handler {
    type Pending = Pending;

    fn start(&self, change: &Invalidation<'_>) -> Start<Pending> {
        let range = &*self.0;
        let which = change.first >> PAGE_SHIFT..(change.last >> PAGE_SHIFT) + 1;
        let may_block = change.may_block();
        let lost = range.gpu.transport.is_lost();
        // From here on to the end of the change nothing is mapped in the range that is not yet: so
        // the lock may be free between the parts.
        if range
            .with_table_if(may_block, |_| change.supersede())
            .is_none()
        {
            return Start::Refused;
        }
        if !may_block && !lost && range.would_have_to_wait(which.clone()) {
            return Start::Refused;
        }
        let gone = match change.change() {
            Change::Unmap => Some(Reason::Unmap),
            Change::Release => Some(Reason::MmGone),
            _ => None,
        };
        if let (Some(reason), Some(events)) = (gone, &range.events) {
            events.report(reason, which.clone());
        }
        let Ok(span) = range.mark(which, gone.is_some(), may_block, lost) else {
            return Start::Refused;
        };
        let Some(span) = span else {
            return Start::Done;
        };
        range.gpu.counters.invalidated(change.change());
        let device = range.gpu.transport.name();
        trace::invalidate(device, range.space.id(), &span, change.change().name());
        if lost {
            return Start::Done;
        }

        let mut pending = Pending {
            span,
            ticket: None,
            since: Instant::now(),
        };
        if range.is_idle() && range.gpu.knobs.has_invalidates() {
            let (first, last) = range.bytes(&pending.span);
            match range.space.post_invalidate(first, last) {
                Posted::Sent(ticket, notification) => {
                    drop(notification);
                    range.gpu.counters.sent_in_first_pass.add(1);
                    pending.ticket = Some(ticket);
                }
                Posted::Full => {}
                Posted::Lost => {
                    range.quarantine(pending.span);
                    return Start::Done;
                }
            }
        }
        let spare = range.spare.lock().take_if(|_| range.gpu.knobs.has_nodes());
        match spare {
            Some(mut node) => {
                node.set(pending);
                Start::Unfinished(node)
            }
            None => {
                range.gpu.counters.ended_in_first_pass.add(1);
                range.finish_invalidation(pending);
                Start::Done
            }
        }
    }

    fn finish(&self, mut node: FinishNode<Pending>) {
        if let Some(pending) = node.take() {
            self.0.finish_invalidation(pending);
        }
        // Another callback may have put one back meanwhile, but there was only one.
        *self.0.spare.lock() = Some(node);
    }
}

impl MirroredRange {
    /// Whether a callback that must not block cannot do without: the device reaches some of the
    /// pages `which`, or the lock is not free.
    pub(super) fn would_have_to_wait(&self, which: Range<usize>) -> bool {
        let mut reachable = false;
        let all = self.each_part(which, Having::Reachable, false, |table, part| {
            reachable |= table.reachable_in(part).is_some();
        });
        !all || reachable
    }

    /// Marks those of the pages `which` that are about to be invalidated, so that no one relies on
    /// them any more; with `gone` the addresses are, too. Pages of a `lost` device go into
    /// quarantine. Returns what the device may reach of them.
    ///
    /// # Errors
    ///
    /// [`EAGAIN`] without `may_block`, if the lock is not free.
    pub(super) fn mark(
        &self,
        which: Range<usize>,
        gone: bool,
        may_block: bool,
        lost: bool,
    ) -> Result<Option<Range<usize>>> {
        let having = if gone {
            Having::Anything
        } else {
            Having::Reachable
        };
        let mut span: Option<Range<usize>> = None;
        let marked = self.each_part(which, having, may_block, |table, part| {
            let Some(found) = table.invalidate(part, gone) else {
                return;
            };
            if lost {
                // Under the same lock: this callback may be one that must not wait.
                self.quarantine_part(table, found.clone());
            }
            let start = span.as_ref().map_or(found.start, |span| span.start);
            span = Some(start..found.end);
        });
        if marked {
            Ok(span)
        } else {
            Err(EAGAIN)
        }
    }

    /// First and last byte of pages, in the space.
    pub(super) fn bytes(&self, span: &Range<usize>) -> (u64, u64) {
        let first = self.base + ((span.start as u64) << PAGE_SHIFT);
        let end = self.base + ((span.end as u64) << PAGE_SHIFT);
        (first, end - 1)
    }

    /// Waits until the device has no access to pages that were marked, and lets the kernel have
    /// them.
    fn finish_invalidation(&self, pending: Pending) {
        let span = pending.span;
        let acknowledged = match pending.ticket {
            Some(ticket) => self.space.wait_acknowledged(ticket),
            None => {
                self.wait_for_jobs(pending.since);
                self.invalidate_and_wait(&span)
            }
        };
        let device = self.gpu.transport.name();
        trace::invalidated(device, self.space.id(), &span, acknowledged.is_ok());
        match acknowledged {
            Ok(()) => self.set_unmapped(span),
            Err(_) => self.quarantine(span),
        }
    }

    /// Sends INVALIDATE, and waits until the device has acknowledged it.
    fn invalidate_and_wait(&self, span: &Range<usize>) -> Result {
        let (first, last) = self.bytes(span);
        let ticket = self.space.invalidate(first, last)?;
        self.space.wait_acknowledged(ticket)
    }

    /// Waits for the jobs that use the range, but not for ever: a job that takes too long costs its
    /// context, and the device fails it when it touches a page that is gone.
    fn wait_for_jobs(&self, since: Instant<Monotonic>) {
        let Some(Jobs { context, resv }) = &self.jobs else {
            return;
        };
        let grace = i64::from(self.gpu.transport.grace_ms());
        let left = (grace - since.elapsed().as_millis()).clamp(0, grace);
        if !resv.is_idle() && !resv.wait(left as u32) {
            context.lose();
        }
        let left = (grace - since.elapsed().as_millis()).clamp(0, grace);
        if !resv.is_idle() && !resv.wait(left as u32) {
            context.lose();
        }
    }

    /// Marks the pages unmapped, as the device does not reach them any more, and those dirty that
    /// it could write.
    pub(super) fn set_unmapped(&self, span: Range<usize>) {
        let mut dirtied = 0;
        self.each_part(span, Having::Reachable, true, |table, part| {
            let mut last = Dirtied::default();
            table.set_unmapped(part, |pages| {
                if pages.writable {
                    dirtied += pages.count as u64;
                    // The kernel does not see the device's writes. Only the process's pages are in
                    // the table: before one ceases to be that, a callback for it is called, which
                    // takes the lock, held here, and takes it out.
                    pages.mark_dirty(&mut last);
                }
            });
        });
        self.gpu.counters.dirtied_pages.add(dirtied);
    }

    /// The same for pages that were evicted, except for those for which MAP was sent since.
    pub(super) fn set_evicted(&self, span: Range<usize>) {
        let mut dirtied = 0;
        self.with_table(|table| {
            let mut last = Dirtied::default();
            table.set_evicted(span, |pages| {
                if pages.writable {
                    dirtied += pages.count as u64;
                    pages.mark_dirty(&mut last);
                }
            });
        });
        self.gpu.counters.dirtied_pages.add(dirtied);
    }

    /// Takes a reference on the folios of pages that a lost device may still reach, until it has
    /// been reset.
    pub(super) fn quarantine(&self, span: Range<usize>) {
        self.each_part(span, Having::Reachable, true, |table, part| {
            self.quarantine_part(table, part);
        });
    }

    /// Invalidates pages that no job relies on, outside of a callback.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost.
    pub(super) fn invalidate(&self, span: Range<usize>) -> Result {
        self.clear_mapped(span.clone());
        let outcome = self.invalidate_and_wait(&span);
        match outcome {
            Ok(()) => self.set_unmapped(span),
            Err(_) => self.quarantine(span),
        }
        outcome
    }

    /// Marks the pages so that no job relies on them any more.
    fn clear_mapped(&self, span: Range<usize>) {
        self.each_part(span, Having::Reachable, true, |table, part| {
            table.invalidate(part, false);
        });
    }

    /// The space has been destroyed: marks all pages unmapped.
    pub(super) fn set_all_unmapped(&self) {
        let all = 0..self.pages;
        self.clear_mapped(all.clone());
        self.set_unmapped(all);
    }

    /// [`MirroredRange::quarantine`] for one part, with the lock held. If the device has been reset
    /// meanwhile, it reaches nothing, and nothing is kept.
    fn quarantine_part(&self, table: &mut Table, part: Range<usize>) {
        if table.is_device_reset() {
            self.release_quarantine(table, part);
            return;
        }
        let (mut kept, mut dirtied, mut last) = (0, 0, Dirtied::default());
        table.set_quarantined(part, |page| {
            kept += 1;
            dirtied += u64::from(page.writable);
            page.tracked.keep();
            if page.writable {
                page.mark_dirty(&mut last);
            }
        });
        self.gpu.counters.quarantined_pages.add(kept);
        self.gpu.counters.dirtied_pages.add(dirtied);
    }
}
