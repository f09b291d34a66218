// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Running test cases and reporting in KTAP version 1.
//!
//! Every case runs in a process of its own, with a time limit: a crash or a hang fails that case
//! only, and what a case leaves behind at exit is noticed (see `support::leak`).

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::{gpu, leak, pace, Env};

/// Why a case did not pass.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Wrong behaviour.
    Fail(String),
    /// Could not be tested.
    Skip(String),
}

pub(crate) type TestResult<T = ()> = Result<T, Outcome>;

impl From<virtgpu_client::Errno> for Outcome {
    #[track_caller]
    fn from(error: virtgpu_client::Errno) -> Self {
        let place = panic::Location::caller();
        Self::Fail(format!(
            "{}:{}: {}",
            place.file(),
            place.line(),
            crate::support::errno::name(error)
        ))
    }
}

impl From<std::io::Error> for Outcome {
    #[track_caller]
    fn from(error: std::io::Error) -> Self {
        let place = panic::Location::caller();
        Self::Fail(format!("{}:{}: {error}", place.file(), place.line()))
    }
}

/// Fails the case unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::ktap::Outcome::Fail(format!(
                "{}:{}: {}", file!(), line!(), format_args!($($message)+))));
        }
    };
}

/// Fails the case unless the two values are equal.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            return Err($crate::ktap::Outcome::Fail(format!(
                "{}:{}: {}: {:?} is not {:?}", file!(), line!(), format_args!($($message)+),
                left, right)));
        }
    }};
}

/// Fails the case unless the result is the error.
#[macro_export]
macro_rules! check_err {
    ($result:expr, $error:expr, $($message:tt)+) => {{
        let expected = $error;
        match $result {
            Err(error) if error == expected => {}
            other => return Err($crate::ktap::Outcome::Fail(format!(
                "{}:{}: {}: {}, not {}", file!(), line!(), format_args!($($message)+),
                $crate::support::errno::describe(&other),
                $crate::support::errno::name(expected)))),
        }
    }};
}

/// Leaves the case as one that cannot be tested.
#[macro_export]
macro_rules! skip {
    ($($message:tt)+) => {
        return Err($crate::ktap::Outcome::Skip(format!($($message)+)))
    };
}

/// One test.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Env) -> TestResult,
    pub(crate) limit: Duration,
}

/// Makes a list of cases from functions of the same names.
#[macro_export]
macro_rules! cases {
    ($($name:ident $(: $seconds:literal)?),* $(,)?) => {
        &[$($crate::ktap::Case {
            name: stringify!($name),
            run: $name,
            limit: std::time::Duration::from_secs(cases!(@limit $($seconds)?)),
        }),*]
    };
    (@limit) => { 120 };
    (@limit $seconds:literal) => { $seconds };
}

/// Which kernel a family needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Any,
    Debug,
}

/// Which driver a family tests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Ours,
    C,
    Both,
}

/// Tests of one file.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) kernel: Kernel,
    pub(crate) driver: Driver,
    /// Arguments for the reference device.
    pub(crate) device: &'static str,
    /// Whether a look at pins and host resources must find them unchanged after each case; not
    /// with a device that does not respond.
    pub(crate) leak_check: bool,
    pub(crate) cases: &'static [Case],
}

/// A family of this driver's on a well-behaved device, whose cases leave nothing behind.
pub(crate) const fn family(name: &'static str, cases: &'static [Case]) -> Family {
    Family {
        name,
        kernel: Kernel::Any,
        driver: Driver::Ours,
        device: "",
        leak_check: true,
        cases,
    }
}

/// Runs families, and returns whether nothing failed.
pub(crate) fn run(families: &[&Family], filter: Option<&str>, env: &Env) -> bool {
    println!("KTAP version 1");
    if let Err(error) = pace::measure(env.debug) {
        println!("# the pace of this machine is unknown: {error}");
    }
    println!("1..{}", families.len());
    let mut all = true;
    for (index, family) in families.iter().enumerate() {
        let ok = run_family(family, filter, env, index + 1);
        all &= ok;
    }
    all
}

fn run_family(family: &Family, filter: Option<&str>, env: &Env, number: usize) -> bool {
    if let Some(reason) = env.cannot_run(family) {
        println!("ok {number} {} # SKIP {reason}", family.name);
        return true;
    }
    let cases: Vec<_> = family
        .cases
        .iter()
        .filter(|case| {
            let name = format!("{}.{}", family.name, case.name);
            filter.is_none_or(|filter| filter.split(',').any(|text| name.contains(text)))
        })
        .collect();
    println!("    KTAP version 1");
    println!("    1..{}", cases.len());
    let mut all = true;
    for (index, case) in cases.iter().enumerate() {
        let start = Instant::now();
        let mut outcome = run_case(family, case, env);
        if family.leak_check && outcome.is_ok() {
            outcome = leak::check(env);
        } else {
            leak::forget();
        }
        let (status, remark) = match &outcome {
            Ok(()) => ("ok", String::new()),
            Err(Outcome::Skip(reason)) => ("ok", format!(" # SKIP {reason}")),
            Err(Outcome::Fail(reason)) => {
                println!("    # {}", reason.replace('\n', "\n    # "));
                ("not ok", String::new())
            }
        };
        all &= status == "ok";
        println!("    # {:.1} s", start.elapsed().as_secs_f32());
        println!("    {status} {} {}{remark}", index + 1, case.name);
    }
    let status = if all { "ok" } else { "not ok" };
    println!("{status} {number} {}", family.name);
    all
}

