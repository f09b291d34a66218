// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! dma-bufs: those of this driver, and those of another one, udmabuf. `revoked` has those whose
//! memory is revoked.

use std::os::fd::{AsFd, OwnedFd};

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::compute::Operand;
use virtgpu_client::protocol::{uapi, virtio_gpu::blob_mem};
use virtgpu_client::{
    compute, ioctl, BlobOptions, Bytes, Device, Errno, Exec, Mapping, Memory, Region,
    RegisterOptions, SyncStatus,
};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::memory::small_pages;
use crate::support::stat::Oracle;
use crate::support::udmabuf::Udmabuf;
use crate::support::unchanged::Refusing;
use crate::support::{eventually, gpu, job, udmabuf, Env, Random, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "prime",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "",
    leak_check: true,
    cases: cases![
        mapped_through_the_dma_buf,
        cpu_access_waits_for_jobs,
        same_object,
        outlives_the_handle,
        user_memory_is_not_exported,
        uuids,
        imported_memory,
        imported_memory_of_many_pages,
        imported_memory_lives,
        imported_memory_twice,
        imported_memory_is_limited,
        exported_again,
        no_dma_buf,
        device_gone,
    ],
};

/// The driver imports without contexts as well.
pub(crate) const NO_VIRGL: Family = Family {
    name: "prime_no_virgl",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "--no-virgl",
    leak_check: false,
    cases: cases![flat],
};

/// The device wants DMA addresses.
pub(crate) const ACCESS_PLATFORM: Family = Family {
    name: "prime_access_platform",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "--access-platform",
    leak_check: true,
    cases: cases![imported_memory, imported_memory_of_many_pages],
};

/// Sizes are multiples of 64 KiB.
pub(crate) const ALIGNMENT: Family = Family {
    name: "prime_alignment",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "--blob-alignment 65536",
    leak_check: true,
    cases: cases![only_of_aligned_size],
};

pub(crate) const HALF_SECOND: u64 = 500_000;

fn map(buf: &OwnedFd, length: usize) -> Result<Mapping, Errno> {
    Mapping::file(
        buf,
        0,
        length,
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::SHARED,
    )
}

/// DMA_BUF_IOCTL_SYNC.
fn sync(buf: &OwnedFd, flags: u64) -> Result<(), Errno> {
    const SYNC: u32 = (1 << 30) | (8 << 16) | ((b'b' as u32) << 8);
    let mut argument = flags;
    // SAFETY: The structure has one field.
    unsafe { ioctl::call(buf.as_fd(), SYNC, (&raw mut argument).cast())? };
    Ok(())
}

/// Reading and writing begins.
const START: u64 = 3;
/// It ends.
const END: u64 = 3 | 4;

fn mapped_through_the_dma_buf(env: &Env) -> TestResult {
    let device = env.compute()?;
    let mut kinds = vec![
        ("guest", BlobOptions::guest(4 * PAGE as u64)),
        ("both", BlobOptions::host3d_guest(4 * PAGE as u64, 1)),
    ];
    if device.getparam(uapi::param::HOST_VISIBLE)? != 0 {
        kinds.push(("host", BlobOptions::host3d(4 * PAGE as u64, 1)));
    }
    for (what, options) in kinds {
        let blob = device.create_blob(&BlobOptions {
            flags: options.flags | 2,
            ..options
        })?;
        let own = blob.map()?;
        let buf = device.prime_export(blob.handle())?;
        let other = map(&buf, 4 * PAGE)?;
        let data = Random(3).bytes(4 * PAGE);
        sync(&buf, START)?;
        other.write(0, &data);
        sync(&buf, END)?;
        check!(own.to_vec(0, 4 * PAGE) == data, "{what}: what was written");
        let crc = job::crc(&device, blob.at(0), 4 * PAGE as u64, blob.handle())?;
        check_eq!(crc, compute::crc32c(0, &data), "{what}: CRC32C");
        check_err!(
            map(&buf, 5 * PAGE).map(drop),
            Errno::INVAL,
            "{what}: more than there is"
        );
    }
    let image = device.create_picture(32, 32)?;
    let buf = device.prime_export(image.handle())?;
    let other = map(&buf, PAGE)?;
    let data = Random(4).bytes(PAGE);
    other.write(0, &data);
    image.to_host(&Region::picture(32, 32))?;
    other.fill(0);
    image.from_host(&Region::picture(32, 32))?;
    check!(other.to_vec(0, PAGE) == data, "a picture came back");
    Ok(())
}

