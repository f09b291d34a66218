// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The first act: memory is pinned, and jobs compute on it.

use std::fs::File;
use std::time::Instant;

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::{
    compute, BlobOptions, Bytes, Device, Mapping, Memory, RegisterOptions, Registration, Result,
};

use crate::{datum, milliseconds, run, Malloc, Report, MIB, PAGE};

/// Rows and columns of the second matrix of GEMM.
const K: usize = 1024;
const N: usize = 16;
/// SAXPY's factor; exact in binary, so that no rounding mode can be at fault.
const A: f32 = 1.5;

/// Plays it with `length` bytes.
pub(crate) fn play(device: &Device, length: usize, report: &mut Report) -> Result<()> {
    let memory = Malloc::new(length);
    report.say(&format!("malloc: {} MiB, filling with f32", length / MIB));
    for index in 0..length / 4 {
        memory.write_u32(4 * index, datum(index).to_bits());
    }

    let start = Instant::now();
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let time = start.elapsed();
    let query = userptr.query()?;
    report.say(&format!(
        "registered: {} MiB, {} pages, {} wire entries, in {:.1} ms",
        query.size as usize / MIB,
        query.size as usize / PAGE,
        query.entries,
        milliseconds(time)
    ));
    let word = Malloc::new(PAGE);
    let result = device.register(&word, RegisterOptions::pinned())?;

    crc(device, &userptr, &memory, &result, &word, report)?;
    saxpy(device, &userptr, &memory, report)?;
    gemm(device, &userptr, &memory, report)?;
    drop(userptr);
    file(device, &result, &word, report)?;
    copying(device, &memory, report)
}

fn crc(
    device: &Device,
    userptr: &Registration<'_, &Malloc>,
    memory: &Malloc,
    result: &Registration<'_, &Malloc>,
    word: &Malloc,
    report: &mut Report,
) -> Result<()> {
    let mut job = compute::Stream::new();
    job.crc32c(result.at(0), userptr.at(0), memory.len() as u64);
    let time = run(device, &job, &[userptr.handle(), result.handle()])?;
    let mut crc = 0;
    let mut buffer = vec![0; MIB];
    for offset in (0..memory.len()).step_by(MIB) {
        memory.read(offset, &mut buffer);
        crc = compute::crc32c(crc, &buffer);
    }
    let right = word.read_u32(0) == crc;
    report.result(&format!("CRC32C of all of it: {crc:#010x}"), right, time);
    Ok(())
}

/// The upper half += A * the lower half.
fn saxpy(
    device: &Device,
    userptr: &Registration<'_, &Malloc>,
    memory: &Malloc,
    report: &mut Report,
) -> Result<()> {
    let half = memory.len() / 2;
    let mut job = compute::Stream::new();
    job.saxpy(userptr.at(half as u64), userptr.at(0), half as u64, A);
    let time = run(device, &job, &[userptr.handle()])?;
    let count = half / 4;
    let right = (0..count).all(|index| {
        let expected = A * datum(index) + datum(count + index);
        memory.read_u32(half + 4 * index) == expected.to_bits()
    });
    report.result(&format!("SAXPY of {count} f32"), right, time);
    Ok(())
}

/// The lower half is a tall matrix; the upper half starts with a small one and takes the product.
fn gemm(
    device: &Device,
    userptr: &Registration<'_, &Malloc>,
    memory: &Malloc,
    report: &mut Report,
) -> Result<()> {
    let half = memory.len() / 2;
    let rows = half / (4 * K);
    let small = half;
    let product = half + 4 * K * N;
    let mut job = compute::Stream::new();
    job.gemm(
        userptr.at(product as u64),
        [userptr.at(0), userptr.at(small as u64)],
        [rows as u32, N as u32, K as u32],
    );
    let time = run(device, &job, &[userptr.handle()])?;
    // All of it would take a CPU that is emulated too long: 64 rows, over the whole matrix.
    let value = |offset: usize| f32::from_bits(memory.read_u32(offset));
    let right = (0..64).all(|sample| {
        let row = sample * (rows - 1) / 63;
        (0..N).all(|column| {
            let mut sum = 0.0_f32;
            for k in 0..K {
                sum += datum(row * K + k) * value(small + 4 * (k * N + column));
            }
            value(product + 4 * (row * N + column)).to_bits() == sum.to_bits()
        })
    });
    let what = format!("GEMM f32 {rows}x{K} * {K}x{N} (64 rows compared)");
    report.result(&what, right, time);
    Ok(())
}

