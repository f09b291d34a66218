// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Running a program in a tree of its own, with a time limit.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags, Signal};

use crate::Result;

/// What is the same for every program: writable folders are few in a tree.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"),
    ("HOME", "/tmp"),
    ("LANG", "C.UTF-8"),
    ("XDG_RUNTIME_DIR", "/tmp"),
    // A run must not profit from the one before it.
    ("MESA_SHADER_CACHE_DISABLE", "true"),
];

/// What a program has printed so far.
// A file and not a pipe: nobody who is left over can keep us waiting for its end.
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

    pub(crate) fn run(mut self) -> Result<Output> {
        let file = File::create(OUTPUT)?;
        let start = Instant::now();
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let limit = Timespec {
            tv_sec: self.limit.as_secs().try_into()?,
            tv_nsec: 0,
        };
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))? > 0;
        // Also whatever it has started; the group exists until its leader is reaped.
        kill_process_group(pid, Signal::KILL)?;
        let status = child.wait()?;
        Ok(Output {
            text: String::from_utf8_lossy(&fs::read(OUTPUT)?).into_owned(),
            status: ended.then_some(status),
            time: start.elapsed(),
        })
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
