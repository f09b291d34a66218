// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Single ioctls on the reference device, from entry to exit, each when the device has responded
//! what came before it. Only instructions are worth it: as times they are too short.

use virtgpu_client::{BlobOptions, Device, Exec};

use crate::meter::{linger, Meter, Number};
use crate::setup::{nothing, Result};

const TIMES: u32 = 15;
const SIZE: u64 = 64 << 10;

pub(super) fn numbers(device: &Device, meter: &mut Meter) -> Result<Vec<Number>> {
    Ok(vec![
        meter.number(
            "ioctl-create-blob",
            "RESOURCE_CREATE_BLOB of 64 KiB",
            |meter| create(device, meter),
        )?,
        meter.number("ioctl-close", "GEM_CLOSE of it", |meter| {
            close(device, meter)
        })?,
        meter.number(
            "ioctl-execbuffer",
            "EXECBUFFER of a job that does nothing and lists a blob",
            |meter| submit(device, meter),
        )?,
        meter.number(
            "ioctl-execbuffer-fence",
            "EXECBUFFER of one that lists nothing, with a file for its fence",
            |meter| submit_with_fence(device, meter),
        )?,
        meter.number("ioctl-wait", "WAIT for a blob that is idle", |meter| {
            let blob = device.create_blob(&BlobOptions::guest(SIZE))?;
            linger(|| true);
            meter.median(TIMES, |meter| meter.one(|| Ok(device.wait(blob.handle())?)))
        })?,
    ])
}

fn create(device: &Device, meter: &mut Meter) -> Result<f64> {
    meter.median(TIMES, |meter| {
        linger(|| true);
        let mut blob = None;
        meter.one(|| {
            blob = Some(device.create_blob(&BlobOptions::guest(SIZE))?);
            Ok(())
        })
    })
}

fn close(device: &Device, meter: &mut Meter) -> Result<f64> {
    meter.median(TIMES, |meter| {
        let blob = device.create_blob(&BlobOptions::guest(SIZE))?;
        linger(|| true);
        meter.one(|| {
            drop(blob);
            Ok(())
        })
    })
}

fn submit(device: &Device, meter: &mut Meter) -> Result<f64> {
    let nothing = nothing();
    let blob = device.create_blob(&BlobOptions::guest(SIZE))?;
    let handles = [blob.handle()];
    let exec = Exec::new(nothing.as_bytes()).buffers(&handles);
    meter.median(TIMES, |meter| {
        linger(|| true);
        meter.one(|| Ok(exec.submit(device)?))
    })
}

fn submit_with_fence(device: &Device, meter: &mut Meter) -> Result<f64> {
    let nothing = nothing();
    let exec = Exec::new(nothing.as_bytes());
    meter.median(TIMES, |meter| {
        linger(|| true);
        let mut fence = None;
        meter.one(|| {
            fence = Some(exec.submit_with_fence(device)?);
            Ok(())
        })
    })
}
