// SPDX-License-Identifier: GPL-2.0

//! Having the device map pages of a window that were looked up.
//!
//! Several threads may do that at the same time. They meet under the lock of the tables only, where
//! each sees by [`Window::committed`] whether another has mapped anything since it has looked: no
//! right that the device has is ever taken from it but by INVALIDATE.

use super::{
    lookup::{
        Lookup,
        Wanted, //
    },
    range::count,
    table::Reach,
    window::{
        Sent,
        Window, //
    }, //
};
use crate::{
    kapi::mm::{
        FaultWait,
        HmmPage, //
    },
    protocol::{
        mirror::{
            access,
            MapEntry, //
        },
        runs::{
            Merger,
            Run, //
        }, //
    },
    trace,
    transport::mirror::{
        MirrorCommand,
        MirrorCredit,
        MirrorQueue, //
    }, //
};
use core::ops::Range;
use kernel::{
    list::List,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::ordering::Relaxed,
        Arc, //
    }, //
};

/// Most MAP commands for one fault.
const MAX_COMMANDS: usize = 8;

/// What became of an attempt to map what was looked up.
pub(crate) enum Committed {
    /// MAPs are on their way, if anything was missing, and the resolution of the fault behind them.
    Sent(Sent),
    /// The lookup is stale.
    Stale,
    /// A page that is asked for is being revoked, by the thread that has the lock for that.
    Revoking,
    /// The space is about to end.
    Closed,
}

impl Window {
    /// Has the device map what was looked up and what it does not reach yet, unless the lookup is
    /// stale, and then resolves fault `resolve.0` as `resolve.1` says. Does not wait for the
    /// device.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`ENODEV`] if the device is lost, [`EINTR`] on a fatal signal, those of
    /// [`MirrorQueue::credit`]; [`EAGAIN`] with [`FaultWait::Not`] if there is no room at once.
    pub(crate) fn commit(
        &self,
        wanted: &Wanted,
        lookup: &mut Lookup<'_>,
        resolve: Option<(u64, u32)>,
    ) -> Result<Committed> {
        let range = self.range();
        let queue = range.space.queue();
        let mut resolution = match resolve {
            Some((id, how)) => Some(MirrorQueue::fault_resolve(range.space.id(), id, how)?),
            None => None,
        };
        let (mut spare, mut credit): (_, Option<MirrorCredit>) = (None, None);
        loop {
            let Some((before, plan)) = self.plan(wanted, lookup)? else {
                return Ok(Committed::Revoking);
            };
            // It may not be there yet; or what was unmapped beside the pages has had it found
            // empty, and freed.
            if spare.is_none() {
                spare = self.missing_granule(lookup.around.start)?;
            }
            let Plan {
                mut list,
                sent,
                descriptors,
                entries,
            } = plan;
            let needed = descriptors + usize::from(resolution.is_some());
            // What another thread has mapped meanwhile is no reason to wait for a turn again.
            if credit.as_ref().map_or(0, MirrorCredit::slots) < needed {
                drop(credit.take());
                credit = Some(match wanted.wait {
                    FaultWait::Not => queue.try_credit(needed)?.ok_or(EAGAIN)?,
                    _ => queue.credit(needed)?,
                });
            }
            let mut commits = range.lock.commits.lock();
            if range.space.is_closed(&commits) {
                return Ok(Committed::Closed);
            }
            let outcome = range.look(&mut commits, |table| -> Result<Option<Committed>> {
                if lookup.look.is_stale() || range.gpu.knobs.loses_race() {
                    return Ok(Some(Committed::Stale));
                }
                if !table.has_granules(&lookup.around) {
                    match spare.take() {
                        Some(granule) => table.add(granule),
                        None => return Ok(None),
                    }
                }
                // Pages of a lost device may be in quarantine, and must not be replaced.
                range.gpu.transport.check()?;
                if self.committed.load(Relaxed) != before {
                    return Ok(None);
                }
                self.committed.store(before + 1, Relaxed);
                let Some(credit) = credit.as_mut().filter(|_| needed > 0) else {
                    return Ok(Some(Committed::Sent(Sent(KVec::new()))));
                };
                let mut parts = sent.iter();
                while let (Some(command), Some((_, part))) = (list.pop_front(), parts.next()) {
                    let first = part.start - lookup.around.start;
                    let places = first..first + part.len();
                    let pages = lookup.pages.get(places.clone()).ok_or(EINVAL)?;
                    let rights = lookup.rights.get(places).ok_or(EINVAL)?;
                    // From here on the device may reach the pages, even if it should be lost
                    // meanwhile.
                    table.set_reachable(part.start, pages, rights);
                    queue.put_unkicked(command, credit)?;
                }
                if let Some(resolution) = resolution.take() {
                    queue.put_unkicked(resolution, credit)?;
                }
                Ok(Some(Committed::Sent(Sent(KVec::new()))))
            });
            drop(commits);
            match outcome? {
                None => continue,
                Some(Committed::Sent(_)) => {
                    // An exit to the host, hence without the lock.
                    queue.kick();
                    count(&range.counters.maps, sent.len() as u64);
                    count(&range.counters.entries, entries as u64);
                    range.gpu.counters.maps.add(sent.len() as u64);
                    let device = range.gpu.transport.name();
                    let base = self.start() >> PAGE_SHIFT;
                    for (_, part) in &sent {
                        let part = base + part.start..base + part.end;
                        trace::map(device, range.space.id(), &part, entries);
                    }
                    return Ok(Committed::Sent(Sent(sent)));
                }
                Some(other) => {
                    if matches!(other, Committed::Stale) {
                        count(&range.counters.retries, 1);
                        range.gpu.counters.lookup_retries.add(1);
                    }
                    return Ok(other);
                }
            }
        }
    }

