// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs against a thread that disturbs the memory as fast as it can.
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
    jobs: u64,
    met: u64,
    busy: u64,
}

/// What the jobs and the thread agree by.
#[derive(Default)]
pub(crate) struct Race {
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
    /// Fails unless there were enough disturbances, some of them during jobs, and most jobs got through
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
        check!(met >= ROUNDS / 5, "{met} of {jobs} jobs met a disturbance");
        check!(2 * busy <= jobs, "{busy} of {jobs} jobs were refused");
        Ok(())
    }
}

impl Race {
    /// Runs `work` while `disturb` is called again and again, with the number of the call.
    pub(crate) fn run(
        disturb: impl FnMut(u64) -> TestResult + Send,
        work: impl FnOnce(&Self) -> TestResult,
    ) -> TestResult<Outcomes> {
        let race = Self::default();
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
            while state.hold && !state.stop {
                state.still = true;
                self.changed.notify_all();
                state = self.changed.wait(state).expect("no panic");
            }
            state.still = false;
            if state.stop {
                break;
            }
            state.begun += 1;
            drop(state);
            result = disturb(number);
            number += 1;
        }
        self.set(|state| state.ended = true);
        result
    }

    /// Waits for one more disturbance, unless the thread has failed.
    pub(crate) fn next_disturbance(&self) {
        let state = self.state.lock().expect("no panic");
        let before = state.disturbances;
        drop(
            self.changed
                .wait_while(state, |state| !state.ended && state.disturbances == before)
                .expect("no panic"),
        );
    }

    /// Whether more jobs are to come after `done` of them: until there were `jobs`, and enough
    /// disturbances, unless the thread has failed.
    pub(crate) fn goes_on(&self, done: u64, jobs: u64) -> bool {
        let state = self.state.lock().expect("no panic");
        !state.ended && (done < jobs || state.disturbances < ROUNDS)
    }

    /// Runs a job that must get through in the end. Returns how it has ended.
    pub(crate) fn attempt(&self, mut job: impl FnMut() -> TestResult<End>) -> TestResult<End> {
        let ended_before = self.state.lock().expect("no panic").disturbances;
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
