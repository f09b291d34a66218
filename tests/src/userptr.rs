// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Pinned user memory that works: the device computes on exactly the program's pages, whatever kind
//! they are, and the memory entries sent to it are as few as can be.

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::uapi;
use virtgpu_client::{
    compute, Bytes, Device, Errno, Exec, Mapping, Memfd, Memory, RegisterOptions,
};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::memory::{hugetlb, small_pages, Malloc, Thp};
use crate::support::{job, procfs, raw, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

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

fn malloc_crc(env: &Env) -> TestResult {
    let device = env.compute()?;
    for pages in [1, 2, 255, 1025] {
        let memory = Malloc::new(pages * PAGE);
        let data = Random(pages as u64).bytes(memory.len());
        memory.write(0, &data);
        let userptr = device.register(&memory, RegisterOptions::pinned().read_only())?;
        let crc = job::crc(&device, userptr.at(0), data.len() as u64, userptr.handle())?;
        check_eq!(crc, compute::crc32c(0, &data), "CRC32C of {pages} pages");
        check_eq!(
            userptr.memory_model(),
            uapi::memory_model::PERMANENT,
            "memory model"
        );
        let part = job::crc(&device, userptr.at(100), 999, userptr.handle())?;
        check_eq!(
            part,
            compute::crc32c(0, &data[100..1099]),
            "CRC32C of a part"
        );
    }
    Ok(())
}

fn malloc_add(env: &Env) -> TestResult {
    let device = env.compute()?;
    for pages in [1, 3, 513] {
        exercise(
            &device,
            &Malloc::new(pages * PAGE),
            RegisterOptions::pinned(),
        )?;
    }
    Ok(())
}

/// No copy anywhere: each side sees the other's writes while the registration lives, and the pages
/// are the same ones afterwards.
fn cpu_and_device_see_the_same(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(64 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let before = procfs::frames(memory.as_ptr() as usize, 64)?;
    for round in 0..200_u64 {
        let offset = (round * 5000 % memory.len() as u64) & !7;
        memory.write_u64(offset as usize, round | (1 << 40));
        let seen = job::peek(&device, userptr.at(offset), userptr.handle())?;
        check_eq!(seen, round | (1 << 40), "the device's view at {offset}");
        job::poke(
            &device,
            userptr.at(offset),
            round | (1 << 41),
            userptr.handle(),
        )?;
        check_eq!(
            memory.read_u64(offset as usize),
            round | (1 << 41),
            "the CPU's view at {offset}"
        );
    }
    // The two meet in the middle of a job.
    let mut stream = compute::Stream::new();
    stream
        .fill(userptr.at(0), 8, 1)
        .spin_until(userptr.at(8), 2, 10_000_000)
        .fill(userptr.at(16), 8, 3);
    memory.write_u64(0, 0);
    memory.write_u64(8, 0);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .submit_with_fence(&device)?;
    check!(
        crate::support::eventually(job::LIMIT, || memory.read_u64(0) == 1),
        "the CPU sees the running job's write"
    );
    memory.write_u64(8, 2);
    fence.wait(Some(job::LIMIT))?;
    check_eq!(memory.read_u64(16), 3, "the job saw the CPU's write");
    drop(userptr);
    let after = procfs::frames(memory.as_ptr() as usize, 64)?;
    check_eq!(before, after, "page frames");
    Ok(())
}

fn saxpy(env: &Env) -> TestResult {
    let device = env.compute()?;
    let (x, y) = (Malloc::new(1 << 20), Malloc::new(1 << 20));
    let mut random = Random(3);
    let mut expected = Vec::new();
    for offset in (0..1 << 20).step_by(4) {
        let a = random.below(1000) as f32 / 7.0;
        let b = random.below(1000) as f32 / 3.0;
        x.write_u32(offset, a.to_bits());
        y.write_u32(offset, b.to_bits());
        expected.push(2.5_f32 * a + b);
    }
    let ux = device.register(&x, RegisterOptions::pinned().read_only())?;
    let uy = device.register(&y, RegisterOptions::pinned())?;
    let mut stream = compute::Stream::new();
    stream.saxpy(uy.at(0), ux.at(0), 1 << 20, 2.5);
    job::run(&device, &stream, &[ux.handle(), uy.handle()])?;
    for (index, expected) in expected.iter().enumerate() {
        let value = f32::from_bits(y.read_u32(4 * index));
        check_eq!(value, *expected, "element {index}");
    }
    Ok(())
}

fn gemm(env: &Env) -> TestResult {
    const M: usize = 61;
    const N: usize = 67;
    const K: usize = 59;
    let device = env.compute()?;
    let memory = Malloc::new(16 * PAGE);
    let (a, b, c) = (0, 4 * PAGE, 8 * PAGE);
    let mut random = Random(4);
    let mut matrix = |at: usize, count: usize| -> Vec<f32> {
        (0..count)
            .map(|index| {
                let value = random.below(2000) as f32 / 999.0 - 1.0;
                memory.write_u32(at + 4 * index, value.to_bits());
                value
            })
            .collect()
    };
    let left = matrix(a, M * K);
    let right = matrix(b, K * N);
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let mut stream = compute::Stream::new();
    stream.gemm(
        userptr.at(c as u64),
        [userptr.at(a as u64), userptr.at(b as u64)],
        [M as u32, N as u32, K as u32],
    );
    job::run(&device, &stream, &[userptr.handle()])?;
    for row in 0..M {
        for column in 0..N {
            let mut sum = 0.0_f32;
            for k in 0..K {
                sum += left[row * K + k] * right[k * N + column];
            }
            let value = f32::from_bits(memory.read_u32(c + 4 * (row * N + column)));
            check_eq!(value.to_bits(), sum.to_bits(), "element {row},{column}");
        }
    }
    Ok(())
}

/// Memory that no one has touched becomes resident by registration.
fn untouched_memory(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Mapping::anonymous(100 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    job::add(
        &device,
        userptr.at(0),
        memory.len() as u64,
        9,
        userptr.handle(),
    )?;
    for offset in (0..memory.len()).step_by(4) {
        check_eq!(memory.read_u32(offset), 9, "word at {offset}");
    }
    // Read-only, the zero page would be wrong: later writes of the CPU must be seen.
    let memory = Mapping::anonymous(100 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned().read_only())?;
    memory.write_u64(8 * PAGE, 77);
    let seen = job::peek(&device, userptr.at(8 * PAGE as u64), userptr.handle())?;
    check_eq!(seen, 77, "the device's view of a later write");
    Ok(())
}

fn file(name: &str, data: &[u8]) -> TestResult<std::path::PathBuf> {
    let path = std::path::PathBuf::from(format!("/dev/shm/virtgpu-tests-{name}"));
    std::fs::write(&path, data)?;
    Ok(path)
}

fn file_private_read_only(env: &Env) -> TestResult {
    let device = env.compute()?;
    let data = Random(5).bytes(300 * PAGE);
    let path = file("private-ro", &data)?;
    let fd = rustix::fs::open(&path, OFlags::RDONLY, Mode::empty())?;
    let memory = Mapping::file(&fd, 0, data.len(), ProtFlags::READ, MapFlags::PRIVATE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned().read_only())?;
    let crc = job::crc(&device, userptr.at(0), data.len() as u64, userptr.handle())?;
    check_eq!(crc, compute::crc32c(0, &data), "CRC32C of the file");
    drop(userptr);
    check_eq!(std::fs::read(&path)?, data, "the file");
    std::fs::remove_file(&path)?;
    Ok(())
}

/// A private mapping registered writable gets pages of its own; the file does not change.
fn file_private_writable(env: &Env) -> TestResult {
    let device = env.compute()?;
    let data = Random(6).bytes(20 * PAGE);
    let path = file("private-rw", &data)?;
    let fd = rustix::fs::open(&path, OFlags::RDONLY, Mode::empty())?;
    let memory = Mapping::file(
        &fd,
        0,
        data.len(),
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::PRIVATE,
    )?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    add_everywhere(&device, &memory, &userptr, &data)?;
    check_eq!(std::fs::read(&path)?, data, "the file");
    std::fs::remove_file(&path)?;
    Ok(())
}

fn memfd_mapping(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memfd = Memfd::new(100 * PAGE as u64)?;
    let memory = memfd.map()?;
    exercise(&device, &memory, RegisterOptions::pinned())?;
    // What the device wrote is in the file.
    check_eq!(
        memfd.map()?.to_vec(0, 4096),
        memory.to_vec(0, 4096),
        "the file"
    );
    Ok(())
}

fn memfd_fd(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memfd = Memfd::new(64 * PAGE as u64)?;
    let memory = memfd.map()?;
    let data = Random(8).bytes(memory.len());
    memory.write(0, &data);
    let (offset, size) = (3 * PAGE, 50 * PAGE);
    let userptr = device.register_memfd(
        &memfd,
        offset as u64,
        size as u64,
        RegisterOptions::pinned(),
    )?;
    let crc = job::crc(&device, userptr.at(0), size as u64, userptr.handle())?;
    check_eq!(
        crc,
        compute::crc32c(0, &data[offset..offset + size]),
        "CRC32C of a range of the file"
    );
    let query = userptr.query()?;
    check_eq!(query.size, size as u64, "size");
    let expected = procfs::minimal_runs(memory.as_ptr() as usize + offset, size)?;
    check_eq!(query.entries, expected, "memory entries");
    job::add(&device, userptr.at(0), size as u64, 1, userptr.handle())?;
    for (index, (old, new)) in data
        .chunks_exact(4)
        .zip(memory.to_vec(0, data.len()).chunks_exact(4))
        .enumerate()
    {
        let inside = (offset..offset + size).contains(&(4 * index));
        let old = u32::from_le_bytes(old.try_into().expect("4 bytes"));
        let new = u32::from_le_bytes(new.try_into().expect("4 bytes"));
        check_eq!(new, old.wrapping_add(u32::from(inside)), "word {index}");
    }
    Ok(())
}

fn memfd_fd_hugetlb(env: &Env) -> TestResult {
    if !procfs::reserve_hugepages(2)? {
        skip!("no room for hugetlb pages");
    }
    let device = env.compute()?;
    let memfd = match Memfd::with_flags(2 * HUGE as u64, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB)
    {
        Ok(memfd) => memfd,
        Err(Errno::NOSYS | Errno::INVAL) => skip!("the kernel has no hugetlb memfd"),
        Err(error) => return Err(error.into()),
    };
    let memory = memfd.map()?;
    let data = Random(9).bytes(memory.len());
    memory.write(0, &data);
    // From the middle of one huge page to the middle of the next.
    let (offset, size) = (HUGE / 2, HUGE);
    let userptr = device.register_memfd(
        &memfd,
        offset as u64,
        size as u64,
        RegisterOptions::pinned(),
    )?;
    let crc = job::crc(&device, userptr.at(0), size as u64, userptr.handle())?;
    check_eq!(
        crc,
        compute::crc32c(0, &data[offset..offset + size]),
        "CRC32C"
    );
    let expected = procfs::minimal_runs(memory.as_ptr() as usize + offset, size)?;
    check_eq!(userptr.query()?.entries, expected, "memory entries");
    Ok(())
}

/// Holes of a memfd are filled by registration.
fn memfd_fd_holes(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memfd = Memfd::new(32 * PAGE as u64)?;
    let size = 32 * PAGE as u64;
    let userptr = device.register_memfd(&memfd, 0, size, RegisterOptions::pinned())?;
    job::add(&device, userptr.at(0), size, 5, userptr.handle())?;
    let memory = memfd.map()?;
    for offset in (0..memory.len()).step_by(4) {
        check_eq!(memory.read_u32(offset), 5, "word at {offset}");
    }
    Ok(())
}

/// A seal against growing does not matter; the device may read what is sealed against writing only
/// where it can be kept from writing, so here it may not.
fn memfd_fd_read_only_sealed(env: &Env) -> TestResult {
    let device = env.compute()?;
    let size = 8 * PAGE as u64;
    let memfd = Memfd::new(size)?;
    memfd.seal(SealFlags::GROW | SealFlags::SHRINK)?;
    device.register_memfd(&memfd, 0, size, RegisterOptions::pinned())?;
    device.register_memfd(&memfd, 0, size, RegisterOptions::pinned().read_only())?;
    Ok(())
}

fn host3d_guest(env: &Env) -> TestResult {
    let device = env.compute()?;
    exercise(
        &device,
        &Malloc::new(16 * PAGE),
        RegisterOptions::pinned().host3d_guest(1),
    )
}

fn overlap(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(16 * PAGE)?;
    let length = 10 * PAGE;
    let first = device.register_range(&memory, 0, length, RegisterOptions::pinned())?;
    let second = device.register_range(&memory, 6 * PAGE, length, RegisterOptions::pinned())?;
    check!(first.handle() != second.handle(), "two handles");
    check!(first.resource() != second.resource(), "two resources");
    let length = length as u64;
    job::add(&device, first.at(0), length, 1, first.handle())?;
    job::add(&device, second.at(0), length, 10, second.handle())?;
    for page in 0..16 {
        let expected = u32::from(page < 10) + 10 * u32::from(page >= 6);
        check_eq!(memory.read_u32(page * PAGE), expected, "page {page}");
    }
    // Ending one does not end the other.
    drop(first);
    job::add(&device, second.at(0), length, 100, second.handle())?;
    check_eq!(memory.read_u32(8 * PAGE), 111, "page 8");
    Ok(())
}

fn same_range_twice(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(8 * PAGE)?;
    let registrations = (0..10)
        .map(|_| device.register(&memory, RegisterOptions::pinned()))
        .collect::<Result<Vec<_>, _>>()?;
    check_eq!(procfs::vm_pin()?, 10 * 8 * PAGE as u64, "VmPin counts each");
    for userptr in &registrations {
        job::add(
            &device,
            userptr.at(0),
            memory.len() as u64,
            1,
            userptr.handle(),
        )?;
    }
    check_eq!(memory.read_u32(7 * PAGE), 10, "all of them added");
    Ok(())
}

fn two_files(env: &Env) -> TestResult {
    let (first, second) = (env.compute()?, env.compute()?);
    let memory = small_pages(8 * PAGE)?;
    let one = first.register(&memory, RegisterOptions::pinned())?;
    let two = second.register(&memory, RegisterOptions::pinned())?;
    job::add(&first, one.at(0), memory.len() as u64, 1, one.handle())?;
    job::add(&second, two.at(0), memory.len() as u64, 2, two.handle())?;
    check_eq!(memory.read_u32(0), 3, "both added");
    Ok(())
}

/// As with CREATE_BLOB, a context is made for a file that has none.
fn before_context_init(env: &Env) -> TestResult {
    let device = env.open()?;
    let memory = small_pages(4 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    check_eq!(userptr.query()?.size, memory.len() as u64, "size");
    check_err!(
        device.context_init_compute(1),
        Errno::EXIST,
        "CONTEXT_INIT afterwards"
    );
    Ok(())
}

/// `bytes` long, with the user pointer of ROCm at offset 48.
fn rocm(memory: u64, size: u64, flags: u32) -> uapi::ResourceCreateBlob {
    uapi::ResourceCreateBlob {
        blob_mem: virtgpu_client::protocol::virtio_gpu::blob_mem::HOST3D_GUEST,
        blob_flags: uapi::BLOB_FLAG_USE_USERPTR | flags,
        size,
        blob_id: 1,
        blob_hints: memory as u32,
        pad2: (memory >> 32) as u32,
        ..Default::default()
    }
}

fn rocm_create_blob(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Malloc::new(16 * PAGE);
    for bytes in [56, 64, 72] {
        let data = Random(bytes as u64).bytes(memory.len());
        memory.write(0, &data);
        let mut create = rocm(memory.as_ptr() as u64, memory.len() as u64, 0);
        let value = raw::sized(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create, bytes)?;
        check_eq!(value, 0, "return value with {bytes} bytes");
        let info = device.resource_info(create.bo_handle)?;
        check_eq!(info.res_handle, create.res_handle, "resource");
        let at = virtgpu_client::protocol::compute::Operand::resource(create.res_handle, 0);
        let crc = job::crc(&device, at, memory.len() as u64, create.bo_handle)?;
        check_eq!(crc, compute::crc32c(0, &data), "CRC32C with {bytes} bytes");
        device.gem_close(create.bo_handle)?;
    }
    // In 48 bytes there is no pointer: it reads as NULL.
    let mut create = rocm(0, memory.len() as u64, 0);
    check_err!(
        raw::sized(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create, 48),
        Errno::INVAL,
        "48 bytes"
    );
    // The same layouts without the flag are ordinary blobs.
    for bytes in [48, 56, 64, 72] {
        let mut create = uapi::ResourceCreateBlob {
            blob_mem: virtgpu_client::protocol::virtio_gpu::blob_mem::GUEST,
            blob_flags: 1,
            size: PAGE as u64,
            ..Default::default()
        };
        raw::sized(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create, bytes)?;
        device.gem_close(create.bo_handle)?;
    }
    Ok(())
}

/// The pages around an unaligned range are registered; where in the first page the range starts is
/// the program's business.
fn rocm_unaligned(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Malloc::new(16 * PAGE);
    let data = Random(11).bytes(memory.len());
    memory.write(0, &data);
    for (start, length) in [(100, 500), (4000, 200), (1, 3 * PAGE), (PAGE + 8, PAGE)] {
        let mut create = rocm(memory.as_ptr() as u64 + start as u64, length as u64, 0);
        raw::call(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create)?;
        let at = virtgpu_client::protocol::compute::Operand::resource(
            create.res_handle,
            (start % PAGE) as u64,
        );
        // The resource is `size` bytes from the start of the page on, as AMD's driver tells hosts.
        let reachable = length - (start % PAGE).min(length);
        if reachable > 0 {
            let crc = job::crc(&device, at, reachable as u64, create.bo_handle)?;
            check_eq!(
                crc,
                compute::crc32c(0, &data[start..start + reachable]),
                "CRC32C of {reachable} bytes at {start}"
            );
        }
        device.gem_close(create.bo_handle)?;
    }
    Ok(())
}

fn rocm_read_only(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Malloc::new(4 * PAGE);
    let data = Random(12).bytes(memory.len());
    memory.write(0, &data);
    let mut create = rocm(
        memory.as_ptr() as u64,
        memory.len() as u64,
        uapi::BLOB_FLAG_USERPTR_RDONLY,
    );
    raw::call(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create)?;
    let at = virtgpu_client::protocol::compute::Operand::resource(create.res_handle, 0);
    let crc = job::crc(&device, at, memory.len() as u64, create.bo_handle)?;
    check_eq!(crc, compute::crc32c(0, &data), "CRC32C");
    check!(
        device.query(create.bo_handle)?.flags & uapi::USERPTR_RDONLY != 0,
        "BO_QUERY says read-only"
    );
    device.gem_close(create.bo_handle)?;
    Ok(())
}

fn query(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(37 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let query = userptr.query()?;
    let length = memory.len() as u64;
    check_eq!(query.bo_handle, userptr.handle(), "bo_handle");
    check_eq!(query.flags, uapi::USERPTR_PINNED, "flags");
    check_eq!(
        query.memory_model,
        uapi::memory_model::PERMANENT,
        "memory_model"
    );
    check_eq!(query.state, uapi::bo_state::VALID, "state");
    check_eq!(query.addr, memory.as_ptr() as u64, "addr");
    check_eq!(query.size, length, "size");
    check_eq!(query.resident_bytes, length, "resident_bytes");
    check_eq!(query.mapped_bytes, length, "mapped_bytes");
    check_eq!(query.maps, 0, "maps");
    check_eq!(query.invalidations, 0, "invalidations");
    for handle in [0, 12345, u32::MAX] {
        check_err!(device.query(handle), Errno::NOENT, "handle {handle}");
    }
    Ok(())
}

fn query_blob(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&virtgpu_client::BlobOptions::guest(1 << 20))?;
    let query = device.query(blob.handle())?;
    check_eq!(query.flags, 0, "flags");
    check_eq!(query.addr, 0, "addr");
    check_eq!(query.size, 1 << 20, "size");
    check_eq!(query.state, uapi::bo_state::VALID, "state");
    check_eq!(
        query.memory_model,
        uapi::memory_model::PERMANENT,
        "memory_model"
    );
    Ok(())
}

fn prefetch(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(10 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let page = PAGE as u64;
    for (offset, length) in [
        (0, 10 * page),
        (0, page),
        (3 * page, 7 * page),
        (9 * page, page),
    ] {
        check_eq!(
            userptr.prefetch(offset, length)?,
            length,
            "bytes done of {length} at {offset}"
        );
    }
    for (offset, length) in [
        (0, 11 * page),
        (10 * page, page),
        (1, page),
        (0, 100),
        (!4095, page),
        (page, !4095),
    ] {
        check_err!(
            userptr.prefetch(offset, length),
            Errno::INVAL,
            "{length:#x} bytes at {offset:#x}"
        );
    }
    let mut wrong = uapi::UserptrPrefetch {
        bo_handle: userptr.handle(),
        flags: 1,
        length: page,
        ..Default::default()
    };
    check_err!(
        raw::call(&device, uapi::nr::USERPTR_PREFETCH, &mut wrong),
        Errno::INVAL,
        "flags 1"
    );
    wrong.flags = 0;
    wrong.bo_handle = 12345;
    check_err!(
        raw::call(&device, uapi::nr::USERPTR_PREFETCH, &mut wrong),
        Errno::NOENT,
        "unknown handle"
    );
    let blob = device.create_blob(&virtgpu_client::BlobOptions::guest(page))?;
    wrong.bo_handle = blob.handle();
    check_err!(
        raw::call(&device, uapi::nr::USERPTR_PREFETCH, &mut wrong),
        Errno::INVAL,
        "a blob"
    );
    Ok(())
}

fn prefault_flag(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Mapping::anonymous(16 * PAGE)?;
    let options = RegisterOptions::pinned().flag(uapi::USERPTR_PREFAULT);
    let userptr = device.register(&memory, options)?;
    check_eq!(
        userptr.query()?.resident_bytes,
        memory.len() as u64,
        "resident_bytes"
    );
    Ok(())
}

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

fn entries_hugetlb(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = hugetlb(HUGE, MapFlags::PRIVATE)?;
    memory.fill(1);
    check_eq!(entries(&device, &memory)?, 1, "entries of one huge page");
    Ok(())
}

fn entries_thp(env: &Env) -> TestResult {
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

fn entries_small_pages(env: &Env) -> TestResult {
    let device = env.compute()?;
    for pages in [1, 2, 511, 512, 513, 5000] {
        entries(&device, &small_pages(pages * PAGE)?)?;
    }
    Ok(())
}

/// Every second page of a large range, so that no two are neighbours.
fn entries_fragmented(env: &Env) -> TestResult {
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

fn large(env: &Env) -> TestResult {
    let device = env.compute()?;
    let available = procfs::meminfo("MemAvailable:")? << 10;
    let length = (256_usize << 20).min(available as usize / 3) & !(HUGE - 1);
    let memory = Malloc::new(length);
    for page in (0..length).step_by(PAGE) {
        memory.write_u64(page, page as u64);
    }
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    check_eq!(procfs::vm_pin()?, length as u64, "VmPin");
    let mut random = Random(14);
    for _ in 0..100 {
        let page = random.below((length / PAGE) as u64) * PAGE as u64;
        let seen = job::peek(&device, userptr.at(page), userptr.handle())?;
        check_eq!(
            seen,
            page,
            "the device's view of page {}",
            page / PAGE as u64
        );
    }
    let blob = device.create_blob(&virtgpu_client::BlobOptions::guest(4096))?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    stream.stride_read(blob.at(0), userptr.at(1), length as u64 - 1, PAGE as u64);
    job::run(&device, &stream, &[blob.handle(), userptr.handle()])?;
    let expected: u64 = (0..length)
        .step_by(PAGE)
        .map(|page| (page >> 8) as u64 & 0xff)
        .sum();
    check_eq!(map.read_u64(0), expected, "sum over all pages");
    Ok(())
}

/// Closing the handle lets a running job finish, and only then are the pages free.
fn closed_while_busy(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(64 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let mut stream = compute::Stream::new();
    stream
        .delay(300_000)
        .add_u32(userptr.at(0), memory.len() as u64, 1);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[userptr.handle()])
        .submit_with_fence(&device)?;
    userptr.close()?;
    fence.wait(Some(job::LIMIT))?;
    for page in 0..64 {
        check_eq!(memory.read_u32(page * PAGE), 1, "page {page}");
    }
    check!(
        crate::support::eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
        "VmPin goes back to 0"
    );
    Ok(())
}

fn accounting(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(100 * PAGE)?;
    let system = procfs::pinned_pages()?;
    check_eq!(procfs::vm_pin()?, 0, "VmPin before");
    let first = device.register_range(&memory, 0, 60 * PAGE, RegisterOptions::pinned())?;
    check_eq!(procfs::vm_pin()?, 60 * PAGE as u64, "VmPin with one");
    check_eq!(
        procfs::pinned_pages()?,
        system + 60,
        "pages pinned in the system"
    );
    let second = device.register(&memory, RegisterOptions::pinned().read_only())?;
    check_eq!(procfs::vm_pin()?, 160 * PAGE as u64, "VmPin with two");
    drop(first);
    let expected = Ok(100 * PAGE as u64);
    check!(
        crate::support::eventually(job::LIMIT, || procfs::vm_pin() == expected),
        "VmPin after the first is closed"
    );
    drop(second);
    check!(
        crate::support::eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)
            && procfs::pinned_pages() == Ok(system)),
        "nothing is pinned after the second is closed"
    );
    Ok(())
}

fn many_registrations(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(1000 * PAGE)?;
    let registrations = (0..1000)
        .map(|page| device.register_range(&memory, page * PAGE, PAGE, RegisterOptions::pinned()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut stream = compute::Stream::new();
    for userptr in registrations.iter().step_by(5) {
        stream.add_u32(userptr.at(0), PAGE as u64, 1);
    }
    let handles: Vec<_> = registrations
        .iter()
        .map(|userptr| userptr.handle())
        .collect();
    job::run(&device, &stream, &handles)?;
    for page in 0..1000 {
        check_eq!(
            memory.read_u32(page * PAGE),
            u32::from(page % 5 == 0),
            "page {page}"
        );
    }
    Ok(())
}
