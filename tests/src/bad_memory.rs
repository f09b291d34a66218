// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Registrations of memory that must not or cannot be pinned: nothing there, no right to it, memory
//! of devices, secret memory, files that need dirty tracking, more than the limit allows.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use virtgpu_client::protocol::uapi;
use virtgpu_client::{BlobOptions, Bytes, Errno, Mapping, Memfd, Memory, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};
use crate::support::memory::small_pages;
use crate::support::unchanged::Refusing;
use crate::support::{child, eventually, ext4, job, procfs, raw, Env, P, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "bad_memory",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        unmapped,
        prot_none,
        guard_region,
        device_memory,
        own_guest_blob,
        own_host_blob,
        secret_memory,
        read_only_mapping,
        ext4_shared_writable,
        ext4_allowed,
        tmpfs_shared_writable,
        memlock_limit,
        memlock_zero,
        memlock_privileged,
        memlock_concurrent,
    ],
};

const RW: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

fn read_only(addr: u64, size: u64) -> uapi::UserptrRegister {
    uapi::UserptrRegister {
        flags: uapi::USERPTR_PINNED | uapi::USERPTR_RDONLY,
        ..raw::pinned(addr, size)
    }
}

/// Both kinds of registration must be refused.
fn refuse_both(refusing: &Refusing, error: Errno, what: &str, addr: u64, size: u64) -> TestResult {
    refusing.register(error, what, raw::pinned(addr, size))?;
    refusing.register(error, &format!("{what}, read-only"), read_only(addr, size))
}

fn unmapped(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let (start, length) = Mapping::anonymous(16 * PAGE)?.into_raw();
    let addr = start as u64;
    // SAFETY: Pages of the mapping above, which nothing uses.
    unsafe {
        std::ptr::write_bytes(start, 1, length);
        rustix::mm::munmap(start.add(8 * PAGE).cast(), PAGE)?;
    }
    for (what, from, pages) in [
        ("a hole", 8, 1),
        ("a hole at the end", 0, 9),
        ("a hole in the middle", 7, 3),
        ("a hole at the start", 8, 2),
    ] {
        refuse_both(&refusing, Errno::FAULT, what, addr + from * P, pages * P)?;
    }
    // SAFETY: As above.
    unsafe { rustix::mm::munmap(start.cast(), length)? };
    refuse_both(&refusing, Errno::FAULT, "nothing", addr, 16 * P)
}

fn protect(memory: &impl Memory, page: usize, pages: usize, flags: MprotectFlags) -> TestResult {
    let start = memory.at(page * PAGE, pages * PAGE);
    // SAFETY: Pages of the caller's memory, which it accesses accordingly.
    unsafe { rustix::mm::mprotect(start.cast(), pages * PAGE, flags)? };
    Ok(())
}

fn prot_none(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memory = small_pages(16 * PAGE)?;
    let addr = memory.as_ptr() as u64;
    protect(&memory, 5, 1, MprotectFlags::empty())?;
    for (what, from, pages) in [("one page", 5, 1), ("in the middle", 0, 16), ("last", 2, 4)] {
        refuse_both(&refusing, Errno::FAULT, what, addr + from * P, pages * P)?;
    }
    let nothing = Mapping::anonymous_with(PAGE, ProtFlags::empty(), MapFlags::PRIVATE)?;
    refuse_both(
        &refusing,
        Errno::FAULT,
        "PROT_NONE",
        nothing.as_ptr() as u64,
        P,
    )
}

fn guard_region(env: &Env) -> TestResult {
    const MADV_GUARD_INSTALL: i32 = 102;
    let refusing = Refusing::new(env)?;
    let memory = small_pages(16 * PAGE)?;
    // SAFETY: One page of our own, which is not used afterwards.
    let failed =
        unsafe { libc::madvise(memory.at(3 * PAGE, PAGE).cast(), PAGE, MADV_GUARD_INSTALL) };
    if failed != 0 {
        skip!("the kernel has no guard regions");
    }
    let addr = memory.as_ptr() as u64;
    refuse_both(&refusing, Errno::FAULT, "a guard page", addr + 3 * P, P)?;
    refuse_both(&refusing, Errno::FAULT, "one in the middle", addr, 16 * P)
}

