// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Medians of times, which a busy host disturbs least.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::report::Sample;
use crate::setup::{since, Result};

/// Something measured with one driver.
pub(super) struct Number {
    pub(super) id: &'static str,
    pub(super) what: &'static str,
    pub(super) nanoseconds: f64,
}

/// The median of what `run` returns, nanoseconds. It runs a tenth as often before that, as the first
/// of everything is different.
pub(super) fn median(times: u32, mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
    for _ in 0..times.div_ceil(10) {
        run()?;
    }
    let mut sample = Sample::default();
    for _ in 0..times {
        sample.0.push(run()?);
    }
    Ok(sample.median())
}

/// What one `run` takes, in nanoseconds.
pub(super) fn timed(run: impl FnOnce() -> Result) -> Result<f64> {
    let start = Instant::now();
    run()?;
    Ok(since(start))
}

/// What one of `run` takes, in nanoseconds, if there are `size` of them and the device has seen the last
/// one when `settle` returns.
pub(super) fn batch(
    size: u32,
    mut run: impl FnMut() -> Result,
    settle: impl FnOnce() -> Result,
) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..size {
        run()?;
    }
    settle()?;
    Ok(since(start) / f64::from(size))
}

/// Nanoseconds from the moment at which another processor sees that `written` is true, to the return of
/// `wait`.
pub(super) fn woken_after(
    written: impl Fn() -> bool + Sync,
    wait: impl FnOnce() -> Result,
) -> Result<f64> {
    let started = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            started.store(true, Ordering::Release);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !written() {
                if Instant::now() > deadline {
                    return None;
                }
                std::hint::spin_loop();
            }
            Some(Instant::now())
        });
        while !started.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        wait()?;
        let woken = Instant::now();
        let written = watcher.join().map_err(|_| "the watcher panicked")?;
        let written = written.ok_or("the job has written nothing")?;
        Ok(woken.saturating_duration_since(written).as_nanos() as f64)
    })
}
