// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P10: instructions that the kernel executes, for the calls of P8, P4 and P5. Unlike their times,
//! they do not depend on what else the host does.

use virtgpu_client::{compute, Blob, BlobOptions, Device, Exec};

use crate::drivers::{self, HostGpu};
use crate::memory::{drop_pages, make, touch, Kind};
use crate::meter::profile::{Profile, Worst};
use crate::meter::Meter;
use crate::p4_alloc_use_free;
use crate::p5_invalidate::{taken, WHOLE};
use crate::report::{Goal, Report, Sample};
use crate::setup::{open_mirroring, Result, Stats, HUGE, PAGE};
use crate::Options;

/// How often each is counted in a run.
const TIMES: u32 = 15;

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let mut meter = Meter::instructions()?;
    let [mut calls, mut memory, mut held_up] = [const { Worst::new() }; 3];
    let rows = ("P10", Goal::AtMost(1.0));
    drivers::compare(options, report, rows, &mut meter, &mut calls)?;
    if options.host_gpu == HostGpu::Reference {
        p4_alloc_use_free::compare(options, report, "P10", &mut meter, &mut memory)?;
        callbacks(options, report, &mut meter, &mut held_up)?;
    }
    for worst in [calls, memory, held_up] {
        worst.print(options.profiles, options.functions);
    }
    Ok(())
}

/// The callbacks that P5 times: how many instructions more it takes that memory goes which a
/// registration has mapped, against memory that none has.
fn callbacks(
    options: &Options,
    report: &mut Report,
    meter: &mut Meter,
    worst: &mut Worst,
) -> Result {
    let device = open_mirroring()?;
    let callbacks = Callbacks {
        runs: options.runs,
        blob: device.create_blob(&BlobOptions::guest(PAGE as u64))?,
        stats: Stats::new(&device)?,
        device: &device,
    };
    for (id, kind, length) in [
        ("P10-2MiB-thp", Kind::Thp, HUGE),
        ("P10-2MiB-4k", Kind::Fragmented, HUGE),
        ("P10-4KiB", Kind::Fragmented, PAGE),
    ] {
        callbacks.one(report, meter, worst, (id, kind, length))?;
    }
    callbacks.many(report, meter, worst)
}

struct Callbacks<'d> {
    runs: usize,
    device: &'d Device,
    /// What the job of [`Callbacks::trip`] lists.
    blob: Blob<'d>,
    stats: Stats,
}

/// What the runs have shown.
#[derive(Default)]
struct Counts {
    longer: Sample,
    trip: Sample,
    profiles: [Profile; 2],
}

impl Callbacks<'_> {
    /// A job that does nothing, waited for in the kernel. It takes a moment, so that who waits for
    /// it always sleeps, as it does for most that do nothing.
    fn trip(&self) -> Result {
        let mut stream = compute::Stream::new();
        stream.delay(300);
        let handles = [self.blob.handle()];
        Exec::new(stream.as_bytes())
            .buffers(&handles)
            .submit(self.device)?;
        self.device.wait(self.blob.handle())?;
        Ok(())
    }

    /// Counts both, and a job that does nothing.
    fn count(
        &self,
        meter: &mut Meter,
        mut registered: impl FnMut(&mut Meter) -> Result<f64>,
        mut plain: impl FnMut(&mut Meter) -> Result<f64>,
    ) -> Result<Counts> {
        let symbols = meter.symbols()?;
        let mut counts = Counts::default();
        for _ in 0..self.runs {
            let registered = meter.number("", "", |meter| meter.median(TIMES, &mut registered))?;
            let plain = meter.median(TIMES, &mut plain)?;
            let trip = meter.number("", "", |meter| {
                meter.median(TIMES, |meter| meter.one(|| self.trip()))
            })?;
            counts.longer.0.push(registered.value - plain);
            counts.trip.0.push(trip.value);
            counts.profiles = [&registered, &trip].map(|number| Profile::new(number, &symbols));
        }
        Ok(counts)
    }

    fn add(
        &self,
        report: &mut Report,
        meter: &Meter,
        worst: &mut Worst,
        [id, what]: [&str; 2],
        counts: Counts,
    ) {
        let [callback, trip] = &counts.profiles;
        worst.add(
            id,
            counts.longer.median() / counts.trip.median(),
            [("all of the call", callback), ("an empty job", trip)],
        );
        let samples = [counts.longer, counts.trip];
        report.add(id, what, meter.unit(), samples, Goal::None);
    }

    /// Memory that is mapped, as `P5` has it.
    fn one(
        &self,
        report: &mut Report,
        meter: &mut Meter,
        worst: &mut Worst,
        (id, kind, length): (&str, Kind, usize),
    ) -> Result {
        let (memory, other) = (make(kind, length)?, make(kind, length)?);
        let userptr = [self.device.register(&memory, WHOLE)?];
        let counts = self.count(
            meter,
            |meter| {
                touch(&memory);
                taken((self.device, &self.stats), &userptr, || {
                    meter.one(|| drop_pages(&memory).map(drop))
                })
            },
            |meter| {
                touch(&other);
                meter.one(|| drop_pages(&other).map(drop))
            },
        )?;
        let what =
            "what madvise(MADV_DONTNEED) takes more than for memory that is not registered, \
                    against an empty job";
        self.add(report, meter, worst, [id, what], counts);
        Ok(())
    }

    /// Many registrations in one munmap.
    fn many(&self, report: &mut Report, meter: &mut Meter, worst: &mut Worst) -> Result {
        const COUNT: usize = 100;
        const EACH: usize = 4 * PAGE;
        let (memory, other) = (
            make(Kind::Fragmented, COUNT * EACH)?,
            make(Kind::Fragmented, COUNT * EACH)?,
        );
        let userptrs = (0..COUNT)
            .map(|index| {
                self.device
                    .register_range(&memory, index * EACH, EACH, WHOLE)
            })
            .collect::<virtgpu_client::Result<Vec<_>>>()?;
        let counts = self.count(
            meter,
            |meter| {
                touch(&memory);
                let count = taken((self.device, &self.stats), &userptrs, || {
                    meter.one(|| memory.unmap())
                })?;
                memory.map()?;
                Ok(count)
            },
            |meter| {
                touch(&other);
                let count = meter.one(|| other.unmap())?;
                other.map()?;
                Ok(count)
            },
        )?;
        let what = "what munmap of 100 registrations takes more than of memory that is not \
                    registered, against an empty job";
        self.add(
            report,
            meter,
            worst,
            ["P10-100-registrations", what],
            counts,
        );
        Ok(())
    }
}
