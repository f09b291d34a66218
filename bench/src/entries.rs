// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P6: memory entries sent to the device, against the fewest that the physical pages allow.

use virtgpu_client::{Device, RegisterOptions};

use crate::memory::{make, minimal_runs, Kind, Region};
use crate::report::{Goal, Report, Sample};
use crate::setup::{map_all, open, open_mirroring, Result, MIB};
use crate::Options;

/// Entries sent for all of the memory.
type Entries = fn(&Device, &Region) -> Result<u64>;

fn pinned(device: &Device, memory: &Region) -> Result<u64> {
    let userptr = device.register(memory, RegisterOptions::pinned())?;
    Ok(userptr.query()?.entries)
}

fn mirrored(device: &Device, memory: &Region) -> Result<u64> {
    let userptr = device.register(memory, RegisterOptions::mirrored())?;
    map_all(device, userptr.handle())?;
    let query = userptr.query()?;
    if query.invalidations != 0 {
        return Err("pages moved".into());
    }
    Ok(query.entries)
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let device = open()?;
    for (kind, mib) in [
        (Kind::Hugetlb, 64),
        (Kind::Thp, 256),
        (Kind::Fragmented, 256),
    ] {
        let id = format!("P6-{}", kind.name());
        one(options, report, &device, &id, (kind, mib), pinned)?;
    }
    let device = open_mirroring()?;
    for (kind, mib) in [
        (Kind::Hugetlb, 64),
        (Kind::Thp, 256),
        // What the device can map of single pages is limited by the mappings of its process.
        (Kind::Fragmented, 32),
    ] {
        let id = format!("P6-mirrored-{}", kind.name());
        one(options, report, &device, &id, (kind, mib), mirrored)?;
    }
    // The huge pages go back.
    std::fs::write("/proc/sys/vm/nr_hugepages", "0")?;
    Ok(())
}

fn one(
    options: &Options,
    report: &mut Report,
    device: &Device,
    id: &str,
    memory: (Kind, usize),
    entries: Entries,
) -> Result {
    let (kind, mib) = memory;
    let (mut sent, mut fewest) = (Sample::default(), Sample::default());
    for _ in 0..options.runs {
        let memory = make(kind, mib * MIB)?;
        sent.0.push(entries(device, &memory)? as f64 / mib as f64);
        fewest.0.push(minimal_runs(&memory)? as f64 / mib as f64);
    }
    let exact = sent.0 == fewest.0;
    report.add(
        id,
        if exact {
            "memory entries per MiB, against the fewest possible; equal in every run"
        } else {
            "memory entries per MiB, against the fewest possible; NOT equal in every run"
        },
        "1/MiB",
        [sent, fewest],
        Goal::AtMost(1.0),
    );
    Ok(())
}
