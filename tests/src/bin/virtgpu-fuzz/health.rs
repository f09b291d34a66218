// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What still has to work after a round.

use std::time::Duration;

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, BlobOptions, Bytes, Exec, Mapping, Memory, RegisterOptions};

use crate::ktap::TestResult;
use crate::support::{eventually, gpu, job, procfs, Env, PAGE};
use crate::{check, check_eq};

const SIZE: usize = 64 * PAGE;

/// A new file can run jobs on memory of each kind, with the right results.
pub(crate) fn works(env: &Env) -> TestResult {
    let device = env.compute()?;
    let modes = device.userptr_modes()?;
    let memory = Mapping::anonymous(SIZE)?;
    let blob = device.create_blob(&BlobOptions::guest(SIZE as u64))?;
    let map = blob.map()?;
    let mut sum = 0_u32;
    for (mode, options) in [
        (uapi::USERPTR_MODE_PINNED, RegisterOptions::pinned()),
        (uapi::USERPTR_MODE_MIRRORED, RegisterOptions::mirrored()),
    ] {
        if modes & mode == 0 {
            continue;
        }
        let userptr = device.register(&memory, options)?;
        let mut stream = compute::Stream::new();
        stream
            .add_u32(userptr.at(0), SIZE as u64, 7)
            .copy(blob.at(0), userptr.at(0), SIZE as u64);
        let fence = Exec::new(stream.as_bytes())
            .ring(1)
            .buffers(&[userptr.handle(), blob.handle()])
            .submit_with_fence(&device)?;
        fence.wait(Some(job::LIMIT))?;
        sum += 7;
        for at in [0, SIZE / 2, memory.len() - 4] {
            check_eq!(memory.read_u32(at), sum, "a word at {at} after a job");
            check_eq!(map.read_u32(at), sum, "its copy at {at}");
        }
        userptr.close()?;
    }
    Ok(())
}

/// With a device that misbehaves: all pins have been given back, and the driver can leave it and
/// come back.
pub(crate) fn recovers(env: &Env) -> TestResult {
    let mut pinned = Ok(-1);
    let none = eventually(gpu::LIMIT, || {
        pinned = procfs::pinned_pages();
        pinned == Ok(0)
    });
    check!(none, "{pinned:?} pages are pinned with all files closed");
    let gpu = gpu::find()?;
    gpu.unbind()?;
    // Probing may be disturbed, too, but not every time.
    let back = eventually(Duration::from_secs(120), || {
        gpu.bind().is_ok() && env.node().is_some()
    });
    check!(back, "the driver does not take the device any more");
    Ok(())
}
