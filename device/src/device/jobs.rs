// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Timelines and the workers that run the jobs on them.
//!
//! A timeline runs one job at a time, in order. Different ones run at the same time, each job on a
//! thread of a pool that grows as needed. Jobs of contexts in fault mode have a pool of their own,
//! of which a context has a share only: they stall for as long as the guest likes, and nothing but
//! themselves and what is behind them on their ring may wait for that. So there is a limit on what
//! contexts have beyond their first job, and none on the first.

use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::time::Duration;

use virtgpu_protocol::compute::Op;
use virtgpu_protocol::mirror::job_result;
use virtgpu_protocol::virtio_gpu::response;

use crate::cancel::Cancel;
use crate::compute::{self, Addresses, Environment, Failure, Memory};
use crate::device::state::{FaultingJob, Item, Job, State, Work};
use crate::device::timelines::{Pool, Timeline, Which};
use crate::device::Device;
use crate::log::names;
use crate::log::Event;
use crate::mirror::stall::Stalling;
use crate::misbehave::mutant::{self, Mutant};
use crate::queues::control::Response;
use crate::queues::control::Ticket;
use crate::queues::QUEUE_SIZE;

/// The most worker threads: one for each job that a full queue holds.
const MAX_WORKERS: usize = QUEUE_SIZE;
/// Between two times that a job without end is carried out.
const ENDLESS_PAUSE: Duration = Duration::from_millis(1);
/// How long a worker waits for work before it ends.
const PATIENCE: Duration = Duration::from_secs(5);

impl Item {
    /// The response that the element owes.
    pub(crate) fn into_ticket(self) -> Option<Ticket> {
        match self {
            Self::Job(job) => job.ticket,
            Self::Rendering(ticket, _) | Self::Response(ticket, _) => Some(ticket),
        }
    }
}

impl Device {
    /// Responds to a request, behind what is before it on its timeline.
    pub(crate) fn respond(&self, state: &mut State, ticket: Ticket, response: Response) {
        if state.is_behind(&ticket.request.header) {
            let lane = state
                .lanes
                .entry(Timeline::of(&ticket.request.header))
                .or_default();
            lane.items.push_back(Item::Response(ticket, response));
        } else {
            self.control.send(ticket, response);
        }
    }

    /// Queues a job.
    pub(crate) fn queue(self: &Arc<Self>, state: &mut State, timeline: Timeline, job: Job) {
        self.enqueue(state, timeline, Item::Job(job));
    }

    /// Puts what takes time at the end of a timeline.
    pub(crate) fn enqueue(self: &Arc<Self>, state: &mut State, timeline: Timeline, item: Item) {
        let lane = state.lanes.entry(timeline).or_default();
        lane.items.push_back(item);
        if lane.busy {
            return;
        }
        lane.busy = true;
        let which = timeline.pool();
        state.pool(which).push(timeline);
        self.call_worker(state, which);
    }

    /// Has a worker look at the timelines that are ready, a new one if all have enough to do.
    fn call_worker(self: &Arc<Self>, state: &mut State, which: Which) {
        let most = match which {
            Which::Others => MAX_WORKERS,
            // As many as can be at work: where it is the turn of one more, a worker is free.
            Which::Faulting => state.contexts.len() + Pool::MORE,
        };
        let pool = state.pool(which);
        if pool.ready() > pool.idle && pool.workers < most {
            let device = self.clone();
            let worker = std::thread::Builder::new()
                .name("worker".into())
                .spawn(move || device.work(which));
            match worker {
                Ok(_) => pool.workers += 1,
                Err(error) => log::error!("cannot start a worker: {error}"),
            }
        }
        self.bell(which).notify_one();
    }

    /// What workers wait on.
    fn bell(&self, which: Which) -> &Condvar {
        match which {
            Which::Others => &self.work,
            Which::Faulting => &self.stalling_work,
        }
    }

