// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What all measures need.

use std::fs;
use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, BlobMap, BlobOptions, Device, Errno, Exec, Memory};

pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

pub(crate) const PAGE: usize = 4096;
pub(crate) const HUGE: usize = 2 << 20;
pub(crate) const MIB: usize = 1 << 20;

/// Mounts what is missing.
pub(crate) fn prepare() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if !mounts.contains(" /sys/kernel/debug ") {
        // SAFETY: NUL-terminated strings.
        unsafe {
            libc::mount(
                c"debugfs".as_ptr(),
                c"/sys/kernel/debug".as_ptr(),
                c"debugfs".as_ptr(),
                0,
                std::ptr::null(),
            )
        };
    }
}

/// Opens the device, with a compute context of 2 rings.
pub(crate) fn open() -> Result<Device> {
    let device = Device::open()?;
    device.context_init_compute(2)?;
    Ok(device)
}

/// The same, on a device that can mirror memory.
pub(crate) fn open_mirroring() -> Result<Device> {
    let device = open()?;
    if device.userptr_modes()? & uapi::USERPTR_MODE_MIRRORED == 0 {
        return Err("the device does not mirror user memory".into());
    }
    Ok(device)
}

/// What the device counts.
pub(crate) struct Stats {
    map: BlobMap,
    job: compute::Stream,
}

/// Some of the numbers of `virtgpu_client::protocol::compute::Stat`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) commands: u64,
    pub(crate) create_ns: u64,
    pub(crate) unref_ns: u64,
    pub(crate) invalidates: u64,
}

impl Stats {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
        let map = blob.map()?;
        let mut job = compute::Stream::new();
        job.stat(blob.at(0));
        // Lives as long as the file.
        blob.into_handle();
        Ok(Self { map, job })
    }

    pub(crate) fn read(&self, device: &Device) -> Result<Numbers> {
        wait(&Exec::new(self.job.as_bytes()), device)?;
        let stat = compute::read_stat(&self.map, 0);
        Ok(Numbers {
            commands: stat.commands.get(),
            create_ns: stat.create_blob_ns.get(),
            unref_ns: stat.unref_ns.get(),
            invalidates: stat.invalidates.get(),
        })
    }
}

/// A job that does nothing. An empty one might be responded to without being run.
pub(crate) fn nothing() -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(0);
    stream
}

/// Has everything of mirrored buffer `handle` mapped, by a job that lists it and does nothing.
pub(crate) fn map_all(device: &Device, handle: u32) -> Result {
    let stream = nothing();
    wait(&Exec::new(stream.as_bytes()).buffers(&[handle]), device)?;
    let query = device.query(handle)?;
    if query.mapped_bytes != query.size {
        let (mapped, size) = (query.mapped_bytes, query.size);
        return Err(format!("{mapped} bytes of {size} are mapped").into());
    }
    Ok(())
}

/// Submits and waits.
pub(crate) fn wait(exec: &Exec<'_>, device: &Device) -> Result {
    exec.submit_with_fence(device)?
        .wait(Some(Duration::from_secs(120)))?;
    Ok(())
}

/// Bytes this process has pinned.
pub(crate) fn vm_pin() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmPin:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kilobytes| kilobytes << 10)
        .ok_or_else(|| "no VmPin in /proc/self/status".into())
}

/// Bytes of physical memory in the mappings that a range is in.
pub(crate) fn resident(memory: &impl Memory) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/smaps")?;
    let first = memory.as_ptr() as u64;
    let end = first + memory.len() as u64;
    let (mut inside, mut known, mut bytes) = (false, 0, 0);
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|word| {
            let (start, end) = word.split_once('-')?;
            let parse = |text| u64::from_str_radix(text, 16).ok();
            Some((parse(start)?, parse(end)?))
        });
        if let Some((from, to)) = range {
            inside = from < end && first < to;
            if inside {
                known += to.min(end) - from.max(first);
            }
        } else if let (true, Some(rest)) = (inside, line.strip_prefix("Rss:")) {
            let number = rest.split_whitespace().next().unwrap_or_default();
            bytes += number.parse::<u64>()? << 10;
        }
    }
    if known != end - first {
        return Err("a range is not in /proc/self/smaps".into());
    }
    Ok(bytes)
}

/// Waits until nothing is pinned.
pub(crate) fn wait_unpinned() -> Result {
    wait_pinned(0)
}

/// Waits until this process has pinned only so many bytes.
pub(crate) fn wait_pinned(bytes: u64) -> Result {
    let deadline = Instant::now() + Duration::from_secs(60);
    while vm_pin()? != bytes {
        if Instant::now() > deadline {
            return Err(Errno::TIMEDOUT.into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Nanoseconds since `start`.
pub(crate) fn since(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64
}
