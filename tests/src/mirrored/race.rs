// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs against a thread that disturbs the memory as fast as it can, a burst for each job.
//!
//! A job that loses the race for the driver's patience is refused with EBUSY, and on a slow machine
//! that may go on for ever. So one that was refused is tried again while the thread holds still;
//! nothing is in its way then.

use std::sync::{Condvar, Mutex};

use virtgpu_client::{compute, Errno};

use super::support::{End, Mirror};
use crate::check;
use crate::ktap::{Outcome, TestResult};
use crate::support::{raced, ROUNDS};

/// Disturbances of a job. Without an end to them it would be refused on a slow machine, after a
/// second.
const BURST: u64 = 64;
/// Jobs that must have met a disturbance, and that must have got through at the first try.
const WON: u64 = ROUNDS / 5;
/// A driver that has refused so many jobs, each after a second, refuses all.
const MOST_REFUSED: u64 = 60;

#[derive(Default)]
struct State {
    /// The thread is to hold still.
    hold: bool,
    /// It does.
    still: bool,
    /// The thread is to end.
    stop: bool,
    /// It has.
    ended: bool,
    /// Disturbances that have begun, and those that are over.
    begun: u64,
    disturbances: u64,
    /// Those that are still to come before the next job.
    burst: u64,
    jobs: u64,
    met: u64,
    busy: u64,
}

/// What the jobs and the thread agree by.
#[derive(Default)]
pub(crate) struct Race {
    /// Disturbances of a burst.
    length: u64,
    state: Mutex<State>,
    changed: Condvar,
}

/// How it went.
pub(crate) struct Outcomes {
    pub(crate) disturbances: u64,
    /// Jobs that were tried for the first time.
    jobs: u64,
    /// How many of them a disturbance overlapped with.
    met: u64,
    /// Jobs that were refused with EBUSY.
    pub(crate) busy: u64,
}

impl Outcomes {
    /// Fails unless there were enough disturbances, some of them during jobs, and jobs got through
    /// in spite of them.
    pub(crate) fn was_a_race(&self) -> TestResult {
        let Self {
            disturbances,
            jobs,
            met,
            busy,
        } = *self;
        raced("disturbances", disturbances)?;
        println!("    # {met} of {jobs} jobs met one, {busy} were refused and repeated");
        check!(met >= WON, "{met} of {jobs} jobs met a disturbance");
        check!(jobs - busy >= WON, "{busy} of {jobs} jobs were refused");
        Ok(())
    }
}

impl Race {
    /// Runs `work` while `disturb` is called again and again, with the number of the call.
    pub(crate) fn run(
        disturb: impl FnMut(u64) -> TestResult + Send,
        work: impl FnOnce(&Self) -> TestResult,
    ) -> TestResult<Outcomes> {
        Self::run_bursts(BURST, disturb, work)
    }

    /// The same without an end to the disturbances of a job.
    pub(crate) fn storm(
        disturb: impl FnMut(u64) -> TestResult + Send,
        work: impl FnOnce(&Self) -> TestResult,
    ) -> TestResult<Outcomes> {
        Self::run_bursts(u64::MAX, disturb, work)
    }

    fn run_bursts(
        length: u64,
        disturb: impl FnMut(u64) -> TestResult + Send,
        work: impl FnOnce(&Self) -> TestResult,
    ) -> TestResult<Outcomes> {
        let race = Self {
            length,
            ..Self::default()
        };
        race.set(|state| state.burst = length);
        let (disturbed, worked) = std::thread::scope(|scope| {
            let disturber = scope.spawn(|| race.disturb(disturb));
            let worked = work(&race);
            race.set(|state| state.stop = true);
            (disturber.join().expect("no panic"), worked)
        });
        disturbed?;
        worked?;
        let state = race.state.into_inner().expect("no panic");
        Ok(Outcomes {
            disturbances: state.disturbances,
            jobs: state.jobs,
            met: state.met,
            busy: state.busy,
        })
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no panic"));
        self.changed.notify_all();
    }

    fn disturb(&self, mut disturb: impl FnMut(u64) -> TestResult) -> TestResult {
        let mut number = 0;
        let mut result = Ok(());
        while result.is_ok() {
            let mut state = self.state.lock().expect("no panic");
            state.disturbances = number;
            self.changed.notify_all();
            while (state.hold || state.burst == 0) && !state.stop {
                state.still = true;
                self.changed.notify_all();
                state = self.changed.wait(state).expect("no panic");
            }
            state.still = false;
            if state.stop {
                break;
            }
            state.begun += 1;
            state.burst -= 1;
            drop(state);
            result = disturb(number);
            number += 1;
        }
        self.set(|state| state.ended = true);
        result
    }

    /// Waits for one more disturbance, unless the thread has failed.
    pub(crate) fn next_disturbance(&self) {
        self.set(|state| state.burst = self.length);
        let state = self.state.lock().expect("no panic");
        let before = state.disturbances;
        drop(
            self.changed
                .wait_while(state, |state| !state.ended && state.disturbances == before)
                .expect("no panic"),
        );
    }

    /// Whether more jobs are to come after `done` of them: until there were `jobs`, enough
    /// disturbances, and enough jobs that were not refused, unless the thread has failed.
    pub(crate) fn goes_on(&self, done: u64, jobs: u64) -> bool {
        let state = self.state.lock().expect("no panic");
        let won = state.jobs - state.busy;
        !state.ended
            && (done < jobs
                || state.disturbances < ROUNDS
                || (won < WON && state.busy < MOST_REFUSED))
    }

    /// Runs a job that must get through in the end. Returns how it has ended.
    pub(crate) fn attempt(&self, mut job: impl FnMut() -> TestResult<End>) -> TestResult<End> {
        let mut ended_before = 0;
        self.set(|state| {
            ended_before = state.disturbances;
            state.burst = self.length;
        });
        let first = job()?;
        self.set(|state| {
            state.jobs += 1;
            // One that has begun by now was not over before.
            state.met += u64::from(state.begun > ended_before);
        });
        if first != End::Refused(Errno::BUSY) {
            return Ok(first);
        }
        self.set(|state| {
            state.busy += 1;
            state.hold = true;
        });
        let state = self.state.lock().expect("no panic");
        drop(
            self.changed
                .wait_while(state, |state| !state.still && !state.ended)
                .expect("no panic"),
        );
        let second = job();
        self.set(|state| state.hold = false);
        second
    }

    /// [`Self::attempt`] of a job that must succeed.
    pub(crate) fn done(&self, what: &str, job: impl FnMut() -> TestResult<End>) -> TestResult {
        match self.attempt(job)? {
            End::Done => Ok(()),
            other => Err(Outcome::Fail(format!("{what}: {other:?}"))),
        }
    }
}

/// Runs at least `jobs` jobs that each add 1 to every word of the first `length` bytes, against
/// `disturb`, and returns how many it were.
pub(crate) fn additions(
    mirror: &Mirror<'_>,
    length: usize,
    jobs: u64,
    disturb: impl FnMut(u64) -> TestResult + Send,
) -> TestResult<u32> {
    let mut adding = compute::Stream::new();
    adding.add_u32(mirror.userptr.at(0), length as u64, 1);
    let mut done = 0;
    let outcomes = Race::run(disturb, |race| {
        while race.goes_on(done, jobs) {
            race.done("a job that adds", || mirror.end(&adding))?;
            done += 1;
        }
        Ok(())
    })?;
    raced("jobs", done)?;
    outcomes.was_a_race()?;
    Ok(done as u32)
}
