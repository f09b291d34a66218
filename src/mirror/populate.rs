// SPDX-License-Identifier: GPL-2.0

//! Population: looks pages up through HMM, which faults them in, sends MAP for them, and marks them
//! mapped when the device has confirmed it. Callbacks may come at any time: the notifier's
//! sequence, compared under the lock, tells that a lookup is stale before MAP is sent, and the
//! state of a page tells whether it was invalidated before the response.

use super::{
    range::{
        count,
        MirroredRange, //
    },
    space,
    table::{
        Having,
        Table,
        GRANULE, //
    },
    Notifier, //
};
use crate::{
    kapi::{
        mm::{
            first_hole,
            HmmPage,
            Sequence, //
        },
        task::check_not_killed, //
    },
    protocol::{
        mirror::{
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
        MirrorCredit, //
    }, //
};
use core::ops::Range;
use kernel::{
    list::{
        List,
        ListArc, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::ordering::Relaxed,
        Arc, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// How long pages that keep changing are looked up again, in milliseconds.
pub(crate) const PATIENCE_MS: u32 = 1000;

/// How often they are at least, however slow the machine is, and for how long each time.
const MIN_TRIES: u32 = 8;
const LEAST_MS: u32 = 100;

/// When to stop trying.
pub(crate) struct Deadline {
    since: Instant<Monotonic>,
    tries: u32,
}

impl Deadline {
    /// In [`PATIENCE_MS`] from now, but not before [`MIN_TRIES`] tries.
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            tries: 0,
        }
    }

    /// Milliseconds for one more try.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if there were enough, [`EINTR`] on a fatal signal.
    pub(crate) fn next_try_ms(&mut self) -> Result<u32> {
        check_not_killed()?;
        self.tries += 1;
        let left = i64::from(PATIENCE_MS) - self.since.elapsed().as_millis();
        if left <= 0 && self.tries > MIN_TRIES {
            return Err(EBUSY);
        }
        Ok(left.max(i64::from(LEAST_MS)) as u32)
    }
}

/// Which pages of a range are mapped for the device, and what happens where one cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapMode {
    /// All, or it is an error.
    All,
    /// All up to the first that cannot.
    Prefix,
    /// Those that were asked for before, as far as anything is mapped there.
    Known,
}

/// Pages that are looked up before MAP is sent for them: runs of pages in memory often go on from
/// one granule to the next.
const MAX_PAGES: usize = 4 * GRANULE;

/// Pages that are faulted in between two looks for a fatal signal.
///
/// HMM checks for none as long as it need not wait. A process that is killed because memory is
/// short would take that many pages more, from what is kept for its end.
const STRIDE: usize = 64;

/// Groups of MAP commands that are on their way at a time.
const IN_FLIGHT: usize = 8;

/// How often what cannot be had is looked at again: it may have been mapped in between.
const MAX_VAIN: usize = 64;

/// MAP commands, each with the page behind the last that it maps.
type Maps = KVec<(Arc<MirrorCommand>, usize)>;

/// Pages for which MAP was sent.
struct Sent {
    commands: Maps,
    which: Range<usize>,
}

/// Memory for a lookup, of [`MAX_PAGES`] at most.
struct Lookup {
    pages: KVVec<HmmPage>,
    entries: KVVec<MapEntry>,
}

impl Lookup {
    const fn new() -> Self {
        Self {
            pages: KVVec::new(),
            entries: KVVec::new(),
        }
    }
}

impl MirroredRange {
    /// Makes the stale pages of `which` usable. Returns the end of what is usable, also on failure.
    pub(super) fn map_stale(
        &self,
        notifier: &Notifier,
        which: Range<usize>,
        mode: MapMode,
    ) -> (usize, Result) {
        let mut sent = KVec::new();
        let (mut end, mut outcome) = self.send_stale(notifier, which, mode, &mut sent);
        for sent in sent {
            if let Err(e) = self.confirm(&sent) {
                end = end.min(sent.which.start);
                outcome = Err(e);
            }
        }
        (end, outcome)
    }

