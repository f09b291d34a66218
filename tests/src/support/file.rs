// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Files with holes, and disks without room.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::FallocateFlags;
use virtgpu_client::Errno;

use crate::ktap::TestResult;
use crate::support::PAGE;

/// Punches a hole.
pub(crate) fn punch(file: impl AsFd, offset: usize, length: usize) -> TestResult {
    rustix::fs::fallocate(
        file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        offset as u64,
        length as u64,
    )?;
    Ok(())
}

/// Has a file take what room there is on its disk.
pub(crate) fn fill_disk(file: &File) -> TestResult {
    let (mut chunk, mut size) = (8 << 20, 0);
    while chunk >= PAGE as u64 {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), size, chunk) {
            Ok(()) => size += chunk,
            Err(Errno::NOSPC) => chunk /= 2,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
