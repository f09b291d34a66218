// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Read-only is a privilege boundary: a device that ignores it must not become a way to write what
//! the caller could not. Each case tries to write root's file through the device.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::uapi;
use virtgpu_client::{Bytes, Device, Errno, Mapping, Memfd, Memory, RegisterOptions};

use crate::bad_memory::open_read_only;
use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::unchanged::Refusing;
use crate::support::{child, ext4, job, raw, Env, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = Family {
    name: "read_only",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        shared_memory_of_root,
        ext4_file_of_root,
        private_mapping_of_roots_file,
        roots_own_read_only_file,
        mapping_without_write,
        memfd_read_only,
        memfd_write_sealed,
        memfd_write_only,
        not_a_memfd,
        reopened_through_proc,
    ],
};

const P: u64 = PAGE as u64;
const SECRET: u8 = 0x52;

fn roots_file(path: &str) -> TestResult {
    fs::write(path, [SECRET; 4 * PAGE])?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

fn unchanged(path: &str) -> TestResult {
    check!(
        fs::read(path)?.iter().all(|&byte| byte == SECRET),
        "{path} was changed through the device"
    );
    fs::remove_file(path)?;
    Ok(())
}

/// A registration went through that should not have: what can be done with it?
fn attack(device: &Device, register: uapi::UserptrRegister) -> Result<u32, Errno> {
    let mut register = register;
    raw::call(device, uapi::nr::USERPTR_REGISTER, &mut register)?;
    write_through(device, register.res_handle, register.bo_handle);
    Ok(register.bo_handle)
}

fn write_through(device: &Device, resource: u32, handle: u32) {
    let at = virtgpu_client::protocol::compute::Operand::resource(resource, 0);
    let _ = job::poke(device, at, 0, handle);
}

/// Shared and not writable by the caller: no way in.
fn refuse_mapping(refusing: &Refusing, mapping: &Mapping) -> TestResult {
    let addr = mapping.as_ptr() as u64;
    let size = mapping.len() as u64;
    let read_only = uapi::UserptrRegister {
        flags: uapi::USERPTR_PINNED | uapi::USERPTR_RDONLY,
        ..raw::pinned(addr, size)
    };
    refusing.refuse(Errno::PERM, "read-only", |device| attack(device, read_only))?;
    refusing.refuse(Errno::FAULT, "writable", |device| {
        attack(device, raw::pinned(addr, size))
    })?;
    for (flags, error) in [(0x18, Errno::PERM), (0x8, Errno::FAULT)] {
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: 3,
            blob_flags: flags,
            blob_id: 1,
            size,
            blob_hints: addr as u32,
            pad2: (addr >> 32) as u32,
            ..Default::default()
        };
        refusing.refuse(error, &format!("ROCm's form, flags {flags:#x}"), |device| {
            raw::call(device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob)?;
            write_through(device, blob.res_handle, blob.bo_handle);
            Ok(())
        })?;
    }
    Ok(())
}

fn shared(fd: impl AsFd) -> TestResult<Mapping> {
    Ok(Mapping::file(
        fd,
        0,
        4 * PAGE,
        ProtFlags::READ,
        MapFlags::SHARED,
    )?)
}

/// Another user's file in /dev/shm that everyone may read.
fn shared_memory_of_root(env: &Env) -> TestResult {
    let path = "/dev/shm/virtgpu-tests-root";
    roots_file(path)?;
    child::run(|| {
        child::drop_privileges()?;
        let refusing = Refusing::new(env)?;
        let fd = open_read_only(path)?;
        refuse_mapping(&refusing, &shared(&fd)?)?;
        for flags in [0, uapi::USERPTR_RDONLY] {
            refuse_fd(&refusing, &fd, flags, &[Errno::PERM])?;
        }
        Ok(())
    })?;
    unchanged(path)
}

fn ext4_file_of_root(env: &Env) -> TestResult {
    let path = ext4::folder()?.join("root").to_string_lossy().into_owned();
    roots_file(&path)?;
    child::run(|| {
        child::drop_privileges()?;
        let refusing = Refusing::new(env)?;
        refuse_mapping(&refusing, &shared(open_read_only(&path)?)?)
    })?;
    unchanged(&path)
}

/// Privately mapped, the pages registered are the caller's own copies.
fn private_mapping_of_roots_file(env: &Env) -> TestResult {
    let path = "/dev/shm/virtgpu-tests-root-private";
    roots_file(path)?;
    child::run(|| {
        child::limit_memlock(1 << 20)?;
        child::drop_privileges()?;
        let device = env.compute()?;
        let fd = open_read_only(path)?;
        let mapping = Mapping::file(&fd, 0, 4 * PAGE, ProtFlags::READ, MapFlags::PRIVATE)?;
        check_eq!(mapping.read_u32(0), 0x5252_5252, "the file's content");
        let userptr = device.register(&mapping, RegisterOptions::pinned().read_only())?;
        let seen = job::peek(&device, userptr.at(0), userptr.handle())?;
        check_eq!(seen, 0x5252_5252_5252_5252, "the device's view");
        // The device may or may not refuse this; the file must not change.
        write_through(&device, userptr.resource(), userptr.handle());
        Ok(())
    })?;
    unchanged(path)
}

