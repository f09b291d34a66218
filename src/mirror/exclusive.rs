// SPDX-License-Identifier: GPL-2.0

//! Pages that the device has alone, for atomic accesses in which the processors take no part.
//!
//! The kernel takes the page from the page tables of the process, and its folio stays locked until
//! MAP was sent. Whoever touches the page meanwhile waits for the folio, and then has it back by a
//! notification like all others, whose INVALIDATE is behind the MAP. That the kernel tells of the
//! taking, too, changes nothing for the space that it is for: what the device reaches is the same
//! page. All others, other spaces of the process included, lose the page as by any other change.
//!
//! [`super::slices`] sees to it that the device gets to use what it has.

use super::{
    commit::Committed,
    lookup::Lookup,
    range::count,
    table::Reach,
    window::{
        Sent,
        Window, //
    }, //
};
use crate::{
    kapi::{
        mm::ExclusivePage,
        sync::monotonic_ns, //
    },
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
    sync::atomic::ordering::Relaxed, //
};

impl Window {
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
