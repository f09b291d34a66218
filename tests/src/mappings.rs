// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The CPU's views of host memory, through the node and through dma-bufs: which pages they show,
//! and that they end with the device, so that no one sees what the host shows there next.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags};
use virtgpu_client::protocol::uapi;
use virtgpu_client::{BlobMap, BlobOptions, Bytes, Device, Errno, Mapping, Memory};

use crate::ktap::{reap, Driver, Family, Kernel, TestResult};
use crate::support::gpu::{self, wait_for_node};
use crate::support::{child, eventually, Env, HUGE, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "mappings",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        the_right_pages,
        touched_after_the_offset_is_known,
        not_private,
        end_with_the_device,
        end_with_a_lost_device,
        made_while_unbinding: 180,
    ],
};

const SIZE: usize = 16 * PAGE;
/// What the first user writes, and the second.
const OLD: u8 = 0xa5;
const NEW: u8 = 0x5b;

fn host_visible(device: &Device) -> TestResult {
    if device.getparam(uapi::param::HOST_VISIBLE)? == 0 {
        skip!("the device has no host-visible memory");
    }
    Ok(())
}

fn map(buf: &OwnedFd, offset: usize, length: usize) -> Result<Mapping, Errno> {
    Mapping::file(
        buf,
        offset as u64,
        length,
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::SHARED,
    )
}

/// Accesses memory by a system call, which returns EFAULT where the CPU would get SIGBUS.
struct Probe {
    read: File,
    write: File,
}

impl Probe {
    fn new() -> TestResult<Self> {
        let mut fds = [0; 2];
        // SAFETY: Room for two file descriptors.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: The kernel has just given us these file descriptors.
        Ok(unsafe {
            Self {
                read: File::from_raw_fd(fds[0]),
                write: File::from_raw_fd(fds[1]),
            }
        })
    }

    /// The byte at `offset`.
    fn load(&self, memory: &impl Memory, offset: usize) -> Result<u8, Errno> {
        let at = memory.at(offset, 1);
        // SAFETY: The kernel checks the address.
        let done = unsafe { libc::write(self.write.as_raw_fd(), at.cast(), 1) };
        if done != 1 {
            return Err(last());
        }
        let mut byte = 0u8;
        // SAFETY: Room for a byte.
        let done = unsafe { libc::read(self.read.as_raw_fd(), (&raw mut byte).cast(), 1) };
        if done != 1 {
            return Err(last());
        }
        Ok(byte)
    }

    /// Writes `byte` to `offset`.
    fn store(&self, memory: &impl Memory, offset: usize, byte: u8) -> Result<(), Errno> {
        let at = memory.at(offset, 1);
        // SAFETY: A byte; the kernel checks the address.
        let done = unsafe {
            libc::write(self.write.as_raw_fd(), (&raw const byte).cast(), 1);
            libc::read(self.read.as_raw_fd(), at.cast(), 1)
        };
        if done == 1 {
            return Ok(());
        }
        let error = last();
        let mut left = 0u8;
        // SAFETY: Room for the byte that is still there.
        unsafe { libc::read(self.read.as_raw_fd(), (&raw mut left).cast(), 1) };
        Err(error)
    }

    /// Nothing can be reached through `memory`.
    fn ended(&self, what: &str, memory: &impl Memory) -> TestResult {
        for offset in [0, memory.len() / 2, memory.len() - 1] {
            match self.load(memory, offset) {
                Ok(byte) => check!(false, "{what}: there is {byte:#04x} at {offset:#x}"),
                Err(error) => check_eq!(error, Errno::FAULT, "{what} at {offset:#x}"),
            }
            check_err!(
                self.store(memory, offset, OLD),
                Errno::FAULT,
                "{what}, writing to {offset:#x}"
            );
        }
        Ok(())
    }
}

fn last() -> Errno {
    Errno::from_raw_os_error(
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}

/// A mapping that was moved to another address.
struct Moved(Mapping);

impl Moved {
    fn new(mapping: Mapping) -> TestResult<Self> {
        let place = Mapping::anonymous(mapping.len())?;
        let (to, length) = place.into_raw();
        let from = mapping.as_ptr();
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: Moves a mapping of ours over another one of ours, which no one uses.
        let moved = unsafe { libc::mremap(from.cast(), length, length, flags, to) };
        if moved == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let _ = mapping.into_raw();
        // SAFETY: It was mapped there just now, and belongs to no one else.
        Ok(Self(unsafe { Mapping::from_raw(to, length) }?))
    }
}

/// Minor page faults of this thread so far.
fn faults() -> TestResult<i64> {
    // SAFETY: All zero is a valid structure, and it is valid for writes.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(usage.ru_minflt)
    }
}

