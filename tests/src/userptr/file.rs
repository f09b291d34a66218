// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory of files: mappings, and memfds without one.

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::{compute, Bytes, Errno, Mapping, Memfd, Memory, RegisterOptions};

use super::{add_everywhere, exercise};
use crate::ktap::TestResult;
use crate::support::{job, procfs, Env, Random, HUGE, PAGE};
use crate::{check_eq, skip};

fn file(name: &str, data: &[u8]) -> TestResult<std::path::PathBuf> {
    let path = std::path::PathBuf::from(format!("/dev/shm/virtgpu-tests-{name}"));
    std::fs::write(&path, data)?;
    Ok(path)
}

pub(super) fn file_private_read_only(env: &Env) -> TestResult {
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
pub(super) fn file_private_writable(env: &Env) -> TestResult {
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

pub(super) fn memfd_mapping(env: &Env) -> TestResult {
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

pub(super) fn memfd_fd(env: &Env) -> TestResult {
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

pub(super) fn memfd_fd_hugetlb(env: &Env) -> TestResult {
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
pub(super) fn memfd_fd_holes(env: &Env) -> TestResult {
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
pub(super) fn memfd_fd_read_only_sealed(env: &Env) -> TestResult {
    let device = env.compute()?;
    let size = 8 * PAGE as u64;
    let memfd = Memfd::new(size)?;
    memfd.seal(SealFlags::GROW | SealFlags::SHRINK)?;
    device.register_memfd(&memfd, 0, size, RegisterOptions::pinned())?;
    device.register_memfd(&memfd, 0, size, RegisterOptions::pinned().read_only())?;
    Ok(())
}
