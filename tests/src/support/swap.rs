// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Somewhere to swap to, and how memory gets there.

use std::fs;
use std::path::Path;
use std::process::Command;

use virtgpu_client::{Bytes, Memory};

use crate::check;
use crate::ktap::{Outcome, TestResult};
use crate::support::place::Place;
use crate::support::{eventually, job, procfs, PAGE};

/// Makes sure that there is swap space: compressed memory, or else a disk in memory.
pub(crate) fn enable() -> TestResult {
    if procfs::meminfo("SwapTotal:")? > 0 {
        return Ok(());
    }
    let device = zram().or_else(ramdisk);
    let Some(device) = device else {
        return Err(Outcome::Skip("no swap, no zram and no brd".into()));
    };
    for program in ["mkswap", "swapon"] {
        let output = Command::new(program).arg(device).output()?;
        if !output.status.success() {
            return Err(Outcome::Skip(format!(
                "{program}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
    }
    Ok(())
}

/// Makes sure that there is swap space and that memory no one uses goes there.
pub(crate) fn prepare() -> TestResult {
    enable()?;
    let control = Place::base(16 * PAGE)?;
    control.fill(1);
    match page_out(&control) {
        Err(Outcome::Fail(reason)) => Err(Outcome::Skip(format!("no paging out here: {reason}"))),
        other => other,
    }
}

fn load(arguments: &[&str]) {
    let _ = Command::new("modprobe").args(arguments).output();
}

fn zram() -> Option<&'static str> {
    load(&["zram"]);
    fs::write("/sys/block/zram0/disksize", "64M").ok()?;
    Some("/dev/zram0")
}

fn ramdisk() -> Option<&'static str> {
    load(&["brd", "rd_nr=1", "rd_size=65536"]);
    Path::new("/dev/ram0").exists().then_some("/dev/ram0")
}

/// Sends all pages of `memory` to swap. Pages that somebody holds would stay.
///
/// MADV_PAGEOUT leaves a page alone that is not in the kernel's lists yet. A CPU puts pages there a
/// batch at a time, those that it has faulted in last may stay with it for ever, and the advice
/// empties the batches of the CPU only that it is given on.
pub(crate) fn page_out(memory: &impl Memory) -> TestResult {
    let (start, length) = (memory.as_ptr(), memory.len());
    let resident = || -> TestResult<usize> {
        let frames = procfs::frames(start as usize, length / PAGE)?;
        Ok(frames.iter().flatten().count() * PAGE)
    };
    let step = || -> TestResult<bool> {
        // SAFETY: The content of the pages does not change.
        if unsafe { libc::madvise(start.cast(), length, libc::MADV_PAGEOUT) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(resident()? == 0)
    };
    let mut last = Ok(false);
    eventually(job::LIMIT, || {
        last = step();
        if last == Ok(false) {
            last = procfs::drain_pages().map(|()| false);
        }
        last != Ok(false)
    });
    check!(
        last?,
        "{} bytes of {length} do not leave memory",
        resident()?
    );
    Ok(())
}
