// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! As few memory entries as the physical memory allows.

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::{compute, Bytes, Device, Mapping, Memfd, Memory, RegisterOptions};

use crate::ktap::TestResult;
use crate::support::memory::{hugetlb, small_pages, Thp};
use crate::support::{job, procfs, Env, Random, HUGE, PAGE};
use crate::{check, check_eq, skip};

/// Registers, and compares the memory entries with the fewest possible.
fn entries<M: Memory>(device: &Device, memory: &M) -> TestResult<u64> {
    let userptr = device.register(memory, RegisterOptions::pinned())?;
    let expected = procfs::minimal_runs(memory.as_ptr() as usize, memory.len())?;
    let entries = userptr.query()?.entries;
    check_eq!(
        entries,
        expected,
        "memory entries of {} KiB",
        memory.len() >> 10
    );
    Ok(entries)
}

pub(super) fn entries_hugetlb(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = hugetlb(HUGE, MapFlags::PRIVATE)?;
    memory.fill(1);
    check_eq!(entries(&device, &memory)?, 1, "entries of one huge page");
    Ok(())
}

pub(super) fn entries_thp(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Thp::new(4 * HUGE)?;
    let huge = memory.is_huge()?;
    let entries = entries(&device, &memory)?;
    if !huge {
        skip!("the kernel gave no transparent huge pages");
    }
    check!(
        entries <= 4,
        "at most 4 entries of 4 huge pages, not {entries}"
    );
    Ok(())
}

pub(super) fn entries_small_pages(env: &Env) -> TestResult {
    let device = env.compute()?;
    for pages in [1, 2, 511, 512, 513, 5000] {
        entries(&device, &small_pages(pages * PAGE)?)?;
    }
    Ok(())
}

/// Every second page of a large range, so that no two are neighbours.
pub(super) fn entries_fragmented(env: &Env) -> TestResult {
    let device = env.compute()?;
    let scattered = Scattered::new(2000)?;
    let count = entries(&device, &scattered)?;
    check!(
        count > 1000,
        "{count} entries of 2000 pages are hardly fragmented"
    );
    let data = Random(13).bytes(scattered.len());
    scattered.write(0, &data);
    let userptr = device.register(&scattered, RegisterOptions::pinned())?;
    let crc = job::crc(&device, userptr.at(0), data.len() as u64, userptr.handle())?;
    check_eq!(
        crc,
        compute::crc32c(0, &data),
        "CRC32C of fragmented memory"
    );
    Ok(())
}

/// Pages of one memfd, mapped in an order that leaves no two neighbours.
struct Scattered {
    mapping: Mapping,
}

impl Scattered {
    fn new(pages: usize) -> TestResult<Self> {
        let memfd = Memfd::new((2 * pages * PAGE) as u64)?;
        // In ascending order first, so that the file's pages are neighbours where they can be.
        memfd.map()?.fill(0);
        let mapping = Mapping::anonymous(pages * PAGE)?;
        for page in 0..pages {
            // SAFETY: Within the mapping that this value owns.
            unsafe {
                rustix::mm::mmap(
                    mapping.as_ptr().wrapping_add(page * PAGE).cast(),
                    PAGE,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED | MapFlags::FIXED,
                    &memfd,
                    (2 * page * PAGE) as u64,
                )?
            };
        }
        Ok(Self { mapping })
    }
}

// SAFETY: That of the mapping.
unsafe impl Memory for Scattered {
    fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }
    fn len(&self) -> usize {
        self.mapping.len()
    }
}
