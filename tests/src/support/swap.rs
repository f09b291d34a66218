// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Somewhere to swap to.

use std::fs;
use std::process::Command;

use crate::ktap::{Outcome, TestResult};
use crate::support::procfs;

/// Makes sure that there is swap space: compressed memory.
pub(crate) fn enable() -> TestResult {
    if procfs::meminfo("SwapTotal:")? > 0 {
        return Ok(());
    }
    let _ = Command::new("modprobe").arg("zram").output();
    if fs::write("/sys/block/zram0/disksize", "64M").is_err() {
        return Err(Outcome::Skip("no swap, and no zram".into()));
    }
    for program in ["mkswap", "swapon"] {
        let output = Command::new(program).arg("/dev/zram0").output()?;
        if !output.status.success() {
            return Err(Outcome::Skip(format!(
                "{program}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
    }
    Ok(())
}
