// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Accesses of jobs to the address space of their context, which stall on what is not mapped.
//!
//! A stalled access holds no translation and no lock: it has ended at a word, and whoever made it
//! waits on the [`Cancel`] of the context until the guest has resolved the fault. Then it goes on
//! with that word, which finds what is mapped by then, or faults again. Each fault that the guest
//! was told of is in [`Stalls`] until it is resolved; accesses to the same page wait for the same
//! one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use virtgpu_protocol::mirror::{self as wire, access, event, resolution};
use zerocopy::little_endian::{U32, U64};
use zerocopy::FromBytes;

use super::{Limits, Mirror};
use crate::cancel::Cancel;
use crate::compute::{Addresses, Stop};
use crate::log::Event;
use crate::memory::area::Area;
use crate::memory::guarded::Cut;
use crate::memory::PAGE;
use crate::misbehave::adversary::Attack;
use crate::misbehave::mutant::{self, Mutant};
use crate::queues::events::Record;

/// How long an access waits after the first RETRY; twice as long after each that follows.
const PAUSE: Duration = Duration::from_millis(1);
/// The longest of these.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A fault that the guest was told of.
#[derive(Debug)]
struct Stall {
    page: u64,
    /// One of [`access`].
    access: u32,
    /// A [`resolution`] or [`REFAULT`], once there is one.
    result: OnceLock<u32>,
    /// The page that a mutant goes on with.
    kept: OnceLock<Area>,
}

/// Instead of a [`resolution`]: an adversary has the access fault again, whatever is mapped.
const REFAULT: u32 = u32::MAX;

/// Steps of the loop between the load and the store of an atomic access that is not coherent.
const ALONE: u32 = 64;

/// The faults of a space that are not resolved, by their ids.
#[derive(Debug, Default)]
struct Stalls(Mutex<BTreeMap<u64, Arc<Stall>>>);

