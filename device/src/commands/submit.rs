// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! SUBMIT_3D: checks a job of a context, and makes it live.
//!
//! The job holds the memory of the attached resources that it names, so what the guest detaches
//! later does not change what the job may touch. From here on commands that end access to the
//! memory wait for it. A job of a context in fault mode may stall, so they do not: it borrows the
//! memory, and they revoke that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use virtgpu_protocol::compute::Op;
use virtgpu_protocol::virtio_gpu::{self as wire, response};
use zerocopy::little_endian::U32;
use zerocopy::FromBytes;

use super::{parse, Failed, Outcome};
use crate::compute;
use crate::device::state::{FaultingJob, Job, Live, State, Storage, Work};
use crate::device::timelines::Timeline;
use crate::device::Device;
use crate::log::Event;
use crate::memory::lent::Lent;
use crate::mirror::stall::Faulting;
use crate::misbehave::mutant::Mutant;
use crate::queues::control::fence;
use crate::queues::control::Ticket;
use crate::queues::QUEUE_SIZE;

/// The most jobs of a context that are not over.
const MAX_JOBS: usize = 1 << 14;

/// The most events that wait for a buffer, from which on no job is accepted that one more would be
/// for.
const MAX_EVENTS: usize = 1 << 16;

/// The most operations of all jobs that are not over, jobs included: a full queue of full jobs.
const MAX_QUEUED_OPS: usize = QUEUE_SIZE * compute::MAX_OPS as usize;

impl Device {
    pub(super) fn submit(&self, ticket: &Ticket, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, rest) = parse::<wire::Submit3d>(bytes)?;
        let payload = rest
            .get(..request.size.get() as usize)
            .ok_or(response::ERR_INVALID_PARAMETER)?;
        let ctx = ticket.request.header.ctx_id.get();
        let mut state = self.lock();
        let context = state.context(ctx).ok_or(response::ERR_INVALID_CONTEXT_ID)?;
        if let Some(virgl) = self.virgl.as_ref().filter(|_| context.virgl) {
            let words = <[U32]>::ref_from_bytes(payload);
            let words = words.map_err(|_| response::ERR_INVALID_PARAMETER)?;
            let commands = words.iter().map(|word| word.get()).collect();
            return Ok(Outcome::Rendering(virgl.submit(ctx, commands)));
        }
        if context.capset == 0 && !payload.is_empty() {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        let ops = compute::parse(payload).map_err(|error| {
            log::info!("job of context {ctx}: {error}");
            response::ERR_INVALID_PARAMETER
        })?;
        let faulting = self.mirror.use_context(ctx);
        let header = &ticket.request.header;
        if faulting.is_some()
            && (fence(header).is_none() || Timeline::of(header) == Timeline::Global)
        {
            return Err(response::ERR_INVALID_PARAMETER);
        }
        let over = faulting.is_some() && context.cancel.is_set();
        if context.lost || over {
            return Err(response::ERR_UNSPEC);
        }
        // A context gets no more than it leaves to all others.
        let (jobs, own) = (context.jobs, context.ops + ops.len() + 1);
        let free = MAX_QUEUED_OPS.checked_sub(state.queued_ops + ops.len() + 1);
        if jobs >= MAX_JOBS || free.is_none_or(|free| own > free) {
            return Err(response::ERR_OUT_OF_MEMORY);
        }
        if let Some(space) = &faulting {
            // A job is over, but not for the guest, while it has no buffer for the event.
            let (all, own) = self.mirror.events.waiting(space.id);
            if jobs + own >= MAX_JOBS || all >= MAX_EVENTS {
                return Err(response::ERR_OUT_OF_MEMORY);
            }
        }
        let (timeline, responds_at_end) = match faulting {
            Some(_) => (
                Timeline::Faulting(ctx, header.ring_idx),
                self.mirror.has(Mutant::AcceptAtEnd),
            ),
            None => (Timeline::of(header), fence(header).is_some()),
        };
        let job = self.job(&mut state, ticket, faulting, ops);
        Ok(match responds_at_end {
            true => Outcome::Job(timeline, job),
            false => Outcome::Unfenced(timeline, job),
        })
    }

    /// A job of an existing context. From here on it is live.
    ///
    /// One of a context in fault mode, which has this `space`, borrows the resources that it names,
    /// and no command waits for it.
    fn job(
        &self,
        state: &mut State,
        ticket: &Ticket,
        space: Option<Arc<Faulting>>,
        ops: Vec<Op>,
    ) -> Job {
        let header = ticket.request.header;
        let ctx = header.ctx_id.get();
        state.jobs += 1;
        let id = state.jobs;
        let mut live = Live {
            ctx,
            reads: BTreeSet::new(),
            writes: BTreeSet::new(),
            ops: ops.len() + 1,
            abandoned: None,
        };
        let mut memory = BTreeMap::new();
        let mut lent = BTreeMap::new();
        let mut cancel = Arc::default();
        if let Some(context) = state.contexts.get_mut(&ctx) {
            context.jobs += 1;
            context.ops += live.ops;
            cancel = context.cancel.clone();
            for access in ops.iter().flat_map(compute::accesses) {
                let name = access.resource;
                let resource = state.resources.get_mut(&name).filter(|r| !r.dying);
                let Some(resource) = resource.filter(|_| context.attached.contains(&name)) else {
                    continue;
                };
                let Some(segments) = resource.memory().cloned() else {
                    continue;
                };
                if let (Storage::Host { written, .. }, true) = (&mut resource.storage, access.write)
                {
                    *written = true;
                }
                if space.is_some() {
                    let borrowed = resource.lent.entry(ctx);
                    let borrowed = borrowed.or_insert_with(|| Arc::new(Lent::new(segments)));
                    lent.insert(name, borrowed.clone());
                    continue;
                }
                if access.write {
                    live.writes.insert(name);
                }
                live.reads.insert(name);
                memory.insert(name, segments);
            }
        }
        if self.mirror.has(Mutant::UnrefWaits) {
            live.reads.extend(lent.keys());
        }
        self.log.write(|| Event::Job {
            job: id,
            req: ticket.request.req,
            ctx,
            ring: Timeline::of(&header).ring(),
            ops: ops.len() as u64,
            resources: memory.keys().chain(lent.keys()).copied().collect(),
            space: space.as_ref().map(|space| space.id),
        });
        state.queued_ops += live.ops;
        state.live.insert(id, live);
        Job {
            id,
            ctx,
            ticket: None,
            work: Work::Ops(ops),
            memory,
            cancel,
            faulting: space.map(|space| FaultingJob {
                space,
                ring: header.ring_idx,
                fence: header.fence_id.get(),
                attack: ticket.attack.clone(),
                lent,
            }),
        }
    }
}