    /// As [`MirroredRange::map_stale`], but leaves in `sent` what was not responded to.
    fn send_stale(
        &self,
        notifier: &Notifier,
        which: Range<usize>,
        mode: MapMode,
        sent: &mut KVec<Sent>,
    ) -> (usize, Result) {
        let mut lookup = Lookup::new();
        let mut at = which.start;
        // However scattered the pages are, their commands fit the ring.
        let mut limit = MAX_PAGES.min(self.space.max_fragments());
        let mut vain = 0;
        while at < which.end {
            if let Err(e) = check_not_killed() {
                return (at, Err(e));
            }
            let sparse = mode == MapMode::Known;
            let Some(part) =
                self.with_table(|table| table.next_stale(at..which.end, limit, sparse))
            else {
                break;
            };
            at = part.start;
            if part.is_empty() {
                continue;
            }
            if sent.len() == IN_FLIGHT {
                if let Ok(oldest) = sent.remove(0) {
                    if let Err(e) = self.confirm(&oldest) {
                        return (oldest.which.start, Err(e));
                    }
                }
            }
            if let Err(e) = sent.reserve(1, GFP_KERNEL) {
                return (at, Err(e.into()));
            }
            match self.send(notifier, &mut lookup, part.clone()) {
                Ok(new) => {
                    at = new.which.end;
                    if at < part.end {
                        // More in vain than it is worth.
                        limit = limit.min(GRANULE);
                    }
                    // There is room: it was reserved.
                    if let Err(e) = sent.push(new, GFP_KERNEL) {
                        return (part.start, Err(e.into()));
                    }
                }
                // Where that begins which cannot be used is found out by halving.
                Err(e)
                    if mode == MapMode::Prefix && part.len() > 1 && (e == EFAULT || e == EPERM) =>
                {
                    limit = part.len() / 2;
                }
                // It was there once. What has been unmapped is now like what never was, and what
                // has been mapped again meanwhile is there.
                Err(e) if mode == MapMode::Known && e == EFAULT && vain < MAX_VAIN => {
                    match self.forget_hole(notifier, part) {
                        Ok(true) => (),
                        Ok(false) => vain += 1,
                        Err(e) => return (at, Err(e)),
                    }
                }
                Err(e) => return (at, Err(e)),
            }
        }
        (which.end, Ok(()))
    }

    /// Asks no more for the first pages of `which` where nothing is mapped. Returns whether there
    /// are any.
    ///
    /// # Errors
    ///
    /// [`EINTR`] on a fatal signal.
    fn forget_hole(&self, notifier: &Notifier, which: Range<usize>) -> Result<bool> {
        let addr = notifier.start() + (which.start << PAGE_SHIFT);
        let Some((offset, len)) = first_hole(addr, which.len() << PAGE_SHIFT)? else {
            return Ok(false);
        };
        let first = which.start + (offset >> PAGE_SHIFT);
        let hole = first..first + (len >> PAGE_SHIFT);
        self.each_part(hole, Having::Anything, true, |table, part| {
            table.set_unwanted(part);
        });
        Ok(true)
    }

    /// Looks up unmapped pages, and sends MAP for them, or for the first of them.
    fn send(
        &self,
        notifier: &Notifier,
        lookup: &mut Lookup,
        mut which: Range<usize>,
    ) -> Result<Sent> {
        let mut deadline = Deadline::new();
        loop {
            let timeout_ms = deadline.next_try_ms()?;
            let sequence = match self.look_up(notifier, lookup, &mut which, timeout_ms) {
                // Where the machine has stood still, HMM may not have tried even once.
                Err(e) if e == EBUSY => {
                    count(&self.counters.retries, 1);
                    self.gpu.counters.lookup_retries.add(1);
                    continue;
                }
                outcome => outcome?,
            };
            count(&self.counters.faults, which.len() as u64);
            self.gpu.knobs.delay_map();

            let (mut list, mut commands) = self.commands(lookup, &which)?;
            let slots = commands
                .iter()
                .map(|(command, _)| command.descriptors())
                .sum();
            let mut credit = self.space.queue().credit(slots)?;
            check_not_killed()?;

            let (mut at, mut sent) = (which.start, 0);
            while let (Some(command), Some(&(_, end))) = (list.pop_front(), commands.get(sent)) {
                let part = at - which.start..end - which.start;
                let pages = lookup.pages.get(part).ok_or(EINVAL)?;
                if !self.commit(notifier, sequence, at, pages, command, &mut credit)? {
                    break;
                }
                (at, sent) = (end, sent + 1);
            }
            // An exit to the host, hence without the lock.
            self.space.queue().kick();
            if at < which.end {
                count(&self.counters.retries, 1);
                self.gpu.counters.lookup_retries.add(1);
            }
            if sent == 0 {
                // The fewer at a time, the sooner.
                which.end = self.layout.granule(which.start).end.min(which.end);
                continue;
            }
            which.end = at;
            commands.truncate(sent);
            count(&self.counters.maps, sent as u64);
            self.gpu.counters.maps.add(sent as u64);
            // All commands but the last are full.
            let entries = lookup.entries.len().min(sent * self.space.max_entries());
            count(&self.counters.entries, entries as u64);
            let device = self.gpu.transport.name();
            trace::map(device, self.space.id(), &which, entries);
            return Ok(Sent { commands, which });
        }
    }

