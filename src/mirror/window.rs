// SPDX-License-Identifier: GPL-2.0

//! Windows: the parts of a process's address space that a device which faults has touched.
//!
//! A window is [`WINDOW`] bytes of addresses with a table of their own; [`Windows`] has them all,
//! and the notifiers. Nothing is asked of the kernel for a window but what a fault asks for, and no
//! job waits for the response to a MAP: if it fails, the device faults again. So a page that is in
//! the table as mapped is one for which MAP was sent, and jobs need not be over when it is
//! invalidated: they stall.
//!
//! Several threads may map pages of a window at the same time. They meet under the lock of the
//! tables only, where each sees by [`Window::committed`] whether another has mapped anything since
//! it has looked: no right that the device has is ever taken from it but by INVALIDATE.

use super::{
    range::{
        count,
        MirroredRange,
        RangeParams, //
    },
    table::{
        NewGranule,
        Reach,
        Table,
        GRANULE, //
    },
    windows::{
        Look,
        Windows, //
    },
    NotifierLock,
    Space, //
};
use crate::{
    gpu::Gpu,
    kapi::{
        mm::{
            fault_in,
            FaultWait,
            HmmPage, //
        },
        sync::KillableMutex,
    },
    protocol::{
        mirror::{
            access,
            status,
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
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc, //
    }, //
};

/// Bytes of a window: what glibc's arenas have, which are aligned to that, too.
pub(crate) const WINDOW: usize = 64 << 20;

/// How often pages are faulted in that are gone again at once, in one lookup: pages may be missing
/// in several places.
const LOOKS: usize = 8;

/// Most MAP commands for one fault.
const MAX_COMMANDS: usize = 8;

/// What a fault asks for. All pages are of one granule of the window, and of one area of the
/// process.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Pages that must be had, or it is an error.
    pub(crate) ask: Range<usize>,
    /// Pages around them that are mapped, too, if they are there. With those of `ask`.
    pub(crate) around: Range<usize>,
    /// The device wants to write.
    pub(crate) write: bool,
    /// It may write wherever the process can without a fault, also if it wants to read only.
    pub(crate) eager: bool,
    /// It may write nowhere.
    pub(crate) read_only: bool,
    /// It wants the page alone.
    pub(crate) alone: bool,
    /// How a page is waited for.
    pub(crate) wait: FaultWait,
}

/// Pages that were looked up.
pub(crate) struct Lookup<'a> {
    /// Those of [`Wanted::around`].
    pub(super) pages: KVec<HmmPage>,
    /// What the device is to be able to do with each that it cannot do yet; [`Reach::Nothing`] if
    /// that is nothing.
    rights: KVec<Reach>,
    pub(super) around: Range<usize>,
    pub(super) look: Look<'a>,
}

impl Lookup<'_> {
    /// The first page from `page` on that the process may not read, or write with `write`, without
    /// a fault; the end of what was looked up if there is none.
    pub(crate) fn usable_end(&self, page: usize, write: bool) -> usize {
        let is_usable = |page: &&HmmPage| page.is_valid() && (!write || page.is_writable());
        let from = self.pages.get(page - self.around.start..);
        page + from.map_or(0, |from| from.iter().take_while(is_usable).count())
    }
}

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
    pub(crate) fn is_answered(&self) -> bool {
        self.0
            .iter()
            .all(|(command, _)| MirrorQueue::is_answered(command))
    }
}

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

    /// Looks up what is wanted, by a thread of the process: what is there, after what is missing of
    /// what is asked for has been faulted in. If that is possible for the first pages only,
    /// `wanted` is cut to them. `None` if the device has got the first one meanwhile, as it wants
    /// it, or if pages are being changed, and that is not to be waited for. The window is one of
    /// `windows`.
    ///
    /// # Errors
    ///
    /// Those of [`fault_in`]; [`EBUSY`] if the pages kept changing for `timeout_ms` milliseconds,
    /// or were gone again at once.
    pub(crate) fn look_up<'a>(
        &self,
        windows: &'a Windows,
        wanted: &mut Wanted,
        timeout_ms: u32,
    ) -> Result<Option<Lookup<'a>>> {
        let Wanted {
            ask,
            around,
            write,
            alone,
            wait,
            ..
        } = wanted;
        let mut pages = KVec::from_elem(HmmPage::default(), around.len(), GFP_KERNEL)?;
        let mut tries = 0;
        let look = loop {
            let look = loop {
                let start = self.start + (around.start << PAGE_SHIFT);
                if around.len() == 1 && *wait != FaultWait::Not {
                    let interruptible = *wait == FaultWait::Interruptible;
                    break windows.look(start, &mut pages, interruptible, timeout_ms)?;
                }
                if let Some(look) = windows.try_look(start, &mut pages, timeout_ms)? {
                    break look;
                }
                if *wait == FaultWait::Not {
                    return Ok(None);
                }
                // More than the first page is not worth a wait.
                if around == ask {
                    ask.end = ask.start + 1;
                }
                *around = ask.clone();
                pages.truncate(around.len());
            };
            let is_missing = |page: &HmmPage| !page.is_valid() || *write && !page.is_writable();
            let asked = ask.start - around.start..ask.end - around.start;
            let asked = pages.get(asked).ok_or(EINVAL)?;
            let Some(first) = asked.iter().position(is_missing) else {
                break look;
            };
            // Faulting it in may take any time.
            drop(look);
            let missing = asked[first..].iter().take_while(|page| is_missing(page));
            let missing = missing.count();
            // The device may have got it meanwhile, alone perhaps: then it would lose it.
            let page = ask.start + first;
            let has_it = match *alone {
                true => self.is_exclusive(page),
                false => self.is_reachable(page, *write),
            };
            if has_it {
                if first == 0 {
                    return Ok(None);
                }
                ask.end = ask.start + first;
                *around = ask.clone();
                pages.truncate(around.len());
                continue;
            }
            if tries == LOOKS {
                return Err(EBUSY);
            }
            tries += 1;
            let addr = self.start() + ((ask.start + first) << PAGE_SHIFT);
            match fault_in(addr, missing, *write, *wait) {
                Ok(_) => {}
                // Those before it can be had.
                Err(e) if first > 0 && e != EINTR => {
                    ask.end = ask.start + first;
                    *around = ask.clone();
                    pages.truncate(around.len());
                }
                Err(e) => return Err(e),
            }
        };
        count(&self.range.counters.faults, ask.len() as u64);
        let rights = KVec::from_elem(Reach::Nothing, pages.len(), GFP_KERNEL)?;
        self.range.gpu.knobs.delay_map();
        Ok(Some(Lookup {
            pages,
            rights,
            around: around.clone(),
            look,
        }))
    }

    /// Memory for the granule of `page`, if that is not there.
    pub(super) fn missing_granule(&self, page: usize) -> Result<Option<NewGranule>> {
        if self.range.with_table(|table| table.has_granule(page)) {
            return Ok(None);
        }
        Ok(Some(Table::new_granule(self.range.layout, page)?))
    }

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
        let range = &self.range;
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
                    let base = self.start >> PAGE_SHIFT;
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
        let before = self.range.with_table(|table| {
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
        let most = self.range.space.queue().quota().saturating_sub(1);
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
            let start = self.range.base + ((first + at) << PAGE_SHIFT) as u64;
            let command = self.range.space.map(start, &entries)?;
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
        let most = self.range.space.max_entries();
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
