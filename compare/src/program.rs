// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Running a program in a tree of its own, with a time limit.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags, Signal};

use crate::outcome::Result;

/// What is the same for every program: writable folders are few in a tree.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"),
    ("HOME", "/tmp"),
    ("LANG", "C.UTF-8"),
    ("XDG_RUNTIME_DIR", "/tmp"),
    // A run must not profit from the one before it.
    ("MESA_SHADER_CACHE_DISABLE", "true"),
];

/// The tree with Mesa.
pub(crate) const MESA: &str = "/mesa";
/// There is no software renderer of this name, so that Mesa cannot fall back to one.
pub(crate) const NO_FALLBACK: (&str, &str) = ("GALLIUM_DRIVER", "none");

/// What a program has printed so far.
// A file and not a pipe: no one who is left over can keep us waiting for its end.
pub(crate) const OUTPUT: &str = "/tmp/virtgpu-compare.out";

/// A program in a tree, which is mounted at `/NAME`.
pub(crate) struct Program {
    command: Command,
    limit: Duration,
}

/// How it went.
pub(crate) struct Output {
    /// Standard output and standard error.
    pub(crate) text: String,
    /// `None` if it was killed because it took too long.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) time: Duration,
}

impl Program {
    pub(crate) fn new(tree: &str, path: &str, limit: Duration) -> Self {
        let mut command = Command::new("/bin/busybox");
        command.args(["chroot", tree, path]);
        command.env_clear().envs(ENVIRONMENT.iter().copied());
        Self { command, limit }
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn run(self) -> Result<Output> {
        let limit = self.limit;
        let mut running = self.start(OUTPUT)?;
        let ended = running.ends_within(limit)?;
        running.end(ended)
    }

    /// Starts it; it prints to the file `output`.
    pub(crate) fn start(mut self, output: &'static str) -> Result<Running> {
        let file = File::create(output)?;
        let start = Instant::now();
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Running {
            child,
            pid,
            pidfd,
            output,
            start,
            reaped: false,
        })
    }
}

/// A program that runs. It is killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    output: &'static str,
    start: Instant,
    reaped: bool,
}

impl Running {
    /// Whether it ends within this time.
    pub(crate) fn ends_within(&mut self, time: Duration) -> Result<bool> {
        let limit = Timespec {
            tv_sec: time.as_secs().try_into()?,
            tv_nsec: time.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&limit))? > 0)
    }

    /// Waits until it has printed `word`, for `limit` at most or until its end; returns whether it
    /// has.
    pub(crate) fn says(&mut self, word: &str, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.ends_within(Duration::ZERO)?;
            if self.text()?.contains(word) {
                return Ok(true);
            }
            if ended || Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }

    /// Kills it, and returns what it has printed.
    pub(crate) fn kill(self) -> Result<Output> {
        self.end(false)
    }

    fn text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.output)?).into_owned())
    }

    fn end(mut self, ended: bool) -> Result<Output> {
        let status = self.reap()?;
        Ok(Output {
            text: self.text()?,
            status: ended.then_some(status),
            time: self.start.elapsed(),
        })
    }

    fn reap(&mut self) -> Result<ExitStatus> {
        // Also whatever it has started; the group exists until its leader is reaped.
        kill_process_group(self.pid, Signal::KILL)?;
        self.reaped = true;
        Ok(self.child.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.reap();
        }
    }
}

impl Output {
    /// Why the program as a whole has not ended well: a time limit, a signal, or an exit status
    /// other than `good`.
    pub(crate) fn problem(&self, good: &[i32]) -> Option<String> {
        let Some(status) = self.status else {
            return Some(format!("killed after {} s", self.time.as_secs()));
        };
        match (status.code(), status.signal()) {
            (Some(code), _) if good.contains(&code) => None,
            (Some(code), _) => Some(format!("exit status {code}")),
            (None, signal) => Some(format!("ended by signal {}", signal.unwrap_or(0))),
        }
    }

    /// The last lines that are not empty.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let all: Vec<_> = self
            .text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}
