// SPDX-License-Identifier: GPL-2.0

//! Windows: the parts of a process's address space that a device which faults has touched.
//!
//! A window is [`WINDOW`] bytes of addresses with a table of their own; [`Windows`](super::Windows)
//! has them all, and the notifiers. Nothing is asked of the kernel for a window but what a fault
//! asks for, and no job waits for the response to a MAP: if it fails, the device faults again. So a
//! page that is in the table as mapped is one for which MAP was sent, and jobs need not be over
//! when it is invalidated: they stall.
//!
//! [`super::lookup`] looks pages up, and [`super::commit`] has the device map them.

use super::{
    range::{
        MirroredRange,
        RangeParams, //
    },
    table::{
        NewGranule,
        Reach,
        Table,
        GRANULE, //
    },
    NotifierLock,
    Space, //
};
use crate::{
    gpu::Gpu,
    kapi::sync::KillableMutex,
    protocol::mirror::status,
    transport::mirror::{
        MirrorCommand,
        MirrorQueue, //
    }, //
};
use core::ops::Range;
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc, //
    }, //
};

/// Bytes of a window: what glibc's arenas have, which are aligned to that, too.
pub(crate) const WINDOW: usize = 64 << 20;

/// What the device has made of MAPs.
pub(crate) struct Response {
    /// The [`status`] of the first that failed, or OK.
    pub(crate) status: u32,
    /// INVALIDATE commands that were sent for what was not mapped.
    pub(crate) invalidations: u64,
}

/// MAP commands that were sent, and the pages that each maps.
pub(crate) struct Sent(pub(super) KVec<(Arc<MirrorCommand>, Range<usize>)>);

impl Sent {
    /// Pages for which they were sent.
    pub(crate) fn pages(&self) -> usize {
        self.0.iter().map(|(_, pages)| pages.len()).sum()
    }

    /// Whether the device has responded to all of them.
    pub(crate) fn has_response(&self) -> bool {
        self.0
            .iter()
            .all(|(command, _)| MirrorQueue::has_response(command))
    }
}

/// A window of an address space.
pub(crate) struct Window {
    range: Arc<MirroredRange>,
    /// First address, in bytes.
    start: usize,
    /// How often anything was mapped. Changed with the lock of the tables held.
    pub(super) committed: Atomic<u64>,
}

impl Window {
    /// A window for `bytes` bytes at `addr`. It is mapped into `space`, at the same address, and
    /// its table is under `lock`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        lock: &Arc<NotifierLock>,
        space: &Arc<Space>,
        addr: usize,
        bytes: usize,
    ) -> Result<Arc<Self>> {
        let params = RangeParams {
            addr,
            base: addr as u64,
            pages: bytes >> PAGE_SHIFT,
            write: true,
            sparse: false,
        };
        Ok(Arc::new(
            Self {
                range: MirroredRange::new(gpu, lock, space.clone(), None, params, None)?,
                start: addr,
                committed: Atomic::new(0),
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }

    /// What callbacks see of it.
    pub(super) fn range(&self) -> &MirroredRange {
        &self.range
    }

    /// First address, in bytes.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// The addresses of pages.
    pub(crate) fn addresses(&self, pages: &Range<usize>) -> Range<usize> {
        let address_of = |page: usize| self.start + (page << PAGE_SHIFT);
        address_of(pages.start)..address_of(pages.end)
    }

    /// Pages.
    pub(crate) fn pages(&self) -> usize {
        self.range.pages
    }

    /// The pages of the granule that page `page` is in.
    pub(crate) fn granule(&self, page: usize) -> Range<usize> {
        self.range.layout.granule(page)
    }

    /// What has happened to it.
    pub(crate) fn counters(&self) -> &super::range::Counters {
        &self.range.counters
    }

    /// Whether the device can reach anything in it, also what is being invalidated.
    pub(crate) fn is_reached(&self) -> bool {
        self.range.with_table(|table| table.is_reached())
    }

    /// Bytes that the device can reach.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.range.mapped_bytes()
    }

    /// Whether the device can reach page `page`, also for writing with `write`.
    pub(crate) fn is_reachable(&self, page: usize, write: bool) -> bool {
        let mut reach = [Reach::Nothing];
        self.range
            .with_table(|table| table.reach(page..page + 1, &mut reach));
        reach[0] >= if write { Reach::Write } else { Reach::Read }
    }

    /// Whether the device has page `page` alone.
    pub(crate) fn is_exclusive(&self, page: usize) -> bool {
        let mut reach = [Reach::Nothing];
        self.range
            .with_table(|table| table.reach(page..page + 1, &mut reach));
        reach[0] == Reach::Exclusive
    }

    /// The first page of `which` that the device can reach, also for writing with `write`; its end
    /// if there is none. They are of one granule.
    pub(crate) fn first_reachable(&self, which: Range<usize>, write: bool) -> usize {
        self.first(which, write, true)
    }

    /// The first page of `which` that it cannot reach so, or its end.
    pub(crate) fn reachable_end(&self, which: Range<usize>, write: bool) -> usize {
        self.first(which, write, false)
    }

    fn first(&self, which: Range<usize>, write: bool, reachable: bool) -> usize {
        let mut reach = [Reach::Nothing; GRANULE];
        let (start, end) = (which.start, which.end);
        let Some(places) = reach.get_mut(..end - start) else {
            return start;
        };
        self.range.with_table(|table| table.reach(which, places));
        let least = if write { Reach::Write } else { Reach::Read };
        let is_it = |&reach: &Reach| (reach >= least) == reachable;
        let found = places.iter().position(is_it);
        found.map_or(end, |found| start + found)
    }

    /// Memory for the granule of `page`, if that is not there.
    pub(super) fn missing_granule(&self, page: usize) -> Result<Option<NewGranule>> {
        if self.range.with_table(|table| table.has_granule(page)) {
            return Ok(None);
        }
        Ok(Some(Table::new_granule(self.range.layout, page)?))
    }

    /// Waits for the responses to MAPs. Where one failed, what it should have mapped is revoked,
    /// and the device faults again.
    ///
    /// `revoking` is held by one thread at a time that revokes pages of the space.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost.
    pub(crate) fn confirm(&self, sent: &Sent, revoking: &KillableMutex<()>) -> Result<Response> {
        let mut outcome = Response {
            status: status::OK,
            invalidations: 0,
        };
        for (command, which) in &sent.0 {
            let response = self.range.space.queue().wait(command)?;
            if response == status::OK {
                continue;
            }
            // Also by a thread that is being killed: the address space may be that of others, too,
            // and a fault on a page that the table has in vain is taken for resolved over and over.
            let guard = revoking.lock_unkillable();
            outcome.invalidations += self.range.revoke(which.clone(), || Ok(()))?.commands;
            drop(guard);
            if outcome.status == status::OK {
                outcome.status = response;
            }
        }
        Ok(outcome)
    }

    /// Revokes the pages `which`, whether the device reaches them or only should. One thread at a
    /// time revokes pages of a space.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost.
    pub(crate) fn revoke(&self, which: Range<usize>) -> Result {
        self.range.revoke(which, || Ok(())).map(|_| ())
    }

    /// Revokes those of the pages `which` that the device reaches, as it has no room for others;
    /// returns their number. One thread at a time revokes pages of a space.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`EINTR`] on a fatal signal.
    pub(crate) fn evict(&self, which: Range<usize>) -> Result<usize> {
        self.range.evict(which)
    }
}
