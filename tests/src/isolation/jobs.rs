// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The host neglects the jobs of one client, or takes long for them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtgpu_client::{BlobOptions, Errno, Exec, SyncFile, SyncStatus};

use super::{
    all_given_back, delay, neglected, newcomer_works, outlast, shared, short_limit, status_in_time,
    victim, word, works, Worker, LIMIT, LONG,
};
use crate::ktap::TestResult;
use crate::support::child;
use crate::support::gpu;
use crate::support::{eventually, Env, PAGE};
use crate::{check, check_eq, check_err};

/// A job without a ring waits for another client's, for longer than the time limit, and its client
/// ends.
pub(super) fn waiting_behind_another(env: &Env) -> TestResult {
    short_limit(env)?;
    let slow = env.compute()?;
    let worker = Worker::start(env)?;
    let running = Exec::new(delay(LONG.as_micros() as u64 + 3_000_000).as_bytes())
        .submit_with_fence(&slow)?;
    let waiting = env.compute()?;
    let behind = Exec::new(delay(1).as_bytes()).submit_with_fence(&waiting)?;
    drop(waiting);
    outlast(env, Some(&worker))?;
    running.wait(Some(LIMIT))?;
    check!(
        behind.wait(Some(LIMIT)) != Err(Errno::TIMEDOUT),
        "the fence of a job whose client has ended does not signal"
    );
    works(&slow)?;
    worker.stop()
}

/// A job without a ring waits for one that takes too long, of a client that keeps its file open.
pub(super) fn waiting_behind_the_lost(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000 job_timeout_ms=1500")?;
    let slow = env.compute()?;
    let endless = Exec::new(delay(60_000_000).as_bytes()).submit_with_fence(&slow)?;
    let waiting = env.compute()?;
    let start = Instant::now();
    let behind = Exec::new(delay(1).as_bytes()).submit_with_fence(&waiting)?;
    check_eq!(
        status_in_time(&endless)?,
        SyncStatus::Failed(Errno::CANCELED),
        "a job that takes too long"
    );
    behind.wait(Some(LIMIT))?;
    check!(
        start.elapsed() < Duration::from_secs(30),
        "the job behind it took {:?}",
        start.elapsed()
    );
    works(&waiting)?;
    // All that is left to do with it.
    check_err!(
        Exec::new(delay(1).as_bytes()).submit(&slow),
        Errno::IO,
        "a job of a lost context"
    );
    let blob = slow.create_blob(&BlobOptions::guest(PAGE as u64))?;
    drop(blob);
    drop(slow);
    works(&waiting)?;
    newcomer_works(env)
}

/// Every job takes less than the time limit, which is over when the last one begins.
pub(super) fn waiting_behind_many(env: &Env) -> TestResult {
    gpu::reload(env, c"job_timeout_ms=990")?;
    let stream = delay(100_000);
    let mut clients = Vec::new();
    for _ in 0..30 {
        clients.push(env.compute()?);
    }
    let start = Instant::now();
    let mut fences = Vec::new();
    for client in &clients {
        fences.push(Exec::new(stream.as_bytes()).submit_with_fence(client)?);
    }
    for (number, fence) in fences.iter().enumerate() {
        check_eq!(
            status_in_time(fence)?,
            SyncStatus::Signalled,
            "job {number} of 100 ms that waits behind others"
        );
    }
    check!(
        start.elapsed() > Duration::from_millis(2900),
        "the jobs did not wait for each other"
    );
    clients.iter().try_for_each(works)
}

/// One look of the driver at its jobs finds all that take too long: whoever opens contexts with
/// endless jobs does not keep another's from being found.
pub(super) fn lost_at_once(env: &Env) -> TestResult {
    const CLIENTS: u32 = 24;
    /// The time between two looks, as a quarter of it is.
    const LOOK: Duration = Duration::from_secs(1);

    gpu::reload(env, c"job_timeout_ms=4000")?;
    let stream = delay(60_000_000);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(env.compute()?);
    }
    let mut fences = Vec::new();
    for client in &clients {
        let exec = Exec::new(stream.as_bytes());
        fences.push(exec.ring(0).submit_with_fence(client)?);
    }
    let lost = |fence: &SyncFile| fence.status() == Ok(SyncStatus::Failed(Errno::CANCELED));
    check!(
        eventually(LIMIT, || fences.iter().any(lost)),
        "no job takes too long"
    );
    let first = Instant::now();
    check!(
        eventually(LIMIT, || fences.iter().all(lost)),
        "not all jobs take too long"
    );
    let took = first.elapsed();
    println!("    # all {CLIENTS} within {took:?}");
    // One at each look would take twice as long.
    check!(
        took < LOOK * CLIENTS / 2,
        "the contexts of {CLIENTS} jobs that took too long at the same time were lost within {took:?}"
    );
    drop(clients);
    newcomer_works(env)
}

