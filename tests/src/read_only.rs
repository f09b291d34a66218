// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Read-only is a privilege boundary: a device that ignores it must not become a way to write what
//! the caller could not. Each case tries to write root's file through the device.
//!
//! A device with a mirror queue enforces what a space allows: there read-only registrations of such
//! memory go through, and the device's writes do not. On others they are refused.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::uapi;
use virtgpu_client::{
    compute, BlobOptions, Bytes, Device, Errno, Mapping, Memfd, Memory, RegisterOptions,
};

use crate::bad_memory::open_read_only;
use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::unchanged::Refusing;
use crate::support::{child, ext4, job, raw, Env, P, PAGE};
use crate::{cases, check, check_eq, skip};

/// On a device that enforces read-only.
pub(crate) const FAMILY: Family = Family {
    name: "read_only",
    device: "",
    ..NO_MIRROR
};

/// On a device that does not.
pub(crate) const NO_MIRROR: Family = Family {
    name: "read_only_no_mirror",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "--no-mirror",
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
        large_file,
    ],
};

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

/// Whether the device enforces what a registration says.
fn enforces(device: &Device) -> TestResult<bool> {
    Ok(device.userptr_modes()? & uapi::USERPTR_MODE_MIRRORED != 0)
}

/// A registration for reading of memory that the caller could not write: the device enforces it,
/// or it is refused.
fn only_enforced(
    env: &Env,
    refusing: &Refusing,
    what: &str,
    register: impl Fn(&Device) -> Result<(u32, u32), Errno>,
) -> TestResult {
    if !enforces(&refusing.device)? {
        return refusing.refuse(Errno::PERM, what, |device| {
            let (handle, resource) = register(device)?;
            write_through(device, resource, handle);
            Ok(())
        });
    }
    let device = env.compute()?;
    let (handle, resource) = register(&device)?;
    let at = virtgpu_client::protocol::compute::Operand::resource(resource, 0);
    check_eq!(
        job::peek(&device, at, handle)?,
        u64::from_ne_bytes([SECRET; 8]),
        "{what}: the device's view"
    );
    check!(
        job::poke(&device, at, 0, handle).is_err(),
        "{what}: the device wrote"
    );
    Ok(())
}

/// Shared and not writable by the caller: no way in.
fn refuse_mapping(env: &Env, refusing: &Refusing, mapping: &Mapping) -> TestResult {
    let addr = mapping.as_ptr() as u64;
    let size = mapping.len() as u64;
    let read_only = uapi::UserptrRegister {
        flags: uapi::USERPTR_PINNED | uapi::USERPTR_RDONLY,
        ..raw::pinned(addr, size)
    };
    only_enforced(env, refusing, "read-only", |device| {
        let mut register = read_only;
        raw::call(device, uapi::nr::USERPTR_REGISTER, &mut register)?;
        Ok((register.bo_handle, register.res_handle))
    })?;
    refusing.refuse(Errno::FAULT, "writable", |device| {
        attack(device, raw::pinned(addr, size))
    })?;
    let create = |device: &Device, flags| {
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: 3,
            blob_flags: flags,
            blob_id: 1,
            size,
            blob_hints: addr as u32,
            pad2: (addr >> 32) as u32,
            ..Default::default()
        };
        raw::call(device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob)?;
        Ok((blob.bo_handle, blob.res_handle))
    };
    only_enforced(env, refusing, "ROCm's form, read-only", |device| {
        create(device, 0x18)
    })?;
    refusing.refuse(Errno::FAULT, "ROCm's form, writable", |device| {
        let (handle, resource) = create(device, 0x8)?;
        write_through(device, resource, handle);
        Ok(())
    })
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
        refuse_mapping(env, &refusing, &shared(&fd)?)?;
        not_writable_fd(env, &refusing, &fd)?;
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
        refuse_mapping(env, &refusing, &shared(open_read_only(&path)?)?)
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
    refuse_mapping(env, &refusing, &shared(open_read_only(path)?)?)?;
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

/// A descriptor of a memfd that the caller cannot write through it.
fn not_writable_fd(env: &Env, refusing: &Refusing, fd: impl AsFd) -> TestResult {
    use std::os::fd::AsRawFd;
    refuse_fd(refusing, &fd, 0, &[Errno::PERM])?;
    let size = rustix::fs::fstat(&fd)?.st_size as u64;
    let register = uapi::UserptrRegister {
        flags: uapi::USERPTR_PINNED | uapi::USERPTR_FD | uapi::USERPTR_RDONLY,
        fd: fd.as_fd().as_raw_fd(),
        ..raw::pinned(0, size)
    };
    only_enforced(env, refusing, "a descriptor, read-only", |device| {
        let mut register = register;
        raw::call(device, uapi::nr::USERPTR_REGISTER, &mut register)?;
        Ok((register.bo_handle, register.res_handle))
    })
}

/// A file of a GiB, opened for reading and mapped shared, is read by a job in place.
fn large_file(env: &Env) -> TestResult {
    let device = env.compute()?;
    if !enforces(&device)? {
        skip!("needs a device that enforces read-only");
    }
    let size: usize = if env.debug { 64 << 20 } else { 1 << 30 };
    println!("    # {} MiB", size >> 20);
    let memfd = Memfd::new(size as u64)?;
    let pages = size / PAGE;
    let mut sum = 0;
    {
        let writable = memfd.map()?;
        for page in 0..pages {
            writable.write_u64(page * PAGE, page as u64);
            sum += (page & 0xff) as u64;
        }
    }
    let file = reopen(&memfd, OFlags::RDONLY)?;
    let mapping = Mapping::file(&file, 0, size, ProtFlags::READ, MapFlags::SHARED)?;
    let userptr = device.register(&mapping, RegisterOptions::pinned().read_only())?;
    let result = device.create_blob(&BlobOptions::guest(4096))?;
    let map = result.map()?;
    let mut stream = compute::Stream::new();
    stream.stride_read(result.at(0), userptr.at(0), size as u64, PAGE as u64);
    job::run(&device, &stream, &[userptr.handle(), result.handle()])?;
    check_eq!(map.read_u64(0), sum, "what the device has read");
    let last = size as u64 - P;
    check!(
        job::poke(&device, userptr.at(last), 0, userptr.handle()).is_err(),
        "the device wrote"
    );
    check_eq!(
        mapping.read_u64(last as usize),
        (pages - 1) as u64,
        "the last page"
    );
    Ok(())
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
    not_writable_fd(env, &refusing, &fd)?;
    check_eq!(memfd.map()?.read_u32(0), 0x5252_5252, "the memfd");
    Ok(())
}

fn memfd_write_sealed(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
        let memfd = Memfd::new(4 * P)?;
        memfd.map()?.fill(SECRET);
        memfd.seal(seal)?;
        not_writable_fd(env, &refusing, &memfd)?;
        let mapping = shared(&memfd)?;
        check_eq!(mapping.read_u32(0), 0x5252_5252, "the memfd");
        refuse_mapping(env, &refusing, &mapping)?;
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
    not_writable_fd(env, &refusing, &fd)?;
    check_eq!(memfd.map()?.read_u32(0), 0x5252_5252, "the memfd");
    Ok(())
}
