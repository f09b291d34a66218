// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The demonstration: memory from malloc, registered once, used by jobs on the device, without a
//! copy. Everything the device computes is computed again by the CPU.
//!
//! In the first act the memory is pinned. In the second it is mirrored: while jobs use it, the
//! kernel swaps it out, moves it elsewhere, and the program frees it and allocates anew. In the
//! third nothing is registered: jobs take pointers.
//!
//! `virtgpu-demo [MiB]`; exit status 0 if every result is right.

mod disturb;
mod kernel;
mod mirrored;
// One size of pages for all programs of this package.
#[allow(dead_code)]
#[path = "../../support/page.rs"]
mod page;
mod pinned;
mod pointers;

use std::ffi::c_void;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, Device, Errno, Exec, Memory, Result};

use self::page::PAGE;

const MIB: usize = 1 << 20;

/// What a C program gets from malloc(3).
struct Malloc {
    start: *mut c_void,
    skip: usize,
    length: usize,
}

impl Malloc {
    fn new(length: usize) -> Self {
        // SAFETY: Any size may be asked for.
        let start = unsafe { libc::malloc(length + PAGE) };
        assert!(!start.is_null(), "malloc({length}) failed");
        Self {
            start,
            skip: start.align_offset(PAGE),
            length,
        }
    }
}

// SAFETY: The block is freed by `drop` only.
unsafe impl Memory for Malloc {
    fn as_ptr(&self) -> *mut u8 {
        self.start.cast::<u8>().wrapping_add(self.skip)
    }
    fn len(&self) -> usize {
        self.length
    }
}

impl Drop for Malloc {
    fn drop(&mut self) {
        // SAFETY: From malloc.
        unsafe { libc::free(self.start) }
    }
}

/// The f32 at `index` of the test data: between 1 and 2, without a pattern.
fn datum(index: usize) -> f32 {
    let hash = (index as u32)
        .wrapping_mul(0x9e37_79b1)
        .rotate_left(13)
        .wrapping_mul(0x85eb_ca6b);
    f32::from_bits(0x3f80_0000 | (hash >> 9))
}

/// The report, one line at a time.
struct Report {
    failed: bool,
    start: Instant,
}

impl Report {
    fn say(&self, text: &str) {
        println!("[{:6.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    fn result(&mut self, what: &str, right: bool, time: Duration) {
        self.failed |= !right;
        let status = if right { "right" } else { "WRONG" };
        self.say(&format!(
            "  {what:<52} {:>8.1} ms   {status}",
            milliseconds(time)
        ));
    }
}

impl Report {
    /// The same for what takes no time.
    fn status(&mut self, what: &str, right: bool) {
        self.failed |= !right;
        let status = if right { "right" } else { "WRONG" };
        self.say(&format!("  {what:<52} {:>11}   {status}", ""));
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Says what has failed of the kernel's.
fn failed(error: impl std::fmt::Display) -> Errno {
    println!("error: {error}");
    Errno::IO
}

/// Submits and waits; the time of both.
fn run(device: &Device, job: &compute::Stream, handles: &[u32]) -> Result<Duration> {
    let start = Instant::now();
    Exec::new(job.as_bytes())
        .buffers(handles)
        .submit_with_fence(device)?
        .wait(Some(Duration::from_secs(120)))?;
    Ok(start.elapsed())
}

fn main() -> ExitCode {
    let mib = std::env::args()
        .nth(1)
        .and_then(|argument| argument.parse().ok())
        .unwrap_or(256_usize)
        .max(8);
    let mut report = Report {
        failed: false,
        start: Instant::now(),
    };
    let result = demo(mib * MIB, &mut report);
    if let Err(error) = &result {
        println!("error: {error}");
    }
    let pass = result.is_ok() && !report.failed;
    println!("{}", if pass { "PASS" } else { "FAIL" });
    if pass {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn demo(length: usize, report: &mut Report) -> Result<()> {
    let device = Device::open()?;
    let version = device.version()?;
    let modes = device.userptr_modes()?;
    report.say(&format!(
        "{} {}.{}, user memory modes {modes:#x}",
        version.name, version.major, version.minor
    ));
    device.context_init_compute(1)?;
    report.say("first act: pinned memory");
    pinned::play(&device, length, report)?;
    if modes & uapi::USERPTR_MODE_MIRRORED == 0 {
        report.say("no second act: the device does not mirror memory");
        return Ok(());
    }
    report.say("second act: mirrored memory");
    mirrored::play(&device, report)?;
    if modes & uapi::USERPTR_MODE_SVM == 0 {
        report.say("no third act: the device's faults cannot be served");
        return Ok(());
    }
    report.say("third act: pointers");
    drop(device);
    let device = Device::open()?;
    device.context_init_compute(1)?;
    pointers::play(device, report)
}
