// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the demonstration has the kernel do to memory, and what the kernel counts.

use std::fs;
use std::io::{Error, Result};
use std::process::Command;

use crate::PAGE;

const MADV_PAGEOUT: i32 = 21;
const MPOL_MF_MOVE: libc::c_ulong = 2;
/// Swap space, if it has to be made.
const SWAP_MIB: u32 = 128;

/// Number `name` of a file with a name and a number in each line.
fn number(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| Error::other(format!("{file} has no {name}")))
}

/// What the kernel has done since it was booted.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    /// Pages written to swap space.
    pub(crate) swapped: u64,
    /// Pages that were given other physical memory.
    pub(crate) migrated: u64,
}

impl Counts {
    pub(crate) fn now() -> Result<Self> {
        Ok(Self {
            swapped: number("/proc/vmstat", "pswpout ")?,
            migrated: number("/proc/vmstat", "pgmigrate_success ")?,
        })
    }
}

/// Bytes that this process has pinned.
pub(crate) fn pinned() -> Result<u64> {
    Ok(number("/proc/self/status", "VmPin:")? << 10)
}

/// Makes sure that there is swap space: if there is none yet, compressed memory, or else a disk in
/// memory.
pub(crate) fn enable_swap() -> Result<()> {
    if number("/proc/meminfo", "SwapTotal:")? > 0 {
        return Ok(());
    }
    let device = zram().or_else(|_| ramdisk())?;
    for program in ["mkswap", "swapon"] {
        let output = Command::new(program).arg(device).output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
            return Err(Error::other(format!("{program}: {text}")));
        }
    }
    Ok(())
}

fn load(arguments: &[&str]) -> Result<()> {
    let output = Command::new("modprobe").args(arguments).output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
        return Err(Error::other(format!("modprobe: {text}")));
    }
    Ok(())
}

fn zram() -> Result<&'static str> {
    load(&["zram"])?;
    fs::write("/sys/block/zram0/disksize", format!("{SWAP_MIB}M"))?;
    Ok("/dev/zram0")
}

fn ramdisk() -> Result<&'static str> {
    let size = format!("rd_size={}", SWAP_MIB << 10);
    load(&["brd", "rd_nr=1", &size])?;
    Ok("/dev/ram0")
}

/// Has pages swapped out.
pub(crate) fn page_out(start: usize, length: usize) -> Result<()> {
    // SAFETY: Pages of the range come back when they are used, with what was in them.
    if unsafe { libc::madvise(start as *mut libc::c_void, length, MADV_PAGEOUT) } != 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

/// Nodes of memory.
pub(crate) fn nodes() -> usize {
    let exists = |node: &usize| fs::exists(format!("/sys/devices/system/node/node{node}"));
    (0..64).take_while(|n| exists(n).unwrap_or(false)).count()
}

/// Has pages moved to the memory of a node, as far as they are in memory at all.
pub(crate) fn migrate(start: usize, length: usize, node: i32) -> Result<()> {
    let pages: Vec<usize> = (start..start + length).step_by(PAGE).collect();
    let nodes = vec![node; pages.len()];
    let mut status = vec![0_i32; pages.len()];
    // SAFETY: The arrays have as many entries as it says, and the pages stay what they are.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}