/// How many parts of the case this process has reported.
static PARTS: AtomicU32 = AtomicU32::new(0);

/// Runs `test` for each part of a case, which each are a result of their own. Fails if one has
/// failed, and is skipped if all are.
pub(crate) fn parts<T>(
    parts: impl IntoIterator<Item = (&'static str, T)>,
    mut test: impl FnMut(T) -> TestResult,
) -> TestResult {
    let (mut tested, mut failed) = (0, Ok(()));
    for (name, part) in parts {
        let outcome = test(part);
        let number = PARTS.fetch_add(1, Ordering::Relaxed) + 1;
        match outcome {
            Ok(()) => {
                tested += 1;
                println!("        ok {number} {name}");
            }
            Err(Outcome::Skip(reason)) => println!("        ok {number} {name} # SKIP {reason}"),
            Err(Outcome::Fail(reason)) => {
                println!("        # {}", reason.replace('\n', "\n        # "));
                println!("        not ok {number} {name}");
                failed = Err(Outcome::Fail(format!("{name}: {reason}")));
            }
        }
    }
    failed?;
    if tested == 0 {
        skip!("none of its parts could be tested");
    }
    Ok(())
}

/// Runs a case in a process of its own, with its limit.
pub(crate) fn run_case(family: &Family, case: &Case, env: &Env) -> TestResult {
    if env.ours && family.leak_check {
        gpu::restore(env)?;
    }
    if family.leak_check {
        leak::remember(env)?;
    }
    let (mut reader, writer) = pipe()?;
    let _ = std::io::stdout().flush();
    // SAFETY: This process has one thread, so that the child may do anything.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    if pid == 0 {
        drop(reader);
        child(case, env, writer);
    }
    drop(writer);
    let finished = wait_with_limit(pid, pace::limit(case.limit));
    // SAFETY: The group was made by the child; whatever is left of it must not disturb the next.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    let status = finished?;
    let mut text = String::new();
    // Grandchildren that survived hold the pipe open, but not after the signal above.
    let _ = reader.read_to_string(&mut text);
    if libc::WIFSIGNALED(status) {
        return Err(Outcome::Fail(format!(
            "killed by signal {}",
            libc::WTERMSIG(status)
        )));
    }
    // Its parts were reported by the child.
    let (parts, text) = text.split_once(' ').unwrap_or_default();
    if parts.parse().is_ok_and(|parts: u32| parts > 0) {
        println!("        1..{parts}");
    }
    match text.split_once(' ') {
        Some(("ok", _)) => Ok(()),
        Some(("skip", reason)) => Err(Outcome::Skip(reason.to_string())),
        Some(("fail", reason)) => Err(Outcome::Fail(reason.to_string())),
        _ => Err(Outcome::Fail(format!(
            "ended without a result, status {status:#x}"
        ))),
    }
}

fn child(case: &Case, env: &Env, writer: fs::File) -> ! {
    let mut writer = writer;
    // SAFETY: Plain system calls of the child.
    unsafe {
        libc::setpgid(0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    panic::set_hook(Box::new(|info| println!("    # {info}")));
    let result = panic::catch_unwind(panic::AssertUnwindSafe(|| (case.run)(env)));
    let text = match result {
        Ok(Ok(())) => "ok ".to_string(),
        Ok(Err(Outcome::Skip(reason))) => format!("skip {reason}"),
        Ok(Err(Outcome::Fail(reason))) => format!("fail {reason}"),
        Err(_) => "fail panicked".to_string(),
    };
    let text = format!("{} {text}", PARTS.load(Ordering::Relaxed));
    let _ = writer.write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
    // SAFETY: Ends the child without running the parent's destructors.
    unsafe { libc::_exit(0) }
}

/// Waits for `pid` to end, and kills it at the limit.
fn wait_with_limit(pid: i32, limit: Duration) -> TestResult<i32> {
    let fd = pidfd(pid)?;
    if readable(&fd, limit) {
        return reap(pid);
    }
    let stacks = stacks(pid);
    // SAFETY: A signal to our own child.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    if !readable(&fd, Duration::from_secs(20)) {
        return Err(Outcome::Fail(format!(
            "hangs, and cannot be killed after {} s\n{stacks}",
            limit.as_secs()
        )));
    }
    reap(pid)?;
    Err(Outcome::Fail(format!(
        "hangs; killed after {} s\n{stacks}",
        limit.as_secs()
    )))
}

/// A file that becomes readable when the process ends.
pub(crate) fn pidfd(pid: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: The system call takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: The kernel has just given us this file descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether `fd` becomes readable in time.
pub(crate) fn readable(fd: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: One valid pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32 + 1) };
        if ready > 0 {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

/// The wait status of an ended child.
pub(crate) fn reap(pid: i32) -> TestResult<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid.
        let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if got == pid {
            return Ok(status);
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error.into());
        }
    }
}

/// Where the threads of a process are in the kernel.
fn stacks(pid: i32) -> String {
    let mut text = String::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return text;
    };
    for task in tasks.flatten().take(8) {
        let stack = fs::read_to_string(task.path().join("stack")).unwrap_or_default();
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        text += &format!("{} {}{stack}", task.file_name().to_string_lossy(), name);
    }
    text
}

pub(crate) fn pipe() -> std::io::Result<(fs::File, fs::File)> {
    let mut fds = [0; 2];
    // SAFETY: Room for two file descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: The kernel has just given us these file descriptors.
    Ok(unsafe { (fs::File::from_raw_fd(fds[0]), fs::File::from_raw_fd(fds[1])) })
}
