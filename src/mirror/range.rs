// SPDX-License-Identifier: GPL-2.0

//! A mirrored range: what the registration and the notifier's callbacks share. It outlives the
//! registration's handle as long as a callback may run.

use super::{
    event::RangeEvents,
    space::Space,
    table::{
        Having,
        Layout,
        Table, //
    },
    Commits,
    NotifierLock, //
};
use crate::{
    context::Context,
    gpu::Gpu,
    kapi::{
        dma::Resv,
        mm::{
            Dirtied,
            FinishNode, //
        }, //
    },
    transport::{
        event::SpaceOwner,
        mirror::Ticket, //
    },
};
use core::ops::Range;
use kernel::{
    new_spinlock,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic,
            AtomicFlag, //
        },
        Arc,
        LockedBy,
        SpinLock, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// What happened to a range, for BO_QUERY.
pub(crate) struct Counters {
    /// MAP commands.
    pub(crate) maps: Atomic<u64>,
    /// Entries in them.
    pub(crate) entries: Atomic<u64>,
    /// Lookups repeated because the page tables changed.
    pub(crate) retries: Atomic<u64>,
    /// Pages looked up.
    pub(crate) faults: Atomic<u64>,
}

impl Counters {
    fn new() -> Self {
        let zero = || Atomic::new(0u64);
        Self {
            maps: zero(),
            entries: zero(),
            retries: zero(),
            faults: zero(),
        }
    }
}

/// Adds to a counter.
pub(super) fn count(counter: &Atomic<u64>, by: u64) {
    counter.fetch_add(by, Relaxed);
}

/// The jobs that use a range, and for which an invalidation waits.
pub(crate) struct Jobs {
    /// The context of the jobs.
    pub(crate) context: Arc<Context>,
    /// Their fences.
    pub(crate) resv: Arc<Resv>,
}

/// An invalidation between its two passes.
pub(crate) struct Pending {
    /// The pages that the device may reach.
    pub(super) span: Range<usize>,
    /// The command, if it was sent.
    pub(super) ticket: Option<Ticket>,
    /// When it began.
    pub(super) since: Instant<Monotonic>,
}

/// What memory a range is of, and what it is for.
#[derive(Clone, Copy)]
pub(crate) struct RangeParams {
    /// Guest-virtual address, that of a page.
    pub(crate) addr: usize,
    /// What the device calls that address in the space, in bytes.
    pub(crate) base: u64,
    /// Pages.
    pub(crate) pages: usize,
    /// Whether the device may write.
    pub(crate) write: bool,
    /// Jobs use only what was prefetched.
    pub(crate) sparse: bool,
}

/// A mirrored range.
#[pin_data]
pub(crate) struct MirroredRange {
    /// The device.
    pub(super) gpu: Arc<Gpu>,
    /// What the pages are mapped into.
    pub(super) space: Arc<Space>,
    /// What the device calls the first page in the space, in bytes.
    pub(super) base: u64,
    /// The jobs that use the range, if they are to end before it is invalidated. Otherwise they
    /// stall.
    pub(super) jobs: Option<Jobs>,
    /// The lock of `table`.
    pub(super) lock: Arc<NotifierLock>,
    table: LockedBy<Table, Commits>,
    /// Pages of `table` that jobs may rely on, for those who must not sleep.
    mapped: Atomic<u64>,
    /// Pages.
    pub(super) pages: usize,
    pub(super) layout: Layout,
    /// Whether the device may write.
    pub(super) write: bool,
    /// Jobs use only what was prefetched.
    pub(super) sparse: bool,
    /// The device has dropped the space.
    revoked: AtomicFlag,
    /// When it was used last, by the clock of the file.
    pub(super) used: Atomic<u64>,
    /// The device had no room for a MAP since this was looked at.
    pub(super) refused: AtomicFlag,
    /// For one invalidation between its two passes; a callback that finds none does all in the
    /// first. Protects only itself, taken by callbacks.
    #[pin]
    pub(super) spare: SpinLock<Option<FinishNode<Pending>>>,
    /// Events for the program, if it has asked for them.
    pub(super) events: Option<Arc<RangeEvents>>,
    /// What happened.
    pub(crate) counters: Counters,
}