/// Memory of a PCI device, mapped by root.
fn device_memory(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let mut tried = 0;
    for device in fs::read_dir("/sys/bus/pci/devices")?.flatten() {
        for number in 0..6 {
            let path = device.path().join(format!("resource{number}"));
            let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
                continue;
            };
            let Ok(mapping) = Mapping::file(&file, 0, PAGE, RW, MapFlags::SHARED) else {
                continue;
            };
            tried += 1;
            let what = format!("{}", path.display());
            refuse_both(&refusing, Errno::FAULT, &what, mapping.as_ptr() as u64, P)?;
        }
    }
    if tried == 0 {
        skip!("no PCI resource can be mapped");
    }
    Ok(())
}

fn own_guest_blob(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let blob = refusing.device.create_blob(&BlobOptions::guest(4 * P))?;
    let map = blob.map()?;
    let addr = map.as_ptr() as u64;
    refuse_both(&refusing, Errno::FAULT, "untouched", addr, 4 * P)?;
    map.fill(1);
    refuse_both(&refusing, Errno::FAULT, "in use", addr, 4 * P)
}

fn own_host_blob(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    if refusing.device.getparam(uapi::param::HOST_VISIBLE)? == 0 {
        skip!("the device has no host-visible memory");
    }
    let blob = refusing
        .device
        .create_blob(&BlobOptions::host3d(4 * P, 1))?;
    let map = blob.map()?;
    map.fill(1);
    refuse_both(
        &refusing,
        Errno::FAULT,
        "host memory",
        map.as_ptr() as u64,
        4 * P,
    )
}

/// A file whose pages only this process can reach.
pub(crate) fn secret(length: u64) -> TestResult<OwnedFd> {
    // SAFETY: The system call takes an integer.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(Outcome::Skip(format!(
            "memfd_secret: {}",
            std::io::Error::last_os_error()
        )));
    }
    // SAFETY: The kernel has just given us this file descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    rustix::fs::ftruncate(&fd, length)?;
    Ok(fd)
}

fn secret_memory(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let fd = secret(4 * P)?;
    let mapping = Mapping::file(&fd, 0, 4 * PAGE, RW, MapFlags::SHARED)?;
    let addr = mapping.as_ptr() as u64;
    refuse_both(&refusing, Errno::FAULT, "untouched", addr, 4 * P)?;
    mapping.fill(1);
    refuse_both(&refusing, Errno::FAULT, "in use", addr, 4 * P)
}

/// Memory the program may not write is not registered for a device that writes.
fn read_only_mapping(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memory = small_pages(4 * PAGE)?;
    protect(&memory, 1, 1, MprotectFlags::READ)?;
    let addr = memory.as_ptr() as u64;
    refusing.register(Errno::FAULT, "one page", raw::pinned(addr + P, P))?;
    refusing.register(Errno::FAULT, "in the middle", raw::pinned(addr, 4 * P))?;
    // Private, so that the program could make it writable: read-only is allowed.
    let handle = raw::register(&refusing.device, read_only(addr, 4 * P))?;
    refusing.device.gem_close(handle)?;

    let file = File::open("/proc/self/exe")?;
    let mapping = Mapping::file(&file, 0, PAGE, ProtFlags::READ, MapFlags::PRIVATE)?;
    refusing.register(
        Errno::FAULT,
        "a private file mapping",
        raw::pinned(mapping.as_ptr() as u64, P),
    )
}