impl Stalls {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Stall>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a fault of access `one` says all that one of `other` would.
fn covers(one: u32, other: u32) -> bool {
    // READ, WRITE and ATOMIC ask for more and more.
    one >= other
}

/// The address space of a context in fault mode.
#[derive(Debug)]
pub(crate) struct Faulting {
    /// The space.
    pub(crate) id: u32,
    pub(crate) area: Arc<Area>,
    /// That of the context: it ends stalls, too.
    pub(crate) cancel: Arc<Cancel>,
    stalls: Stalls,
    /// Most faults that are not resolved.
    most: usize,
    /// Bytes of what is mapped as a whole.
    granularity: u64,
    /// Pages that were exclusive once, for a mutant.
    once_exclusive: Mutex<BTreeSet<u64>>,
    /// The end of a job that an adversary tells of later.
    held: Mutex<Option<Record>>,
}

/// What an access that was cut off is to do.
enum Miss {
    /// Try again: it is mapped.
    Mapped,
    /// Wait for this fault to be resolved.
    Stalled(Arc<Stall>),
    /// Wait until there are less faults.
    Full,
}

impl Faulting {
    /// Space `id`, in whose `area` nothing is mapped.
    pub(crate) fn new(id: u32, area: Arc<Area>, cancel: Arc<Cancel>, limits: &Limits) -> Self {
        Self {
            id,
            area,
            cancel,
            stalls: Stalls::default(),
            most: limits.max_faults as usize,
            granularity: limits.granularity.into(),
            once_exclusive: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// Faults that are not resolved.
    pub(crate) fn pending(&self) -> usize {
        self.stalls.lock().len()
    }

    /// The guest has resolved fault `id`; returns whether there was one.
    pub(super) fn resolve(
        &self,
        id: u64,
        status: u32,
        kept: impl FnOnce(u64) -> Option<Area>,
    ) -> bool {
        let stall = self.stalls.lock().remove(&id);
        let Some(stall) = stall else {
            return false;
        };
        if let Some(area) = kept(stall.page) {
            let _ = stall.kept.set(area);
        }
        let _ = stall.result.set(status);
        self.cancel.wake();
        true
    }
}

impl Mirror {
    /// An access to `address` found nothing that allows it. Tells the guest, unless it knows
    /// already. The table is locked meanwhile, so that what is mapped and what is asked for fit.
    fn miss(
        &self,
        of: &Stalling<'_>,
        address: u64,
        access: u32,
        again: bool,
    ) -> Result<Miss, Stop> {
        let table = self.table();
        let space = of.space;
        if !table.has(space) {
            return Err(Stop::Cancelled);
        }
        let page = address - address % space.granularity;
        if !again && table.allows(space.id, address, access) {
            return Ok(Miss::Mapped);
        }
        let mut stalls = space.stalls.lock();
        let same = |stall: &&Arc<Stall>| stall.page == page && covers(stall.access, access);
        if let Some(stall) = stalls.values().find(same) {
            self.counters.joined.fetch_add(1, Ordering::Relaxed);
            return Ok(Miss::Stalled(stall.clone()));
        }
        if stalls.len() >= space.most {
            return Ok(Miss::Full);
        }
        let id = self.counters.faults.fetch_add(1, Ordering::Relaxed) + 1;
        let stall = Arc::new(Stall {
            page,
            access,
            result: OnceLock::new(),
            kept: OnceLock::new(),
        });
        stalls.insert(id, stall.clone());
        drop(stalls);
        self.log.write(|| Event::Fault {
            job: of.job,
            space: space.id,
            fault: id,
            access,
            page,
            ring: of.ring,
        });
        self.events.post(Record {
            event: wire::Event {
                kind: U32::new(event::FAULT),
                space_id: U32::new(space.id),
                access: U32::new(access),
                info: U32::new(u32::from(of.ring) + 1),
                address: U64::new(page),
                id: U64::new(id),
            },
            ..Record::space_lost(space.id)
        });
        Ok(Miss::Stalled(stall))
    }

    /// A job of the space has ended: tells the guest, unless the space is gone.
    pub(crate) fn ring_done(
        &self,
        space: &Arc<Faulting>,
        (job, ring, fence): (u64, u8, u64),
        (result, address): (u32, u64),
        attack: &Attack,
    ) {
        let table = self.table();
        if !table.has(space) {
            return;
        }
        let say = || {
            self.log.write(|| Event::RingDone {
                job,
                space: space.id,
                ring,
                result,
                adversary: attack.name().map(Into::into),
            });
        };
        say();
        let record = Record {
            event: wire::Event {
                kind: U32::new(event::RING_DONE),
                space_id: U32::new(space.id),
                access: U32::new(result),
                info: U32::new(ring.into()),
                address: U64::new(address),
                id: U64::new(fence),
            },
            ..Record::space_lost(space.id)
        };
        let mut held = space.held.lock().unwrap_or_else(PoisonError::into_inner);
        if attack.swaps_done() {
            if let Some(before) = held.replace(record) {
                self.events.post(before);
            }
            return;
        }
        let twice = u64::from(self.has(Mutant::DoneTwice));
        for time in 0..attack.times_done() + twice {
            if time > 0 {
                say();
            }
            self.events.post(record);
        }
        if let Some(before) = held.take() {
            self.events.post(before);
        }
    }

    /// A FAULT that an adversary has responded to by another one.
    pub(crate) fn refault(&self, bytes: &[u8]) {
        if let Ok((resolve, _)) = wire::FaultResolve::ref_from_prefix(bytes) {
            let table = self.table();
            let space = table.faulting(resolve.hdr.space_id.get());
            if let Some(space) = space {
                let fault = resolve.fault_id.get();
                self.log.write(|| Event::Resolved {
                    space: space.id,
                    fault,
                    status: resolution::RETRY,
                });
                space.resolve(fault, REFAULT, |_| None);
            }
        }
    }

    /// Adds as a device does whose atomic accesses are not coherent: it loads and stores, and
    /// relies on no one else's doing so in between. Returns whether the page is its own; the table
    /// is locked meanwhile, so that it stays so.
    fn add_alone(&self, of: &Stalling<'_>, address: u64, value: u64) -> Result<bool, Cut> {
        let table = self.table();
        let space = of.space;
        let exclusive = table.has(space) && table.allows(space.id, address, access::ATOMIC);
        if !exclusive && !self.is_content(space, address) {
            return Ok(false);
        }
        if self.has(Mutant::ExclusiveAfterInvalidate) {
            let once = space.once_exclusive.lock();
            once.unwrap_or_else(PoisonError::into_inner)
                .insert(address / PAGE);
        }
        let mut word = [0; size_of::<u64>()];
        space.area.read_steps(address, &mut word)?;
        self.log.write(|| Event::Alone {
            job: of.job,
            space: space.id,
            address,
        });
        for _ in 0..ALONE {
            std::hint::spin_loop();
        }
        let sum = u64::from_le_bytes(word).wrapping_add(value);
        space.area.write_steps(address, &sum.to_le_bytes())?;
        Ok(true)
    }

    /// Whether a mutant is content with a page that is not exclusive.
    fn is_content(&self, space: &Faulting, address: u64) -> bool {
        let once = || {
            let pages = space.once_exclusive.lock();
            let pages = pages.unwrap_or_else(PoisonError::into_inner);
            pages.contains(&(address / PAGE))
        };
        self.has(Mutant::AtomicWithoutExclusive)
            || self.has(Mutant::ExclusiveAfterInvalidate) && once()
    }
}

/// What a job has of the address space of its context.
pub(crate) struct Stalling<'a> {
    mirror: &'a Mirror,
    space: &'a Arc<Faulting>,
    job: u64,
    ring: u8,
    /// Atomic accesses are not coherent.
    exclusive: bool,
}

impl<'a> Stalling<'a> {
    pub(crate) fn new(
        mirror: &'a Mirror,
        space: &'a Arc<Faulting>,
        (job, ring): (u64, u8),
        exclusive: bool,
    ) -> Self {
        Self {
            mirror,
            space,
            job,
            ring,
            exclusive,
        }
    }

