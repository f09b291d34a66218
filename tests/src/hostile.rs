// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that misbehaves, one way for each family: short, oversized and garbage responses,
//! buffers that come back twice or are none, wrong fences, silence, the end of the process, lies
//! about capability sets. Whatever it does, every ioctl ends in time with success or an error,
//! every fence signals, and nothing stays pinned; a device that was lost stays lost.

use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{
    compute, BlobOptions, Bytes, Device, Errno, Exec, Memory, RegisterOptions, SyncFile,
};

use crate::ktap::{Case, Driver, Family, Kernel, TestResult};
use crate::support::gpu::{self, Gpu};
use crate::support::memory::small_pages;
use crate::support::{errno, eventually, procfs, Env, PAGE};
use crate::{cases, check, check_eq, skip};

const fn family(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        name,
        kernel: Kernel::Any,
        driver: Driver::Ours,
        device,
        // The device cannot be asked.
        leak_check: false,
        cases,
    }
}

/// After this the driver may do what it likes, as long as it does not hang.
const ANY: &[Case] = cases![bounded: 400, many_threads: 400, given_back: 200, unbinds: 300];
/// The driver has to mark such a device lost.
const LOST: &[Case] =
    cases![bounded: 400, is_lost: 400, many_threads: 400, given_back: 200, unbinds: 300];
/// What never has a response is kept, but no one waits for it for long, until the device is reset.
const SILENT: &[Case] = cases![patient: 400, unbinds: 300, given_back: 200];
/// The same, and jobs have no time limit unless the module is told one: their fences signal at the
/// latest when the file was closed.
const SILENT_JOBS: &[Case] = cases![
    patient_until_closed: 400,
    job_limit: 400,
    unbinds: 300,
    given_back: 200,
];
/// The driver has to live with it.
const WORKS: &[Case] = cases![still_works: 400, many_threads: 400, given_back: 200, unbinds: 300];
/// The driver may refuse such a device when it meets it.
const PROBE: &[Case] = cases![probed: 200, given_back: 200];

/// The commands before: those of probing, and enough for a context and some jobs.
pub(crate) const FAMILIES: &[Family] = &[
    family(
        "hostile_short",
        "--adversary short --adversary-from 30 --adversary-every 3",
        ANY,
    ),
    family(
        "hostile_short_create",
        "--adversary short:0 --adversary-on RESOURCE_CREATE_BLOB",
        ANY,
    ),
    family(
        "hostile_oversized",
        "--adversary oversized --adversary-from 30 --adversary-every 3",
        ANY,
    ),
    family(
        "hostile_garbage_type",
        "--adversary garbage-type --adversary-from 30 --adversary-every 3",
        ANY,
    ),
    family(
        "hostile_garbage",
        "--adversary garbage --adversary-from 30 --adversary-every 3",
        ANY,
    ),
    family(
        "hostile_duplicate",
        "--adversary duplicate --adversary-from 30 --adversary-every 3",
        ANY,
    ),
    family(
        "hostile_unknown_head",
        "--adversary unknown-head --adversary-from 30",
        LOST,
    ),
    family(
        "hostile_wrong_fence",
        "--adversary wrong-fence --adversary-from 30 --adversary-on SUBMIT_3D",
        ANY,
    ),
    family(
        "hostile_no_fence",
        "--adversary no-fence --adversary-from 30 --adversary-on SUBMIT_3D",
        ANY,
    ),
    family(
        "hostile_silence",
        "--adversary silence --adversary-from 30",
        SILENT,
    ),
    family(
        "hostile_silent_create",
        "--adversary silence --adversary-on RESOURCE_CREATE_BLOB",
        SILENT,
    ),
    family(
        "hostile_silent_unref",
        "--adversary silence --adversary-on RESOURCE_UNREF --adversary-from 10",
        SILENT,
    ),
    family(
        "hostile_silent_job",
        "--adversary silence --adversary-on SUBMIT_3D --adversary-from 10",
        SILENT_JOBS,
    ),
    family(
        "hostile_delay",
        "--adversary delay:200 --adversary-from 30 --adversary-every 5",
        WORKS,
    ),
    family(
        "hostile_exit",
        "--adversary exit --adversary-from 40",
        SILENT,
    ),
    family(
        "hostile_refuse",
        "--adversary refuse --adversary-every 2",
        ANY,
    ),
    family(
        "hostile_refuse_context",
        "--adversary refuse --adversary-on CTX_CREATE",
        ANY,
    ),
    family("hostile_map_info", "--adversary map-info", ANY),
    family("hostile_capset_size", "--adversary capset-size", PROBE),
    family(
        "hostile_capset_duplicate",
        "--adversary capset-duplicate",
        PROBE,
    ),
    family("hostile_capset_count", "--adversary capset-count", PROBE),
];

