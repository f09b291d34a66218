// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the host's kernel lets a process have: a number of mappings, and pages of a size.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// Mappings that a process may have.
pub(crate) fn max_mappings() -> usize {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    // The kernel's own default.
    text.trim().parse().unwrap_or(65530)
}

/// Bytes of the pieces in which `file` can be mapped, if they are not pages: those of hugetlbfs.
pub(crate) fn block_size(file: &File) -> Option<u32> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: It only fills in `stat`, of which all zeroes are a valid value.
    let stat = unsafe {
        if libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    if stat.f_type != libc::HUGETLBFS_MAGIC {
        return None;
    }
    u32::try_from(stat.f_bsize).ok()
}
