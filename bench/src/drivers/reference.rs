// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! On the reference device: blobs, jobs that do nothing, fences.

use virtgpu_client::{compute, BlobOptions, Bytes, Device, Exec};

use super::calls;
use crate::meter::{Meter, Number};
use crate::setup::{nothing, wait, Result, PAGE};

pub(super) fn numbers(device: &Device, meter: &mut Meter) -> Result<Vec<Number>> {
    device.context_init_compute(2)?;
    let mut numbers = vec![
        meter.number("blob", "a guest blob created and closed", |meter| {
            blobs(device, meter)
        })?,
        meter.number(
            "execbuffer",
            "round trip of a job that does nothing",
            |meter| trips(device, meter),
        )?,
        meter.number(
            "fence",
            "from the job's last write to the return of poll",
            |meter| latency(device, meter),
        )?,
    ];
    if let Meter::Instructions(_) = meter {
        numbers.extend(calls::numbers(device, meter)?);
    }
    Ok(numbers)
}

fn blobs(device: &Device, meter: &mut Meter) -> Result<f64> {
    let nothing = nothing();
    let create = || {
        device.create_blob(&BlobOptions::guest(64 << 10))?;
        Ok(())
    };
    meter.median(10, |meter| {
        meter.batch(50, create, || wait(&Exec::new(nothing.as_bytes()), device))
    })
}

fn trips(device: &Device, meter: &mut Meter) -> Result<f64> {
    let nothing = nothing();
    meter.median(2000, |meter| {
        meter.trip(&Exec::new(nothing.as_bytes()), device)
    })
}

fn latency(device: &Device, meter: &mut Meter) -> Result<f64> {
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    // Long enough for the waiter to sleep.
    stream.delay(300).fill(blob.at(0), 8, 1);
    meter.median(300, |meter| {
        map.write_u64(0, 0);
        meter.woken(
            || map.read_u64(0) != 0,
            || Exec::new(stream.as_bytes()).submit_with_fence(device),
        )
    })
}
