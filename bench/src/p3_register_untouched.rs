// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P3: what mirroring costs before anything is used, for much address space against little.

use std::time::Instant;

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::{compute, Bytes, Device, Exec, Mapping, Memory, RegisterOptions};

use crate::report::{Goal, Report, Sample};
use crate::setup::{open_mirroring, resident, since, wait, Result, Stats, PAGE};
use crate::Options;

const LARGE: usize = 64 << 30;
const SPARSE: RegisterOptions = RegisterOptions::mirrored().sparse();
const TIMES: usize = 100;

fn reserve(length: usize) -> Result<Mapping> {
    Ok(Mapping::anonymous_with(
        length,
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::PRIVATE | MapFlags::NORESERVE,
    )?)
}

/// Times of registering, and of closing.
fn cycle(device: &Device, memory: &Mapping) -> Result<[f64; 2]> {
    let start = Instant::now();
    let userptr = device.register(memory, SPARSE)?;
    let registered = since(start);
    let start = Instant::now();
    userptr.close()?;
    Ok([registered, since(start)])
}

/// That such a registration is of use: one page in the middle, read and written by a job.
fn check(device: &Device, memory: &Mapping) -> Result {
    let before = resident(memory)?;
    let userptr = device.register(memory, SPARSE)?;
    let offset = memory.len() / 2 / PAGE * PAGE;
    if userptr.prefetch(offset as u64, PAGE as u64)? != PAGE as u64 {
        return Err("a page could not be prefetched".into());
    }
    memory.write_u32(offset, 41);
    let mut job = compute::Stream::new();
    job.add_u32(userptr.at(offset as u64), 4, 1);
    let handles = [userptr.handle()];
    wait(&Exec::new(job.as_bytes()).buffers(&handles), device)?;
    if memory.read_u32(offset) != 42 {
        return Err("the job did not do what it should".into());
    }
    let grown = resident(memory)? - before;
    if grown != PAGE as u64 {
        return Err(format!("one page was used, {grown} bytes became resident").into());
    }
    Ok(())
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let device = open_mirroring()?;
    let stats = Stats::new(&device)?;
    let (large, small) = (reserve(LARGE)?, reserve(PAGE)?);
    let mut times: [[Sample; 2]; 2] = Default::default();
    let before = [resident(&large)?, resident(&small)?];
    for run in 0..=options.runs {
        let mut cycles: [[Sample; 2]; 2] = Default::default();
        let commands = stats.read(&device)?.commands;
        for _ in 0..TIMES {
            for (memory, [register, close]) in [&large, &small].into_iter().zip(&mut cycles) {
                let [registered, closed] = cycle(&device, memory)?;
                register.0.push(registered);
                close.0.push(closed);
            }
        }
        let sent = stats.read(&device)?.commands - commands;
        if sent < 2 * 2 * TIMES as u64 {
            return Err(format!("the device was told of {sent} commands only").into());
        }
        if run > 0 {
            for (all, new) in times.iter_mut().flatten().zip(cycles.iter().flatten()) {
                all.0.push(new.median());
            }
        }
    }
    let after = [resident(&large)?, resident(&small)?];
    if before != [0, 0] || after != before {
        return Err(format!("resident before: {before:?} bytes, after: {after:?}").into());
    }
    check(&device, &large)?;
    check(&device, &small)?;
    let [[large, large_close], [small, small_close]] = times;
    report.add(
        "P3-register",
        "mirrored registration of 64 GiB, against 4 KiB; nothing became resident",
        "ns",
        [large, small],
        Goal::AtMost(2.0),
    );
    report.add(
        "P3-close",
        "the end of it",
        "ns",
        [large_close, small_close],
        Goal::None,
    );
    Ok(())
}