/// Views of all kinds and lengths show the same memory. Nothing is mapped before it is used, and
/// then more than a page at a time.
fn the_right_pages(env: &Env) -> TestResult {
    let device = env.compute()?;
    host_visible(&device)?;
    let before = device.create_blob(&BlobOptions::host3d(3 * PAGE as u64, 1))?;
    before.map()?.fill(OLD);
    let size = 2 * HUGE + 5 * PAGE;
    let blob = device.create_blob(&BlobOptions::host3d(size as u64, 1))?;
    let view = blob.map()?;
    let pages = size / PAGE;
    let tables = view.as_ptr() as usize / HUGE..(view.as_ptr() as usize + size).div_ceil(HUGE);

    let start = faults()?;
    for page in 0..pages {
        view.write_u32(page * PAGE, page as u32);
    }
    let taken = faults()? - start;
    // A few are the program's own.
    let most = tables.len() as i64 + 8;
    check!(
        (tables.len() as i64..=most).contains(&taken),
        "{taken} page faults for {} page tables",
        tables.len()
    );

    let buf = device.prime_export(blob.handle())?;
    for (first, length) in [(0, pages), (1, 1), (7, 512), (500, 30), (pages - 1, 1)] {
        let part = map(&buf, first * PAGE, length * PAGE)?;
        for page in [0, length / 2, length - 1] {
            check_eq!(
                part.read_u32(page * PAGE),
                (first + page) as u32,
                "page {page} from {first} on"
            );
        }
    }
    let moved = Moved::new(map(&buf, PAGE, 600 * PAGE)?)?;
    for page in [0, 1, 599] {
        check_eq!(moved.0.read_u32(page * PAGE), page as u32 + 1, "moved");
    }
    // A hole in the middle leaves two areas.
    let at = view.at(HUGE, PAGE);
    // SAFETY: A page of our own mapping, of which nothing is read afterwards.
    check_eq!(unsafe { libc::munmap(at.cast(), PAGE) }, 0, "munmap");
    for page in [0, HUGE / PAGE - 1, HUGE / PAGE + 1, pages - 1] {
        check_eq!(view.read_u32(page * PAGE), page as u32, "beside a hole");
    }
    check!(
        before.map()?.to_vec(0, 3 * PAGE).iter().all(|&b| b == OLD),
        "another buffer has changed"
    );
    Ok(())
}

/// An area of the dma-buf that is made before anybody asks for the node's offset, and used
/// afterwards, shows the same memory.
fn touched_after_the_offset_is_known(env: &Env) -> TestResult {
    let device = env.compute()?;
    host_visible(&device)?;
    let blob = device.create_blob(&BlobOptions::host3d(SIZE as u64, 1))?;
    let buf = device.prime_export(blob.handle())?;
    let early = map(&buf, PAGE, SIZE - PAGE)?;
    let view = blob.map()?;
    for page in 0..SIZE / PAGE {
        view.write_u32(page * PAGE, page as u32 + 7);
    }
    for page in 1..SIZE / PAGE {
        // By a system call: in the wrong place there may be nothing at all.
        let byte = Probe::new()?.load(&early, (page - 1) * PAGE);
        check_eq!(byte, Ok(page as u8 + 7), "page {page}");
    }
    Ok(())
}

/// A private mapping would be a copy, and no view of the memory.
fn not_private(env: &Env) -> TestResult {
    let device = env.compute()?;
    host_visible(&device)?;
    let blob = device.create_blob(&BlobOptions::host3d(SIZE as u64, 1))?;
    let offset = blob.map_offset()?;
    let buf = device.prime_export(blob.handle())?;
    for prot in [ProtFlags::READ, ProtFlags::READ | ProtFlags::WRITE] {
        check_err!(
            Mapping::file(&device, offset, SIZE, prot, MapFlags::PRIVATE).map(drop),
            Errno::INVAL,
            "the node"
        );
        check_err!(
            Mapping::file(&buf, 0, SIZE, prot, MapFlags::PRIVATE).map(drop),
            Errno::INVAL,
            "the dma-buf"
        );
    }
    let only_read = Mapping::file(&buf, 0, SIZE, ProtFlags::READ, MapFlags::SHARED)?;
    blob.map()?.fill(OLD);
    check_eq!(only_read.read_u32(PAGE), 0xa5a5_a5a5, "read only");
    Ok(())
}

/// Fills as much of the window as a user before could have had, and more.
fn next_user(device: &Device) -> TestResult<Vec<(virtgpu_client::Blob<'_>, BlobMap)>> {
    let mut blobs = Vec::new();
    for _ in 0..4 {
        let blob = device.create_blob(&BlobOptions::host3d(16 * SIZE as u64, 1))?;
        let view = blob.map()?;
        view.fill(NEW);
        blobs.push((blob, view));
    }
    Ok(blobs)
}

