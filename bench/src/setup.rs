// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What all measures need.

use std::fs;
use std::time::{Duration, Instant};

use virtgpu_client::{compute, BlobMap, BlobOptions, Bytes, Device, Errno, Exec};

pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

pub(crate) const PAGE: usize = 4096;
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
}

impl Stats {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        let blob = device.create_blob(&BlobOptions::guest(4096))?;
        let map = blob.map()?;
        let mut job = compute::Stream::new();
        job.stat(blob.at(0));
        // Lives as long as the file.
        blob.into_handle();
        Ok(Self { map, job })
    }

    pub(crate) fn read(&self, device: &Device) -> Result<Numbers> {
        wait(&Exec::new(self.job.as_bytes()), device)?;
        Ok(Numbers {
            commands: self.map.read_u64(16),
            create_ns: self.map.read_u64(48),
            unref_ns: self.map.read_u64(56),
        })
    }
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

/// Waits until nothing is pinned.
pub(crate) fn wait_unpinned() -> Result {
    let deadline = Instant::now() + Duration::from_secs(60);
    while vm_pin()? != 0 {
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
