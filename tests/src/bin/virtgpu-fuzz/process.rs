// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Processes and signals: children that use what was opened before the fork, exec with files open,
//! death in the middle, and calls that are interrupted.

use crate::call::Call;
use crate::layout::{MEMORY, MEMORY_SIZE};
use crate::pick::{self, chance};
use crate::standard::Maker;
use crate::world::DrmFile;
use crate::{sys, trace};

/// What interrupts a thread.
const SIGNAL: i32 = libc::SIGUSR1;

extern "C" fn nothing(_: i32) {}

/// Lets signals interrupt calls, without any other effect.
pub(crate) fn start() {
    // SAFETY: The handler does nothing; the structure may be all zeros otherwise. Without
    // SA_RESTART calls return EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut());
    }
}

impl Maker<'_> {
    /// Interrupts some thread.
    pub(crate) fn interrupt(&mut self) {
        let Some(thread) = self.world.thread(self.random) else {
            return;
        };
        let process = std::process::id() as usize;
        let arguments = [process, thread, SIGNAL as usize, 0, 0, 0];
        let _ = sys::call(libc::SYS_tgkill, arguments);
    }

    /// A child that does a few things with the parent's files and memory, and ends, executes
    /// something else, or is killed.
    pub(crate) fn fork(&mut self, file: &DrmFile) {
        let mut calls = Vec::new();
        for _ in 0..1 + self.random.below(4) {
            let call = match self.random.below(4) {
                0 => self.execbuffer(file),
                1 => self.gem_close(file),
                2 => self.register(file),
                _ => self.prefetch(file),
            };
            calls.push(call);
        }
        let (start, length) = pick::range(self.random);
        let executes = chance(self.random, 1, 4);
        let killed = chance(self.random, 1, 3);
        let first = chance(self.random, 1, 2);
        trace::note(|| {
            format!(
                "fork: {} calls, exec {executes}, killed {killed}",
                calls.len()
            )
        });
        let argument = self.scratch.argument;
        // SAFETY: The child makes system calls only, as other threads' locks stay held in it.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            child(&calls, argument, (start, length), first, executes);
        }
        if pid < 0 {
            return;
        }
        if killed {
            // SAFETY: A signal to our own child.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let mut status = 0;
        // SAFETY: `status` is valid. Signals interrupt this; the child is then waited for again.
        while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0
            && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
        {}
        trace::ended::<i32>(&Ok(status));
    }
}

/// What the child does. It must not allocate.
fn child(
    calls: &[Call],
    argument: usize,
    (start, length): (usize, usize),
    touches: bool,
    executes: bool,
) -> ! {
    if touches {
        let _ = sys::write_memory(start, &[1]);
        let _ = sys::unmap(start, length);
    }
    for call in calls {
        let _ = sys::write_memory(argument, &call.bytes);
        let _ = sys::ioctl(call.fd, call.number(), argument);
    }
    if executes {
        let program = c"/bin/true";
        let arguments = [program.as_ptr() as usize, 0];
        let environment = [0_usize];
        let arguments = [
            program.as_ptr() as usize,
            arguments.as_ptr() as usize,
            environment.as_ptr() as usize,
            0,
            0,
            0,
        ];
        let _ = sys::call(libc::SYS_execve, arguments);
    }
    let _ = sys::unmap(MEMORY, MEMORY_SIZE);
    // SAFETY: Ends the child without running the parent's destructors.
    unsafe { libc::_exit(0) }
}