/// Who begins to use a dma-buf waits for the jobs that list the buffer.
fn cpu_access_waits_for_jobs(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let buf = device.prime_export(blob.handle())?;
    let mut stream = compute::Stream::new();
    stream.delay(HALF_SECOND).fill(blob.at(0), 8, 5);
    let fence = Exec::new(stream.as_bytes())
        .ring(1)
        .buffers(&[blob.handle()])
        .submit_with_fence(&device)?;
    sync(&buf, START)?;
    check_eq!(fence.status()?, SyncStatus::Signalled, "the job");
    check_eq!(map(&buf, PAGE)?.read_u64(0), 5, "what it wrote");
    sync(&buf, END)?;
    Ok(())
}

fn same_object(env: &Env) -> TestResult {
    let (first, second) = (env.compute()?, env.compute()?);
    let image = first.create_picture(16, 16)?;
    let buf = first.prime_export(image.handle())?;
    let again = first.prime_export(image.handle())?;
    let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino);
    check_eq!(inode(&buf)?, inode(&again)?, "one dma-buf for an object");
    for fd in [&buf, &again] {
        check_eq!(first.prime_import(fd)?, image.handle(), "the same handle");
    }
    let handle = second.prime_import(&buf)?;
    check_eq!(
        second.prime_import(&again)?,
        handle,
        "the same handle in another file"
    );
    check_eq!(
        second.resource_info(handle)?.res_handle,
        image.resource(),
        "the same resource"
    );
    let back = second.prime_export(handle)?;
    check_eq!(inode(&back)?, inode(&buf)?, "the same dma-buf");
    Ok(())
}

fn outlives_the_handle(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let mapping = blob.map()?;
    mapping.write_u64(0, 99);
    let buf = device.prime_export(blob.handle())?;
    drop(mapping);
    drop(blob);
    check_eq!(
        map(&buf, PAGE)?.read_u64(0),
        99,
        "after the handle is closed"
    );
    let handle = device.prime_import(&buf)?;
    let at = Operand::resource(device.resource_info(handle)?.res_handle, 0);
    check_eq!(job::peek(&device, at, handle)?, 99, "through a new handle");
    drop(device);
    check_eq!(map(&buf, PAGE)?.read_u64(0), 99, "after the file is closed");
    Ok(())
}

fn user_memory_is_not_exported(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver has no user memory");
    }
    let refusing = Refusing::new(env)?;
    let memory = small_pages(PAGE)?;
    for options in [RegisterOptions::pinned(), RegisterOptions::mirrored()] {
        let userptr = refusing.device.register(&memory, options)?;
        let handle = userptr.handle();
        refusing.refuse(Errno::INVAL, "PRIME_HANDLE_TO_FD", |device| {
            device.prime_export(handle).map(drop)
        })?;
    }
    Ok(())
}

/// An object that another virtio device may share gets a UUID, once.
fn uuids(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver asks at other times");
    }
    let device = env.compute()?;
    if device.getparam(uapi::param::CROSS_DEVICE)? == 0 {
        skip!("the device has no UUIDs");
    }
    let plain = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let cross = device.create_blob(&BlobOptions {
        flags: 1 | 2 | 4,
        ..BlobOptions::guest(PAGE as u64)
    })?;
    let picture = device.create_picture(4, 4)?;
    let oracle = Oracle::new(&device)?;
    // The device counts its commands, this one among them.
    let commands = || -> TestResult<u64> { Ok(oracle.read()?.commands.get()) };
    // What others have left behind may still be on its way.
    let mut quiet = 0;
    let settled = eventually(job::LIMIT, || {
        let same = matches!((commands(), commands()), (Ok(a), Ok(b)) if b == a + 1);
        quiet = if same { quiet + 1 } else { 0 };
        quiet == 10
    });
    check!(settled, "the device has nothing else to do");
    for (what, handle, more) in [
        ("a plain blob", plain.handle(), 0),
        ("a blob for other devices", cross.handle(), 1),
        ("that blob again", cross.handle(), 0),
        ("a picture", picture.handle(), 1),
        ("that picture again", picture.handle(), 0),
    ] {
        let before = commands()?;
        drop(device.prime_export(handle)?);
        check_eq!(commands()? - before - 1, more, "commands for {what}");
    }
    Ok(())
}

/// Whether udmabufs can be imported.
fn imports(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver imports only where there are no contexts");
    }
    Ok(())
}

pub(crate) fn resource(device: &Device, handle: u32) -> TestResult<u32> {
    Ok(device.resource_info(handle)?.res_handle)
}

