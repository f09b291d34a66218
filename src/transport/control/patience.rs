// SPDX-License-Identifier: GPL-2.0

//! Patience: how long who waits for what, and when a device is taken for dead.
//!
//! A host may take any time for a job, and makes what comes behind it wait; it may never respond to
//! one command, or the jobs of a context that was destroyed. That is the trouble of who sent them.
//!
//! - **A wait** for a command ends with `EBUSY` when its response has not come within the time
//!   limit. The command stays in the ring, with what it holds. Most waits end by a fatal signal,
//!   too. Who has a job to submit waits for room in the ring without a limit, as long as the device
//!   responds to anything.
//! - **A job** has no time limit, unless the module is told one. Then its context is lost when the
//!   time is over, and no other context. Time does not count while the job may be waiting for a job
//!   of another context, which is so where both are on the device's common timeline.
//! - **The jobs of a closed file** have that time again and the time of grace, or the time of a
//!   response where there is no limit, for the host to end them or to say that it has destroyed
//!   their context. Then their fences are signalled with `ECANCELED`; the ring keeps them.
//! - **The jobs of a context** that the host has destroyed are *abandoned*: their fences are
//!   signalled with `ECANCELED`, but the ring keeps them, and they keep what they may reach. When
//!   they, and commands that were not responded to in time, fill more than a quarter of the ring,
//!   there are no new contexts.
//! - **The device** is lost when it has responded to nothing at all for as long as the time limit,
//!   although there is something to respond to besides jobs, and no job runs that could be in the
//!   way.
//!
//! A host may go on with jobs of a context that it was asked to destroy, or have forgotten them.
//! For eight times the limit of a job or the time of a response, whichever is longer, from the
//! question and again from the response, they are in the way of others, unless a later job on the
//! common timeline has succeeded. The device is not lost before the end of that, nor before it has
//! responded to CTX_DESTROY.
//!
//! In the middle of the time in which a device responds to nothing the watchdog sends a command of
//! its own, which every device responds to. So one command that the host never responds to is not
//! taken for the death of the device.
//!
//! The queue for invalidations has limits of its own, since memory management waits for it.

use super::{
    command::{
        Command,
        JobContext,
        JobOf,
        Request,
        Response,
        Sent, //
    },
    commands::{
        self,
        CommandToHost, //
    },
    credit::{
        Credit,
        RingQuota, //
    },
    ControlQueue,
    Inner,
    State, //
};
use crate::{
    kapi::dma::fence::Signalling,
    protocol::virtio_gpu::GetCapsetInfo,
    transport::status::PENDING, //
};
use kernel::{
    list::ListArc,
    prelude::*,
    sync::{
        atomic::ordering::{
            Acquire,
            Relaxed, //
        },
        Arc, //
    },
};

/// Waits.
impl ControlQueue {
    fn has_response(command: &Command) -> bool {
        command.shared.status.load(Acquire) != PENDING
    }

    /// Waits for the response to a command, uninterruptibly but not longer than the time limit.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`EBUSY`] when the time is over. The device may still know
    /// of everything in the command.
    pub(crate) fn wait(&self, command: &Command) -> Result<Response> {
        let done = || Self::has_response(command) || self.transport.is_lost();
        let wait = &command.shared.wait;
        if !wait.wait_timeout(done, self.transport.timeouts.response_ms) {
            return Err(EBUSY);
        }
        Self::ended_by_response(command)
    }

    /// The same, but a fatal signal ends the wait, too.
    ///
    /// # Errors
    ///
    /// As [`ControlQueue::wait`], and [`ERESTARTSYS`] on a fatal signal.
    pub(crate) fn wait_killable(&self, command: &Command) -> Result<Response> {
        let done = || Self::has_response(command) || self.transport.is_lost();
        let wait = &command.shared.wait;
        wait.wait_killable_timeout(done, self.transport.timeouts.response_ms)?;
        Self::ended_by_response(command)
    }

    /// Whether a command that is no job is in the ring, or was.
    pub(crate) fn is_sent(command: &Command) -> bool {
        // Its time begins when it is there.
        command.shared.deadline.load(Relaxed) != 0 || Self::has_response(command)
    }

