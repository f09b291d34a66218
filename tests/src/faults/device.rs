// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Files, contexts and the device itself.

use virtgpu_client::{BlobOptions, Device, Errno, RegisterOptions};

use super::{each_fault, nothing, FailNth};
use crate::ktap::TestResult;
use crate::probe::interrupts;
use crate::support::memory::small_pages;
use crate::support::{errno, gpu, job, Env, PAGE};
use crate::{check, check_eq};

pub(super) fn open_and_close(env: &Env) -> TestResult {
    let node = env.node().unwrap_or_default();
    each_fault("open", || Device::open_path(&node), nothing)
}

pub(super) fn getparam(env: &Env) -> TestResult {
    let device = env.open()?;
    each_fault("GETPARAM", || device.userptr_modes(), nothing)
}

pub(super) fn get_caps(env: &Env) -> TestResult {
    // Both a capability set that is asked for the first time and one that is known.
    for _ in 0..2 {
        let device = env.open()?;
        each_fault("GET_CAPS", || device.compute_caps(), nothing)?;
    }
    Ok(())
}

pub(super) fn context_init(env: &Env) -> TestResult {
    let mut device = env.open()?;
    let switch = FailNth::open()?;
    // A failed call must leave the file usable; each success needs a new one. So does a call of
    // which only the end failed: the DRM core copies the arguments back when the driver is done.
    let mut used = false;
    let mut untold = 0;
    for nth in 1..3000 {
        if used {
            device = env.open()?;
        }
        switch.arm(nth)?;
        let result = device.context_init_compute(2);
        let hit = switch.disarm();
        used = result.is_ok();
        if let Err(error) = result {
            check!(
                hit,
                "CONTEXT_INIT fails without a fault: {}",
                errno::name(error)
            );
            if error == Errno::FAULT {
                let again = device.context_init_compute(2);
                check!(
                    matches!(again, Ok(()) | Err(Errno::EXIST)),
                    "CONTEXT_INIT after fault {nth}: {}",
                    errno::describe(&again)
                );
                untold += u32::from(again.is_err());
                used = true;
            }
            check!(
                untold <= 4,
                "CONTEXT_INIT, fault {nth}: has an effect, and yet fails"
            );
        }
        if !hit {
            return Ok(());
        }
    }
    check!(false, "CONTEXT_INIT still meets faults");
    Ok(())
}

pub(super) fn implicit_context(env: &Env) -> TestResult {
    let node = env.node().unwrap_or_default();
    each_fault(
        "open and CREATE_BLOB",
        || {
            let device = Device::open_path(&node)?;
            device.create_blob(&BlobOptions::guest(4096)).map(drop)
        },
        nothing,
    )
}

/// A probe that fails leaves nothing: no queue, no interrupt, and the next one works. Binding takes
/// its time, so only some of its faults are tried, from the first to the last.
pub(super) fn probe(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    gpu.unbind()?;
    let switch = FailNth::open()?;
    const NEVER: u64 = 1_000_000;
    switch.arm(NEVER)?;
    gpu.bind()?;
    let faults = NEVER - switch.left()?;
    gpu.unbind()?;
    let tries = env.iterations(24);
    let mut failed = 0;
    for nth in (0..tries).map(|i| 1 + i * faults / tries) {
        switch.arm(nth)?;
        let error = gpu.bind_error();
        check!(switch.disarm(), "fault {nth} of {faults} has not happened");
        match error? {
            None => gpu.unbind()?,
            Some(error) => {
                failed += 1;
                let left = interrupts(&gpu)?;
                check_eq!(
                    left,
                    Vec::<String>::new(),
                    "interrupts after fault {nth} of {faults} ({})",
                    errno::name(error)
                );
            }
        }
    }
    println!("    # binding: {faults} faults, {tries} tried, {failed} failed it");
    check!(failed > 0, "no fault has failed a probe");
    gpu.bind()?;
    gpu::wait_for_node(env)?;
    let device = env.compute()?;
    let memory = small_pages(PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    job::add(&device, userptr.at(0), PAGE as u64, 1, userptr.handle())?;
    Ok(())
}
