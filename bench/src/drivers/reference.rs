// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! On the reference device: blobs, jobs that do nothing, fences.

use virtgpu_client::{compute, BlobOptions, Bytes, Device, Exec};

use super::timing::{batch, median, timed, woken_after, Number};
use crate::setup::{nothing, wait, Result};

pub(super) fn numbers(device: &Device) -> Result<Vec<Number>> {
    device.context_init_compute(2)?;
    Ok(vec![
        Number {
            id: "P8-blob",
            what: "a guest blob created and closed",
            nanoseconds: blobs(device)?,
        },
        Number {
            id: "P8-execbuffer",
            what: "round trip of a job that does nothing",
            nanoseconds: trips(device)?,
        },
        Number {
            id: "P8-fence",
            what: "from the job's last write to the return of poll",
            nanoseconds: latency(device)?,
        },
    ])
}

fn blobs(device: &Device) -> Result<f64> {
    let nothing = nothing();
    let create = || {
        device.create_blob(&BlobOptions::guest(64 << 10))?;
        Ok(())
    };
    median(10, || {
        batch(50, create, || wait(&Exec::new(nothing.as_bytes()), device))
    })
}

fn trips(device: &Device) -> Result<f64> {
    let nothing = nothing();
    median(2000, || {
        timed(|| wait(&Exec::new(nothing.as_bytes()), device))
    })
}

fn latency(device: &Device) -> Result<f64> {
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    // Long enough for the waiter to sleep.
    stream.delay(300).fill(blob.at(0), 8, 1);
    median(300, || {
        map.write_u64(0, 0);
        woken_after(
            || map.read_u64(0) != 0,
            || wait(&Exec::new(stream.as_bytes()), device),
        )
    })
}
