// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs, and the results a CPU would get.

use std::time::Duration;

use virtgpu_client::protocol::compute::Operand;
use virtgpu_client::{compute, Blob, BlobOptions, Bytes, Device, Errno, Exec};

use crate::ktap::TestResult;

/// Longer than any job of a test may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Runs a job to its end.
pub(crate) fn run(device: &Device, stream: &compute::Stream, handles: &[u32]) -> TestResult {
    let fence = Exec::new(stream.as_bytes())
        .buffers(handles)
        .submit_with_fence(device)?;
    fence.wait(Some(LIMIT))?;
    Ok(())
}

/// Memory that CPU and device see at the same time: of the guest, or of the host where the device
/// sees copies of the guest's.
pub(crate) fn shared_blob(device: &Device, size: usize) -> TestResult<Blob<'_>> {
    match device.create_blob(&BlobOptions::guest(size as u64)) {
        Err(Errno::OPNOTSUPP) => Ok(device.create_blob(&BlobOptions::host3d(size as u64, 1))?),
        other => Ok(other?),
    }
}

/// The device's CRC32C of `length` bytes at `source`.
pub(crate) fn crc(device: &Device, source: Operand, length: u64, handle: u32) -> TestResult<u32> {
    let blob = shared_blob(device, 4096)?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    stream.crc32c(blob.at(0), source, length);
    run(device, &stream, &[handle, blob.handle()])?;
    Ok(map.read_u32(0))
}

/// The device adds `value` to each u32 of a range.
pub(crate) fn add(
    device: &Device,
    at: Operand,
    length: u64,
    value: u32,
    handle: u32,
) -> TestResult {
    let mut stream = compute::Stream::new();
    stream.add_u32(at, length, value);
    run(device, &stream, &[handle])
}

/// The first u64 at `source`, as the device sees it.
pub(crate) fn peek(device: &Device, source: Operand, handle: u32) -> TestResult<u64> {
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    stream.copy(blob.at(0), source, 8);
    run(device, &stream, &[handle, blob.handle()])?;
    Ok(map.read_u64(0))
}

/// The device writes a u64.
pub(crate) fn poke(device: &Device, to: Operand, value: u64, handle: u32) -> TestResult {
    let mut stream = compute::Stream::new();
    stream.fill(to, 8, value);
    run(device, &stream, &[handle])
}