    /// Waits until a command that waits behind others is in the ring, killably and not longer than
    /// the time limit.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is lost, [`EBUSY`] when the time is over, [`ERESTARTSYS`] on a
    /// fatal signal.
    pub(super) fn wait_sent(&self, command: &Command) -> Result {
        let sent = || Self::is_sent(command) || self.transport.is_lost();
        let wait = &command.shared.wait;
        wait.wait_killable_timeout(sent, self.transport.timeouts.response_ms)?;
        self.transport.check()
    }

    fn ended_by_response(command: &Command) -> Result<Response> {
        match Self::ended(command) {
            None | Some(Response::Aborted) => Err(ENODEV),
            Some(response) => Ok(response),
        }
    }

    /// Waits until the commands that the device has responded to by now are completed: nothing is
    /// left of a job whose fence was signalled by its response.
    ///
    /// Waits for the worker, which waits neither for the device nor for other drivers, and no
    /// longer than for a response. Must not be called by a [`Completion`].
    pub(crate) fn settle(&self) {
        let responded = self.inner.lock().responded;
        self.completion_wait.wait_timeout(
            || self.completed.load(Acquire) >= responded,
            self.transport.timeouts.response_ms,
        );
    }

    /// Sends a command and waits for its response, killably.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], those of [`ControlQueue::credit`], [`ControlQueue::add`] and
    /// [`ControlQueue::wait_killable`], and that of the response.
    pub(crate) fn call<C: CommandToHost>(
        &self,
        quota: &Arc<RingQuota>,
        request: Request<'_, C>,
    ) -> Result<Sent<C>> {
        let (command, sent) = request.build_to_read()?;
        let credit = self.credit(quota, [&command])?;
        drop(self.send(command, credit)?);
        self.wait_killable(&sent)?.to_result()?;
        Ok(sent)
    }

    /// Waits for room for a job, as long as jobs run, which take any time, or the device responds
    /// to anything. A fatal signal ends the wait.
    ///
    /// # Errors
    ///
    /// As [`ControlQueue::credit`]; [`EBUSY`] if no job runs, and the device has responded to
    /// nothing for the time limit.
    pub(crate) fn credit_patiently(
        &self,
        quota: &Arc<RingQuota>,
        job: &ListArc<Command>,
    ) -> Result<Credit> {
        let mut starved = None;
        self.credit_while(quota, [job], self.transport.timeouts.response_ms, || {
            let goes_on = starved.is_none() || self.may_go_on();
            starved.get_or_insert_with(|| Starved::new(self));
            goes_on
        })
    }

    /// Whether jobs run, or the device has responded to anything within the time limit.
    fn may_go_on(&self) -> bool {
        let now = self.transport.now();
        let inner = self.inner.lock();
        now - inner.quiet_since <= i64::from(self.transport.timeouts.response_ms)
            || Self::runs(&inner, now)
    }

    /// Commands that are no jobs and were not responded to in time.
    fn overdue(inner: &Inner, now: i64) -> impl Iterator<Item = &Arc<Command>> {
        inner.in_flight.iter().flatten().filter(move |command| {
            command.shared.job.is_none() && command.shared.deadline.load(Relaxed) < now
        })
    }

    /// Whether a thread has waited for a response in vain: others need not try the same. That a
    /// context is destroyed may take as long as its jobs.
    pub(crate) fn is_late(&self) -> bool {
        let now = self.transport.now();
        Self::overdue(&self.inner.lock(), now).any(|command| command.shared.destroys.is_none())
    }

    /// Fails if jobs of contexts that are gone, and commands that were not responded to in time,
    /// fill so much of the ring that others must be kept from adding to it.
    ///
    /// # Errors
    ///
    /// [`EBUSY`].
    pub(crate) fn check_abandoned(&self) -> Result {
        let now = self.transport.now();
        let inner = self.inner.lock();
        let overdue: usize = Self::overdue(&inner, now)
            .map(|command| command.shared.slots.load(Relaxed))
            .sum();
        if inner.abandoned + overdue > inner.in_flight.len() / 4 {
            return Err(EBUSY);
        }
        Ok(())
    }
}

