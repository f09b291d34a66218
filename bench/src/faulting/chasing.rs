// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A list whose nodes are all over resident memory.

use std::time::Instant;

use virtgpu_client::{compute, pointer, Bytes, Exec, Memory, RegisterOptions, SpaceOptions};

use super::{revoke, shuffled, Svm};
use crate::memory::{make, Kind, Region};
use crate::report::{Goal, Report, Sample};
use crate::setup::{since, Result, MIB};
use crate::Options;

/// Bytes from one node to the next.
const NODE: usize = 256;
/// Where in a node the offset of the next one is; its address is in front of that.
const OFFSET: usize = 8;
/// What the driver's tables are made of, and looks at together.
const GRANULE: usize = 2 * MIB;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result {
    for (name, kind, mib) in [
        ("thp", Kind::Thp, 256),
        // What the device can map of single pages is limited by the mappings of its process.
        ("4k", Kind::Fragmented, 32),
    ] {
        one(options, report, name, make(kind, mib * MIB)?)?;
    }
    Ok(())
}

/// Makes all nodes one ring; returns their number.
fn link(memory: &Region) -> u64 {
    let order = shuffled(memory.len() / NODE);
    for (index, node) in order.iter().enumerate() {
        let next = order[(index + 1) % order.len()] * NODE;
        memory.write_u64(node * NODE, memory.as_ptr() as u64 + next as u64);
        memory.write_u64(node * NODE + OFFSET, (next + OFFSET) as u64);
    }
    order.len() as u64
}

fn one(options: &Options, report: &mut Report, name: &str, memory: Region) -> Result {
    let svm = Svm::open(1, SpaceOptions::new())?;
    let steps = link(&memory);
    let mut chase = compute::Stream::new();
    chase.pointer_chase(svm.sink(), pointer(memory.as_ptr()), steps);
    // SAFETY: As in `Svm::submit`.
    let device = unsafe { svm.space.device() };
    let pinned = device.register(&memory, RegisterOptions::pinned())?;
    let mut by_offset = compute::Stream::new();
    by_offset.pointer_chase(svm.sink(), pinned.at(OFFSET as u64), steps);

    let granules = (memory.len() / GRANULE) as f64;
    let [mut faults, mut warm, mut cold, mut fixed] = [const { Sample(Vec::new()) }; 4];
    for run in 0..=options.runs {
        revoke(&memory)?;
        let (first, count) = svm.faults(&chase)?;
        is_back(&svm, memory.as_ptr() as u64)?;
        let (again, more) = svm.faults(&chase)?;
        if more != 0 {
            return Err(format!("{more} faults on what is mapped").into());
        }
        let start = Instant::now();
        Exec::new(by_offset.as_bytes())
            .ring(0)
            .buffers(&[pinned.handle()])
            .submit(device)?;
        svm.finish(0)?;
        let by_offset = since(start);
        is_back(&svm, OFFSET as u64)?;
        if run > 0 {
            faults.0.push(count as f64 / granules);
            cold.0.push(first / steps as f64);
            warm.0.push(again / steps as f64);
            fixed.0.push(by_offset / steps as f64);
        }
    }
    let ones = Sample(vec![1.0; options.runs]);
    report.add(
        &format!("P9-chase-{name}-faults"),
        "faults per 2 MiB of a list of random nodes in resident memory",
        "",
        [faults, ones],
        Goal::AtMost(2.0),
    );
    report.add(
        &format!("P9-chase-{name}-warm"),
        "a step of that list, all of it mapped, against pinned memory",
        "ns",
        [warm.clone(), fixed],
        Goal::AtMost(1.05),
    );
    report.add(
        &format!("P9-chase-{name}-cold"),
        "a step with the faults, against one without",
        "ns",
        [cold, warm],
        Goal::None,
    );
    Ok(())
}

/// The ring of nodes is as long as it should be.
fn is_back(svm: &Svm, expected: u64) -> Result {
    match svm.sink.read_u64(0) {
        end if end == expected => Ok(()),
        end => Err(format!("a job ended at {end:#x}, not {expected:#x}").into()),
    }
}
