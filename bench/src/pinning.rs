// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P1: what registering and unregistering costs, for each page and apart from the pages.

use std::time::Instant;

use virtgpu_client::{compute, Device, Exec, Memory, RegisterOptions};

use crate::gup::Gup;
use crate::memory::{make, Kind, Region};
use crate::report::{Goal, Report, Sample};
use crate::setup::{open, since, wait, wait_unpinned, Result, Stats, MIB, PAGE};
use crate::Options;

const SMALL: usize = 16 * MIB;

/// Time for register and unregister, until the last page is unpinned, less the device's own.
fn cycle(device: &Device, stats: &Stats, memory: &Region) -> Result<f64> {
    let before = stats.read(device)?;
    let start = Instant::now();
    let userptr = device.register(memory, RegisterOptions::pinned())?;
    userptr.close()?;
    wait_unpinned()?;
    let time = since(start);
    let after = stats.read(device)?;
    let device_time = after.create_ns - before.create_ns + after.unref_ns - before.unref_ns;
    Ok(time - device_time as f64)
}

/// The shortest of three: what disturbs a measurement only makes it longer.
fn best(mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        best = best.min(measure()?);
    }
    Ok(best)
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let device = open()?;
    let stats = Stats::new(&device)?;
    fixed(options, report, &device, &stats)?;
    let gup = Gup::open()?;
    for kind in [Kind::Thp, Kind::Fragmented] {
        let large = make(kind, options.largest * MIB)?;
        let small = make(kind, SMALL)?;
        let pages = ((large.len() - small.len()) / PAGE) as f64;
        let (mut ours, mut pure) = (Sample::default(), Sample::default());
        // Once for the caches, then in turns.
        for run in 0..=options.runs {
            let mine = |memory| best(|| cycle(&device, &stats, memory));
            let bare = |memory| best(|| gup.pin_unpin(memory));
            let mine = (mine(&large)? - mine(&small)?) / pages;
            let theirs = (bare(&large)? - bare(&small)?) / pages;
            if run > 0 {
                ours.0.push(mine);
                pure.0.push(theirs);
            }
        }
        report.add(
            &format!("P1-{}-{}MiB", kind.name(), options.largest),
            "register + unregister, per page, against pin_user_pages_fast + unpin",
            "ns",
            [ours, pure],
            Goal::AtMost(1.25),
        );
    }
    Ok(())
}

/// What one page costs, in round trips to the device.
fn fixed(options: &Options, report: &mut Report, device: &Device, stats: &Stats) -> Result {
    const TIMES: u32 = 200;
    let memory = make(Kind::Fragmented, PAGE)?;
    // An empty command may be responded to without the device; a delay of nothing goes there.
    let mut nothing = compute::Stream::new();
    nothing.delay(0);
    let exec = Exec::new(nothing.as_bytes());
    let (mut register, mut trip, mut commands) =
        (Sample::default(), Sample::default(), Sample::default());
    for run in 0..=options.runs {
        let before = stats.read(device)?.commands;
        let (mut cycles, mut trips) = (Sample::default(), Sample::default());
        for _ in 0..TIMES {
            let start = Instant::now();
            device
                .register(&memory, RegisterOptions::pinned())?
                .close()?;
            cycles.0.push(since(start));
        }
        wait_unpinned()?;
        let sent = stats.read(device)?.commands - before - 1;
        for _ in 0..TIMES {
            let start = Instant::now();
            wait(&exec, device)?;
            trips.0.push(since(start));
        }
        if run > 0 {
            register.0.push(cycles.median());
            trip.0.push(trips.median());
            commands.0.push(sent as f64 / f64::from(TIMES));
        }
    }
    let ones = Sample(vec![1.0; commands.0.len()]);
    report.add(
        "P1-fixed",
        "register + unregister of one page, in round trips of a job that does nothing",
        "ns",
        [register, trip],
        Goal::AtMost(3.0),
    );
    report.add(
        "P1-commands",
        "commands sent for one registration and its end",
        "",
        [commands, ones],
        Goal::None,
    );
    Ok(())
}