/// The module's parameters for these families: they mostly wait for what does not come.
pub(crate) const PARAMETERS: &str = "ack_timeout_ms=2000";

/// No ioctl may take longer, whatever the device does.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Jobs of a session, and the pages that each adds 1 to.
const JOBS: u32 = 3;
const PAGES: usize = 32;

/// An ioctl that has ended, and how.
struct Step {
    what: &'static str,
    result: Result<(), Errno>,
    time: Duration,
}

/// What was done on a device that misbehaves.
#[derive(Default)]
pub(crate) struct Steps(Vec<Step>);

impl Steps {
    /// Does a step, and notes how it ended and how long it took.
    pub(crate) fn take<T>(
        &mut self,
        what: &'static str,
        step: impl FnOnce() -> Result<T, Errno>,
    ) -> Option<T> {
        let start = Instant::now();
        let result = step();
        let time = start.elapsed();
        let (value, result) = match result {
            Ok(value) => (Some(value), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.0.push(Step { what, result, time });
        value
    }

    /// No step may take too long, or end in a way that makes a library repeat it for ever.
    pub(crate) fn validate(&self) -> TestResult {
        for Step { what, result, time } in &self.0 {
            check!(*time < LIMIT, "{what} took {time:?}");
            check!(
                !matches!(result, Err(Errno::AGAIN | Errno::TIMEDOUT)),
                "{what}: {}",
                errno::describe(result)
            );
        }
        Ok(())
    }

    /// Prints the steps that failed or were slow.
    pub(crate) fn say(&self) {
        let mut text = String::new();
        for Step { what, result, time } in &self.0 {
            if result.is_err() || *time > Duration::from_secs(1) {
                text += &format!(
                    " {what}: {} after {:.1} s;",
                    errno::describe(result),
                    time.as_secs_f32()
                );
            }
        }
        println!("    #{text}");
    }
}

/// Whether, and when, the fences of jobs signal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Jobs {
    /// As long as the file is open.
    End,
    /// When the file is closed.
    EndOnClose,
    /// When the device is reset.
    EndOnReset,
}

/// One of everything on one file, which is closed at the end.
fn session(env: &Env, steps: &mut Steps, jobs: Jobs) -> TestResult {
    let device = env.open()?;
    let fences = use_all(&device, steps, jobs == Jobs::End);
    steps.take("close", || {
        drop(device);
        Ok(())
    });
    for fence in fences? {
        if jobs == Jobs::EndOnReset {
            break;
        }
        check!(
            fence.wait(Some(LIMIT)) != Err(Errno::TIMEDOUT),
            "a fence has not signalled after its file was closed"
        );
    }
    Ok(())
}

fn use_all(device: &Device, steps: &mut Steps, jobs_end: bool) -> TestResult<Vec<SyncFile>> {
    let mut caps = [0; 24];
    steps.take("GET_CAPS", || device.caps(29, 1, &mut caps));
    steps.take("CONTEXT_INIT", || device.context_init_compute(2));
    let blob = steps.take("CREATE_BLOB", || {
        device.create_blob(&BlobOptions::guest(8192))
    });
    if let Some(blob) = &blob {
        if let Some(map) = steps.take("mmap", || blob.map()) {
            map.write_u64(0, 1);
        }
    }
    let host = steps.take("CREATE_BLOB of the host", || {
        device.create_blob(&BlobOptions::host3d(4096, 1))
    });
    if let Some(host) = &host {
        if let Some(map) = steps.take("mmap of the host's", || host.map()) {
            map.read_u64(0);
        }
    }
    let memory = small_pages(PAGES * PAGE)?;
    let userptr = steps.take("REGISTER", || {
        device.register(&memory, RegisterOptions::pinned())
    });
    let mut stream = compute::Stream::new();
    let mut handles = Vec::new();
    if let Some(userptr) = &userptr {
        stream.add_u32(userptr.at(0), memory.len() as u64, 1);
        handles.push(userptr.handle());
    }
    stream.delay(1000);
    let exec = Exec::new(stream.as_bytes()).ring(1).buffers(&handles);
    let fences: Vec<_> = (0..JOBS)
        .filter_map(|_| steps.take("EXECBUFFER", || exec.submit_with_fence(device)))
        .collect();
    if jobs_end {
        let mut done = 0;
        for fence in &fences {
            // A fence's own error is as good as success; that it takes too long is not.
            let result = fence.wait(Some(LIMIT));
            check!(result != Err(Errno::TIMEDOUT), "a fence has not signalled");
            done += u32::from(result.is_ok());
        }
        // But success means that the job has done all of it. The others may have, too.
        let pages = if userptr.is_some() { PAGES } else { 0 };
        for page in (0..pages).map(|page| page * PAGE) {
            let sum = memory.read_u32(page);
            check!(
                (done..=JOBS).contains(&sum),
                "{done} of {JOBS} jobs have succeeded, but {sum} have added to page {page:#x}"
            );
        }
    }
    if let Some(userptr) = userptr {
        steps.take("WAIT", || device.wait(userptr.handle()));
        steps.take("BO_QUERY", || userptr.query());
        steps.take("GEM_CLOSE", || userptr.close());
    }
    if let Some(blob) = blob {
        steps.take("WAIT for a blob", || device.wait(blob.handle()));
    }
    Ok(fences)
}

fn unpinned() -> TestResult {
    check!(
        eventually(LIMIT, || procfs::vm_pin() == Ok(0)),
        "VmPin is {:?} with all files closed",
        procfs::vm_pin()
    );
    Ok(())
}

fn one_after_the_other(env: &Env, jobs: Jobs) -> TestResult {
    for _ in 0..6 {
        let mut steps = Steps::default();
        let result = session(env, &mut steps, jobs);
        steps.say();
        result?;
        steps.validate()?;
    }
    Ok(())
}

fn bounded(env: &Env) -> TestResult {
    one_after_the_other(env, Jobs::End)?;
    unpinned()
}

fn many_threads(env: &Env) -> TestResult {
    side_by_side(env, Jobs::End)?;
    unpinned()
}

fn all_with(env: &Env, jobs: Jobs) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000")?;
    one_after_the_other(env, jobs)?;
    side_by_side(env, jobs)
}

