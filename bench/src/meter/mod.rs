// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a call takes, in one of two units: nanoseconds, whose medians a busy host disturbs least,
//! or instructions that the kernel executes for it, which a host does not change at all.

mod busy;
mod counter;
pub(crate) mod profile;
mod symbols;
mod woken;

use std::time::{Duration, Instant};

use virtgpu_client::{Device, Exec, SyncFile};

use crate::report::Sample;
use crate::setup::{since, Result};
pub(crate) use counter::Block;
use counter::{Counter, Seen};
pub(crate) use symbols::Symbols;

/// Longer than any job of the measures takes.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a thread lingers for the end of a job.
const LINGER: Duration = Duration::from_millis(2);
/// How often a job may be late.
const TRIES: u32 = 100;
const LATE: &str = "what the device does is not done in time";
/// How often something is counted, at most. It takes the same each time, or nearly so.
const COUNTS: u32 = 15;

/// What measures.
pub(crate) enum Meter {
    /// The time.
    Clock,
    /// QEMU's plugin, which counts instructions of the kernel.
    Instructions(Counter),
}

/// Something measured.
pub(crate) struct Number {
    pub(crate) id: String,
    pub(crate) what: &'static str,
    /// In the unit of the meter.
    pub(crate) value: f64,
    /// Where the instructions were executed, if they were counted: the blocks of the repetition
    /// that took the fewest, which is this number of calls.
    pub(crate) blocks: Vec<Block>,
    pub(crate) calls: u32,
    /// Instructions of interrupts and of other threads meanwhile.
    pub(crate) others: f64,
}

/// Waits without the kernel until `done`, and a while longer for the interrupt. Whether who waits
/// for a job sleeps is chance otherwise, and a matter of thousands of instructions.
pub(crate) fn linger(done: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() && Instant::now() < deadline {}
    linger_for(LINGER);
}

fn linger_for(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {}
}

impl Meter {
    /// One that counts, in a guest that QEMU's plugin sees.
    pub(crate) fn instructions() -> Result<Self> {
        Ok(Self::Instructions(Counter::new()?))
    }

