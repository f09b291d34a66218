// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P2: making 64 MiB reachable for a job, by an existing registration and by copying through a
//! blob.

use std::time::Instant;

use virtgpu_client::{compute, BlobOptions, Bytes, Device, Exec, Memory, RegisterOptions};

use crate::memory::{make, Kind};
use crate::report::{Goal, Report, Sample};
use crate::setup::{open, since, wait, Result, MIB};
use crate::Options;

const SIZE: usize = 64 * MIB;

fn copy(to: &impl Memory, from: &impl Memory) {
    assert!(SIZE <= to.len() && SIZE <= from.len());
    // SAFETY: Both are mapped, at least this long and not the same; no job is running.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), SIZE) };
}

/// Time for a job on a buffer.
fn job(device: &Device, stream: &compute::Stream, handle: u32) -> Result<f64> {
    let start = Instant::now();
    wait(&Exec::new(stream.as_bytes()).buffers(&[handle]), device)?;
    Ok(since(start))
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let device = open()?;
    let memory = make(Kind::Thp, SIZE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let blob = device.create_blob(&BlobOptions::guest(SIZE as u64))?;
    let map = blob.map()?;
    map.fill(0);

    let mut nothing = compute::Stream::new();
    nothing.delay(0);
    let (mut in_place, mut add) = (compute::Stream::new(), compute::Stream::new());
    in_place.add_u32(userptr.at(0), SIZE as u64, 1);
    add.add_u32(blob.at(0), SIZE as u64, 1);

    let [mut reach, mut copies, mut whole, mut whole_copying] = [const { Sample(Vec::new()) }; 4];
    for run in 0..=options.runs {
        let direct = job(&device, &nothing, userptr.handle())?;
        let start = Instant::now();
        copy(&map, &memory);
        job(&device, &nothing, blob.handle())?;
        copy(&memory, &map);
        let copied = since(start);

        let direct_add = job(&device, &in_place, userptr.handle())?;
        let start = Instant::now();
        copy(&map, &memory);
        job(&device, &add, blob.handle())?;
        copy(&memory, &map);
        let copied_add = since(start);
        if run > 0 {
            reach.0.push(direct);
            copies.0.push(copied);
            whole.0.push(direct_add);
            whole_copying.0.push(copied_add);
        }
    }
    // The CPU and the device have added the same number of times: once a run, by each way.
    let expected = 0x0101_0101_u32.wrapping_add(2 * (options.runs as u32 + 1));
    if memory.read_u32(SIZE - 4) != expected {
        return Err("the jobs did not do what they should".into());
    }
    report.add_speedup(
        "P2-64MiB",
        "an empty job on 64 MiB: registered, against two copies through a guest blob",
        "ns",
        [reach, copies],
        Goal::AtLeast(10.0),
    );
    report.add_speedup(
        "P2-64MiB-add",
        "the same with ADD_U32 over all of it",
        "ns",
        [whole, whole_copying],
        Goal::None,
    );
    Ok(())
}
