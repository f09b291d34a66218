// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Linux's own driver on the reference device: that the device does what virtio-gpu says, and not
//! only what this project's driver expects. The family `basic` runs on it too.

use virtgpu_client::{compute, BlobOptions, Bytes};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::{job, Env, Random};
use crate::{cases, check_eq};

pub(crate) const FAMILY: Family = Family {
    name: "cdriver",
    kernel: Kernel::Any,
    driver: Driver::C,
    device: "",
    leak_check: true,
    cases: cases![compute_on_guest_blob, nothing_new],
};

/// CRC32C, SAXPY and GEMM on a guest blob.
fn compute_on_guest_blob(env: &Env) -> TestResult {
    let device = env.compute()?;
    let size = 4 << 20;
    let blob = device.create_blob(&BlobOptions::guest(size))?;
    let map = blob.map()?;
    let data = Random(1).bytes(size as usize);
    map.write(0, &data);
    let crc = job::crc(&device, blob.at(0), size, blob.handle())?;
    check_eq!(crc, compute::crc32c(0, &data), "CRC32C");

    let floats = |from: f32, count: usize| -> Vec<u8> {
        (0..count)
            .flat_map(|index| (from + index as f32).to_le_bytes())
            .collect()
    };
    map.write(0, &floats(1.0, 1024));
    map.write(4096, &floats(0.5, 1024));
    let mut stream = compute::Stream::new();
    stream.saxpy(blob.at(4096), blob.at(0), 4096, 2.0).gemm(
        blob.at(8192),
        [blob.at(0), blob.at(0)],
        [2, 2, 2],
    );
    job::run(&device, &stream, &[blob.handle()])?;
    for index in 0..1024 {
        let value = f32::from_bits(map.read_u32(4096 + 4 * index));
        let expected = 2.0 * (1.0 + index as f32) + (0.5 + index as f32);
        check_eq!(value, expected, "SAXPY element {index}");
    }
    let product: Vec<_> = (0..4)
        .map(|index| f32::from_bits(map.read_u32(8192 + 4 * index)))
        .collect();
    check_eq!(
        product,
        [7.0, 10.0, 15.0, 22.0],
        "GEMM of [1 2; 3 4] with itself"
    );
    Ok(())
}

/// A program can tell that this driver has no user memory.
fn nothing_new(env: &Env) -> TestResult {
    let device = env.open()?;
    check_eq!(device.userptr_modes()?, 0, "USERPTR_MODES");
    Ok(())
}