/// How many times the time limit of jobs or responses a job may be in the way of others after the
/// end of its context.
const ENDING_LIMITS: i64 = 8;

/// As long as this is there, the watchdog finds out whether the device responds to anything.
struct Starved<'a>(&'a ControlQueue);

impl<'a> Starved<'a> {
    fn new(control: &'a ControlQueue) -> Self {
        let mut inner = control.inner.lock();
        control.note_waiting(&mut inner);
        inner.starved += 1;
        Self(control)
    }
}

impl Drop for Starved<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().starved -= 1;
    }
}

/// Jobs.
impl ControlQueue {
    /// The jobs in the ring whose contexts the host has.
    fn running_jobs(inner: &Inner) -> impl Iterator<Item = (&Arc<Command>, &JobOf)> {
        inner.in_flight.iter().flatten().filter_map(|command| {
            let job = command.shared.job.as_ref()?;
            (!command.shared.abandoned.load(Relaxed)).then_some((command, job))
        })
    }

    /// The jobs that others may wait for: those of contexts that the host is to keep, and for some
    /// time those of others, unless one behind them has succeeded.
    fn jobs_at_host(inner: &Inner, now: i64) -> impl Iterator<Item = (&Arc<Command>, &JobOf)> {
        inner.in_flight.iter().flatten().filter_map(move |command| {
            let (shared, job) = (&command.shared, command.shared.job.as_ref()?);
            let passed = !job.on_ring && shared.order.load(Relaxed) < inner.common_responded;
            let may_run = match job.of.ends_by() {
                Some(ends_by) => now < ends_by && !passed,
                None => true,
            };
            may_run.then_some((command, job))
        })
    }

    /// Whether the device may be silent because of jobs.
    fn runs(inner: &Inner, now: i64) -> bool {
        Self::running_jobs(inner).next().is_some()
            || Self::jobs_at_host(inner, now).next().is_some()
    }

    /// The context is lost: its jobs are cancelled. The device still has them.
    pub(crate) fn cancel_jobs(&self, of: &Arc<JobContext>) {
        self.cancel_jobs_where(|job| Arc::ptr_eq(&job.of, of));
    }

    /// The file of a context is closed: the host is asked to destroy it. The jobs that the host has
    /// by then have so long to end as if they began now, and the time of grace.
    pub(crate) fn close_jobs(&self, of: &JobContext) {
        of.set_closed(self.transport.now());
        self.transport.arm_watchdog(&mut self.inner.lock());
        self.destroy_context(of);
    }

    /// Has the host destroy a context, and end its jobs, unless that was done before.
    fn destroy_context(&self, of: &JobContext) {
        if let Some(destroy) = of.take_destroy(self.ends_by()) {
            self.teardown(destroy);
        }
    }

    /// Until when jobs may be in the way of others whose context ends now, as in
    /// [`Transport::now`].
    fn ends_by(&self) -> i64 {
        let limit = self
            .transport
            .timeouts
            .job_ms
            .max(self.transport.timeouts.response_ms);
        self.transport.now() + ENDING_LIMITS * i64::from(limit)
    }

    /// How long the jobs of a closed file may take, in milliseconds, until they are cancelled.
    fn closing_limit(&self) -> i64 {
        let limit = match self.transport.timeouts.job_ms {
            0 => self.transport.timeouts.response_ms,
            limit => limit,
        };
        i64::from(limit) + i64::from(self.transport.timeouts.grace_ms)
    }

    /// Whether a job runs whose file is closed, and that is not cancelled.
    fn is_closing(inner: &Inner) -> bool {
        Self::running_jobs(inner).any(|(_, job)| job.of.closed_at().is_some())
    }

    /// Cancels the jobs of files that were closed long ago, although the host has not said that it
    /// has destroyed their contexts: whoever waits for their fences cannot know of that.
    fn cancel_closed(&self) {
        let before = self.transport.now() - self.closing_limit();
        let next = || {
            let inner = self.inner.lock();
            let mut jobs = Self::running_jobs(&inner).map(|(_, job)| &job.of);
            jobs.find(|of| of.closed_at().is_some_and(|at| at < before))
                .cloned()
        };
        while let Some(of) = next() {
            of.set_cancelled();
            self.cancel_jobs(&of);
        }
    }