    pub(crate) fn unit(&self) -> &'static str {
        match self {
            Self::Clock => "ns",
            Self::Instructions(_) => "insn",
        }
    }

    /// Gives what `measure` returns a name.
    pub(crate) fn number(
        &mut self,
        id: impl Into<String>,
        what: &'static str,
        measure: impl FnOnce(&mut Self) -> Result<f64>,
    ) -> Result<Number> {
        let value = measure(self)?;
        let seen = match self {
            Self::Clock => Seen::default(),
            Self::Instructions(counter) => counter.take_typical(),
        };
        Ok(Number {
            id: id.into(),
            what,
            value,
            blocks: seen.blocks,
            calls: seen.calls,
            others: seen.others,
        })
    }

    /// The median of what `run` returns. It runs a tenth as often before that, as the first of
    /// everything is different.
    ///
    /// Of counts it is the median of those with the usual number of breaks: others have the
    /// scheduler's work as well.
    pub(crate) fn median(
        &mut self,
        times: u32,
        mut run: impl FnMut(&mut Self) -> Result<f64>,
    ) -> Result<f64> {
        for _ in 0..self.times(times.div_ceil(10)) {
            run(self)?;
        }
        let mut sample = Sample::default();
        let mut seen = Vec::new();
        for _ in 0..self.times(times) {
            sample.0.push(run(self)?);
            if let Self::Instructions(counter) = self {
                seen.push(counter.take_seen());
            }
        }
        match self {
            Self::Clock => Ok(sample.median()),
            Self::Instructions(counter) => Ok(counter.choose_typical(sample.0, seen)),
        }
    }

    /// How often something is measured that is to be measured so many times.
    pub(crate) fn times(&self, times: u32) -> u32 {
        match self {
            Self::Clock => times,
            Self::Instructions(_) => times.min(COUNTS),
        }
    }

    /// Functions of the kernel, which only instructions are in.
    pub(crate) fn symbols(&self) -> Result<Symbols> {
        match self {
            Self::Clock => Ok(Symbols::none()),
            Self::Instructions(_) => Symbols::read(),
        }
    }

    /// What one `run` takes.
    pub(crate) fn one(&mut self, run: impl FnOnce() -> Result) -> Result<f64> {
        self.of(1, run)
    }

    /// What one of `run` takes, if there are `size` of them and the device has seen the last one
    /// when `settle` returns.
    pub(crate) fn batch(
        &mut self,
        size: u32,
        mut run: impl FnMut() -> Result,
        settle: impl FnOnce() -> Result,
    ) -> Result<f64> {
        self.of(size, || {
            for _ in 0..size {
                run()?;
            }
            settle()
        })
    }

    /// What it takes to `begin` something, and that together with waiting for its `end`, as in
    /// [`Meter::round`].
    pub(crate) fn two<T>(
        &mut self,
        begin: impl Fn() -> Result<T>,
        end: impl Fn(T) -> Result,
    ) -> Result<[f64; 2]> {
        let Self::Instructions(counter) = self else {
            let start = Instant::now();
            let begun = begin()?;
            let one = since(start);
            end(begun)?;
            return Ok([one, since(start)]);
        };
        for _ in 0..TRIES {
            let mut begun = None;
            let one = counter.count(1, || {
                begun = Some(begin()?);
                Ok(())
            })?;
            let is_whole = counter.is_without_break();
            linger(|| true);
            let two = counter.count(1, || begun.map_or(Ok(()), &end))?;
            if is_whole && counter.is_without_break() {
                return Ok([one, one + two]);
            }
        }
        Err(LATE.into())
    }

    fn of(&mut self, calls: u32, run: impl FnOnce() -> Result) -> Result<f64> {
        match self {
            Self::Clock => {
                let start = Instant::now();
                run()?;
                Ok(since(start) / f64::from(calls))
            }
            Self::Instructions(counter) => counter.count(calls, run),
        }
    }

    /// What a job takes from its submission to its end.
    pub(crate) fn trip(&mut self, exec: &Exec<'_>, device: &Device) -> Result<f64> {
        self.round(
            || Ok(exec.submit_with_fence(device)?),
            |fence| Ok(fence.wait(Some(LIMIT))?),
        )
    }

    /// What it takes to `begin` something that the device does, and to wait for its `end`. When
    /// instructions are counted, it has ended before it is waited for.
    pub(crate) fn round<T>(
        &mut self,
        begin: impl Fn() -> Result<T>,
        end: impl Fn(T) -> Result,
    ) -> Result<f64> {
        let Self::Instructions(counter) = self else {
            return self.one(|| end(begin()?));
        };
        // A busy host may be late, and QEMU's looks for some things every 10 ms only.
        for attempt in 0..TRIES {
            let count = counter.count(1, || {
                let begun = begin()?;
                linger_for(LINGER * if attempt == 0 { 1 } else { 12 });
                end(begun)
            })?;
            if counter.is_without_break() {
                return Ok(count);
            }
        }
        Err(LATE.into())
    }

    /// What the end of a job takes for who waits for it. In nanoseconds it is the time from the
    /// moment at which another processor sees that `written` is true to the end of waiting; 0 if
    /// the other one was late, because the host did not let it run. Counted is all of waiting, from
    /// the call of poll, in which the thread sleeps, to its return.
    pub(crate) fn woken(
        &mut self,
        written: impl Fn() -> bool + Sync,
        submit: impl Fn() -> virtgpu_client::Result<SyncFile>,
    ) -> Result<f64> {
        match self {
            Self::Clock => woken::after(written, || Ok(submit()?.wait(Some(LIMIT))?)),
            Self::Instructions(counter) => {
                for _ in 0..TRIES {
                    let fence = submit()?;
                    let count = counter.count(1, || Ok(fence.wait(Some(LIMIT))?))?;
                    if !written() {
                        return Err("the job has written nothing".into());
                    }
                    if !counter.is_without_break() {
                        return Ok(count);
                    }
                }
                Err("jobs are done before they are waited for".into())
            }
        }
    }

    /// How many times as much is to be done by a job that is to take a while. Who counts is slower.
    pub(crate) fn stretch(&self) -> usize {
        match self {
            Self::Clock => 1,
            Self::Instructions(_) => 16,
        }
    }
}
