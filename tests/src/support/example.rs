// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The C programs of `docs/uapi.md`, which `build.rs` has compiled.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::ktap::{pipe, reap, TestResult};
use crate::support::Env;
use crate::{check, check_eq, skip};

unsafe extern "C" {
    fn virtgpu_example_0() -> libc::c_int;
    fn virtgpu_example_1() -> libc::c_int;
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Example {
    /// That of §5.
    Registered,
    /// That of §6.
    JobQueue,
}

/// Runs a program, which must end well, in a process of its own; returns what it prints.
pub(crate) fn run(env: &Env, example: Example) -> TestResult<String> {
    const NODE: &str = "/dev/dri/renderD128";
    if env.node().as_deref() != Some(Path::new(NODE)) {
        skip!(
            "the programs open {NODE}, and the device is {:?}",
            env.node()
        );
    }
    let (mut reader, writer) = pipe()?;
    // SAFETY: This process has one thread, so that the child may do anything.
    let pid = unsafe { libc::fork() };
    check!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: The child's own file descriptor; `main` of a program takes nothing, and exit()
        // writes what it has printed.
        unsafe {
            libc::dup2(writer.as_raw_fd(), libc::STDOUT_FILENO);
            libc::exit(match example {
                Example::Registered => virtgpu_example_0(),
                Example::JobQueue => virtgpu_example_1(),
            })
        }
    }
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    let status = reap(pid)?;
    check_eq!(status, 0, "the status of {example:?}, which says {text:?}");
    Ok(text)
}
