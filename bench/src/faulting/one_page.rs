// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! One fault after the other, each on a page that is resident and that the device does not reach.

use std::time::Instant;

use virtgpu_client::{Memory, SpaceOptions};

use super::uffd::Uffd;
use super::{revoke, Svm};
use crate::memory::{drop_pages, make, touch, untouched, Kind, Region};
use crate::p5_invalidate;
use crate::report::{Goal, Report, Sample};
use crate::setup::{nothing, since, Result, PAGE};
use crate::trace::Tracer;
use crate::Options;

/// Pages in a row: a granule of the driver's tables.
const PAGES: usize = 512;

/// A space in which each page is a fault of its own.
pub(super) fn open() -> Result<Svm> {
    Svm::open(1, SpaceOptions::new().exact())
}

/// The memory for [`fault`].
pub(super) fn memory() -> Result<Region> {
    make(Kind::Fragmented, PAGES * PAGE)
}

/// What a fault costs on the average, nanoseconds.
pub(super) fn fault(svm: &Svm, memory: &Region) -> Result<f64> {
    let pages = (memory.len() / PAGE) as u64;
    let job = svm.reading(memory);
    revoke(memory)?;
    let (cold, faults) = svm.faults(&job)?;
    let (warm, more) = svm.faults(&job)?;
    // An access that is told to try again has another one.
    if faults < pages || more != 0 {
        return Err(format!("{pages} pages were {faults} faults, and then {more}").into());
    }
    Ok((cold - warm) / pages as f64)
}

/// How long the kernel is held up by the loss of one page that the device reaches.
pub(super) fn invalidate(svm: &Svm, tracer: &Tracer, page: &Region) -> Result<f64> {
    const TIMES: usize = 30;
    tracer.clear()?;
    for _ in 0..TIMES {
        touch(page);
        if svm.space.prefetch(page.as_ptr() as u64, PAGE as u64)? != PAGE as u64 {
            return Err("a page could not be prefetched".into());
        }
        let before = svm.space.query()?.invalidations;
        tracer.during(|| drop_pages(page))?;
        if svm.space.query()?.invalidations != before + 1 {
            return Err("the device was not told".into());
        }
    }
    let times = tracer.times()?;
    if times.len() != TIMES {
        return Err(format!("calls of {}: {times:?}", p5_invalidate::FUNCTION).into());
    }
    Ok(Sample(times).median())
}

/// What a page of zeroes costs that another thread of this process gives by userfaultfd.
fn served_here() -> Result<f64> {
    let memory = untouched(Kind::Fragmented, PAGES * PAGE)?;
    let uffd = Uffd::of(&memory)?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| -> std::result::Result<(), String> {
            for _ in 0..PAGES {
                uffd.serve_one().map_err(|error| error.to_string())?;
            }
            Ok(())
        });
        let start = Instant::now();
        touch(&memory);
        let time = since(start);
        server.join().map_err(|_| "the server panicked")??;
        Ok(time / PAGES as f64)
    })
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result {
    let svm = open()?;
    let (memory, page) = (memory()?, make(Kind::Fragmented, PAGE)?);
    let tracer = Tracer::new(p5_invalidate::FUNCTION)?;
    let nothing = nothing();
    let [mut faults, mut invalidates, mut trips, mut served] = [const { Sample(Vec::new()) }; 4];
    for run in 0..=options.runs {
        let fault = fault(&svm, &memory)?;
        let invalidate = invalidate(&svm, &tracer, &page)?;
        let trip = (0..100)
            .map(|_| svm.run(&nothing))
            .collect::<Result<Vec<_>>>()?;
        let here = served_here()?;
        if run > 0 {
            faults.0.push(fault);
            invalidates.0.push(invalidate);
            trips.0.push(Sample(trip).median());
            served.0.push(here);
        }
    }
    report.add(
        "P9-fault",
        "a fault on a resident page, against the INVALIDATE of one",
        "ns",
        [faults.clone(), invalidates],
        Goal::AtMost(3.0),
    );
    report.add(
        "P9-fault-job",
        "the same, against an empty job, waited for",
        "ns",
        [faults.clone(), trips],
        Goal::None,
    );
    report.add(
        "P9-fault-uffd",
        "the same, against a fault of the CPU that a thread serves by UFFDIO_ZEROPAGE",
        "ns",
        [faults, served],
        Goal::None,
    );
    Ok(())
}
