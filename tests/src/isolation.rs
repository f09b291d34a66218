// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! One client's trouble is not another's: the host neglects the jobs or the commands of one client,
//! which is killed or waits; the others go on, and new ones come, without privileges.
//!
//! The driver's time limit is two seconds here, and every case goes on for several times that.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{
    compute, BlobOptions, Bytes, Device, Errno, Exec, Mapping, Memory, RegisterOptions, SyncFile,
    SyncStatus,
};

use crate::ktap::{Case, Driver, Family, Kernel, Outcome, TestResult};
use crate::support::child::{self, Child};
use crate::support::gpu::{self, wait_for_node};
use crate::support::host::host;
use crate::support::memory::small_pages;
use crate::support::{errno, eventually, procfs, Env, PAGE};
use crate::{cases, check, check_eq, check_err};

pub(crate) const fn family(
    name: &'static str,
    device: &'static str,
    cases: &'static [Case],
) -> Family {
    Family {
        name,
        kernel: Kernel::Any,
        driver: Driver::Ours,
        device,
        // What the host neglects stays until the device is reset, which each case looks at.
        leak_check: false,
        cases,
    }
}

/// The host runs its jobs, but some take longer than any time limit.
pub(crate) const SLOW_JOBS: Family = family(
    "isolation_slow_jobs",
    "",
    cases![
        waiting_behind_another: 120,
        waiting_behind_the_lost: 120,
        waiting_behind_many: 120,
        killed_with_slow_job: 120,
    ],
);

/// The host goes on with the jobs of a context that it has destroyed, and does not answer them.
pub(crate) const ABANDONED: Family = family(
    "isolation_abandoned",
    "--adversary abandon --adversary-context silent",
    cases![
        killed_beside_others: 120,
        waiting_behind_the_abandoned: 120,
        silent_at_the_abandoned: 120,
    ],
);

/// The host neither runs nor answers the jobs of one client.
pub(crate) const SILENT_JOBS: Family = family(
    "isolation_silent_jobs",
    "--adversary ignore --adversary-on SUBMIT_3D --adversary-context silent",
    cases![
        killed_beside_others: 120,
        killed_alone: 120,
        fences_and_memory: 120,
        ring_filled_by_the_dead: 200,
        job_timeout: 120,
    ],
);

/// Nor does it say that it has destroyed that client's context.
pub(crate) const SILENT_END: Family = family(
    "isolation_silent_end",
    "--adversary ignore --adversary-on SUBMIT_3D --adversary-on CTX_DESTROY --adversary-context silent",
    cases![fences_of_a_closed_file: 120, waiting_behind_the_ended: 200],
);

/// The host answers no command about the resources of one client.
pub(crate) const SILENT_COMMANDS: Family = family(
    "isolation_silent_commands",
    "--adversary ignore --adversary-on RESOURCE_CREATE_BLOB --adversary-on RESOURCE_MAP_BLOB --adversary-on CTX_ATTACH_RESOURCE --adversary-context silent",
    cases![unanswered_commands: 120],
);

/// The host does not answer when one client wants a context.
pub(crate) const SILENT_CONTEXT: Family = family(
    "isolation_silent_context",
    "--adversary ignore --adversary-on CTX_CREATE --adversary-context silent",
    cases![unanswered_context: 120],
);

/// What the host answers to one client is no answer.
pub(crate) const DEVIATING: Family = family(
    "isolation_deviating",
    "--adversary garbage-type:0x12ff --adversary-on RESOURCE_CREATE_BLOB --adversary-on SUBMIT_3D --adversary-context silent",
    cases![deviating_answers: 120],
);

/// Longer than anything here may take that does end.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// More than twice the driver's time limit.
const LONG: Duration = Duration::from_secs(5);

/// The driver anew, with a time limit of two seconds.
pub(crate) fn short_limit(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000")
}

/// A file with a context that the host can tell from the others.
pub(crate) fn neglected(env: &Env) -> TestResult<Device> {
    let device = env.open()?;
    init_neglected(&device)?;
    Ok(device)
}

fn init_neglected(device: &Device) -> virtgpu_client::Result<()> {
    use uapi::context_param::{CAPSET_ID, DEBUG_NAME, NUM_RINGS};
    let name = c"silent";
    let params = [
        (CAPSET_ID, u64::from(wire::CAPSET_ID)),
        (NUM_RINGS, 2),
        (DEBUG_NAME, name.as_ptr() as u64),
    ]
    .map(|(param, value)| uapi::ContextSetParam { param, value });
    // SAFETY: The name is a valid string.
    unsafe { device.context_init(&params) }
}

/// Memory that children share with their parent.
pub(crate) fn shared(length: usize) -> TestResult<Mapping> {
    let flags = MapFlags::SHARED;
    Ok(Mapping::anonymous_with(
        length,
        ProtFlags::READ | ProtFlags::WRITE,
        flags,
    )?)
}

fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
}

/// A job's result is right.
fn works(device: &Device) -> TestResult {
    let memory = small_pages(4 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let mut stream = compute::Stream::new();
    stream.add_u32(userptr.at(0), 4 * PAGE as u64, 3);
    Exec::new(stream.as_bytes())
        .ring(1)
        .buffers(&[userptr.handle()])
        .submit_with_fence(device)?
        .wait(Some(LIMIT))?;
    check_eq!(memory.read_u32(4 * PAGE - 4), 3, "a job's result");
    Ok(())
}

/// Somebody comes who was not there before.
pub(crate) fn newcomer_works(env: &Env) -> TestResult {
    works(&env.compute()?)
}

/// A process that runs job after job until it is told to stop.
struct Worker {
    child: Child,
    /// Rounds so far, and whether to stop.
    words: Mapping,
}

pub(crate) fn word(mapping: &Mapping, index: usize) -> &AtomicU64 {
    // SAFETY: The mapping is as long as a page, aligned, shared, and used in this way only.
    unsafe { AtomicU64::from_ptr(mapping.as_ptr().cast::<u64>().add(index)) }
}

impl Worker {
    fn start(env: &Env) -> TestResult<Self> {
        let words = shared(PAGE)?;
        let child = child::spawn(|| {
            child::drop_privileges()?;
            let device = env.compute()?;
            while word(&words, 1).load(Ordering::Acquire) == 0 {
                works(&device)?;
                word(&words, 0).fetch_add(1, Ordering::Release);
            }
            Ok(())
        })?;
        let this = Self { child, words };
        this.goes_on()?;
        Ok(this)
    }

    fn rounds(&self) -> u64 {
        word(&self.words, 0).load(Ordering::Acquire)
    }

    /// Waits for another round from its beginning.
    fn goes_on(&self) -> TestResult {
        let before = self.rounds();
        check!(
            eventually(LIMIT, || self.rounds() >= before + 2),
            "another client does not go on"
        );
        Ok(())
    }

    fn stop(self) -> TestResult {
        word(&self.words, 1).store(1, Ordering::Release);
        self.child.join()
    }
}

/// Whatever time limits there are have passed, and the device serves whoever comes.
fn outlast(env: &Env, worker: Option<&Worker>) -> TestResult {
    let start = Instant::now();
    while start.elapsed() < LONG {
        match worker {
            Some(worker) => worker.goes_on()?,
            // That nothing happens for some time is what is tried.
            None => std::thread::sleep(LONG.saturating_sub(start.elapsed())),
        }
    }
    newcomer_works(env)
}

/// A process without privileges whose jobs the host neglects; it waits to be killed.
fn victim(env: &Env) -> TestResult<Child> {
    let ready = shared(PAGE)?;
    let child = child::spawn(|| {
        child::drop_privileges()?;
        let device = neglected(env)?;
        let memory = small_pages(16 * PAGE)?;
        let userptr = device.register(&memory, RegisterOptions::pinned())?;
        let long = delay(60_000_000);
        for ring in [None, Some(0), Some(1), Some(1)] {
            let exec = Exec::new(long.as_bytes());
            let handles = [userptr.handle()];
            let exec = exec.buffers(&handles);
            match ring {
                Some(ring) => exec.ring(ring).submit(&device)?,
                None => exec.submit(&device)?,
            }
        }
        word(&ready, 0).store(1, Ordering::Release);
        loop {
            std::thread::park();
        }
    })?;
    let mut died = false;
    let submitted = eventually(LIMIT, || {
        died = child.is_finished().unwrap_or(true);
        died || word(&ready, 0).load(Ordering::Acquire) == 1
    });
    if died {
        child.join()?;
        return Err(Outcome::Fail("a client has ended by itself".into()));
    }
    check!(submitted, "a client cannot submit its jobs");
    Ok(child)
}

/// All that was kept for neglected jobs is given back with the device's reset.
fn all_given_back(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    gpu.unbind()?;
    let mut pinned = Ok(-1);
    let none = eventually(LIMIT, || {
        pinned = procfs::pinned_pages();
        pinned == Ok(0)
    });
    check!(none, "{pinned:?} pages are pinned after the reset");
    gpu.bind()?;
    wait_for_node(env)?;
    newcomer_works(env)
}

/// A job without a ring waits for another client's, for longer than the time limit, and its client
/// ends.
fn waiting_behind_another(env: &Env) -> TestResult {
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
fn waiting_behind_the_lost(env: &Env) -> TestResult {
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
fn waiting_behind_many(env: &Env) -> TestResult {
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

/// The host goes on with the job of a closed file for longer than the time limit, and answers nothing
/// meanwhile.
fn silent_at_the_abandoned(env: &Env) -> TestResult {
    short_limit(env)?;
    let device = env.compute()?;
    let slow = neglected(env)?;
    let long = Exec::new(delay(10_000_000).as_bytes()).submit_with_fence(&slow)?;
    drop(slow);
    check_eq!(
        status_in_time(&long)?,
        SyncStatus::Failed(Errno::CANCELED),
        "a job whose context is gone"
    );
    host(&format!("pause {}", 2 * LONG.as_secs()))?;
    let mut outcome = Ok(());
    let stopped = eventually(LIMIT, || {
        let newcomer = env.open();
        outcome = newcomer.map_or(Err(Errno::NODEV), |device| device.context_init_compute(4));
        outcome.is_err()
    });
    check!(stopped, "the host goes on");
    check_eq!(outcome, Err(Errno::BUSY), "a context of a silent host");
    // It is silent for longer than the time limit, and has yet to answer what was sent to it then.
    check!(
        eventually(LIMIT, || newcomer_works(env).is_ok()),
        "the device does not go on with the host"
    );
    works(&device)
}

/// The host forgets the job of a client, and that it is to destroy the context: who takes too long
/// behind it takes too long.
fn waiting_behind_the_ended(env: &Env) -> TestResult {
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

/// The host goes on with the job that has cost its context: whose job waits for that is not the next to
/// lose it.
fn waiting_behind_the_abandoned(env: &Env) -> TestResult {
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

fn killed_with_slow_job(env: &Env) -> TestResult {
    killed_beside_others(env)
}

fn killed_beside_others(env: &Env) -> TestResult {
    short_limit(env)?;
    let worker = Worker::start(env)?;
    let victim = victim(env)?;
    outlast(env, Some(&worker))?;
    victim.kill()?;
    outlast(env, Some(&worker))?;
    worker.stop()?;
    all_given_back(env)
}

/// Nobody else keeps the device answering.
fn killed_alone(env: &Env) -> TestResult {
    short_limit(env)?;
    victim(env)?.kill()?;
    outlast(env, None)?;
    all_given_back(env)
}

fn status_in_time(fence: &SyncFile) -> TestResult<SyncStatus> {
    let mut status = Ok(SyncStatus::Active);
    eventually(LIMIT, || {
        status = fence.status();
        status != Ok(SyncStatus::Active)
    });
    Ok(status?)
}

/// The fences of abandoned jobs signal; what the jobs may reach stays pinned until the reset.
fn fences_and_memory(env: &Env) -> TestResult {
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
        check_eq!(fence.status()?, SyncStatus::Active, "a job without answer");
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

/// Clients fill their parts of the ring with jobs that never end, and are killed. One that was there
/// before goes on; when too much is filled there are no new ones, until the reset.
fn ring_filled_by_the_dead(env: &Env) -> TestResult {
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
fn job_timeout(env: &Env) -> TestResult {
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

/// Who waits for a job of another client whose file is closed does so for a limited time, whether or
/// not the host says that it has destroyed the context. What the job may reach stays pinned.
fn fences_of_a_closed_file(env: &Env) -> TestResult {
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

/// Who waits for an answer that does not come is told so in time, and nobody else notices.
fn busy_in_time<T>(what: &str, call: impl FnOnce() -> virtgpu_client::Result<T>) -> TestResult {
    let start = Instant::now();
    let result = call().map(drop);
    check!(
        result == Err(Errno::BUSY),
        "{what} without answer: {}",
        errno::describe(&result)
    );
    check!(
        start.elapsed() < Duration::from_secs(20),
        "{what} took {:?}",
        start.elapsed()
    );
    Ok(())
}

fn unanswered_commands(env: &Env) -> TestResult {
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

fn unanswered_context(env: &Env) -> TestResult {
    short_limit(env)?;
    let worker = Worker::start(env)?;
    let device = env.open()?;
    busy_in_time("CONTEXT_INIT", || init_neglected(&device))?;
    outlast(env, Some(&worker))?;
    worker.stop()?;
    outlast(env, None)?;
    drop(device);
    all_given_back(env)
}

fn deviating_answers(env: &Env) -> TestResult {
    short_limit(env)?;
    let worker = Worker::start(env)?;
    let device = neglected(env)?;
    let memory = small_pages(16 * PAGE)?;
    check_err!(
        device
            .register(&memory, RegisterOptions::pinned())
            .map(drop),
        Errno::IO,
        "REGISTER with an answer that is none"
    );
    let fence = Exec::new(delay(1).as_bytes()).submit_with_fence(&device)?;
    check_eq!(
        status_in_time(&fence)?,
        SyncStatus::Failed(Errno::IO),
        "a job with an answer that is none"
    );
    worker.goes_on()?;
    newcomer_works(env)?;
    drop(device);
    check_eq!(procfs::vm_pin()?, 0, "VmPin");
    worker.goes_on()?;
    worker.stop()?;
    all_given_back(env)
}