    pub(super) fn cancel_jobs_where(&self, applies: impl Fn(&JobOf) -> bool) {
        let _section = Signalling::begin();
        let places = self.inner.lock().in_flight.len();
        for index in 0..places {
            // Signalled without the lock: whoever waits for the fence may be called from here.
            let command = self.inner.lock().in_flight[index].clone();
            let Some(command) = command else {
                continue;
            };
            if command.shared.job.as_ref().is_some_and(&applies) {
                command.shared.signal(Err(ECANCELED));
            }
        }
    }

    /// The host has destroyed the context. Its jobs keep their places in the ring;
    /// their fences are to be signalled when the lock is dropped.
    pub(super) fn abandon_jobs(&self, inner: &mut Inner, context: u32) {
        let ends_by = self.ends_by();
        let mut slots = 0;
        for (command, job) in Self::running_jobs(inner) {
            if job.context == context {
                command.shared.abandoned.store(true, Relaxed);
                job.of.set_ends_by(ends_by);
                slots += command.shared.slots.load(Relaxed);
            }
        }
        inner.abandoned += slots;
    }

    /// The job that has been on the device's common timeline for the longest time, but for those of
    /// the context `except`: its place in the order, and its context.
    fn first_on_common_timeline(
        inner: &Inner,
        now: i64,
        except: Option<u32>,
    ) -> Option<(u64, u32)> {
        Self::jobs_at_host(inner, now)
            .filter(|(_, job)| !job.on_ring && Some(job.context) != except)
            .map(|(command, job)| (command.shared.order.load(Relaxed), job.context))
            .min()
    }

    /// A job whose time is over. The time of a job begins when the watchdog first finds it in the
    /// ring, and waiting for no other context's job; it begins anew when it waits again.
    fn find_overdue_job<'a>(&self, inner: &'a Inner, now: i64) -> Option<&'a Arc<Command>> {
        let first = Self::first_on_common_timeline(inner, now, None);
        let first_of_another = first
            .and_then(|(_, context)| Self::first_on_common_timeline(inner, now, Some(context)));
        // Those and later ones have found no descriptors yet.
        let unsent = inner.pending.iter().next();
        let unsent = unsent.map_or(u64::MAX, |command| command.shared.order.load(Relaxed));
        let limit = i64::from(self.transport.timeouts.job_ms);
        let mut overdue = None;
        for (command, job) in Self::running_jobs(inner) {
            let before = match first {
                Some((_, context)) if context == job.context => first_of_another,
                first => first,
            };
            let order = command.shared.order.load(Relaxed);
            let deadline = &command.shared.deadline;
            let waits = !job.on_ring && before.is_some_and(|(other, _)| other < order);
            if waits || order >= unsent {
                deadline.store(0, Relaxed);
                continue;
            }
            match deadline.load(Relaxed) {
                0 if limit != 0 => deadline.store(now + limit, Relaxed),
                at if at != 0 && at < now && job.of.ends_by().is_none() => overdue = Some(command),
                _ => {}
            }
        }
        overdue
    }

    /// The contexts of jobs whose time is over are lost.
    fn lose_overdue(&self) {
        let next = || {
            let inner = self.inner.lock();
            let job = self.find_overdue_job(&inner, self.transport.now());
            job.filter(|_| inner.state == State::Running).cloned()
        };
        while let Some(job) = next() {
            self.lose_context_of(&job);
        }
    }

    /// The context of a job is lost, because the job did not end in time. The host destroys it now,
    /// though its file may stay open: jobs of other contexts may wait for this one.
    fn lose_context_of(&self, command: &Command) {
        if let Some(job) = &command.shared.job {
            dev_warn!(
                self.transport.vdev,
                "context {} lost: a job did not end in time\n",
                job.context
            );
            job.of.set_lost();
            self.cancel_jobs(&job.of);
            self.destroy_context(&job.of);
        }
    }
}