fn new_file(folder: &std::path::Path, name: &str, pages: usize) -> TestResult<File> {
    let path = folder.join(name);
    fs::write(&path, vec![0x11; pages * PAGE])?;
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

/// Writes of the device would escape the file system's notice.
fn ext4_shared_writable(env: &Env) -> TestResult {
    let folder = ext4::folder()?;
    let refusing = Refusing::new(env)?;
    let file = new_file(&folder, "shared", 4)?;
    let mapping = Mapping::file(&file, 0, 4 * PAGE, RW, MapFlags::SHARED)?;
    for what in ["clean", "dirty"] {
        refusing.one_of(&[Errno::FAULT, Errno::OPNOTSUPP], what, |device| {
            raw::register(device, raw::pinned(mapping.as_ptr() as u64, 4 * P))
        })?;
        mapping.fill(2);
    }
    Ok(())
}

fn ext4_allowed(env: &Env) -> TestResult {
    let folder = ext4::folder()?;
    let device = env.compute()?;
    let file = new_file(&folder, "allowed", 4)?;
    // Shared, for reading: the caller could write, so nothing is gained by a device that does.
    let shared = Mapping::file(&file, 0, 4 * PAGE, RW, MapFlags::SHARED)?;
    let userptr = device.register(&shared, RegisterOptions::pinned().read_only())?;
    shared.write_u64(0, 5);
    check_eq!(
        job::peek(&device, userptr.at(0), userptr.handle())?,
        5,
        "the device's view of the file"
    );
    drop(userptr);
    // Private, for both.
    let private = Mapping::file(&file, 0, 4 * PAGE, RW, MapFlags::PRIVATE)?;
    let userptr = device.register(&private, RegisterOptions::pinned())?;
    job::poke(&device, userptr.at(8), 6, userptr.handle())?;
    check_eq!(private.read_u64(8), 6, "what the device wrote");
    check_eq!(shared.read_u64(8), 0x1111_1111_1111_1111, "the file");
    Ok(())
}

fn tmpfs_shared_writable(env: &Env) -> TestResult {
    let device = env.compute()?;
    let file = new_file(std::path::Path::new("/dev/shm"), "virtgpu-tests-shared", 4)?;
    let memfd = Memfd::new(4 * P)?;
    for (what, fd) in [("tmpfs", file.as_fd()), ("memfd", memfd.as_fd())] {
        let mapping = Mapping::file(fd, 0, 4 * PAGE, RW, MapFlags::SHARED)?;
        let userptr = device.register(&mapping, RegisterOptions::pinned())?;
        job::poke(&device, userptr.at(0), 9, userptr.handle())?;
        check_eq!(mapping.read_u64(0), 9, "what the device wrote to {what}");
        let again = Mapping::file(fd, 0, PAGE, ProtFlags::READ, MapFlags::SHARED)?;
        check_eq!(again.read_u64(0), 9, "the file on {what}");
    }
    fs::remove_file("/dev/shm/virtgpu-tests-shared")?;
    Ok(())
}

fn limited(bytes: u64) -> TestResult {
    child::limit_memlock(bytes)?;
    child::drop_privileges()
}

/// One page too many, by each way; and what is given back can be used again.
fn memlock_limit(env: &Env) -> TestResult {
    child::run(|| {
        limited(16 * P)?;
        let refusing = Refusing::new(env)?;
        let device = &refusing.device;
        let memory = small_pages(32 * PAGE)?;
        let addr = memory.as_ptr() as u64;
        let memfd = Memfd::new(32 * P)?;
        refusing.register(Errno::NOMEM, "17 of 16 pages", raw::pinned(addr, 17 * P))?;
        refusing.register(Errno::NOMEM, "17 pages, read-only", read_only(addr, 17 * P))?;
        refusing.refuse(Errno::NOMEM, "17 pages of a memfd", |device| {
            device
                .register_memfd(&memfd, 0, 17 * P, RegisterOptions::pinned())
                .map(drop)
        })?;
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: 3,
            blob_flags: uapi::BLOB_FLAG_USE_USERPTR,
            blob_id: 1,
            // Unaligned, so that it touches 17 pages.
            size: 16 * P,
            blob_hints: (addr + 8) as u32,
            pad2: (addr >> 32) as u32,
            ..Default::default()
        };
        refusing.refuse(Errno::NOMEM, "17 pages by ROCm's form", |device| {
            raw::call(device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob)
        })?;
        let all = device.register_range(&memory, 0, 16 * PAGE, RegisterOptions::pinned())?;
        check_eq!(procfs::vm_pin()?, 16 * P, "VmPin at the limit");
        refusing.register(Errno::NOMEM, "the 17th page", raw::pinned(addr + 20 * P, P))?;
        drop(all);
        check!(
            eventually(job::LIMIT, || {
                device
                    .register_range(&memory, 0, 16 * PAGE, RegisterOptions::pinned())
                    .is_ok()
            }),
            "16 pages again, once the first are given back"
        );
        check!(
            eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
            "VmPin is 0 in the end"
        );
        Ok(())
    })
}