/// Root too cannot make a device write what it opened for reading.
fn roots_own_read_only_file(env: &Env) -> TestResult {
    let path = "/dev/shm/virtgpu-tests-own";
    roots_file(path)?;
    let refusing = Refusing::new(env)?;
    refuse_mapping(&refusing, &shared(open_read_only(path)?)?)?;
    drop(refusing);
    unchanged(path)
}

/// Opened for writing but mapped for reading: mprotect could make it writable, so it is allowed.
fn mapping_without_write(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memfd = Memfd::new(4 * P)?;
    memfd.map()?.fill(7);
    let mapping = shared(&memfd)?;
    let userptr = device.register(&mapping, RegisterOptions::pinned().read_only())?;
    let seen = job::peek(&device, userptr.at(0), userptr.handle())?;
    check_eq!(seen, 0x0707_0707_0707_0707, "the device's view");
    Ok(())
}

fn refuse_fd(refusing: &Refusing, fd: impl AsFd, flags: u32, errors: &[Errno]) -> TestResult {
    use std::os::fd::AsRawFd;
    let register = uapi::UserptrRegister {
        flags: uapi::USERPTR_PINNED | uapi::USERPTR_FD | flags,
        fd: fd.as_fd().as_raw_fd(),
        ..raw::pinned(0, 4 * P)
    };
    refusing.one_of(errors, &format!("FD with flags {flags:#x}"), |device| {
        attack(device, register)
    })
}

/// The same memfd, opened again without the right to write.
fn reopen(memfd: &Memfd, flags: OFlags) -> TestResult<std::os::fd::OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", memfd.as_fd().as_raw_fd());
    Ok(rustix::fs::open(
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn memfd_read_only(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memfd = Memfd::new(4 * P)?;
    memfd.map()?.fill(SECRET);
    let fd = reopen(&memfd, OFlags::RDONLY)?;
    for flags in [0, uapi::USERPTR_RDONLY] {
        refuse_fd(&refusing, &fd, flags, &[Errno::PERM])?;
    }
    check_eq!(memfd.map()?.read_u32(0), 0x5252_5252, "the memfd");
    Ok(())
}

fn memfd_write_sealed(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
        let memfd = Memfd::new(4 * P)?;
        memfd.map()?.fill(SECRET);
        memfd.seal(seal)?;
        for flags in [0, uapi::USERPTR_RDONLY] {
            refuse_fd(&refusing, &memfd, flags, &[Errno::PERM])?;
        }
        let mapping = shared(&memfd)?;
        check_eq!(mapping.read_u32(0), 0x5252_5252, "the memfd");
        refuse_mapping(&refusing, &mapping)?;
    }
    Ok(())
}

fn memfd_write_only(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memfd = Memfd::new(4 * P)?;
    let fd = reopen(&memfd, OFlags::WRONLY)?;
    for flags in [0, uapi::USERPTR_RDONLY] {
        refuse_fd(
            &refusing,
            &fd,
            flags,
            &[Errno::PERM, Errno::BADF, Errno::ACCESS],
        )?;
    }
    Ok(())
}

fn not_a_memfd(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let zero = rustix::fs::open("/dev/zero", OFlags::RDWR, Mode::empty())?;
    let folder = rustix::fs::open("/dev/shm", OFlags::RDONLY, Mode::empty())?;
    let path = rustix::fs::open("/dev/zero", OFlags::PATH, Mode::empty())?;
    refuse_fd(&refusing, &zero, 0, &[Errno::INVAL])?;
    refuse_fd(
        &refusing,
        &folder,
        uapi::USERPTR_RDONLY,
        &[Errno::INVAL, Errno::PERM],
    )?;
    refuse_fd(&refusing, &path, 0, &[Errno::BADF])?;
    refuse_fd(&refusing, &refusing.device, 0, &[Errno::INVAL])?;
    if let Ok(ext4) = ext4::folder() {
        let path = ext4.join("not-a-memfd");
        fs::write(&path, [0; 4 * PAGE])?;
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        refuse_fd(&refusing, &file, 0, &[Errno::INVAL])?;
    }
    // SAFETY: The system call takes an integer.
    let secret = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if secret >= 0 {
        // SAFETY: The kernel has just given us this file descriptor.
        let secret =
            unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(secret as i32) };
        rustix::fs::ftruncate(&secret, 4 * P)?;
        refuse_fd(&refusing, &secret, 0, &[Errno::INVAL, Errno::FAULT])?;
    }
    for fd in [-1, 9999] {
        let register = uapi::UserptrRegister {
            flags: uapi::USERPTR_PINNED | uapi::USERPTR_FD,
            fd,
            ..raw::pinned(0, P)
        };
        refusing.register(Errno::BADF, &format!("fd {fd}"), register)?;
    }
    Ok(())
}

/// A hugetlb memfd of root, opened again by someone who may only read.
fn reopened_through_proc(env: &Env) -> TestResult {
    if !crate::support::procfs::reserve_hugepages(1)? {
        skip!("no room for hugetlb pages");
    }
    let refusing = Refusing::new(env)?;
    let huge = crate::support::HUGE as u64;
    let memfd = Memfd::with_flags(huge, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB)?;
    memfd.map()?.fill(SECRET);
    let fd = reopen(&memfd, OFlags::RDONLY)?;
    for flags in [0, uapi::USERPTR_RDONLY] {
        refuse_fd(&refusing, &fd, flags, &[Errno::PERM])?;
    }
    check_eq!(memfd.map()?.read_u32(0), 0x5252_5252, "the memfd");
    Ok(())
}
