// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Processes within a test case.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;

use crate::check;
use crate::ktap::{reap, Outcome, TestResult};

/// The user that tests become when they give up their privileges.
pub(crate) const NOBODY: u32 = 65534;

/// Runs `body` in a forked child, and returns its result.
pub(crate) fn run(body: impl FnOnce() -> TestResult) -> TestResult {
    spawn(body)?.join()
}

/// A running child.
pub(crate) struct Child {
    pub(crate) pid: i32,
    reader: File,
}

/// Starts `body` in a forked child.
pub(crate) fn spawn(body: impl FnOnce() -> TestResult) -> TestResult<Child> {
    let mut fds = [0; 2];
    // SAFETY: Room for two file descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: The kernel has just given us these file descriptors.
    let (reader, mut writer) = unsafe { (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])) };
    let _ = std::io::stdout().flush();
    // SAFETY: The callers have no other threads at this point.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    if pid == 0 {
        drop(reader);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        let text = match result {
            Ok(Ok(())) => "ok ".to_string(),
            Ok(Err(Outcome::Skip(reason))) => format!("skip {reason}"),
            Ok(Err(Outcome::Fail(reason))) => format!("fail {reason}"),
            Err(_) => "fail panicked".to_string(),
        };
        let _ = writer.write_all(text.as_bytes());
        // SAFETY: Ends the child without running the parent's destructors.
        unsafe { libc::_exit(0) }
    }
    Ok(Child { pid, reader })
}

impl Child {
    /// Whether it has ended; [`Self::join`] says how.
    pub(crate) fn is_finished(&self) -> TestResult<bool> {
        // SAFETY: An all-zero `siginfo_t` is valid, and is valid for writes.
        let (result, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            let result = libc::waitid(libc::P_PID, self.pid as u32, &raw mut info, flags);
            (result, info)
        };
        if result != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: waitid() fills the structure as for a child.
        Ok(unsafe { info.si_pid() } == self.pid)
    }

    /// Whether it waits in the kernel, where no signal but a fatal one wakes it.
    pub(crate) fn is_blocked(&self) -> TestResult<bool> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The state follows the name, which is in parentheses.
        Ok(text
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('D')))
    }

    /// Waits for the end and returns the result; a death by signal is a failure.
    pub(crate) fn join(mut self) -> TestResult {
        let mut text = String::new();
        let _ = self.reader.read_to_string(&mut text);
        let status = reap(self.pid)?;
        match text.split_once(' ') {
            Some(("ok", _)) => Ok(()),
            Some(("skip", reason)) => Err(Outcome::Skip(reason.to_string())),
            Some(("fail", reason)) => Err(Outcome::Fail(format!("in a child: {reason}"))),
            _ => Err(Outcome::Fail(format!(
                "a child ended without a result, status {status:#x}"
            ))),
        }
    }

    /// Waits for its end, which must be an exit with this status.
    pub(crate) fn exits_with(self, expected: i32) -> TestResult {
        let status = reap(self.pid)?;
        check!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == expected,
            "the child's status is {status:#x}"
        );
        Ok(())
    }

    /// Waits for its end, which must be by SIGKILL.
    pub(crate) fn join_killed(self) -> TestResult {
        let status = reap(self.pid)?;
        check!(
            libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL,
            "the child has ended with status {status:#x}"
        );
        Ok(())
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(self) -> TestResult {
        // SAFETY: A signal to our own child.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        reap(self.pid)?;
        Ok(())
    }
}

/// A child that exists, but waits before it does anything.
pub(crate) struct Held {
    child: Child,
    stream: UnixStream,
}

/// Starts a child that runs `body` when it is released.
pub(crate) fn hold(body: impl FnOnce() -> TestResult) -> TestResult<Held> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = spawn(|| {
        // The child's duplicate of the parent's side must not keep the stream open.
        // SAFETY: The child never uses `ours` again, and does not return to its owner.
        unsafe { libc::close(ours.as_raw_fd()) };
        let _ = (&theirs).read(&mut [0]);
        body()
    })?;
    Ok(Held {
        child,
        stream: ours,
    })
}

impl Held {
    /// Lets it run to its end, and returns its result.
    pub(crate) fn release(self) -> TestResult {
        drop(self.stream);
        self.child.join()
    }
}

/// Becomes another program, which exits with status 0.
pub(crate) fn exec() -> ! {
    let program = c"/bin/true";
    let arguments = [program.as_ptr(), std::ptr::null()];
    // SAFETY: NUL-terminated strings in an array that NULL ends.
    unsafe {
        libc::execv(program.as_ptr(), arguments.as_ptr());
        libc::_exit(127)
    }
}

/// Becomes a user without any capability.
pub(crate) fn drop_privileges() -> TestResult {
    // SAFETY: System calls with integers; libc applies them to all threads, of which there is one.
    let failed = unsafe {
        libc::setgroups(0, std::ptr::null()) != 0
            || libc::setresgid(NOBODY, NOBODY, NOBODY) != 0
            || libc::setresuid(NOBODY, NOBODY, NOBODY) != 0
            // Changing ids has made the process undumpable, which closes /proc/self to it.
            || libc::prctl(libc::PR_SET_DUMPABLE, 1) != 0
    };
    if failed {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// Sets RLIMIT_MEMLOCK.
pub(crate) fn limit_memlock(bytes: u64) -> TestResult {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: A valid structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
