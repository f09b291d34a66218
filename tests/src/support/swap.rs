// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Somewhere to swap to.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::ktap::{Outcome, TestResult};
use crate::support::procfs;

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
