// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Nodes of memory, and moving pages between them.

use std::path::Path;

use crate::ktap::{Outcome, TestResult};
use crate::support::place::{Pages, Place};
use crate::support::setting::Setting;
use crate::support::{HUGE, PAGE};
use virtgpu_client::Memory;

/// A skip unless there are nodes 0 and 1 (boot with `numa=fake=2`).
pub(crate) fn two_nodes() -> TestResult {
    if Path::new("/sys/devices/system/node/node1").exists() {
        return Ok(());
    }
    Err(Outcome::Skip("one node of memory only".into()))
}

/// The kernel's own moving of pages to the node that uses them.
pub(crate) const BALANCING: &str = "/proc/sys/kernel/numa_balancing";

/// As long as this is kept, the kernel moves no pages on its own.
pub(crate) fn without_balancing() -> Option<Setting> {
    // A kernel without it moves none either.
    Setting::new(BALANCING, "0").ok()
}

/// move_pages(2) of all pages of a place, huge ones by their first address; returns where each is
/// then, or the negative errno.
pub(crate) fn move_to(place: &Place, node: i32) -> TestResult<Vec<i32>> {
    const MOVE: i32 = 1 << 1;
    let mut addresses = Vec::new();
    let mut offset = 0;
    while offset < place.len() {
        addresses.push(place.address(offset));
        let whole = place.pages() == Pages::Huge && offset % HUGE == 0 && place.is_huge(offset)?;
        offset += if whole { HUGE } else { place.unit() };
    }
    let count = addresses.len();
    let nodes = vec![node; count];
    let mut status = vec![i32::MIN; count];
    // SAFETY: Arrays of `count` entries; the content of the pages does not change.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            count,
            addresses.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MOVE,
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(status)
}

/// migrate_pages(2) of all that this process has, to one of two nodes.
pub(crate) fn migrate_to(node: i32) -> TestResult {
    let (from, to) = (1_u64 << (1 - node), 1_u64 << node);
    // SAFETY: Sets of as many bits as it says; the content of the pages does not change.
    let left = unsafe {
        libc::syscall(
            libc::SYS_migrate_pages,
            0,
            u64::from(u64::BITS),
            &raw const from,
            &raw const to,
        )
    };
    if left < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// Has the kernel look for pages that are used from another node, as often as it can, until this is
/// dropped.
pub(crate) fn balancing() -> TestResult<Vec<Setting>> {
    let mut settings = vec![Setting::new(BALANCING, "1")?];
    for (name, value) in [
        ("scan_delay_ms", "0"),
        ("scan_period_min_ms", "10"),
        ("scan_period_max_ms", "20"),
        ("scan_size_mb", "1024"),
    ] {
        let file = format!("/sys/kernel/debug/sched/numa_balancing/{name}");
        settings.extend(Setting::new(file, value).ok());
    }
    Ok(settings)
}

/// Blocks of memory that can be taken offline.
pub(crate) mod block {
    use super::*;
    use std::fs;
    use std::ops::Range;

    const ROOT: &str = "/sys/devices/system/memory";

    /// Numbers and frames of the blocks that can be taken offline: their zone is one for movable
    /// pages only, and they have no holes. (The end of the memory below 4 GiB is the firmware's.)
    pub(crate) fn movable() -> TestResult<Vec<(u64, Range<u64>)>> {
        let Ok(size) = fs::read_to_string(format!("{ROOT}/block_size_bytes")) else {
            return Ok(Vec::new());
        };
        let size = u64::from_str_radix(size.trim(), 16).map_err(|_| Outcome::Fail(size.clone()))?;
        let ram = ram()?;
        let mut blocks = Vec::new();
        for entry in fs::read_dir(ROOT)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix("memory").and_then(|n| n.parse().ok());
            let Some(number) = number else {
                continue;
            };
            let bytes = number * size..(number + 1) * size;
            let whole = |part: &Range<u64>| part.start <= bytes.start && bytes.end <= part.end;
            let zones = fs::read_to_string(entry.path().join("valid_zones"));
            if ram.iter().any(whole) && zones.is_ok_and(|zones| zones.trim() == "Movable") {
                let page = PAGE as u64;
                blocks.push((number, bytes.start / page..bytes.end / page));
            }
        }
        Ok(blocks)
    }

    /// The addresses at which there is memory that the kernel uses.
    fn ram() -> TestResult<Vec<Range<u64>>> {
        let text = fs::read_to_string("/proc/iomem")?;
        let parse = |line: &str| {
            let (start, end) = line.strip_suffix(" : System RAM")?.split_once('-')?;
            let parse = |text: &str| u64::from_str_radix(text.trim(), 16).ok();
            Some(parse(start)?..parse(end)? + 1)
        };
        Ok(text.lines().filter_map(parse).collect())
    }

    /// Takes a block offline or online again.
    pub(crate) fn set(block: u64, state: &str) -> std::io::Result<()> {
        fs::write(format!("{ROOT}/memory{block}/state"), state)
    }
}