/// Every ioctl ends in time, although the device may not respond, and some jobs never do.
fn patient(env: &Env) -> TestResult {
    all_with(env, Jobs::EndOnReset)
}

fn patient_until_closed(env: &Env) -> TestResult {
    all_with(env, Jobs::EndOnClose)
}

/// With a limit for jobs, their fences signal with the file open.
fn job_limit(env: &Env) -> TestResult {
    gpu::reload(env, c"job_timeout_ms=2000 ack_timeout_ms=3000")?;
    one_after_the_other(env, Jobs::End)
}

fn side_by_side(env: &Env, jobs: Jobs) -> TestResult {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..3 {
                        let mut steps = Steps::default();
                        session(env, &mut steps, jobs)?;
                        steps.validate()?;
                    }
                    Ok(())
                })
            })
            .collect();
        let mut result: TestResult = Ok(());
        for thread in threads {
            result = result.and(thread.join().expect("no panic"));
        }
        result
    })
}

/// What needs the device on a file of its own.
fn needs_device(device: &Device) -> [(&'static str, Result<(), Errno>); 2] {
    let mut stream = compute::Stream::new();
    stream.delay(1);
    [
        (
            "CREATE_BLOB",
            device.create_blob(&BlobOptions::guest(4096)).map(drop),
        ),
        ("EXECBUFFER", Exec::new(stream.as_bytes()).submit(device)),
    ]
}

/// The device is lost: nothing is tried any more.
fn is_lost(env: &Env) -> TestResult {
    // Whoever waits for the device notices first.
    let mut steps = Steps::default();
    session(env, &mut steps, Jobs::EndOnClose)?;
    let device = env.open()?;
    let lost = eventually(LIMIT, || {
        needs_device(&device)
            .iter()
            .all(|(_, result)| matches!(result, Err(Errno::NODEV | Errno::IO)))
    });
    if !lost {
        for (what, result) in needs_device(&device) {
            check!(
                matches!(result, Err(Errno::NODEV | Errno::IO)),
                "{what} on a device that does not respond: {}",
                errno::describe(&result)
            );
        }
    }
    let start = Instant::now();
    let memory = small_pages(PAGE)?;
    let result = device
        .register(&memory, RegisterOptions::pinned())
        .map(drop);
    check!(
        matches!(result, Err(Errno::NODEV | Errno::IO)),
        "REGISTER on a lost device: {}",
        errno::describe(&result)
    );
    check!(
        start.elapsed() < Duration::from_secs(5),
        "a lost device is refused at once, not after {:?}",
        start.elapsed()
    );
    Ok(())
}

/// Slow, but right.
fn still_works(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(16 * PAGE)?;
    for round in 1..=10 {
        let userptr = device.register(&memory, RegisterOptions::pinned())?;
        let mut stream = compute::Stream::new();
        stream.add_u32(userptr.at(0), memory.len() as u64, 1);
        Exec::new(stream.as_bytes())
            .buffers(&[userptr.handle()])
            .submit_with_fence(&device)?
            .wait(Some(LIMIT))?;
        check_eq!(memory.read_u32(15 * PAGE), round, "result of round {round}");
    }
    Ok(())
}

/// Everything that was pinned by the cases before has been given back.
pub(crate) fn given_back(_: &Env) -> TestResult {
    let mut last = Ok(-1);
    let none = eventually(LIMIT, || {
        last = procfs::pinned_pages();
        last == Ok(0)
    });
    check!(none, "{last:?} pages are still pinned in the system");
    Ok(())
}

/// The driver can leave the device.
pub(crate) fn unbinds(_: &Env) -> TestResult {
    let gpu: Gpu = match gpu::find() {
        Ok(gpu) => gpu,
        Err(_) => skip!("the device has no driver any more"),
    };
    let start = Instant::now();
    gpu.unbind()?;
    check!(
        start.elapsed() < LIMIT,
        "unbinding took {:?}",
        start.elapsed()
    );
    Ok(())
}

/// Either there is no device for programs, or one that shows the capability set no more than once.
fn probed(env: &Env) -> TestResult {
    let Some(_) = env.node() else {
        println!("    # the driver has refused the device");
        return Ok(());
    };
    let device = env.open()?;
    let capsets = device.getparam(uapi::param::SUPPORTED_CAPSET_IDS)?;
    println!("    # capability sets {capsets:#x}");
    let mut steps = Steps::default();
    session(env, &mut steps, Jobs::End)?;
    steps.say();
    steps.validate()?;
    unpinned()
}
