// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The device leaves the driver: it is unplugged, or its process dies. Needs the host's help, which
//! is asked for by lines on standard output.

use std::time::Duration;

use virtgpu_client::{Bytes, Errno, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::gpu::{wait_for_no_node, wait_for_node};
use crate::support::host::host;
use crate::support::memory::small_pages;
use crate::support::victim::Victim;
use crate::support::{errno, eventually, job, procfs, Env, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = Family {
    name: "unplug",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    // A device plugged in anew has counts of its own.
    leak_check: false,
    cases: cases![
        unplugged_idle: 240,
        unplugged_with_jobs: 240,
        device_process_dies: 400,
        device_process_dies_with_jobs: 400,
    ],
};

const LIMIT: Duration = Duration::from_secs(90);

fn works(env: &Env) -> TestResult {
    wait_for_node(env)?;
    let device = env.compute()?;
    let memory = small_pages(4 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    job::add(&device, userptr.at(0), 4 * PAGE as u64, 1, userptr.handle())?;
    check_eq!(memory.read_u32(PAGE), 1, "a job's result");
    Ok(())
}

/// Plugs in again what a case that failed has left unplugged or broken.
fn plugged(env: &Env) -> TestResult {
    if env.node().is_some() {
        if works(env).is_ok() {
            return Ok(());
        }
        unplug(env)?;
    }
    plug(env)
}

fn unplug(env: &Env) -> TestResult {
    host("device_del")?;
    check!(wait_for_no_node(env), "the render node goes away");
    Ok(())
}

fn plug(env: &Env) -> TestResult {
    host("device_add")?;
    works(env)
}

fn unplugged_idle(env: &Env) -> TestResult {
    plugged(env)?;
    unplug(env)?;
    plug(env)
}

fn unplugged_with_jobs(env: &Env) -> TestResult {
    plugged(env)?;
    let mut victim = Victim::new(env)?;
    unplug(env)?;
    victim.released(LIMIT)?;
    victim.gone()?;
    victim.close(LIMIT)?;
    plug(env)
}

/// No one responds any more, and no job can be the reason: the device is lost, and nothing stays
/// pinned.
fn device_process_dies(env: &Env) -> TestResult {
    plugged(env)?;
    let device = env.compute()?;
    let memory = small_pages(4 * PAGE)?;
    let registers =
        || -> Result<(), Errno> { device.register(&memory, RegisterOptions::pinned())?.close() };
    registers()?;
    host("kill")?;
    // The host acts a moment later; from then on, an ioctl that needs a response is what notices.
    let mut last = Ok(());
    let lost = eventually(LIMIT, || {
        last = registers();
        last == Err(Errno::NODEV)
    });
    check!(
        lost,
        "REGISTER on a device without process: {}",
        errno::describe(&last)
    );
    let pinned = eventually(LIMIT, || procfs::vm_pin() == Ok(0));
    check!(pinned, "VmPin is {:?}", procfs::vm_pin());
    drop(device);
    unplug(env)?;
    plug(env)
}

/// Jobs may be the reason that no one responds: whoever waits is told so in time, and all is given
/// back when the device is unplugged.
fn device_process_dies_with_jobs(env: &Env) -> TestResult {
    plugged(env)?;
    let mut victim = Victim::new(env)?;
    host("kill")?;
    let refused = eventually(LIMIT, || victim.registers().is_err());
    check!(refused, "a device without process still responds");
    unplug(env)?;
    victim.released_late(LIMIT)?;
    victim.gone()?;
    victim.close(LIMIT)?;
    plug(env)
}
