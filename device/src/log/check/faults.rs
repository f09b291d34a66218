// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The rules of contexts in fault mode.
//!
//! A fault is in a space that exists, is the only one of its page and access, and is resolved once;
//! a job that waits for one that cannot be resolved fails. Jobs are accepted before they are over,
//! and the guest is told of the end of each once, in the order of the ring, after the end and not
//! after that of the space. INVALIDATE does not wait for a fault. What is not coherent is done to
//! exclusive pages only.

use std::collections::{BTreeMap, BTreeSet};

use virtgpu_protocol::mirror::{access, event, job_result, resolution};

use super::{Checker, Job};
use crate::log::Event;
use crate::memory::PAGE;

/// How long an INVALIDATE may take while faults are not resolved, in microseconds: it waits for
/// nothing but the device.
const PROMPT: u64 = 5_000_000;

/// A fault that is not resolved.
struct Pending {
    job: u64,
    space: u32,
    page: u64,
    access: u32,
}

/// A job whose end the guest has not been told.
struct Accepted {
    req: u64,
    space: u32,
    ring: u8,
    /// How it has ended, if it has.
    good: Option<bool>,
}

/// What the log says of faults.
#[derive(Default)]
pub(super) struct Faults {
    pending: BTreeMap<u64, Pending>,
    last: u64,
    /// Spaces of which an adversary has said that there are faults: those are resolved, too.
    invented: BTreeSet<u32>,
    jobs: BTreeMap<u64, Accepted>,
    /// When INVALIDATEs came, in microseconds.
    invalidates: BTreeMap<u64, u64>,
    /// Since when a fault has not been resolved.
    since: Option<u64>,
}

impl Faults {
    fn forget(&mut self, space: u32) {
        self.pending.retain(|_, fault| fault.space != space);
        self.jobs.retain(|_, job| job.space != space);
        self.invented.remove(&space);
    }
}

impl Checker {
    /// Checks an event, before the other rules take note of it.
    pub(super) fn fault_event(&mut self, event: &Event) {
        match event {
            Event::Job {
                job,
                req,
                ring,
                space: Some(space),
                ..
            } => {
                let accepted = Accepted {
                    req: *req,
                    space: *space,
                    ring: ring.unwrap_or(0),
                    good: None,
                };
                self.faults.jobs.insert(*job, accepted);
            }
            Event::JobEnd { job, result } => {
                if let Some(job) = self.faults.jobs.get_mut(job) {
                    job.good = Some(result == "ok");
                }
            }
            Event::Fault {
                job,
                space,
                fault,
                access,
                page,
                ..
            } => self.fault(*fault, *job, (*space, *page, *access)),
            Event::Resolved {
                space,
                fault,
                status,
            } => self.resolved(*space, *fault, *status),
            Event::RingDone {
                job,
                space,
                result,
                adversary,
                ..
            } => self.ring_done(*job, *space, *result, adversary.is_some()),
            Event::Alone { space, address, .. } => {
                let alone = self.spaces.allows(*space, *address, access::EXCLUSIVE);
                self.expect(alone, || {
                    format!("space {space}: {address:#x} is not exclusive, and used as if it were")
                });
            }
            Event::EventSent {
                kind: event::FAULT,
                space,
                adversary: true,
            } => {
                self.faults.invented.insert(*space);
            }
            Event::SpaceGone { space, .. } => self.faults.forget(*space),
            Event::MirrorClose | Event::Reset { .. } => {
                let now = std::mem::take(&mut self.faults);
                self.faults.last = now.last;
            }
            Event::Command { cmd, kind, .. } if kind == "INVALIDATE" => {
                self.faults.invalidates.insert(*cmd, self.now);
            }
            Event::CommandDone { cmd, adversary, .. } => {
                self.acknowledged(*cmd, adversary.is_some())
            }
            _ => {}
        }
        let now = self.now;
        match self.faults.pending.is_empty() {
            true => self.faults.since = None,
            false => _ = self.faults.since.get_or_insert(now),
        }
    }

    fn fault(&mut self, id: u64, job: u64, (space, page, access): (u32, u64, u32)) {
        let last = std::mem::replace(&mut self.faults.last, id);
        self.expect(id > last, || format!("fault {id} was there before"));
        let known = matches!(access, access::READ | access::WRITE | access::ATOMIC);
        let size = self.spaces.size(space);
        let good = known && page % PAGE == 0 && size.is_some_and(|size| page < size);
        self.expect(good, || {
            format!("fault {id}: access {access} to {page:#x} of space {space}")
        });
        let of = |job: &Job| job.space == Some(space);
        let alive = self.jobs.get(&job).is_some_and(of);
        self.expect(alive, || format!("fault {id}: job {job} is not there"));
        let mut others = self.faults.pending.values();
        let same = |f: &Pending| f.space == space && f.page == page && f.access >= access;
        let covered = others.any(same);
        self.expect(!covered, || {
            format!("fault {id}: there is one at {page:#x} already")
        });
        let fault = Pending {
            job,
            space,
            page,
            access,
        };
        self.faults.pending.insert(id, fault);
    }

    fn resolved(&mut self, space: u32, id: u64, status: u32) {
        let fault = self.faults.pending.remove(&id);
        let fault = fault.filter(|fault| fault.space == space);
        let job = fault.as_ref().map(|fault| fault.job);
        let invented = self.faults.invented.contains(&space);
        self.expect(fault.is_some() || invented, || {
            format!("fault {id} of space {space} is resolved, but not open")
        });
        if matches!(status, resolution::BAD_ADDRESS | resolution::BAD_ACCESS) {
            if let Some(job) = job.and_then(|job| self.jobs.get_mut(&job)) {
                job.must_fail = true;
            }
        }
    }

    fn ring_done(&mut self, id: u64, space: u32, result: u32, on_purpose: bool) {
        let alive = self.spaces.size(space).is_some();
        self.expect(alive, || {
            format!("job {id} is said to be over in space {space}, which is gone")
        });
        let Some(job) = self.faults.jobs.remove(&id) else {
            return self.expect(on_purpose, || {
                format!("job {id} is said to be over once more")
            });
        };
        let good = job.good;
        self.expect(good.is_some(), || {
            format!("job {id} is said to be over, and goes on")
        });
        let right = good.is_none_or(|good| good == (result == job_result::OK));
        self.expect(right, || format!("job {id}: result {result}"));
        let mut earlier = self.faults.jobs.range(..id).map(|(_, other)| other);
        let overtakes = earlier.any(|o| (o.space, o.ring) == (job.space, job.ring));
        self.expect(!overtakes, || {
            format!("job {id} is said to be over before others of its ring")
        });
        let accepted = on_purpose || self.adversary || !self.requests.contains_key(&job.req);
        self.expect(accepted, || {
            format!("job {id} is said to be over before it is accepted")
        });
    }

    /// An INVALIDATE is given back, or another command.
    fn acknowledged(&mut self, cmd: u64, on_purpose: bool) {
        let Some(begin) = self.faults.invalidates.remove(&cmd) else {
            return;
        };
        let stalled = self.faults.since.is_some_and(|since| since <= begin);
        let prompt = self.now.saturating_sub(begin) < PROMPT;
        let excused = on_purpose || self.adversary;
        self.expect(prompt || !stalled || excused, || {
            format!("command {cmd} waited for a fault")
        });
    }
}
