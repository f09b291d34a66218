// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The host does not respond to the commands of one client, or with what is no response.

use std::time::{Duration, Instant};

use virtgpu_client::{BlobOptions, Errno, Exec, RegisterOptions, SyncStatus};

use super::{
    all_given_back, delay, init_neglected, neglected, newcomer_works, outlast, short_limit,
    status_in_time, Worker,
};
use crate::ktap::TestResult;
use crate::support::memory::small_pages;
use crate::support::{errno, procfs, Env, PAGE};
use crate::{check, check_eq, check_err};

/// Who waits for a response that does not come is told so in time, and no one else notices.
fn busy_in_time<T>(what: &str, call: impl FnOnce() -> virtgpu_client::Result<T>) -> TestResult {
    let start = Instant::now();
    let result = call().map(drop);
    check!(
        result == Err(Errno::BUSY),
        "{what} without response: {}",
        errno::describe(&result)
    );
    check!(
        start.elapsed() < Duration::from_secs(20),
        "{what} took {:?}",
        start.elapsed()
    );
    Ok(())
}

pub(super) fn commands_without_response(env: &Env) -> TestResult {
    short_limit(env)?;
    let device = neglected(env)?;
    let memory = small_pages(16 * PAGE)?;
    busy_in_time("REGISTER", || {
        device.register(&memory, RegisterOptions::pinned())
    })?;
    outlast(env, None)?;
    // Created without waiting; what it stands for is waited for.
    let blob = device.create_blob(&BlobOptions::host3d(4096, 1))?;
    let result = blob.map();
    check!(
        result.is_err(),
        "a blob is mapped that the host does not show"
    );
    outlast(env, None)?;
    drop(blob);
    drop(device);
    outlast(env, None)?;
    all_given_back(env)
}

pub(super) fn context_without_response(env: &Env) -> TestResult {
    short_limit(env)?;
    let worker = Worker::start(env)?;
    let device = env.open()?;
    busy_in_time("CONTEXT_INIT", || init_neglected(&device, 2))?;
    outlast(env, Some(&worker))?;
    worker.stop()?;
    outlast(env, None)?;
    drop(device);
    all_given_back(env)
}

pub(super) fn deviating_responses(env: &Env) -> TestResult {
    short_limit(env)?;
    let worker = Worker::start(env)?;
    let device = neglected(env)?;
    let memory = small_pages(16 * PAGE)?;
    check_err!(
        device
            .register(&memory, RegisterOptions::pinned())
            .map(drop),
        Errno::IO,
        "REGISTER with a response that is none"
    );
    let fence = Exec::new(delay(1).as_bytes()).submit_with_fence(&device)?;
    check_eq!(
        status_in_time(&fence)?,
        SyncStatus::Failed(Errno::IO),
        "a job with a response that is none"
    );
    worker.goes_on()?;
    newcomer_works(env)?;
    drop(device);
    check_eq!(procfs::vm_pin()?, 0, "VmPin");
    worker.goes_on()?;
    worker.stop()?;
    all_given_back(env)
}
