// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Many jobs at once, each of which writes to untouched pages at random.

use std::time::Instant;

use virtgpu_client::{compute, pointer, Memory, SpaceOptions};

use super::{advise, shuffled, Svm};
use crate::memory::{untouched, Kind, Region};
use crate::report::{Goal, Report, Sample};
use crate::setup::{since, Result, MIB, PAGE};
use crate::Options;

/// Most jobs at a time, each on a ring of its own.
pub(super) const MOST: u32 = 8;
/// Pages of a job.
const PAGES: usize = 64;
const SIZE: usize = 64 * MIB;

/// The space for [`rush`].
pub(super) fn open() -> Result<Svm> {
    Svm::open(MOST, SpaceOptions::new())
}

/// Memory of which a fault gets one page, since no one says where the next one is.
pub(super) fn memory() -> Result<Region> {
    let memory = untouched(Kind::Fragmented, SIZE)?;
    advise(&memory, libc::MADV_RANDOM)?;
    Ok(memory)
}

/// Has `count` jobs write to pages of new memory; what that takes for each page.
pub(super) fn rush(svm: &Svm, order: &[usize], count: u32) -> Result<f64> {
    let memory = memory()?;
    let jobs: Vec<_> = order
        .chunks(PAGES)
        .take(count as usize)
        .map(|pages| {
            let mut job = compute::Stream::new();
            for page in pages {
                job.fill(pointer(memory.as_ptr().wrapping_add(page * PAGE)), 8, 1);
            }
            job
        })
        .collect();
    let before = svm.space.query()?.faults;
    let start = Instant::now();
    for (ring, job) in (0..).zip(&jobs) {
        svm.submit(ring, job)?;
    }
    for ring in 0..count {
        svm.finish(ring)?;
    }
    let time = since(start);
    let pages = jobs.len() * PAGES;
    let faults = svm.space.query()?.faults - before;
    // An access that is told to try again has another one.
    if faults < pages as u64 {
        return Err(format!("{faults} faults on {pages} pages").into());
    }
    Ok(time / pages as f64)
}

/// The pages of [`memory`], in the order in which jobs write to them.
pub(super) fn order() -> Vec<usize> {
    shuffled(SIZE / PAGE)
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result {
    let svm = open()?;
    let order = order();
    let counts = [1, 2, 4, MOST];
    let mut times: [Sample; 4] = Default::default();
    for run in 0..=options.runs {
        for (count, times) in counts.into_iter().zip(&mut times) {
            // The shortest of three: what disturbs it only makes it longer.
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                best = best.min(rush(&svm, &order, count)?);
            }
            if run > 0 {
                times.0.push(best);
            }
        }
    }
    let [alone, two, four, eight] = times;
    for (count, times, goal) in [
        (2, two, Goal::None),
        (4, four, Goal::None),
        (MOST, eight, Goal::AtLeast(2.0)),
    ] {
        report.add_speedup(
            &format!("P9-jobs-{count}"),
            &format!("rate of first writes by {count} jobs to random pages, against one job"),
            "ns",
            [times, alone.clone()],
            goal,
        );
    }
    Ok(())
}
