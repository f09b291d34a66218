// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! One client's trouble is not another's: the host neglects the jobs or the commands of one client,
//! which is killed or waits; the others go on, and new ones come, without privileges.
//!
//! The driver's time limit is two seconds here, and every case goes on for several times that.

mod commands;
mod ended;
mod jobs;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{
    compute, Bytes, Device, Exec, Mapping, Memory, RegisterOptions, SyncFile, SyncStatus,
};

use crate::ktap::{Case, Driver, Family, Kernel, Outcome, TestResult};
use crate::support::child::{self, Child};
use crate::support::gpu::{self, wait_for_node};
use crate::support::memory::small_pages;
use crate::support::{eventually, procfs, Env, PAGE};
use crate::{cases, check, check_eq};

use self::commands::{commands_without_response, context_without_response, deviating_responses};
use self::ended::{
    fences_and_memory, fences_of_a_closed_file, silent_at_the_abandoned,
    waiting_behind_the_abandoned, waiting_behind_the_ended,
};
use self::jobs::{
    job_timeout, killed_alone, killed_beside_others, killed_with_slow_job, lost_at_once,
    ring_filled_by_the_dead, waiting_behind_another, waiting_behind_many, waiting_behind_the_lost,
};

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
        lost_at_once: 120,
        killed_with_slow_job: 120,
    ],
);

/// The host goes on with the jobs of a context that it has destroyed, and does not respond to them.
pub(crate) const ABANDONED: Family = family(
    "isolation_abandoned",
    "--adversary abandon --adversary-context silent",
    cases![
        killed_beside_others: 120,
        waiting_behind_the_abandoned: 120,
        silent_at_the_abandoned: 120,
    ],
);

/// The host neither runs the jobs of one client nor responds to them.
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

/// The host responds to no command about the resources of one client.
pub(crate) const SILENT_COMMANDS: Family = family(
    "isolation_silent_commands",
    "--adversary ignore --adversary-on RESOURCE_CREATE_BLOB --adversary-on RESOURCE_MAP_BLOB --adversary-on CTX_ATTACH_RESOURCE --adversary-context silent",
    cases![commands_without_response: 120],
);

/// The host does not respond when one client wants a context.
pub(crate) const SILENT_CONTEXT: Family = family(
    "isolation_silent_context",
    "--adversary ignore --adversary-on CTX_CREATE --adversary-context silent",
    cases![context_without_response: 120],
);

/// What the host sends to one client is no response.
pub(crate) const DEVIATING: Family = family(
    "isolation_deviating",
    "--adversary garbage-type:0x12ff --adversary-on RESOURCE_CREATE_BLOB --adversary-on SUBMIT_3D --adversary-context silent",
    cases![deviating_responses: 120],
);

/// Longer than anything here may take that does end.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// More than twice the driver's time limit.
pub(super) const LONG: Duration = Duration::from_secs(5);

/// The driver anew, with a time limit of two seconds.
pub(crate) fn short_limit(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000")
}

/// A file with a context that the host can tell from the others.
pub(crate) fn neglected(env: &Env) -> TestResult<Device> {
    let device = env.open()?;
    init_neglected(&device, 2)?;
    Ok(device)
}

/// Gives a file such a context.
pub(crate) fn init_neglected(device: &Device, rings: u32) -> virtgpu_client::Result<()> {
    use uapi::context_param::{CAPSET_ID, DEBUG_NAME, NUM_RINGS};
    let name = c"silent";
    let params = [
        (CAPSET_ID, u64::from(wire::CAPSET_ID)),
        (NUM_RINGS, u64::from(rings)),
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

pub(super) fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
}

/// A job's result is right.
pub(super) fn works(device: &Device) -> TestResult {
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
pub(super) struct Worker {
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
pub(super) fn outlast(env: &Env, worker: Option<&Worker>) -> TestResult {
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
pub(super) fn victim(env: &Env) -> TestResult<Child> {
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
pub(super) fn all_given_back(env: &Env) -> TestResult {
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

pub(super) fn status_in_time(fence: &SyncFile) -> TestResult<SyncStatus> {
    let mut status = Ok(SyncStatus::Active);
    eventually(LIMIT, || {
        status = fence.status();
        status != Ok(SyncStatus::Active)
    });
    Ok(status?)
}
