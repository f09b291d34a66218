// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that must have a page alone to count in it, and a processor that counts there, too.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::{compute, pointer, Memory, SpaceOptions};

use super::one_page::invalidate;
use super::Svm;
use crate::memory::{make, Kind, Region};
use crate::p5_invalidate;
use crate::report::{Goal, Report, Sample};
use crate::setup::{since, Result, PAGE};
use crate::trace::Tracer;
use crate::Options;

/// For how long the device keeps a page at least, in nanoseconds: the module's
/// `exclusive_slice_us`, which cannot be read, where no one has set it.
const SLICE: f64 = 500_000.0;

/// A word that both count in.
struct Word {
    svm: Svm,
    page: Region,
}

impl Word {
    fn new() -> Result<Self> {
        Ok(Self {
            svm: Svm::open(1, SpaceOptions::new())?,
            page: make(Kind::Fragmented, PAGE)?,
        })
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: The page is mapped as long as it is borrowed, and begins with a word.
        unsafe { AtomicU64::from_ptr(self.page.as_ptr().cast()) }
    }

    fn job(&self, times: u64) -> compute::Stream {
        let mut job = compute::Stream::new();
        job.atomic_add(pointer(self.page.as_ptr()), 1, times);
        job
    }

    /// Pages that the device has had alone so far.
    fn given(&self) -> Result<u64> {
        Ok(self.svm.space.query()?.exclusive)
    }

    /// How long a processor waits for the page that the device has had alone, in nanoseconds.
    fn back(&self) -> Result<f64> {
        const TIMES: u64 = 30;
        let before = self.given()?;
        let mut times = Vec::new();
        for _ in 0..TIMES {
            self.svm.run(&self.job(1))?;
            let start = Instant::now();
            self.word().fetch_add(1, Ordering::SeqCst);
            times.push(since(start));
        }
        let given = self.given()? - before;
        if given != TIMES {
            return Err(format!("the device had the page {given} times in {TIMES} jobs").into());
        }
        Ok(Sample(times).median())
    }

    /// What the device takes for each time that it counts, and the processor, while `both` count or
    /// each does so alone; in nanoseconds.
    fn count(&self, both: bool) -> Result<[f64; 2]> {
        const JOB: u64 = 10;
        let time = Duration::from_millis(500);
        let (stop, ours) = (AtomicBool::new(!both), AtomicU64::new(0));
        let count = || {
            self.word().fetch_add(1, Ordering::SeqCst);
            ours.fetch_add(1, Ordering::SeqCst);
        };
        let mut jobs = 0;
        let start = Instant::now();
        std::thread::scope(|scope| -> Result {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    count();
                }
            });
            let mut work = || -> Result {
                while start.elapsed() < time {
                    self.svm.run(&self.job(JOB))?;
                    jobs += 1;
                }
                Ok(())
            };
            let worked = work();
            stop.store(true, Ordering::SeqCst);
            worked
        })?;
        let device = since(start) / (jobs * JOB) as f64;
        let mut processors = since(start);
        if !both {
            let start = Instant::now();
            while start.elapsed() < time {
                count();
            }
            processors = since(start);
        }
        let ours = ours.into_inner();
        if jobs == 0 || ours == 0 {
            return Err(format!("{jobs} jobs and {ours} of the processor: one starves").into());
        }
        Ok([device, processors / ours as f64])
    }
}

/// Whether the device must have pages alone.
pub(super) fn is_needed() -> Result<bool> {
    let word = Word::new()?;
    word.svm.run(&word.job(1))?;
    Ok(word.given()? > 0)
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result {
    let (word, page) = (Word::new()?, make(Kind::Fragmented, PAGE)?);
    let tracer = Tracer::new(p5_invalidate::FUNCTION)?;
    let [mut backs, mut limits] = [const { Sample(Vec::new()) }; 2];
    let mut counts: [[Sample; 2]; 2] = Default::default();
    for run in 0..=options.runs {
        let back = word.back()?;
        let limit = SLICE + 2.0 * invalidate(&word.svm, &tracer, &page)?;
        let counted = [word.count(true)?, word.count(false)?];
        if run > 0 {
            backs.0.push(back);
            limits.0.push(limit);
            for (samples, times) in counts.iter_mut().zip(counted) {
                for (sample, time) in samples.iter_mut().zip(times) {
                    sample.0.push(time);
                }
            }
        }
    }
    report.add(
        "P9-exclusive-back",
        "a processor waits for a page that the device has alone, against a slice and two INVALIDATEs",
        "ns",
        [backs, limits],
        Goal::AtMost(1.0),
    );
    let [[device, processor], [device_alone, processor_alone]] = counts;
    for (id, what, times) in [
        ("device", "the device's", [device, device_alone]),
        ("cpu", "a processor's", [processor, processor_alone]),
    ] {
        report.add_speedup(
            &format!("P9-exclusive-{id}"),
            &format!("{what} rate of counting where the other counts too, against alone"),
            "ns",
            times,
            Goal::None,
        );
    }
    Ok(())
}