    /// Waits until an access to `address` can be tried again. `pause` is how long it waits after
    /// the next RETRY.
    fn stall(
        &self,
        address: u64,
        access: u32,
        pause: &mut Duration,
    ) -> Result<Option<Arc<Stall>>, Stop> {
        let cancel = &self.space.cancel;
        let mut again = false;
        loop {
            let stall = match self.mirror.miss(self, address, access, again)? {
                Miss::Mapped => return Ok(None),
                Miss::Stalled(stall) => stall,
                Miss::Full => {
                    let room = || (self.space.pending() < self.space.most).then_some(());
                    cancel.wait_for(room).ok_or(Stop::Cancelled)?;
                    continue;
                }
            };
            let result = cancel.wait_for(|| stall.result.get().copied());
            match result.ok_or(Stop::Cancelled)? {
                resolution::OK => return Ok(Some(stall)),
                resolution::RETRY => {
                    let now = *pause;
                    *pause = LONGEST_PAUSE.min(now * 2);
                    return match cancel.sleep(now) {
                        true => Err(Stop::Cancelled),
                        false => Ok(None),
                    };
                }
                REFAULT => again = true,
                _ => return Err(Stop::Address(address)),
            }
        }
    }

    /// Does an access from `address` on in as many attempts as it takes: `f` makes one, of the
    /// bytes that it is told, the first of which is at this address of an area.
    fn steps(
        &self,
        address: u64,
        length: usize,
        access: u32,
        mut f: impl FnMut(&Area, u64, Range<usize>) -> Result<(), Cut>,
    ) -> Result<(), Stop> {
        self.check(address, length as u64)?;
        let mut done = 0;
        let mut pause = PAUSE;
        while let Err(cut) = f(&self.space.area, address + done as u64, done..length) {
            done += cut.done;
            if cut.done > 0 {
                pause = PAUSE;
            }
            let at = address + done as u64;
            if cut.gone {
                return Err(Stop::Address(at));
            }
            let page_end = length.min(done + (PAGE - at % PAGE) as usize);
            match self.stall(at, access, &mut pause) {
                Ok(None) => {}
                Ok(Some(stall)) => {
                    if let Some(kept) = stall.kept.get() {
                        std::thread::sleep(mutant::WINDOW);
                        if f(kept, at % PAGE, done..page_end).is_ok() {
                            done = page_end;
                        }
                    }
                }
                Err(Stop::Address(_)) if self.mirror.has(Mutant::BadAsZero) => done = page_end,
                Err(stop) => return Err(stop),
            }
            if self.mirror.has(Mutant::ReplayStores) {
                done = 0;
            }
        }
        Ok(())
    }

    /// [`Addresses::add`] with an atomic access that is not coherent, as a whole again and again
    /// until the page is the device's alone.
    fn add_alone(&self, address: u64, value: u64) -> Result<(), Stop> {
        let mut pause = PAUSE;
        loop {
            let access = match self.mirror.add_alone(self, address, value) {
                Ok(true) => return Ok(()),
                Ok(false) => access::ATOMIC,
                Err(cut) if cut.gone => return Err(Stop::Address(address)),
                // Only of a mutant: what is exclusive is mapped.
                Err(_) => access::WRITE,
            };
            self.stall(address, access, &mut pause)?;
        }
    }
}

impl Addresses for Stalling<'_> {
    fn check(&self, address: u64, length: u64) -> Result<(), Stop> {
        let size = self.space.area.size();
        match self.space.area.check(address, length) {
            Ok(()) => Ok(()),
            Err(_) => Err(Stop::Address(address.max(size))),
        }
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        self.steps(address, buffer.len(), access::READ, |area, at, bytes| {
            area.read_steps(at, &mut buffer[bytes])
        })
    }

    fn write(&self, address: u64, buffer: &[u8]) -> Result<(), Stop> {
        self.steps(address, buffer.len(), access::WRITE, |area, at, bytes| {
            area.write_steps(at, &buffer[bytes])
        })
    }

    /// The processors of the guest and this one see each other's atomic accesses as they are, so it
    /// is a write.
    fn add(&self, address: u64, value: u64) -> Result<(), Stop> {
        self.check(address, size_of::<u64>() as u64)?;
        if self.exclusive {
            return self.add_alone(address, value);
        }
        self.steps(address, size_of::<u64>(), access::WRITE, |area, at, _| {
            area.add_step(at, value).map(drop)
        })
    }
}
