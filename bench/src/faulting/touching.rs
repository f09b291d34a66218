// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that no one has touched yet: a job fills it, by faults and after SVM_PREFETCH.

use std::time::Instant;

use virtgpu_client::{compute, pointer, Bytes, Memory, SpaceOptions};

use super::{advise, Svm};
use crate::memory::{touch, untouched, Kind};
use crate::report::{Goal, Report, Sample};
use crate::setup::{since, Result, MIB};
use crate::Options;

/// What is measured in each run, on memory of its own.
#[derive(Default)]
struct Times {
    /// The CPU writes a word to each page.
    touched: Sample,
    /// MADV_POPULATE_WRITE.
    populated: Sample,
    /// A job fills it.
    filled: Sample,
    prefetched: Sample,
    /// A prefetch, and the job.
    both: Sample,
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result {
    let svm = Svm::open(1, SpaceOptions::new())?;
    for (name, kind) in [("4k", Kind::Fragmented), ("thp", Kind::Thp)] {
        let mut times = Times::default();
        for run in 0..=options.runs {
            let new = once(&svm, kind, options.touch * MIB)?;
            if run > 0 {
                let all = [
                    &mut times.touched,
                    &mut times.populated,
                    &mut times.filled,
                    &mut times.prefetched,
                    &mut times.both,
                ];
                for (all, new) in all.into_iter().zip(new) {
                    all.0.push(new);
                }
            }
        }
        rows(report, name, times);
    }
    Ok(())
}

/// What [`Times`] has, once each.
fn once(svm: &Svm, kind: Kind, length: usize) -> Result<[f64; 5]> {
    let memory = untouched(kind, length)?;
    let start = Instant::now();
    touch(&memory);
    let touched = since(start);

    let memory = untouched(kind, length)?;
    let start = Instant::now();
    advise(&memory, libc::MADV_POPULATE_WRITE)?;
    let populated = since(start);

    let memory = untouched(kind, length)?;
    let before = svm.space.query()?;
    let filled = svm.run(&filling(&memory))?;
    let after = svm.space.query()?;
    check(&memory)?;
    if after.faults == before.faults || after.mapped_bytes < before.mapped_bytes + length as u64 {
        return Err("the device has not had to ask for the memory".into());
    }
    // In single pages, the two would be more than the device can map.
    drop(memory);

    let memory = untouched(kind, length)?;
    let start = Instant::now();
    let done = svm
        .space
        .prefetch_for_writing(memory.as_ptr() as u64, length as u64)?;
    let prefetched = since(start);
    let (time, faults) = svm.faults(&filling(&memory))?;
    check(&memory)?;
    if done != length as u64 || faults != 0 {
        return Err(format!("{done} bytes prefetched, and {faults} faults after that").into());
    }
    Ok([touched, populated, filled, prefetched, prefetched + time])
}

const PATTERN: u64 = 0x0123_4567_89ab_cdef;

fn filling(memory: &impl Memory) -> compute::Stream {
    let mut job = compute::Stream::new();
    job.fill(pointer(memory.as_ptr()), memory.len() as u64, PATTERN);
    job
}

fn check(memory: &impl Memory) -> Result {
    let last = memory.len() - 8;
    match [0, last / 16 * 8, last].map(|at| memory.read_u64(at)) {
        [PATTERN, PATTERN, PATTERN] => Ok(()),
        other => Err(format!("a job has not filled its memory: {other:x?}").into()),
    }
}

fn rows(report: &mut Report, name: &str, times: Times) {
    report.add(
        &format!("P9-fill-{name}"),
        "a job fills untouched memory, against a word for each page by the CPU",
        "ns",
        [times.filled.clone(), times.touched],
        Goal::AtMost(2.0),
    );
    report.add(
        &format!("P9-prefetch-{name}"),
        "SVM_PREFETCH of untouched memory, against MADV_POPULATE_WRITE",
        "ns",
        [times.prefetched, times.populated],
        Goal::AtMost(1.25),
    );
    report.add_speedup(
        &format!("P9-fill-{name}-rate"),
        "rate of the job that has faults, against SVM_PREFETCH and the job",
        "ns",
        [times.filled, times.both],
        Goal::AtLeast(0.6),
    );
}