/// The device reads and writes the memory behind a udmabuf.
pub(crate) fn used(device: &Device, memory: &Mapping, handle: u32, seed: u64) -> TestResult {
    let length = memory.len();
    let data = Random(seed).bytes(length);
    memory.write(0, &data);
    let at = |offset| -> TestResult<Operand> {
        Ok(Operand::resource(resource(device, handle)?, offset))
    };
    let crc = job::crc(device, at(0)?, length as u64, handle)?;
    check_eq!(crc, compute::crc32c(0, &data), "CRC32C");
    job::add(device, at(0)?, length as u64, 3, handle)?;
    for offset in [0, length / 2, length - 4] {
        let word = u32::from_le_bytes(data[offset..offset + 4].try_into().expect("4 bytes"));
        check_eq!(
            memory.read_u32(offset),
            word.wrapping_add(3),
            "the word at {offset}"
        );
    }
    Ok(())
}

fn imported_memory(env: &Env) -> TestResult {
    imports(env)?;
    let device = env.compute()?;
    for pages in [1, 2, 17] {
        let buf = udmabuf::new(pages)?;
        let handle = device.prime_import(&buf.fd)?;
        used(&device, &buf.memory, handle, pages as u64)?;
        let info = device.resource_info(handle)?;
        check_eq!(info.blob_mem, blob_mem::GUEST, "blob_mem");
        check_eq!(info.size as usize, pages * PAGE, "bytes");
        let query = device.query(handle)?;
        check_eq!(
            query.memory_model,
            uapi::memory_model::PERMANENT,
            "udmabuf does not move memory"
        );
        check_eq!(query.state, uapi::bo_state::VALID, "state");
        check_eq!(query.size as usize, pages * PAGE, "size");
        check_eq!(query.resident_bytes as usize, pages * PAGE, "resident");
        check_eq!(query.mapped_bytes as usize, pages * PAGE, "mapped");
        check!(
            (1..=pages as u64).contains(&query.entries),
            "{} entries for {pages} pages",
            query.entries
        );
        device.gem_close(handle)?;
    }
    Ok(())
}

fn imported_memory_of_many_pages(env: &Env) -> TestResult {
    imports(env)?;
    let device = env.compute()?;
    let buf = udmabuf::new(4096)?;
    let handle = device.prime_import(&buf.fd)?;
    used(&device, &buf.memory, handle, 9)?;
    device.gem_close(handle)?;
    Ok(())
}

/// The import keeps the memory, and gives it back.
fn imported_memory_lives(env: &Env) -> TestResult {
    imports(env)?;
    let device = env.compute()?;
    let Udmabuf { fd, memory } = udmabuf::new(4)?;
    let handle = device.prime_import(&fd)?;
    drop(fd);
    memory.write_u64(8, 77);
    drop(memory);
    let at = Operand::resource(resource(&device, handle)?, 8);
    check_eq!(job::peek(&device, at, handle)?, 77, "without descriptors");
    // A job keeps it longer than the handle does.
    let mut stream = compute::Stream::new();
    stream.delay(HALF_SECOND / 2).fill(at, 8, 78);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[handle])
        .submit_with_fence(&device)?;
    let buf = device.prime_export(handle)?;
    device.gem_close(handle)?;
    fence.wait(Some(job::LIMIT))?;
    let mapping = map(&buf, 4 * PAGE)?;
    check_eq!(mapping.read_u64(8), 78, "what the job wrote");
    // Files are closed with imports.
    for _ in 0..env.iterations(50) {
        let (other, buf) = (env.compute()?, udmabuf::new(2)?);
        other.prime_import(&buf.fd)?;
    }
    Ok(())
}

fn imported_memory_twice(env: &Env) -> TestResult {
    imports(env)?;
    let (first, second) = (env.compute()?, env.compute()?);
    let buf = udmabuf::new(2)?;
    let handle = first.prime_import(&buf.fd)?;
    check_eq!(first.prime_import(&buf.fd)?, handle, "the same file");
    let other = second.prime_import(&buf.fd)?;
    used(&first, &buf.memory, handle, 1)?;
    used(&second, &buf.memory, other, 2)?;
    // Fences are those of the dma-buf: each file sees the other's jobs.
    let mut stream = compute::Stream::new();
    stream.delay(HALF_SECOND);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[handle])
        .submit(&first)?;
    check!(second.is_busy(other)?, "busy in the other file");
    second.wait(other)?;
    check!(!first.is_busy(handle)?, "idle in the first");
    first.gem_close(handle)?;
    used(&second, &buf.memory, other, 3)?;
    Ok(())
}