    /// A worker's life.
    fn work(self: &Arc<Self>, which: Which) {
        let mut state = self.lock();
        loop {
            if let Some(timeline) = state.pool(which).next() {
                state.pool(which).begin(timeline);
                // Where a context had its share, or all had, the end of a job makes another
                // possible, which is not the next one of this worker if somebody else's turn was
                // first.
                if which == Which::Faulting && state.pool(which).has_next() {
                    self.call_worker(&mut state, which);
                }
                state = self.advance(state, timeline);
                state.pool(which).end(timeline);
                continue;
            }
            state.pool(which).idle += 1;
            let (guard, waited) = self
                .bell(which)
                .wait_timeout(state, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
            let pool = state.pool(which);
            pool.idle -= 1;
            if waited.timed_out() && !pool.has_next() {
                pool.workers -= 1;
                return;
            }
        }
    }

    /// Takes elements from `timeline` up to and including the next job.
    fn advance<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        timeline: Timeline,
    ) -> MutexGuard<'a, State> {
        let item = state.lanes.get_mut(&timeline).map(|l| l.items.pop_front());
        match item {
            Some(Some(Item::Job(job))) => {
                let context = state.contexts.get(&job.ctx);
                let lost = match job.work {
                    Work::Ops(_) if job.faulting.is_some() => job.cancel.is_set(),
                    Work::Ops(_) => context.is_none_or(|c| c.lost),
                    // What a context is for copies is a name only.
                    Work::Copy(_) => false,
                };
                state.running += 1;
                drop(state);
                let mut job = job;
                let result = if lost {
                    None
                } else {
                    Some(self.execute(&mut job))
                };
                state = self.lock();
                self.finish(&mut state, job, result);
                state.running -= 1;
                self.over.notify_all();
            }
            Some(Some(Item::Rendering(ticket, rendering))) => {
                state.running += 1;
                drop(state);
                let response = rendering.wait();
                state = self.lock();
                self.control.send(ticket, response);
                state.running -= 1;
                self.over.notify_all();
            }
            Some(Some(Item::Response(ticket, response))) => self.control.send(ticket, response),
            Some(None) => {
                state.lanes.remove(&timeline);
                return state;
            }
            None => return state,
        }
        // Others first; the lane may be gone since a reset.
        if state.lanes.contains_key(&timeline) {
            state.pool(timeline.pool()).push(timeline);
        }
        state
    }

    fn execute(&self, job: &mut Job) -> Result<(), Failure> {
        let ops = match &job.work {
            Work::Ops(ops) => ops,
            Work::Copy(copying) => {
                // It was checked when it came.
                return copying.run(&job.cancel).map_err(|_| Failure::Cancelled);
            }
        };
        let faulting = job.faulting.as_ref();
        let endless = faulting.is_some_and(|f| f.attack.is_endless())
            || job.ticket.as_ref().is_some_and(|t| t.attack.is_endless());
        let early = self.mirror.has(Mutant::RespondBeforeLastWrite);
        let ticket = job.ticket.take_if(|_| early);
        let stalling = faulting.map(|f| {
            let exclusive = self.options.exclusive_atomics;
            Stalling::new(&self.mirror, &f.space, (job.id, f.ring), exclusive)
        });
        let space = stalling.as_ref().map(|s| s as &dyn Addresses);
        let memory = |id| match (faulting, id) {
            (Some(_), 0) => space.map(Memory::Space),
            (Some(faulting), id) => faulting.lent.get(&id).cloned().map(Memory::Lent),
            (None, id) => job.memory.get(&id).cloned().map(Memory::Resource),
        };
        let stat = |resource| self.stat(resource, faulting.map(|f| &*f.space));
        let environment = Environment {
            memory: &memory,
            cancel: &job.cancel,
            stat: &stat,
        };
        let early_done = faulting.filter(|_| self.mirror.has(Mutant::DoneBeforeLastWrite));
        if !self.log.is_on() && !early && early_done.is_none() {
            compute::execute(ops, &environment)?;
        } else {
            self.execute_each(
                (job.id, ops),
                &job.cancel,
                (ticket, early_done),
                &environment,
            )?;
        }
        if endless {
            // Until it is cancelled. The log has the first time.
            loop {
                job.cancel.sleep(ENDLESS_PAUSE);
                compute::execute(ops, &environment)?;
            }
        }
        Ok(())
    }

    /// Executes one operation after the other, and writes them to the log. Responds `early` before
    /// the last.
    fn execute_each(
        &self,
        (job, ops): (u64, &[Op]),
        cancel: &Cancel,
        (mut early, early_done): (Option<Ticket>, Option<&FaultingJob>),
        environment: &Environment<'_>,
    ) -> Result<(), Failure> {
        for (index, op) in ops.iter().enumerate() {
            if let Some(ticket) = early.take_if(|_| index + 1 == ops.len()) {
                self.control.send(ticket, Response::ok());
                cancel.sleep(mutant::WINDOW);
            }
            if let Some(of) = early_done.filter(|_| index + 1 == ops.len()) {
                let done = (job, of.ring, of.fence);
                let result = (job_result::OK, 0);
                self.mirror.ring_done(&of.space, done, result, &of.attack);
                cancel.sleep(mutant::WINDOW);
            }
            for access in compute::accesses(op) {
                self.log.write(|| Event::Access {
                    job,
                    op: names::operation(op.op.get()).into(),
                    resource: access.resource,
                    offset: access.offset,
                    length: access.length,
                    write: access.write,
                    at: index as u64,
                    whole: access.whole,
                });
            }
            compute::execute(std::slice::from_ref(op), environment).map_err(|f| f.at(index))?;
        }
        Ok(())
    }

    /// Ends a job: `None` as the result is a job that did not begin, its context being lost.
    fn finish(&self, state: &mut State, job: Job, result: Option<Result<(), Failure>>) {
        self.log.write(|| Event::JobEnd {
            job: job.id,
            result: match &result {
                None => "context lost".into(),
                Some(Ok(())) => "ok".into(),
                Some(Err(failure)) => failure.to_string(),
            },
        });
        let live = state.forget(job.id);
        let abandoned = live.is_some_and(|live| live.abandoned.is_some());
        let context = state.contexts.get_mut(&job.ctx);
        if let Some(context) = context.filter(|_| !abandoned) {
            if let Some(Err(Failure::Fault(_) | Failure::Address(..))) = result {
                context.lost = true;
                if job.faulting.is_some() {
                    // Nor does the guest resolve faults for it any more.
                    context.cancel.set();
                }
            }
        }
        if let Some(Err(failure)) = &result {
            log::info!("job {} of context {}: {failure}", job.id, job.ctx);
        }
        let some = matches!(&job.work, Work::Ops(ops) if !ops.is_empty());
        // The response must find no reference to memory left.
        drop((job.memory, job.work));
        let told =
            self.mirror.has(Mutant::DoneBeforeLastWrite) && some && matches!(result, Some(Ok(())));
        if let Some(faulting) = job.faulting.filter(|_| !told) {
            self.tell(job.id, faulting, result.as_ref());
        }
        if let Some(ticket) = job.ticket.filter(|_| !abandoned) {
            let response = match result {
                Some(Ok(())) => Response::ok(),
                // The other error says that the context is lost.
                Some(Err(Failure::TimedOut(_))) => Response::plain(response::ERR_INVALID_PARAMETER),
                _ => Response::plain(response::ERR_UNSPEC),
            };
            // Not through `respond`: the job was the first of its timeline.
            self.control.send(ticket, response);
        }
        self.run_deferred(state);
    }

    /// Tells the guest how a job of a context in fault mode has ended.
    fn tell(&self, job: u64, of: FaultingJob, result: Option<&Result<(), Failure>>) {
        let FaultingJob {
            space,
            ring,
            fence,
            lent,
            attack,
        } = of;
        drop(lent);
        let result = match result {
            Some(Ok(())) => (job_result::OK, 0),
            Some(Err(Failure::Address(_, address))) => (job_result::FAULTED, *address),
            Some(Err(Failure::Fault(_) | Failure::TimedOut(_))) => (job_result::FAILED, 0),
            None | Some(Err(Failure::Cancelled)) => (job_result::CANCELLED, 0),
        };
        self.mirror
            .ring_done(&space, (job, ring, fence), result, &attack);
    }

    /// Forgets the jobs of a context that is about to go: those that run go on to their end, those
    /// that are queued never begin, and there is no response to any.
    pub(crate) fn abandon(&self, state: &mut State, ctx: u32) {
        let mut queued = Vec::new();
        for lane in state.lanes.values_mut() {
            lane.items.retain(|item| match item {
                Item::Job(job) if job.ctx == ctx => {
                    queued.push(job.id);
                    false
                }
                _ => true,
            });
        }
        for job in queued {
            state.forget(job);
            self.log.write(|| Event::JobEnd {
                job,
                result: "abandoned".into(),
            });
        }
        let cancel = state.contexts.get(&ctx).map(|context| &context.cancel);
        for (job, live) in state.live.iter_mut().filter(|(_, live)| live.is_of(ctx)) {
            live.abandoned = cancel.cloned();
            self.log.write(|| Event::Abandoned { job: *job });
        }
    }

    /// Turns the queued jobs of a context into the responses they owe.
    pub(crate) fn cancel_queued(&self, state: &mut State, ctx: u32) {
        let mut cancelled = Vec::new();
        for lane in state.lanes.values_mut() {
            for item in std::mem::take(&mut lane.items) {
                match item {
                    Item::Job(job) if job.ctx == ctx => {
                        cancelled.push(job.id);
                        if let Some(ticket) = job.ticket {
                            let response = Response::plain(response::ERR_UNSPEC);
                            lane.items.push_back(Item::Response(ticket, response));
                        }
                    }
                    other => lane.items.push_back(other),
                }
            }
        }
        for job in cancelled {
            state.forget(job);
            self.log.write(|| Event::JobEnd {
                job,
                result: "cancelled".into(),
            });
        }
    }
}