/// The watchdog.
impl ControlQueue {
    /// A command that every device responds to, if only by an error.
    pub(super) fn new_probe() -> Result<ListArc<Command>> {
        let fixed = GetCapsetInfo::default();
        Request::<commands::GetCapsetInfo>::new(0, &fixed).build()
    }

    /// A command is about to wait in the ring, or for room in it, that is no job.
    pub(super) fn note_waiting(&self, inner: &mut Inner) {
        if !Self::is_waiting(inner) {
            inner.quiet_since = self.transport.now();
        }
        self.transport.arm_watchdog(inner);
    }

    /// A command is in the ring.
    pub(super) fn note_sent(&self, inner: &mut Inner, command: &Command) {
        if command.shared.job.is_none() {
            self.note_waiting(inner);
            inner.commands += 1;
            let deadline = self.transport.now() + i64::from(self.transport.timeouts.response_ms);
            command.shared.deadline.store(deadline, Relaxed);
        } else if self.transport.timeouts.job_ms != 0 {
            // Which begins its time.
            self.transport.arm_watchdog(inner);
        }
    }

    /// The probe was to be sent. The device counts as asked when the ring has the probe, or any
    /// other command that is no job: what is not there for want of memory is no fault of the
    /// device's.
    fn note_asked(inner: &mut Inner, now: i64) {
        let pending = inner.pending.iter();
        let pending = pending.filter(|command| command.shared.job.is_none());
        if inner.commands > pending.count() {
            inner.asked_at.get_or_insert(now);
        }
    }

    /// Whether the device has something to respond to that is no job, or should have responded to
    /// jobs.
    fn is_waiting(inner: &Inner) -> bool {
        inner.commands != 0 || !inner.backlog.is_empty() || inner.starved != 0
    }

    /// Notices a device that responds to nothing, and jobs that do not end. Called by the watchdog.
    pub(in crate::transport) fn look(&self) {
        let limit = i64::from(self.transport.timeouts.response_ms);
        let (silent, wants_probe, responded);
        let mut notifications = [None, None];
        {
            let mut inner = self.inner.lock();
            if inner.state != State::Running {
                return;
            }
            // In case there was no memory for it, and no response came since.
            notifications[0] = self.go_on(&mut inner);
            if inner.state != State::Running {
                inner.watching = false;
                return;
            }

            responded = inner.probed.take_if(|probed| Self::has_response(probed));
            let now = self.transport.now();
            let quiet = now - inner.quiet_since;
            let runs = Self::runs(&inner, now);
            let waits = Self::is_waiting(&inner);
            // Not without having asked, and given it time: the machine may have stood still.
            let asked = inner.asked_at.is_some_and(|at| now - at >= limit / 2);
            silent = asked && !runs && waits && quiet > limit;
            if silent {
                dev_err!(self.transport.vdev, "device lost: it does not respond\n");
                self.transport.lose_locked(&mut inner);
            }
            if runs {
                // When no job counts any longer it has the whole time for a response.
                inner.quiet_since = now;
                inner.asked_at = None;
            } else if !silent && waits && quiet > limit / 2 {
                if let Some(probe) = inner.probe.take() {
                    let quiet_since = inner.quiet_since;
                    inner.probed = Some(probe.clone_arc());
                    inner.backlog.push_front(probe);
                    notifications[1] = self.go_on(&mut inner);
                    // The device has not begun to be quiet just now.
                    inner.quiet_since = quiet_since;
                }
                Self::note_asked(&mut inner, now);
            }
            wants_probe = inner.probe.is_none() && inner.probed.is_none();
            inner.watching = false;
            let limited = runs && self.transport.timeouts.job_ms != 0;
            let pending = !inner.pending.is_empty();
            let closing = Self::is_closing(&inner);
            if !silent && (limited || wants_probe || waits || pending || closing) {
                self.transport.arm_watchdog(&mut inner);
            }
        }
        drop(notifications);
        drop(responded);
        self.lose_overdue();
        self.cancel_closed();
        if wants_probe {
            // The device has just responded to the one before. Without memory there is another
            // time.
            if let Ok(probe) = Self::new_probe() {
                let before = self.inner.lock().probe.replace(probe);
                drop(before);
            }
        }
    }
}