fn untouched(blobs: &[(virtgpu_client::Blob<'_>, BlobMap)]) -> TestResult {
    for (_, view) in blobs {
        check!(
            view.to_vec(0, view.len()).iter().all(|&b| b == NEW),
            "somebody else has written to the memory"
        );
    }
    Ok(())
}

fn end_with_the_device(env: &Env) -> TestResult {
    ended(env, || Ok(()))
}

fn end_with_a_lost_device(env: &Env) -> TestResult {
    let reset = gpu::find()?.pci.join("reset");
    if !reset.exists() {
        skip!("the device cannot be reset by its bus");
    }
    ended(env, || {
        std::fs::write(&reset, "1")?;
        check_err!(
            env.open()?.context_init_compute(1),
            Errno::NODEV,
            "a new context"
        );
        Ok(())
    })
}

fn ended(env: &Env, lose: impl Fn() -> TestResult) -> TestResult {
    let gpu = gpu::find()?;
    let probe = Probe::new()?;
    let device = env.compute()?;
    host_visible(&device)?;
    let blob = device.create_blob(&BlobOptions::host3d(SIZE as u64, 1))?;
    let node = blob.map()?;
    let buf = device.prime_export(blob.handle())?;
    let shared = map(&buf, 0, SIZE)?;
    let part = map(&buf, 8 * PAGE, 4 * PAGE)?;
    let moved = Moved::new(map(&buf, 0, SIZE)?)?;
    let unused = map(&buf, 0, SIZE)?;
    let guest = device.create_blob(&BlobOptions::guest(SIZE as u64))?;
    let guest = map(&device.prime_export(guest.handle())?, 0, SIZE)?;
    node.fill(OLD);
    guest.fill(OLD);
    for view in [&shared, &part, &moved.0] {
        check_eq!(view.read_u32(PAGE), 0xa5a5_a5a5, "before");
    }
    let all_ended = || {
        probe.ended("the node", &node)?;
        probe.ended("the dma-buf", &shared)?;
        probe.ended("a part of the dma-buf", &part)?;
        probe.ended("a moved mapping", &moved.0)?;
        probe.ended("a mapping that was never used", &unused)
    };
    let heir = child::hold(all_ended)?;

    lose()?;
    gpu.unbind()?;
    all_ended()?;
    gpu.bind()?;
    wait_for_node(env)?;
    let second = env.compute()?;
    let blobs = next_user(&second)?;
    all_ended()?;
    heir.release()?;
    untouched(&blobs)?;
    for (what, view) in [
        ("the node", node.as_ptr()),
        ("the dma-buf", shared.as_ptr()),
    ] {
        let toucher = child::spawn(|| {
            // SAFETY: Mapped, if not accessible.
            let byte = unsafe { view.read_volatile() };
            check!(false, "there is {byte:#04x}");
            Ok(())
        })?;
        let status = reap(toucher.pid)?;
        check!(
            libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS,
            "who reads from {what} ends with status {status:#x}"
        );
    }
    check_err!(
        map(&buf, 0, SIZE).map(drop),
        Errno::NODEV,
        "a new mapping of the dma-buf"
    );
    check_eq!(
        probe.load(&guest, SIZE - 1),
        Ok(OLD),
        "memory of the guest that was the buffer's own"
    );
    Ok(())
}

/// Mappings that are being made while the device goes.
fn made_while_unbinding(env: &Env) -> TestResult {
    /// More would only take time to look at.
    const KEPT: usize = 64;

    let gpu = gpu::find()?;
    for _ in 0..env.iterations(5) {
        let device = env.compute()?;
        host_visible(&device)?;
        let blob = device.create_blob(&BlobOptions::host3d(SIZE as u64, 1))?;
        let offset = blob.map_offset()?;
        let buf = device.prime_export(blob.handle())?;
        let go = AtomicBool::new(false);
        let maps = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|thread| {
                    let (go, buf, device) = (&go, &buf, &device);
                    scope.spawn(move || {
                        let probe = Probe::new()?;
                        let mut maps = std::collections::VecDeque::new();
                        loop {
                            let mapping = if thread == 0 {
                                let prot = ProtFlags::READ | ProtFlags::WRITE;
                                Mapping::file(device, offset, SIZE, prot, MapFlags::SHARED)
                            } else {
                                map(buf, 0, SIZE)
                            };
                            let mapping = match mapping {
                                Ok(mapping) => mapping,
                                Err(Errno::NODEV) => return Ok(maps),
                                Err(error) => return Err(error.into()),
                            };
                            let _ = probe.load(&mapping, 0);
                            maps.push_back(mapping);
                            if maps.len() > KEPT {
                                maps.pop_front();
                                go.store(true, Ordering::Release);
                            }
                        }
                    })
                })
                .collect();
            eventually(Duration::from_secs(60), || go.load(Ordering::Acquire));
            let unbound = gpu.unbind();
            let mut maps = Vec::new();
            for thread in threads {
                let made: TestResult<_> = thread.join().expect("no panic");
                maps.extend(made?);
            }
            unbound?;
            TestResult::Ok(maps)
        })?;
        gpu.bind()?;
        wait_for_node(env)?;
        let second = env.compute()?;
        let blobs = next_user(&second)?;
        let probe = Probe::new()?;
        for mapping in &maps {
            probe.ended("a mapping from the time of the removal", mapping)?;
        }
        untouched(&blobs)?;
    }
    Ok(())
}