/// A file (this program), mapped privately and registered read-only.
fn file(
    device: &Device,
    result: &Registration<'_, &Malloc>,
    word: &Malloc,
    report: &mut Report,
) -> Result<()> {
    let io = |_| virtgpu_client::Errno::IO;
    let content = std::fs::read("/proc/self/exe").map_err(io)?;
    let file = File::open("/proc/self/exe").map_err(io)?;
    let length = content.len().next_multiple_of(PAGE);
    let mapping = Mapping::file(&file, 0, length, ProtFlags::READ, MapFlags::PRIVATE)?;
    let userptr = device.register(&mapping, RegisterOptions::pinned().read_only())?;
    let mut job = compute::Stream::new();
    job.crc32c(result.at(0), userptr.at(0), content.len() as u64);
    let time = run(device, &job, &[userptr.handle(), result.handle()])?;
    let right = word.read_u32(0) == compute::crc32c(0, &content);
    let what = format!(
        "CRC32C of a file mapped read-only, {} KiB",
        content.len() >> 10
    );
    report.result(&what, right, time);
    Ok(())
}

/// The same job on 64 MiB, in place, and through a guest blob with a copy to and from.
fn copying(device: &Device, memory: &Malloc, report: &mut Report) -> Result<()> {
    let length = memory.len().min(64 * MIB);
    let before = memory.to_vec(0, PAGE);

    let start = Instant::now();
    let userptr = device.register_range(memory, 0, length, RegisterOptions::pinned())?;
    let registered = start.elapsed();
    let mut job = compute::Stream::new();
    job.add_u32(userptr.at(0), length as u64, 1);
    let in_place = run(device, &job, &[userptr.handle()])?;
    let start = Instant::now();
    userptr.close()?;
    let closed = start.elapsed();

    let blob = device.create_blob(&BlobOptions::guest(length as u64))?;
    let map = blob.map()?;
    map.fill(0); // Its pages are there before the clock runs.
    let mut job = compute::Stream::new();
    job.add_u32(blob.at(0), length as u64, u32::MAX);
    let start = Instant::now();
    copy(&map, memory, length);
    let to = start.elapsed();
    let through_blob = run(device, &job, &[blob.handle()])?;
    let start = Instant::now();
    copy(memory, &map, length);
    let from = start.elapsed();

    let right = memory.to_vec(0, PAGE) == before;
    report.result(
        "64 MiB += 1 in place, then -= 1 through a copy",
        right,
        in_place,
    );
    let zero_copy = registered + closed;
    let copies = to + from;
    report.say(&format!(
        "  in place: register {:.1} ms, job {:.1} ms, unregister {:.1} ms",
        milliseconds(registered),
        milliseconds(in_place),
        milliseconds(closed)
    ));
    report.say(&format!(
        "  copying:  copy in {:.1} ms, job {:.1} ms, copy out {:.1} ms",
        milliseconds(to),
        milliseconds(through_blob),
        milliseconds(from)
    ));
    report.say(&format!(
        "  beside the job: {:.1} ms in place, {:.1} ms copying: {:.1} times less",
        milliseconds(zero_copy),
        milliseconds(copies),
        copies.as_secs_f64() / zero_copy.as_secs_f64()
    ));
    report.say("  (registered once, in-place use costs nothing from the second job on)");
    Ok(())
}

fn copy(to: &impl Memory, from: &impl Memory, length: usize) {
    assert!(length <= to.len() && length <= from.len());
    // SAFETY: Both are mapped, of this length, and not the same memory; no job is running.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), length) };
}