pub(super) fn killed_with_slow_job(env: &Env) -> TestResult {
    killed_beside_others(env)
}

pub(super) fn killed_beside_others(env: &Env) -> TestResult {
    short_limit(env)?;
    let worker = Worker::start(env)?;
    let victim = victim(env)?;
    outlast(env, Some(&worker))?;
    victim.kill()?;
    outlast(env, Some(&worker))?;
    worker.stop()?;
    all_given_back(env)
}

/// No one else keeps the device responding.
pub(super) fn killed_alone(env: &Env) -> TestResult {
    short_limit(env)?;
    victim(env)?.kill()?;
    outlast(env, None)?;
    all_given_back(env)
}

/// Clients fill their parts of the ring with jobs that never end, and are killed. One that was
/// there before goes on; when too much is filled there are no new ones, until the reset.
pub(super) fn ring_filled_by_the_dead(env: &Env) -> TestResult {
    short_limit(env)?;
    let worker = Worker::start(env)?;
    let mut refused = false;
    for _ in 0..4 {
        let sent = shared(PAGE)?;
        let filler = child::spawn(|| {
            child::drop_privileges()?;
            let device = match neglected(env) {
                Ok(device) => device,
                Err(_) => {
                    // Which error the parent finds out.
                    word(&sent, 1).store(1, Ordering::Release);
                    return Ok(());
                }
            };
            let stream = delay(1);
            loop {
                Exec::new(stream.as_bytes()).ring(0).submit(&device)?;
                word(&sent, 0).fetch_add(1, Ordering::Release);
            }
        })?;
        let mut before = u64::MAX;
        let mut since = Instant::now();
        // It waits in EXECBUFFER for longer than the time limit.
        let full = eventually(LIMIT, || {
            let now = word(&sent, 0).load(Ordering::Acquire);
            if now != before {
                before = now;
                since = Instant::now();
            }
            word(&sent, 1).load(Ordering::Acquire) == 1
                || (now > 8 && since.elapsed() > Duration::from_secs(5))
        });
        check!(full, "the ring takes more and more");
        if word(&sent, 1).load(Ordering::Acquire) == 1 {
            filler.join()?;
            refused = true;
            break;
        }
        check!(!filler.is_finished()?, "EXECBUFFER does not wait for room");
        println!("    # {before} jobs");
        let start = Instant::now();
        filler.kill()?;
        check!(
            start.elapsed() < Duration::from_secs(20),
            "a client that waits for room is not killed in time"
        );
        worker.goes_on()?;
    }
    check!(
        refused,
        "contexts are made although the ring is full of the jobs of the dead"
    );
    check_err!(
        env.open()?.context_init_compute(1),
        Errno::BUSY,
        "a new context"
    );
    worker.goes_on()?;
    worker.stop()?;
    all_given_back(env)
}

/// With a time limit for jobs it is the context that is lost.
pub(super) fn job_timeout(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000 job_timeout_ms=1500")?;
    let worker = Worker::start(env)?;
    let device = neglected(env)?;
    let stream = delay(1);
    let exec = Exec::new(stream.as_bytes());
    for fence in [
        exec.submit_with_fence(&device)?,
        exec.ring(1).submit_with_fence(&device)?,
    ] {
        check_eq!(
            status_in_time(&fence)?,
            SyncStatus::Failed(Errno::CANCELED),
            "a job that takes too long"
        );
    }
    check_err!(exec.submit(&device), Errno::IO, "a job of a lost context");
    outlast(env, Some(&worker))?;
    drop(device);
    worker.stop()?;
    all_given_back(env)
}
