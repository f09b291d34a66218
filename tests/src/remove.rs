// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The driver leaves the device: unbinding, removing the PCI device, unloading the module; with
//! files open, jobs in flight and threads waiting. Afterwards the device is bound again and works.

use std::fs;
use std::time::{Duration, Instant};

use virtgpu_client::{Bytes, Errno, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::gpu::{self, wait_for_node};
use crate::support::memory::small_pages;
use crate::support::victim::Victim;
use crate::support::{job, procfs, raced, Env, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "remove",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        unbind_idle,
        unbind_with_jobs: 180,
        closed_long_after_unbinding: 120,
        unbind_again_and_again: 300,
        unbind_while_registering: 300,
        pci_remove_and_rescan: 180,
        pci_remove_with_jobs: 180,
        pci_reset_with_jobs: 180,
        unload_refused_while_open,
        unload_and_load,
    ],
};

const LIMIT: Duration = Duration::from_secs(60);

/// The device works.
fn works(env: &Env) -> TestResult {
    wait_for_node(env)?;
    let device = env.compute()?;
    let memory = small_pages(4 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    job::add(&device, userptr.at(0), 4 * PAGE as u64, 1, userptr.handle())?;
    check_eq!(memory.read_u32(PAGE), 1, "a job's result");
    Ok(())
}

fn unbind_idle(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    gpu.unbind()?;
    check!(gpu::wait_for_no_node(env), "the render node goes away");
    gpu.bind()?;
    works(env)
}

fn unbind_with_jobs(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    let mut victim = Victim::new(env)?;
    gpu.unbind()?;
    victim.released(LIMIT)?;
    victim.gone()?;
    check!(env.node().is_none(), "the render node is gone");
    victim.close(LIMIT)?;
    gpu.bind()?;
    works(env)
}

/// What has waited for the last reference to a stopped device has nothing to wait for itself.
fn closed_long_after_unbinding(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    let device = env.compute()?;
    // Twice as long as the watchdog goes on looking at a device that has nothing to do.
    std::thread::sleep(Duration::from_secs(4));
    gpu.unbind()?;
    drop(device);
    // Whoever destroys a workqueue from one of its own works never ends.
    let start = Instant::now();
    let mut stuck = Vec::new();
    while start.elapsed() < Duration::from_secs(4) {
        stuck = procfs::tasks_in("destroy_workqueue")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    check!(stuck.is_empty(), "tasks destroy a workqueue: {stuck:?}");
    gpu.bind()?;
    works(env)
}

/// The device is bound again while the old file is still open.
fn unbind_again_and_again(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    let mut victims = Vec::new();
    for _ in 0..env.iterations(10) {
        let mut victim = Victim::new(env)?;
        gpu.unbind()?;
        victim.released(LIMIT)?;
        victims.push(victim);
        gpu.bind()?;
        works(env)?;
    }
    for victim in &victims {
        victim.gone()?;
    }
    for victim in victims {
        // Those that are still open keep their pages, if the driver does it so.
        let _ = victim.close(Duration::ZERO);
    }
    check!(
        crate::support::eventually(LIMIT, || procfs::vm_pin() == Ok(0)),
        "VmPin is 0 in the end"
    );
    Ok(())
}

/// Registrations race with the removal.
fn unbind_while_registering(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    let rounds = env.rounds(50);
    for _ in 0..rounds {
        let device = env.compute()?;
        let memory = small_pages(64 * PAGE)?;
        let started = std::sync::Barrier::new(5);
        let result = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        started.wait();
                        loop {
                            let result = device
                                .register(&memory, RegisterOptions::pinned())
                                .and_then(|userptr| {
                                    let mut stream = virtgpu_client::compute::Stream::new();
                                    stream.add_u32(userptr.at(0), 4096, 1);
                                    virtgpu_client::Exec::new(stream.as_bytes())
                                        .buffers(&[userptr.handle()])
                                        .submit(&device)
                                });
                            if let Err(error) = result {
                                return error;
                            }
                        }
                    })
                })
                .collect();
            started.wait();
            let result = gpu.unbind();
            for thread in threads {
                let error = thread.join().expect("no panic");
                check_eq!(error, virtgpu_client::Errno::NODEV, "how a thread ended");
            }
            result
        });
        result?;
        drop(device);
        gpu.bind()?;
        works(env)?;
    }
    raced("removals", rounds)
}

fn rescan(env: &Env) -> TestResult {
    fs::write("/sys/bus/pci/rescan", "1")?;
    works(env)
}

fn pci_remove_and_rescan(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    fs::write(gpu.pci.join("remove"), "1")?;
    check!(gpu::wait_for_no_node(env), "the render node goes away");
    rescan(env)
}

fn pci_remove_with_jobs(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    let mut victim = Victim::new(env)?;
    fs::write(gpu.pci.join("remove"), "1")?;
    victim.released(LIMIT)?;
    victim.gone()?;
    victim.close(LIMIT)?;
    rescan(env)
}

const MODULE: &str = "virtgpu_userptr";

/// Somebody resets the device under the driver: it is lost at once, and works when bound again.
fn pci_reset_with_jobs(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    let reset = gpu.pci.join("reset");
    if !reset.exists() {
        skip!("the device cannot be reset by its bus");
    }
    let mut victim = Victim::new(env)?;
    fs::write(reset, "1")?;
    victim.released(LIMIT)?;
    check_err!(
        env.open()?.context_init_compute(1),
        Errno::NODEV,
        "a new context"
    );
    victim.close(LIMIT)?;
    gpu.unbind()?;
    check!(gpu::wait_for_no_node(env), "the render node goes away");
    gpu.bind()?;
    works(env)
}

fn unload_refused_while_open(env: &Env) -> TestResult {
    let file = gpu::module_file()?;
    let device = env.open()?;
    let result = gpu::unload(MODULE);
    if result.is_ok() {
        gpu::load(&file)?;
    }
    check!(
        matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK)),
        "unloading with a file open: {result:?}"
    );
    drop(device);
    works(env)
}

fn unload_and_load(env: &Env) -> TestResult {
    let file = gpu::module_file()?;
    works(env)?;
    for _ in 0..env.iterations(5) {
        let mut result = Ok(());
        // The last reference goes with a worker.
        crate::support::eventually(LIMIT, || {
            result = gpu::unload(MODULE);
            result.is_ok()
        });
        result?;
        check!(env.node().is_none(), "the render node is gone");
        gpu::load(&file)?;
        works(env)?;
    }
    Ok(())
}