    /// Sends a command that maps `pages` from page `at` on, unless the lookup is stale. Returns
    /// whether it was sent.
    fn commit(
        &self,
        notifier: &Notifier,
        sequence: Sequence,
        at: usize,
        pages: &[HmmPage],
        command: ListArc<MirrorCommand>,
        credit: &mut MirrorCredit,
    ) -> Result<bool> {
        self.with_table(|table| {
            // A granule that was made before the lookup may have been found empty and freed.
            if notifier.is_stale(sequence) || !table.has_granules(&(at..at + pages.len())) {
                return Ok(false);
            }
            // Pages of a lost device may be in quarantine, and must not be replaced.
            self.gpu.transport.check()?;
            // From here on the device may reach the pages, even if it should be lost meanwhile.
            table.set_mapping(at, pages, self.write);
            self.space.queue().put_unkicked(command, credit)?;
            Ok(true)
        })
    }

    /// Looks up the pages `which`, granule by granule; where one cannot be had, or the lookup is
    /// stale before the next was found, those before are enough.
    fn look_up(
        &self,
        notifier: &Notifier,
        lookup: &mut Lookup,
        which: &mut Range<usize>,
        timeout_ms: u32,
    ) -> Result<Sequence> {
        let Lookup { pages, .. } = lookup;
        pages.clear();
        let mut found: Option<Sequence> = None;
        let mut at = which.start;
        while at < which.end {
            let end = self.layout.granule(at).end.min(which.end);
            self.ensure_granule(at)?;
            pages.resize(end - which.start, HmmPage::default(), GFP_KERNEL)?;
            let part = pages.get_mut(at - which.start..).unwrap_or_default();
            let looked_up = self.look_up_granule(notifier, at, part, timeout_ms);
            match (found, looked_up) {
                (None, sequence) => found = Some(sequence?),
                (Some(first), Ok(sequence)) if sequence == first => {}
                _ => {
                    pages.truncate(at - which.start);
                    which.end = at;
                    break;
                }
            }
            at = end;
        }
        found.ok_or(EINVAL)
    }

    /// Looks up the neighbours of page `first`, a stride at a time.
    fn look_up_granule(
        &self,
        notifier: &Notifier,
        first: usize,
        pages: &mut [HmmPage],
        timeout_ms: u32,
    ) -> Result<Sequence> {
        let mut oldest = None;
        // Faulting one in may invalidate another, as a copy on write does. As a rule all are there
        // by now, and none changes.
        for _ in 0..2 {
            let (mut at, mut stale) = (first, false);
            oldest = None;
            for stride in pages.chunks_mut(STRIDE) {
                check_not_killed()?;
                let sequence = notifier.fault(at << PAGE_SHIFT, stride, self.write, timeout_ms)?;
                stale |= *oldest.get_or_insert(sequence) != sequence;
                at += stride.len();
            }
            if !stale {
                break;
            }
        }
        // If page tables have changed, this one is stale.
        oldest.ok_or(EINVAL)
    }

    fn ensure_granule(&self, page: usize) -> Result {
        if !self.with_table(|table| table.has_granule(page)) {
            // No other thread adds any: the registration's lock is held.
            let granule = Table::new_granule(self.layout, page)?;
            self.with_table(|table| table.add(granule));
        }
        Ok(())
    }

    /// The commands that map the pages that were looked up, and references to them.
    fn commands(
        &self,
        lookup: &mut Lookup,
        which: &Range<usize>,
    ) -> Result<(List<MirrorCommand>, Maps)> {
        let Lookup { pages, entries } = lookup;
        entries.clear();
        let mut merger = Merger::new();
        let mut append = |run: Run| -> Result {
            let entry = self.space.entry(run.addr, run.length);
            Ok(entries.push(entry, GFP_KERNEL)?)
        };
        for page in pages.iter() {
            merger.push(page.phys(), PAGE_SIZE as u64, &mut append)?;
        }
        merger.flush(&mut append)?;

        let mut commands = List::new();
        let mut references = KVec::new();
        let mut start = (which.start as u64) << PAGE_SHIFT;
        for part in entries.chunks(self.space.max_entries()) {
            let command = self.space.map(start, part)?;
            start += part.iter().map(|e| u64::from(e.length.get())).sum::<u64>();
            let end = usize::try_from(start >> PAGE_SHIFT)?;
            references.push((command.clone_arc(), end), GFP_KERNEL)?;
            commands.push_back(command);
        }
        Ok((commands, references))
    }

    /// Waits for the responses to MAP commands.
    fn confirm(&self, sent: &Sent) -> Result {
        let mut outcome = Ok(());
        for (command, _) in &sent.commands {
            let response = self.space.queue().wait(command)?;
            match response {
                status::NO_MEMORY => self.refused.store(true, Relaxed),
                status::NO_SUCH_SPACE => self.set_revoked(),
                _ => {}
            }
            outcome = outcome.and(space::to_result(response));
        }
        if outcome.is_ok() {
            self.each_part(
                sent.which.clone(),
                Having::Reachable,
                true,
                |table, part| {
                    table.set_mapped(part);
                },
            );
        } else {
            // Some commands may have been carried out.
            self.invalidate(sent.which.clone())?;
        }
        outcome
    }
}
