// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Transfers among jobs, and of blobs.

use virtgpu_client::{compute, BlobOptions, Exec, Region};

use super::image::cuboid;
use super::HALF_SECOND;
use crate::ktap::TestResult;
use crate::support::{Env, PAGE};
use crate::{check, check_eq};

/// A transfer comes after the jobs before it, and WAIT waits for it.
pub(crate) fn in_order(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(16, 16)?;
    device.wait(image.handle())?;
    let mut stream = compute::Stream::new();
    stream.delay(HALF_SECOND);
    let job = Exec::new(stream.as_bytes()).submit_with_fence(&device)?;
    device.transfer_to_host(image.handle(), &Region::picture(16, 16))?;
    check!(
        device.is_busy(image.handle())?,
        "busy while the job before it runs"
    );
    device.wait(image.handle())?;
    check_eq!(
        job.status()?,
        virtgpu_client::SyncStatus::Signalled,
        "the job before the transfer"
    );
    check!(!device.is_busy(image.handle())?, "idle after WAIT");
    Ok(())
}

pub(crate) fn closed_at_once(env: &Env) -> TestResult {
    let device = env.compute()?;
    for _ in 0..env.iterations(100) {
        let image = device.create_picture(64, 64)?;
        device.transfer_to_host(image.handle(), &Region::picture(64, 64))?;
        device.transfer_from_host(image.handle(), &Region::picture(64, 64))?;
    }
    // The same with the file.
    let other = env.compute()?;
    let image = other.create_picture(64, 64)?;
    other.transfer_from_host(image.handle(), &Region::picture(64, 64))?;
    image.into_handle();
    Ok(())
}

/// A blob with a host's object behind it takes transfers, with strides.
pub(super) fn of_both_kinds_of_memory(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::host3d_guest(4 * PAGE as u64, 1))?;
    let region = Region {
        region: cuboid([0; 3], [64, 1, 1]),
        stride: 128,
        layer_stride: 256,
        ..Default::default()
    };
    device.transfer_to_host(blob.handle(), &region)?;
    device.wait(blob.handle())?;
    device.transfer_from_host(blob.handle(), &region)?;
    device.wait(blob.handle())?;
    Ok(())
}
