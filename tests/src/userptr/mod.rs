// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Pinned user memory that works: the device computes on exactly the program's pages, whatever kind
//! they are, and the memory entries sent to it are as few as can be.

mod entries;
mod file;
mod jobs;
mod query;
mod rocm;
mod several;

use virtgpu_client::{compute, Bytes, Device, Memory, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::{example, job, Env, Random};
use crate::{cases, check, check_eq};

use self::entries::{entries_fragmented, entries_hugetlb, entries_small_pages, entries_thp};
use self::file::{
    file_private_read_only, file_private_writable, memfd_fd, memfd_fd_holes, memfd_fd_hugetlb,
    memfd_fd_read_only_sealed, memfd_mapping,
};
use self::jobs::{
    closed_while_busy, cpu_and_device_see_the_same, gemm, large, malloc_add, malloc_crc, saxpy,
    untouched_memory,
};
use self::query::{prefault_flag, prefetch, query, query_blob};
use self::rocm::{rocm_create_blob, rocm_read_only, rocm_unaligned};
use self::several::{
    accounting, before_context_init, host3d_guest, many_registrations, overlap, same_range_twice,
    two_files,
};

pub(crate) const FAMILY: Family = Family {
    name: "userptr",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        malloc_crc,
        malloc_add,
        cpu_and_device_see_the_same,
        saxpy,
        gemm,
        untouched_memory,
        file_private_read_only,
        file_private_writable,
        memfd_mapping,
        memfd_fd,
        memfd_fd_hugetlb,
        memfd_fd_holes,
        memfd_fd_read_only_sealed,
        host3d_guest,
        overlap,
        same_range_twice,
        two_files,
        before_context_init,
        rocm_create_blob,
        rocm_unaligned,
        rocm_read_only,
        query,
        query_blob,
        prefetch,
        prefault_flag,
        entries_hugetlb,
        entries_thp,
        entries_small_pages,
        entries_fragmented,
        large,
        closed_while_busy,
        accounting,
        many_registrations,
        documented_example,
    ],
};

/// Random data in memory; its registration is checked by a CRC32C and an addition of the device.
fn exercise<M: Memory>(device: &Device, memory: &M, options: RegisterOptions) -> TestResult {
    let length = memory.len();
    let data = Random(length as u64).bytes(length);
    memory.write(0, &data);
    let userptr = device.register(memory, options)?;
    let crc = job::crc(device, userptr.at(0), length as u64, userptr.handle())?;
    check_eq!(crc, compute::crc32c(0, &data), "CRC32C by the device");
    add_everywhere(device, memory, &userptr, &data)
}

fn add_everywhere<M: Memory, N>(
    device: &Device,
    memory: &M,
    userptr: &virtgpu_client::Registration<'_, N>,
    before: &[u8],
) -> TestResult {
    let length = memory.len();
    job::add(
        device,
        userptr.at(0),
        length as u64,
        0x0102_0304,
        userptr.handle(),
    )?;
    let after = memory.to_vec(0, length);
    for (index, (old, new)) in before
        .chunks_exact(4)
        .zip(after.chunks_exact(4))
        .enumerate()
    {
        let old = u32::from_le_bytes(old.try_into().expect("4 bytes"));
        let new = u32::from_le_bytes(new.try_into().expect("4 bytes"));
        check_eq!(
            new,
            old.wrapping_add(0x0102_0304),
            "word {index} after ADD_U32"
        );
    }
    Ok(())
}

/// The program of `docs/uapi.md`, as it is printed there.
fn documented_example(env: &Env) -> TestResult {
    let text = example::run(env, example::Example::Registered)?;
    check!(text.ends_with(": right\n"), "it says {text:?}");
    Ok(())
}
