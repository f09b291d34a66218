// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The driver meets a device that it cannot use: nothing of the attempt is left.

use std::fs;

use virtgpu_client::Errno;

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::gpu::{self, Gpu};
use crate::support::{eventually, Env};
use crate::{cases, check, check_eq};

/// The rings have room for the commands that are kept in reserve, and for nothing else.
pub(crate) const SMALL_RINGS: Family = Family {
    name: "small_rings",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "--queue-size 16",
    // There is no node to ask the device through.
    leak_check: false,
    cases: cases![refused_each_time],
};

/// Interrupts that are requested for queues of the device.
pub(crate) fn interrupts(gpu: &Gpu) -> TestResult<Vec<String>> {
    let prefix = format!("{}-", gpu.name);
    let all = fs::read_to_string("/proc/interrupts")?;
    let ours = all.lines().filter(|line| {
        line.split_whitespace()
            .any(|word| word.starts_with(&prefix) || word == gpu.name)
    });
    Ok(ours.map(str::to_owned).collect())
}

fn refused_each_time(_env: &Env) -> TestResult {
    let gpu = gpu::unbound("virtgpu_userptr")?;
    for attempt in 0..3 {
        let error = gpu.bind_error()?;
        check_eq!(error, Some(Errno::INVAL), "attempt {attempt}");
        check_eq!(
            interrupts(&gpu)?,
            Vec::<String>::new(),
            "interrupts after attempt {attempt}"
        );
    }
    let file = gpu::module_file()?;
    let mut result = Ok(());
    eventually(gpu::LIMIT, || {
        result = gpu::unload("virtgpu_userptr");
        result.is_ok()
    });
    result?;
    // It meets the device, and lives with that it cannot use it.
    gpu::load(&file)?;
    check!(
        gpu::unbound("virtgpu_userptr").is_ok(),
        "the device is still without driver"
    );
    Ok(())
}
