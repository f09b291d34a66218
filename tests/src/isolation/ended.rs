// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The host neglects what it still has of a client that has ended, or of a context that it was
//! asked to destroy.

use std::os::fd::AsFd;

use virtgpu_client::protocol::uapi;
use virtgpu_client::{BlobOptions, Errno, Exec, RegisterOptions, SyncStatus};

use super::{
    all_given_back, delay, neglected, newcomer_works, outlast, short_limit, status_in_time, works,
    LIMIT,
};
use crate::ktap::TestResult;
use crate::support::gpu;
use crate::support::host::host;
use crate::support::memory::small_pages;
use crate::support::{eventually, procfs, Env, PAGE};
use crate::{check, check_eq};

/// The host goes on with the job of a closed file for longer than the time limit, and responds to
/// nothing meanwhile. It does so for half of the time in which the driver puts up with that, so
/// that the machine may stand still meanwhile.
pub(super) fn silent_at_the_abandoned(env: &Env) -> TestResult {
    /// Of eight times the limit.
    const SILENT_SECONDS: u64 = 12;

    gpu::reload(env, c"ack_timeout_ms=3000")?;
    let device = env.compute()?;
    let slow = neglected(env)?;
    let long = Exec::new(delay(10_000_000).as_bytes()).submit_with_fence(&slow)?;
    drop(slow);
    check_eq!(
        status_in_time(&long)?,
        SyncStatus::Failed(Errno::CANCELED),
        "a job whose context is gone"
    );
    host(&format!("pause {SILENT_SECONDS}"))?;
    let mut outcome = Ok(());
    let stopped = eventually(LIMIT, || {
        let newcomer = env.open();
        outcome = newcomer.map_or(Err(Errno::NODEV), |device| device.context_init_compute(4));
        outcome.is_err()
    });
    check!(stopped, "the host goes on");
    check_eq!(outcome, Err(Errno::BUSY), "a context of a silent host");
    // It is silent for longer than the time limit, and has yet to respond to what was sent to it
    // then.
    check!(
        eventually(LIMIT, || newcomer_works(env).is_ok()),
        "the device does not go on with the host"
    );
    works(&device)
}

/// The host forgets the job of a client, and that it is to destroy the context: who takes too long
/// behind it takes too long.
pub(super) fn waiting_behind_the_ended(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000 job_timeout_ms=1500")?;
    let forgotten = neglected(env)?;
    let never = Exec::new(delay(1).as_bytes()).submit_with_fence(&forgotten)?;
    check_eq!(
        status_in_time(&never)?,
        SyncStatus::Failed(Errno::CANCELED),
        "a job that the host has forgotten"
    );
    let slow = env.compute()?;
    let endless = Exec::new(delay(110_000_000).as_bytes()).submit_with_fence(&slow)?;
    check_eq!(
        status_in_time(&endless)?,
        SyncStatus::Failed(Errno::CANCELED),
        "a job that takes too long"
    );
    drop(slow);
    newcomer_works(env)
}

/// The host goes on with the job that has cost its context: whose job waits for that is not the
/// next to lose it.
pub(super) fn waiting_behind_the_abandoned(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000 job_timeout_ms=2000")?;
    let slow = neglected(env)?;
    let long = Exec::new(delay(10_000_000).as_bytes()).submit_with_fence(&slow)?;
    let waiting = env.compute()?;
    let behind = Exec::new(delay(1).as_bytes()).submit_with_fence(&waiting)?;
    check_eq!(
        status_in_time(&long)?,
        SyncStatus::Failed(Errno::CANCELED),
        "a job that takes too long"
    );
    behind.wait(Some(LIMIT))?;
    works(&waiting)?;
    drop(slow);
    newcomer_works(env)
}

/// The fences of abandoned jobs signal; what the jobs may reach stays pinned until the reset.
pub(super) fn fences_and_memory(env: &Env) -> TestResult {
    short_limit(env)?;
    let device = neglected(env)?;
    let memory = small_pages(16 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let handles = [userptr.handle()];
    let stream = delay(1);
    let exec = Exec::new(stream.as_bytes()).buffers(&handles);
    let fences = [
        exec.submit_with_fence(&device)?,
        exec.ring(1).submit_with_fence(&device)?,
    ];
    for fence in &fences {
        check_eq!(
            fence.status()?,
            SyncStatus::Active,
            "a job without response"
        );
    }
    drop(userptr);
    drop(device);
    for fence in &fences {
        check_eq!(
            status_in_time(fence)?,
            SyncStatus::Failed(Errno::CANCELED),
            "a job whose context is gone"
        );
    }
    outlast(env, None)?;
    check!(
        procfs::pinned_pages()? >= 16,
        "memory that a job may reach is not pinned any more"
    );
    all_given_back(env)
}

/// Who waits for a job of another client whose file is closed does so for a limited time, whether
/// or not the host says that it has destroyed the context. What the job may reach stays pinned.
pub(super) fn fences_of_a_closed_file(env: &Env) -> TestResult {
    short_limit(env)?;
    let device = neglected(env)?;
    let memory = small_pages(16 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let other = env.compute()?;
    let exported = device.prime_export(blob.handle())?;
    let imported = other.prime_import(exported.as_fd())?;
    let handles = [userptr.handle(), blob.handle()];
    let stream = delay(1);
    let exec = Exec::new(stream.as_bytes()).buffers(&handles);
    let fences = [
        exec.submit_with_fence(&device)?,
        exec.ring(1).submit_with_fence(&device)?,
    ];
    drop(blob);
    drop(userptr);
    drop(device);
    for fence in &fences {
        check_eq!(
            status_in_time(fence)?,
            SyncStatus::Failed(Errno::CANCELED),
            "a job whose file is closed"
        );
    }
    let idle = || other.wait_with(imported, uapi::WAIT_NOWAIT) == Ok(());
    check!(
        eventually(LIMIT, idle),
        "a buffer that such a job has used stays busy"
    );
    outlast(env, None)?;
    check!(
        procfs::pinned_pages()? >= 16,
        "memory that a job may reach is not pinned any more"
    );
    all_given_back(env)
}
