// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P5: for how long the device delays the kernel that invalidates pages.
//!
//! What is timed is `__mmu_notifier_invalidate_range_start`, which calls the driver back: both
//! passes of all registrations, with the wait for the device. The device is idle otherwise. As a
//! check, the same is seen from outside, as the time that madvise takes longer than for memory that
//! is not registered.

use std::time::Instant;

use virtgpu_client::{Blob, BlobOptions, Device, Exec, RegisterOptions, Registration};

use crate::memory::{drop_pages, make, touch, Kind};
use crate::report::{Goal, Report, Sample};
use crate::setup::{map_all, nothing, open_mirroring, since, Result, Stats, HUGE, PAGE};
use crate::trace::Tracer;
use crate::Options;

pub(crate) const WHOLE: RegisterOptions = RegisterOptions::mirrored();
/// Calls notifiers back, and returns when the device has acknowledged.
pub(crate) const FUNCTION: &str = "__mmu_notifier_invalidate_range_start";

/// Time of a job that does nothing, waited for in the kernel.
fn trip(device: &Device, blob: &Blob<'_>) -> Result<f64> {
    let stream = nothing();
    let handles = [blob.handle()];
    let exec = Exec::new(stream.as_bytes()).buffers(&handles);
    let start = Instant::now();
    exec.submit(device)?;
    device.wait(blob.handle())?;
    Ok(since(start))
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let device = open_mirroring()?;
    let bench = Bench {
        options,
        blob: device.create_blob(&BlobOptions::guest(PAGE as u64))?,
        stats: Stats::new(&device)?,
        tracer: Tracer::new(FUNCTION)?,
        device: &device,
    };
    bench.one(report, "P5-2MiB-thp", (Kind::Thp, HUGE), Goal::AtMost(1.5))?;
    bench.one(
        report,
        "P5-2MiB-4k",
        (Kind::Fragmented, HUGE),
        Goal::AtMost(1.5),
    )?;
    // How much of it does not depend on the pages.
    bench.one(report, "P5-4KiB", (Kind::Fragmented, PAGE), Goal::None)?;
    bench.many(report)
}

/// Runs `change` with the registrations mapped; they must lose everything, by one INVALIDATE
/// each. Returns what `change` does.
pub(crate) fn taken<M>(
    (device, stats): (&Device, &Stats),
    userptrs: &[Registration<'_, M>],
    change: impl FnOnce() -> Result<f64>,
) -> Result<f64> {
    let mut before = Vec::new();
    for userptr in userptrs {
        map_all(device, userptr.handle())?;
        before.push(userptr.query()?.invalidations);
    }
    let told = stats.read(device)?.invalidates;
    let time = change()?;
    let told = stats.read(device)?.invalidates - told;
    if told != userptrs.len() as u64 {
        let count = userptrs.len();
        return Err(format!("{told} INVALIDATEs for {count} registrations").into());
    }
    for (userptr, before) in userptrs.iter().zip(before) {
        let query = userptr.query()?;
        if (query.mapped_bytes, query.invalidations) != (0, before + 1) {
            return Err("a registration was not told, or more than once".into());
        }
    }
    Ok(time)
}

struct Bench<'d> {
    options: &'d Options,
    device: &'d Device,
    /// What the job of [`trip`] lists.
    blob: Blob<'d>,
    stats: Stats,
    tracer: Tracer,
}

impl Bench<'_> {
    /// The times of the callbacks, of which there must have been `count`.
    fn callbacks(&self, count: usize) -> Result<Sample> {
        let times = self.tracer.times()?;
        if times.len() != count {
            return Err(format!("calls of {FUNCTION}: {times:?}, not {count}").into());
        }
        Ok(Sample(times))
    }

    /// Memory that is mapped.
    fn one(
        &self,
        report: &mut Report,
        id: &str,
        (kind, length): (Kind, usize),
        goal: Goal,
    ) -> Result {
        const TIMES: usize = 30;
        let (memory, other) = (make(kind, length)?, make(kind, length)?);
        let userptr = [self.device.register(&memory, WHOLE)?];
        let [mut callback, mut trips, mut longer] = [const { Sample(Vec::new()) }; 3];
        for run in 0..=self.options.runs {
            let [mut trip_times, mut registered, mut plain] = [const { Sample(Vec::new()) }; 3];
            self.tracer.clear()?;
            let mut round_trip = || -> Result {
                trip_times.0.push(trip(self.device, &self.blob)?);
                Ok(())
            };
            // Each of the three right after a round trip, which is in the same state of the caches.
            for _ in 0..TIMES {
                touch(&memory);
                taken((self.device, &self.stats), &userptr, || {
                    round_trip()?;
                    self.tracer.during(|| drop_pages(&memory))
                })?;
                touch(&memory);
                let time = taken((self.device, &self.stats), &userptr, || {
                    round_trip()?;
                    drop_pages(&memory)
                })?;
                registered.0.push(time);
                touch(&other);
                round_trip()?;
                plain.0.push(drop_pages(&other)?);
            }
            let times = self.callbacks(TIMES)?;
            if run > 0 {
                callback.0.push(times.median());
                trips.0.push(trip_times.median());
                longer.0.push(registered.median() - plain.median());
            }
        }
        report.add(
            id,
            "kernel held up by the loss of mapped memory, in round trips of an empty job",
            "ns",
            [callback, trips.clone()],
            goal,
        );
        report.add(
            &format!("{id}-madvise"),
            "what madvise(MADV_DONTNEED) takes longer than for memory that is not registered",
            "ns",
            [longer, trips],
            Goal::None,
        );
        Ok(())
    }

    /// Many registrations in one munmap.
    fn many(&self, report: &mut Report) -> Result {
        const COUNT: usize = 100;
        const EACH: usize = 4 * PAGE;
        let memory = make(Kind::Fragmented, COUNT * EACH)?;
        let userptrs = (0..COUNT)
            .map(|index| {
                self.device
                    .register_range(&memory, index * EACH, EACH, WHOLE)
            })
            .collect::<virtgpu_client::Result<Vec<_>>>()?;
        let (mut callback, mut trips) = (Sample::default(), Sample::default());
        for run in 0..=self.options.runs {
            self.tracer.clear()?;
            taken((self.device, &self.stats), &userptrs, || {
                self.tracer.during(|| memory.unmap().map(|()| 0.0))
            })?;
            memory.map()?;
            let times = self.callbacks(1)?;
            let mut trip_times = Sample::default();
            for _ in 0..COUNT {
                trip_times.0.push(trip(self.device, &self.blob)?);
            }
            if run > 0 {
                callback.0.push(times.median());
                trips.0.push(trip_times.median());
            }
        }
        report.add(
            "P5-100-registrations",
            "kernel held up by one munmap of 100 registrations, in round trips of an empty job",
            "ns",
            [callback, trips],
            Goal::AtMost(3.0),
        );
        Ok(())
    }
}
