// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the kernel says about itself and about this process.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::check;
use crate::ktap::{Outcome, TestResult};
use crate::support::PAGE;

/// Bytes that field `name` (in kB) of /proc/self/status has.
pub(crate) fn status_bytes(name: &str) -> TestResult<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    field(&text, name)
        .map(|kilobytes| kilobytes * 1024)
        .ok_or_else(|| Outcome::Fail(format!("/proc/self/status has no {name}")))
}

/// Bytes that this process has pinned, as its limits count them.
pub(crate) fn vm_pin() -> TestResult<u64> {
    status_bytes("VmPin:")
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// Pages pinned now, in the whole system: those ever pinned less those ever unpinned.
pub(crate) fn pinned_pages() -> TestResult<i64> {
    // Counts that processors still keep to themselves are added up by this.
    fs::write("/proc/sys/vm/stat_refresh", "1")?;
    Ok(vmstat("nr_foll_pin_acquired")? as i64 - vmstat("nr_foll_pin_released")? as i64)
}

/// A count of /proc/vmstat.
pub(crate) fn vmstat(name: &str) -> TestResult<u64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    field(&text, &format!("{name} "))
        .ok_or_else(|| Outcome::Fail(format!("/proc/vmstat has no {name}")))
}

/// Kilobytes that a field of /proc/meminfo has.
pub(crate) fn meminfo(name: &str) -> TestResult<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    field(&text, name).ok_or_else(|| Outcome::Fail(format!("/proc/meminfo has no {name}")))
}

/// Entries of /proc/self/pagemap for `pages` pages from `address` on.
pub(crate) fn pagemap(address: usize, pages: usize) -> TestResult<Vec<u64>> {
    let file = File::open("/proc/self/pagemap")?;
    let mut bytes = vec![0_u8; pages * 8];
    file.read_exact_at(&mut bytes, (address / PAGE * 8) as u64)?;
    Ok(bytes
        .chunks_exact(8)
        .map(|entry| u64::from_le_bytes(entry.try_into().expect("8 bytes")))
        .collect())
}

/// Page frame numbers of `pages` pages from `address` on; None for pages that are not present.
pub(crate) fn frames(address: usize, pages: usize) -> TestResult<Vec<Option<u64>>> {
    Ok(pagemap(address, pages)?
        .into_iter()
        .map(|entry| (entry >> 63 == 1).then_some(entry & ((1 << 55) - 1)))
        .collect())
}

/// Bits of /proc/kpageflags.
pub(crate) mod kernel_page {
    /// Its content has to be written somewhere before it can be given up.
    pub(crate) const DIRTY: u64 = 1 << 4;
    /// Free, in the buddy allocator.
    pub(crate) const BUDDY: u64 = 1 << 10;
    /// The first of several pages that are one.
    pub(crate) const COMPOUND_HEAD: u64 = 1 << 15;
    /// Anonymous memory.
    pub(crate) const ANON: u64 = 1 << 12;
}

fn of_pages(file: &str, frames: &[u64]) -> TestResult<Vec<u64>> {
    let file = File::open(file)?;
    let read = |frame: &u64| -> TestResult<u64> {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, frame * 8)?;
        Ok(u64::from_ne_bytes(word))
    };
    frames.iter().map(read).collect()
}

/// What the kernel uses pages for: bits of [`kernel_page`] and others.
pub(crate) fn page_flags(frames: &[u64]) -> TestResult<Vec<u64>> {
    of_pages("/proc/kpageflags", frames)
}

/// How often pages are mapped by processes.
pub(crate) fn page_mapped(frames: &[u64]) -> TestResult<Vec<u64>> {
    of_pages("/proc/kpagecount", frames)
}

/// Has the processors let go of the pages that they are about to put into lists.
pub(crate) fn drain_pages() -> TestResult {
    Ok(fs::write("/proc/sys/vm/drop_caches", "1")?)
}

/// The fewest memory entries that `length` bytes at `address`, less than 4 GiB, need: one for each
/// page that is not behind the one before it. Written without a look at the code that makes them.
pub(crate) fn minimal_runs(address: usize, length: usize) -> TestResult<u64> {
    let frames: Option<Vec<u64>> = frames(address, length / PAGE)?.into_iter().collect();
    let frames = frames.ok_or_else(|| Outcome::Fail("a page is not present".into()))?;
    let breaks = frames.windows(2).filter(|pair| pair[0] + 1 != pair[1]);
    Ok(u64::from(!frames.is_empty()) + breaks.count() as u64)
}

/// Makes sure that `count` free huge pages of 2 MiB exist; false if the system has no room.
pub(crate) fn reserve_hugepages(count: u64) -> TestResult<bool> {
    let folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let read = |name: &str| -> TestResult<u64> {
        let text = fs::read_to_string(format!("{folder}/{name}"))?;
        Ok(text.trim().parse().unwrap_or(0))
    };
    if !std::path::Path::new(folder).exists() {
        return Ok(false);
    }
    let (free, all) = (read("free_hugepages")?, read("nr_hugepages")?);
    if free < count {
        let _ = fs::write("/proc/sys/vm/compact_memory", "1");
        fs::write(
            format!("{folder}/nr_hugepages"),
            format!("{}", all + count - free),
        )?;
    }
    Ok(read("free_hugepages")? >= count)
}

/// Bytes that field `name` (in kB) has for the mapping that `address` is in, in /proc/self/smaps.
pub(crate) fn smaps(address: u64, name: &str) -> TestResult<u64> {
    let text = fs::read_to_string("/proc/self/smaps")?;
    let mut inside = false;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|word| {
            let (start, end) = word.split_once('-')?;
            let parse = |text| u64::from_str_radix(text, 16).ok();
            Some((parse(start)?, parse(end)?))
        });
        match range {
            Some((start, end)) => inside = (start..end).contains(&address),
            None if inside => {
                if let Some(kilobytes) = field(line, name) {
                    return Ok(kilobytes * 1024);
                }
            }
            None => {}
        }
    }
    Err(Outcome::Fail(format!(
        "/proc/self/smaps has no {name} for {address:#x}"
    )))
}

/// Whether this thread has made use of a privilege (`PF_SUPERPRIV`).
pub(crate) fn used_privilege() -> TestResult<bool> {
    const PF_SUPERPRIV: u64 = 0x100;
    let stat = fs::read_to_string("/proc/thread-self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    // The 9th field; the name is the 2nd.
    let flags = fields.split_whitespace().nth(6);
    flags
        .and_then(|flags| flags.parse::<u64>().ok())
        .map(|flags| flags & PF_SUPERPRIV != 0)
        .ok_or_else(|| Outcome::Fail(format!("/proc/thread-self/stat is {stat:?}")))
}

/// Whether thread `tid` of this process sleeps.
pub(crate) fn asleep(tid: i32) -> bool {
    fs::read_to_string(format!("/proc/self/task/{tid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit(')').next()?.trim().chars().next())
        .is_some_and(|state| state == 'S' || state == 'D')
}

/// Names of the tasks that are in a function of the kernel's.
pub(crate) fn tasks_in(function: &str) -> TestResult<Vec<String>> {
    let own = fs::read_to_string("/proc/self/stack")?;
    check!(!own.is_empty(), "this kernel shows no stacks");
    let mut names = Vec::new();
    for task in fs::read_dir("/proc")?.flatten() {
        // One that has ended has no stack.
        let stack = fs::read_to_string(task.path().join("stack")).unwrap_or_default();
        if stack.contains(function) {
            names.push(fs::read_to_string(task.path().join("comm")).unwrap_or_default());
        }
    }
    Ok(names)
}
