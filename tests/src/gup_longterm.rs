// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The cases of the kernel's gup_longterm selftest through our two entrances, REGISTER and ROCm's
//! CREATE_BLOB: {writable, read-only} x {two entrances} x {shared, private} mappings of a memfd, a
//! tmpfs file, an ext4 file and a hugetlb memfd. Only writable registrations of shared mappings of
//! ext4 are refused; all others work, and device and CPU see each other's writes.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::{compute::Operand, uapi};
use virtgpu_client::{compute, Bytes, Device, Errno, Mapping, Memfd, Memory};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::{errno, ext4, job, procfs, raw, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = Family {
    name: "gup_longterm",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![memfd, tmpfile, ext4_file, memfd_hugetlb],
};

struct What<'a> {
    fd: &'a OwnedFd,
    length: usize,
    /// Writable registrations of shared mappings are allowed.
    tracks_nothing: bool,
}

/// The eight cases.
fn all(env: &Env, what: &What<'_>) -> TestResult {
    let device = env.compute()?;
    for writable in [true, false] {
        for rocm in [false, true] {
            for shared in [true, false] {
                let name = format!(
                    "{} {} {}",
                    if writable { "writable" } else { "read-only" },
                    if rocm { "CREATE_BLOB" } else { "REGISTER" },
                    if shared { "shared" } else { "private" },
                );
                println!("    # {name}");
                one(&device, what, &name, writable, rocm, shared)?;
            }
        }
    }
    Ok(())
}

fn one(
    device: &Device,
    what: &What<'_>,
    name: &str,
    writable: bool,
    rocm: bool,
    shared: bool,
) -> TestResult {
    let kind = if shared {
        MapFlags::SHARED
    } else {
        MapFlags::PRIVATE
    };
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let file = Mapping::file(what.fd, 0, what.length, prot, MapFlags::SHARED)?;
    let data = Random(what.length as u64).bytes(what.length);
    file.write(0, &data);
    let memory = Mapping::file(what.fd, 0, what.length, prot, kind)?;
    // As in the selftest: the pages are there, but not the mapping's own copies.
    memory.read_u32(0);
    let result = register(device, &memory, writable, rocm);
    let should_work = what.tracks_nothing || !shared || !writable;
    if !should_work {
        check!(
            matches!(result, Err(Errno::FAULT | Errno::OPNOTSUPP)),
            "{name}: {}",
            errno::describe(&result)
        );
        return Ok(());
    }
    check!(result.is_ok(), "{name}: {}", errno::describe(&result));
    let (handle, resource) = result?;
    let at = |offset| Operand::resource(resource, offset);
    let crc = job::crc(device, at(0), what.length as u64, handle)?;
    check_eq!(crc, compute::crc32c(0, &data), "{name}: CRC32C");
    // The mapping's pages are those that were registered.
    memory.write_u64(8, 0x1234);
    check_eq!(
        job::peek(device, at(8), handle)?,
        0x1234,
        "{name}: the CPU's write"
    );
    if writable {
        job::poke(device, at(16), 0x5678, handle)?;
        check_eq!(memory.read_u64(16), 0x5678, "{name}: the device's write");
    }
    let expected = if shared {
        0x1234
    } else {
        u64::from_le_bytes(data[8..16].try_into().expect("8 bytes"))
    };
    check_eq!(file.read_u64(8), expected, "{name}: the file");
    device.gem_close(handle)?;
    Ok(())
}

fn register(
    device: &Device,
    memory: &Mapping,
    writable: bool,
    rocm: bool,
) -> Result<(u32, u32), Errno> {
    let (addr, size) = (memory.as_ptr() as u64, memory.len() as u64);
    if rocm {
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: 3,
            blob_flags: if writable { 0x8 } else { 0x18 },
            size,
            blob_id: 1,
            blob_hints: addr as u32,
            pad2: (addr >> 32) as u32,
            ..Default::default()
        };
        raw::call(device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob)?;
        return Ok((blob.bo_handle, blob.res_handle));
    }
    let mut register = raw::pinned(addr, size);
    if !writable {
        register.flags |= uapi::USERPTR_RDONLY;
    }
    raw::call(device, uapi::nr::USERPTR_REGISTER, &mut register)?;
    Ok((register.bo_handle, register.res_handle))
}

fn memfd(env: &Env) -> TestResult {
    let memfd = Memfd::new(16 * PAGE as u64)?;
    let fd = memfd.as_fd().try_clone_to_owned()?;
    let what = What {
        fd: &fd,
        length: 16 * PAGE,
        tracks_nothing: true,
    };
    all(env, &what)
}

fn file(folder: &str) -> TestResult<OwnedFd> {
    let path = format!("{folder}/virtgpu-tests-gup");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    file.set_len(16 * PAGE as u64)?;
    std::fs::remove_file(path)?;
    Ok(file.into())
}

fn tmpfile(env: &Env) -> TestResult {
    let what = What {
        fd: &file("/dev/shm")?,
        length: 16 * PAGE,
        tracks_nothing: true,
    };
    all(env, &what)
}

fn ext4_file(env: &Env) -> TestResult {
    let folder = ext4::folder()?;
    let what = What {
        fd: &file(&folder.to_string_lossy())?,
        length: 16 * PAGE,
        tracks_nothing: false,
    };
    all(env, &what)
}

fn memfd_hugetlb(env: &Env) -> TestResult {
    // One for the file, one for each private copy.
    if !procfs::reserve_hugepages(4)? {
        skip!("no room for hugetlb pages");
    }
    let memfd = Memfd::with_flags(HUGE as u64, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB)?;
    let fd = memfd.as_fd().try_clone_to_owned()?;
    let what = What {
        fd: &fd,
        length: HUGE,
        tracks_nothing: true,
    };
    all(env, &what)
}