impl MirroredRange {
    /// The range that `params` describe, of which nothing is mapped into `space`. Its table is
    /// under `lock`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        lock: &Arc<NotifierLock>,
        space: Arc<Space>,
        jobs: Option<Jobs>,
        params: RangeParams,
        events: Option<Arc<RangeEvents>>,
    ) -> Result<Arc<Self>> {
        let RangeParams {
            addr,
            base,
            pages,
            write,
            sparse,
        } = params;
        // Windows have theirs together.
        let node = jobs.is_some().then(FinishNode::new).transpose()?;
        let layout = Layout::new(addr >> PAGE_SHIFT, pages);
        Arc::pin_init(
            pin_init!(Self {
                gpu: gpu.clone(),
                space,
                base,
                jobs,
                lock: lock.clone(),
                table: LockedBy::new(&lock.commits, Table::new(layout)),
                mapped: Atomic::new(0),
                pages,
                layout,
                write,
                sparse,
                revoked: AtomicFlag::new(false),
                used: Atomic::new(0),
                refused: AtomicFlag::new(false),
                spare <- new_spinlock!(node, "MirroredRange::spare"),
                events,
                counters: Counters::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// INVALIDATE commands that were sent for it.
    pub(crate) fn invalidations(&self) -> u64 {
        self.space.invalidations()
    }

    /// Whether the device has dropped the space.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Relaxed)
    }

    /// Bytes that jobs may rely on now. Does not sleep.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.mapped.load(Relaxed) << PAGE_SHIFT
    }

    /// Calls `with` with the lock held, for less than a granule's work or what one MAP needs.
    pub(super) fn with_table<R>(&self, with: impl FnOnce(&mut Table) -> R) -> R {
        self.look(&mut self.lock.commits.lock(), with)
    }

    /// The same for those who may not be allowed to block: `None` if the lock is not free.
    pub(super) fn with_table_if<R>(
        &self,
        may_block: bool,
        with: impl FnOnce(&mut Table) -> R,
    ) -> Option<R> {
        if may_block {
            return Some(self.with_table(with));
        }
        let mut guard = self.lock.commits.try_lock()?;
        Some(self.look(&mut guard, with))
    }

    /// Calls `with` with the lock held, and counts what it looks at and what is mapped then. The
    /// table is changed by no other way.
    pub(super) fn look<R>(&self, commits: &mut Commits, with: impl FnOnce(&mut Table) -> R) -> R {
        let table = self.table.access_mut(commits);
        let outcome = with(table);
        self.mapped.store(table.mapped() as u64, Relaxed);
        self.gpu
            .counters
            .longest_look
            .raise(table.take_looked() as u64);
        outcome
    }

    /// Calls `with` for the parts of `which` in granules that have what is asked for, granule by
    /// granule, each time with the lock taken anew. Returns whether that was possible, which it
    /// always is with `may_block`.
    ///
    /// The caller has to take into account what others do in between.
    pub(super) fn each_part(
        &self,
        which: Range<usize>,
        having: Having,
        may_block: bool,
        mut with: impl FnMut(&mut Table, Range<usize>),
    ) -> bool {
        let mut rest = which;
        while !rest.is_empty() {
            let reached = self.with_table_if(may_block, |table| {
                let part = table.next_part(rest.clone(), having);
                let end = part.end;
                if !part.is_empty() {
                    with(table, part);
                }
                end
            });
            match reached {
                Some(end) => rest.start = end,
                None => return false,
            }
        }
        true
    }

    /// Whether a job may be queued that uses the range.
    pub(crate) fn is_ready(&self, commits: &Commits) -> bool {
        !self.is_revoked() && self.table.access(commits).is_ready(self.sparse)
    }

    /// Whether no job uses the range that is to end before it is invalidated.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.as_ref().is_none_or(|jobs| jobs.resv.is_idle())
    }

    /// Reports to the program that the device is lost.
    pub(crate) fn report_loss(&self) {
        if let Some(events) = &self.events {
            events.report_loss();
        }
    }

    /// The device has been reset: marks all pages unmapped, and puts those in quarantine.
    pub(crate) fn device_reset(&self) {
        // Also where the registration ends; but then its handle is closed.
        self.report_loss();
        // From now on callbacks do the same with what they invalidate, and nothing is mapped.
        self.with_table(Table::set_device_reset);
        self.each_part(0..self.pages, Having::Anything, true, |table, part| {
            self.release_quarantine(table, part);
        });
    }

    /// Marks pages unmapped of a device that has been reset, and puts the references that
    /// [`MirroredRange::quarantine`] has taken.
    pub(super) fn release_quarantine(&self, table: &mut Table, part: Range<usize>) {
        let (mut dirtied, mut released, mut last) = (0, 0, Dirtied::default());
        table.release_quarantine(part, |pages, quarantined| {
            let count = pages.count as u64;
            if pages.writable {
                dirtied += count;
                pages.mark_dirty(&mut last);
            }
            if quarantined {
                released += count;
                pages.tracked.release();
            }
        });
        self.gpu.counters.dirtied_pages.add(dirtied);
        self.gpu.counters.released_pages.add(released);
    }
}

impl MirroredRange {
    /// The device has dropped the space: jobs cannot use the range any more. Callbacks send
    /// INVALIDATE as before, which the device acknowledges for a space that is gone.
    pub(super) fn set_revoked(&self) {
        self.revoked.store(true, Relaxed);
        if let Some(events) = &self.events {
            events.report_loss();
        }
    }
}

impl SpaceOwner for MirroredRange {
    fn space_lost(self: Arc<Self>) {
        self.set_revoked();
    }
}
