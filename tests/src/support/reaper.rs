// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Whoever takes the memory of a killed process before it has ended: process_mrelease(2), which
//! does what the kernel's own reaper does.

use std::os::fd::{AsFd, AsRawFd};

use crate::ktap::{pidfd, Outcome, TestResult};

/// Threads of a child that is killed: its memory stays until the last of them has ended, so that
/// the reaper finds it.
const THREADS: usize = 32;

/// Starts threads that do nothing.
pub(crate) fn pausing_threads() {
    for _ in 0..THREADS {
        std::thread::spawn(|| loop {
            // SAFETY: Takes nothing.
            unsafe { libc::pause() };
        });
    }
}

/// What process_mrelease(2) says of a killed child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// All that it has is gone.
    All,
    /// A notifier would have had to wait, so the exit has to do it.
    TurnedAway,
    /// It has gone already.
    Gone,
}

/// Kills a child, and calls process_mrelease(2) until the memory is gone, `tries` times at most.
/// Returns what it has said each time.
pub(crate) fn kill_and_reap(pid: i32, tries: usize) -> TestResult<Vec<Reaped>> {
    let fd = pidfd(pid)?;
    // SAFETY: A signal to our own child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let mut results = Vec::new();
    while results.len() < tries {
        if !results.is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        results.push(reap_memory(&fd)?);
        if results.last() != Some(&Reaped::TurnedAway) {
            break;
        }
    }
    Ok(results)
}

fn reap_memory(fd: impl AsFd) -> TestResult<Reaped> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: Takes two integers.
    let result = unsafe { libc::syscall(libc::SYS_process_mrelease, fd, 0) };
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        _ if result == 0 => Ok(Reaped::All),
        Some(libc::EAGAIN) => Ok(Reaped::TurnedAway),
        Some(libc::ESRCH) => Ok(Reaped::Gone),
        Some(libc::ENOSYS) => Err(Outcome::Skip("the kernel has no process_mrelease".into())),
        _ => Err(error.into()),
    }
}