fn memlock_zero(env: &Env) -> TestResult {
    child::run(|| {
        limited(0)?;
        let refusing = Refusing::new(env)?;
        let memory = small_pages(PAGE)?;
        refusing.one_of(&[Errno::NOMEM, Errno::PERM], "one page", |device| {
            raw::register(device, raw::pinned(memory.as_ptr() as u64, P))
        })
    })
}

/// CAP_IPC_LOCK lifts the limit, but not the accounting, and is asked for only beyond the limit.
fn memlock_privileged(env: &Env) -> TestResult {
    let device = env.compute()?;
    // A new process has made use of no privilege.
    child::run(|| {
        child::limit_memlock(P)?;
        let memory = small_pages(100 * PAGE)?;
        let page = device.register_range(&memory, 0, PAGE, RegisterOptions::pinned())?;
        check!(
            !procfs::used_privilege()?,
            "a privilege was needed for one page"
        );
        drop(page);
        let _userptr = device.register(&memory, RegisterOptions::pinned())?;
        check!(procfs::used_privilege()?, "no privilege was needed for 100");
        check_eq!(procfs::vm_pin()?, 100 * P, "VmPin");
        Ok(())
    })
}

/// Threads that race for the limit never get over it.
fn memlock_concurrent(env: &Env) -> TestResult {
    let rounds = env.iterations(50);
    child::run(|| {
        limited(16 * P)?;
        let device = env.compute()?;
        let memory = small_pages(8 * PAGE)?;
        for _ in 0..rounds {
            let barrier = std::sync::Barrier::new(8);
            let ready = std::sync::Barrier::new(9);
            let count = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            barrier.wait();
                            let result = device.register(&memory, RegisterOptions::pinned());
                            ready.wait();
                            match result {
                                Ok(_) => Ok(1),
                                Err(Errno::NOMEM) => Ok(0),
                                Err(error) => Err(error),
                            }
                        })
                    })
                    .collect();
                let mut most = Ok(0);
                if !eventually(job::LIMIT, || {
                    most = procfs::vm_pin();
                    true
                }) {
                    most = Ok(u64::MAX);
                }
                ready.wait();
                let mut sum = 0;
                for thread in threads {
                    sum += thread.join().expect("no panic")?;
                }
                let most = most?;
                check!(most <= 16 * P, "VmPin was {most}");
                Ok::<_, Outcome>(sum)
            })?;
            check!((1..=2).contains(&count), "{count} of 8 fit, not 1 or 2");
            check!(
                eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
                "VmPin is 0 between rounds"
            );
        }
        let memory = small_pages(17 * PAGE)?;
        check_err!(
            device
                .register(&memory, RegisterOptions::pinned())
                .map(drop),
            Errno::NOMEM,
            "17 pages in the end"
        );
        Ok(())
    })
}

/// Used by other families too: opens without the right to write.
pub(crate) fn open_read_only(path: &str) -> TestResult<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
