// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Groups: what is run and timed together, on one driver after the other.

use std::time::{Duration, Instant};

use crate::drivers::{self, Driver};
use crate::outcome::{Outcome, Result, Status};

/// Tests that are run and timed together.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) run: Box<dyn Fn() -> Result<Vec<Outcome>>>,
    /// Runs one test again. For tests that a slow machine can fail; they may try three times.
    pub(crate) repeat: Option<Box<Repeat>>,
    /// On this driver only: all must pass.
    pub(crate) alone: bool,
    /// How many must pass on Linux's driver, so that the comparison shows something.
    pub(crate) floor: usize,
    /// What fails here is a failure also if it fails on Linux's driver: this project's own tests,
    /// which are right on a host that is.
    pub(crate) strict: bool,
}

pub(crate) type Repeat = dyn Fn(&str) -> Result<Vec<Outcome>>;

/// What a group showed on one driver.
pub(crate) struct Run {
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) time: Duration,
}

impl Group {
    pub(crate) fn new(
        name: impl Into<String>,
        run: impl Fn() -> Result<Vec<Outcome>> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
            repeat: None,
            alone: false,
            floor: 1,
            strict: false,
        }
    }

    pub(crate) fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    pub(crate) fn floor(mut self, floor: usize) -> Self {
        self.floor = floor;
        self
    }

    pub(crate) fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    pub(crate) fn run(&self, driver: Driver) -> Result<Run> {
        drivers::ready(driver)?;
        drivers::note(&format!("{} on {driver}", self.name))?;
        let start = Instant::now();
        let mut outcomes = (self.run)()?;
        let time = start.elapsed();
        if let Some(repeat) = &self.repeat {
            for outcome in &mut outcomes {
                for _ in 0..2 {
                    if !matches!(outcome.status, Status::Fail(_)) {
                        break;
                    }
                    println!("# {}/{} once more on {driver}", self.name, outcome.name);
                    if let Some(again) = repeat(&outcome.name)?
                        .into_iter()
                        .find(|o| o.name == outcome.name)
                    {
                        *outcome = again;
                    }
                }
            }
        }
        Ok(Run { outcomes, time })
    }
}