/// Imported memory is the device's to use, and no one else's.
fn imported_memory_is_limited(env: &Env) -> TestResult {
    imports(env)?;
    let refusing = Refusing::new(env)?;
    let buf = udmabuf::new(2)?;
    let handle = refusing.device.prime_import(&buf.fd)?;
    refusing.refuse(Errno::INVAL, "MAP", |device| device.map_offset(handle))?;
    let region = Region::picture(4, 4);
    refusing.refuse(Errno::INVAL, "TRANSFER_TO_HOST", |device| {
        device.transfer_to_host(handle, &region)
    })?;
    refusing.refuse(Errno::INVAL, "TRANSFER_FROM_HOST", |device| {
        device.transfer_from_host(handle, &region)
    })?;
    refusing.refuse(Errno::INVAL, "USERPTR_PREFETCH", |device| {
        let mut prefetch = uapi::UserptrPrefetch {
            bo_handle: handle,
            length: PAGE as u64,
            ..Default::default()
        };
        crate::support::raw::call(device, uapi::nr::USERPTR_PREFETCH, &mut prefetch)
    })?;
    // Its mapping cannot be registered, like any other of a buffer.
    let mapping = map(&buf.fd, 2 * PAGE)?;
    let addr = mapping.as_ptr() as u64;
    refusing.register(
        Errno::FAULT,
        "registration of a mapping",
        crate::support::raw::pinned(addr, 2 * PAGE as u64),
    )
}

fn exported_again(env: &Env) -> TestResult {
    imports(env)?;
    let device = env.compute()?;
    let buf = udmabuf::new(2)?;
    let handle = device.prime_import(&buf.fd)?;
    let back = device.prime_export(handle)?;
    let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino);
    check_eq!(inode(&back)?, inode(&buf.fd)?, "the same dma-buf");
    device.gem_close(handle)?;
    let handle = device.prime_import(&back)?;
    used(&device, &buf.memory, handle, 5)
}

fn no_dma_buf(env: &Env) -> TestResult {
    let device = env.compute()?;
    let file = std::fs::File::open("/dev/null")?;
    check_err!(device.prime_import(&file), Errno::INVAL, "/dev/null");
    check_err!(device.prime_import(&device), Errno::INVAL, "the node");
    for handle in [0, 12345, u32::MAX] {
        check_err!(
            device.prime_export(handle).map(drop),
            Errno::NOENT,
            "handle {handle}"
        );
    }
    Ok(())
}

/// The driver goes, and gives imported memory back although a file has it open.
fn device_gone(env: &Env) -> TestResult {
    imports(env)?;
    let device = env.compute()?;
    let buf = udmabuf::new(16)?;
    let handle = device.prime_import(&buf.fd)?;
    used(&device, &buf.memory, handle, 6)?;
    let own = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let exported = device.prime_export(own.handle())?;
    let gpu = gpu::find()?;
    gpu.unbind()?;
    check_err!(device.query(handle), Errno::NODEV, "BO_QUERY");
    check_err!(device.prime_import(&buf.fd), Errno::NODEV, "a new import");
    buf.memory.fill(1);
    let view = map(&exported, PAGE);
    check!(
        matches!(view, Ok(_) | Err(Errno::NODEV)),
        "mapping of a dma-buf of the device: {:?}",
        view.err()
    );
    drop(view);
    own.into_handle();
    drop(device);
    drop(exported);
    buf.memory.fill(2);
    gpu.bind()?;
    gpu::wait_for_node(env)?;
    let device = env.compute()?;
    let handle = device.prime_import(&buf.fd)?;
    used(&device, &buf.memory, handle, 7)
}

fn flat(env: &Env) -> TestResult {
    let device = env.open()?;
    let buf = udmabuf::new(3)?;
    let handle = device.prime_import(&buf.fd)?;
    check_eq!(
        device.resource_info(handle)?.size as usize,
        3 * PAGE,
        "bytes"
    );
    device.wait(handle)?;
    device.gem_close(handle)?;
    let image = device.create_picture(16, 16)?;
    let exported = device.prime_export(image.handle())?;
    map(&exported, PAGE)?.fill(7);
    check_eq!(image.map()?.read_u32(0), 0x0707_0707, "the same memory");
    Ok(())
}

fn only_of_aligned_size(env: &Env) -> TestResult {
    let device = env.compute()?;
    for pages in [1, 15, 17] {
        let buf = udmabuf::new(pages)?;
        check_err!(device.prime_import(&buf.fd), Errno::INVAL, "{pages} pages");
    }
    let buf = udmabuf::new(32)?;
    let handle = device.prime_import(&buf.fd)?;
    device.wait(handle)?;
    check_eq!(device.query(handle)?.mapped_bytes, 131_072, "mapped");
    Ok(())
}