    /// The MAPs that are missing, by what was mapped at the time that is returned, too; `None` if a
    /// page that is asked for is just being revoked.
    fn plan(&self, wanted: &Wanted, lookup: &mut Lookup<'_>) -> Result<Option<(u64, Plan)>> {
        let Lookup {
            pages,
            rights,
            around,
            ..
        } = lookup;
        let before = self.range().with_table(|table| {
            table.reach(around.clone(), rights);
            self.committed.load(Relaxed)
        });
        let asked = wanted.ask.start - around.start..wanted.ask.end - around.start;
        if rights
            .get(asked.clone())
            .ok_or(EINVAL)?
            .contains(&Reach::Ending)
        {
            return Ok(None);
        }
        let may_write = (wanted.write || wanted.eager) && !wanted.read_only;
        for (page, right) in pages.iter().zip(rights.iter_mut()) {
            *right = match (page.is_valid(), *right) {
                (false, _) | (_, Reach::Ending) => Reach::Nothing,
                (true, now) if may_write && page.is_writable() && now < Reach::Write => {
                    Reach::Write
                }
                (true, Reach::Nothing) => Reach::Read,
                _ => Reach::Nothing,
            };
        }
        let most = self.range().space.queue().quota().saturating_sub(1);
        let mut plan = Plan::new();
        // First what must be had, and what follows it.
        for part in [asked.start..pages.len(), 0..asked.start] {
            self.plan_part(&mut plan, pages, rights, around.start, part, most)?;
        }
        Ok(Some((before, plan)))
    }

    /// Adds MAPs for those pages of `part` that have a right, of which the first is page `first`,
    /// as long as there are few enough, of no more than `most` descriptors.
    fn plan_part(
        &self,
        plan: &mut Plan,
        pages: &[HmmPage],
        rights: &[Reach],
        first: usize,
        part: Range<usize>,
        most: usize,
    ) -> Result {
        let mut at = part.start;
        while at < part.end {
            if rights[at] == Reach::Nothing {
                at += 1;
                continue;
            }
            let length = rights[at..part.end]
                .iter()
                .take_while(|right| **right != Reach::Nothing)
                .count();
            let (entries, taken) =
                self.entries(&pages[at..at + length], &rights[at..at + length])?;
            let start = self.range().base + ((first + at) << PAGE_SHIFT) as u64;
            let command = self.range().space.map(start, &entries)?;
            if plan.sent.len() == MAX_COMMANDS || plan.descriptors + command.descriptors() > most {
                break;
            }
            plan.descriptors += command.descriptors();
            plan.entries += entries.len();
            let which = first + at..first + at + taken;
            plan.sent.push((command.clone_arc(), which), GFP_KERNEL)?;
            plan.list.push_back(command);
            at += taken;
        }
        Ok(())
    }

    /// The entries of one MAP for the first of `pages`, with their `rights`, and for how many that
    /// is.
    fn entries(&self, pages: &[HmmPage], rights: &[Reach]) -> Result<(KVec<MapEntry>, usize)> {
        let most = self.range().space.max_entries();
        let mut entries = KVec::new();
        let (mut at, mut taken) = (0, 0);
        for right in rights.chunk_by(|a, b| a == b) {
            let access = match right.first() {
                Some(Reach::Write) => access::READ | access::WRITE,
                _ => access::READ,
            };
            let mut merger = Merger::new();
            let mut append = |run: Run| -> Result {
                let entry = MapEntry {
                    addr: run.addr.into(),
                    length: run.length.into(),
                    access: access.into(),
                };
                if entries.len() < most {
                    taken += run.length as usize >> PAGE_SHIFT;
                    entries.push(entry, GFP_KERNEL)?;
                }
                Ok(())
            };
            let start = at;
            at += right.len();
            for run in pages[start..at].chunk_by(|a, b| a.is_followed_by(*b)) {
                merger.push(run[0].phys(), (run.len() << PAGE_SHIFT) as u64, &mut append)?;
            }
            merger.flush(&mut append)?;
            if entries.len() == most {
                break;
            }
        }
        Ok((entries, taken))
    }
}

/// MAP commands that are to be sent.
struct Plan {
    list: List<MirrorCommand>,
    /// The same, with the pages that each maps.
    sent: KVec<(Arc<MirrorCommand>, Range<usize>)>,
    descriptors: usize,
    entries: usize,
}

impl Plan {
    fn new() -> Self {
        Self {
            list: List::new(),
            sent: KVec::new(),
            descriptors: 0,
            entries: 0,
        }
    }
}
