// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the families share.

pub(crate) mod agree;
pub(crate) mod child;
pub(crate) mod cma;
pub(crate) mod compaction;
pub(crate) mod cpu;
pub(crate) mod debugfs;
pub(crate) mod dmirror;
pub(crate) mod errno;
pub(crate) mod example;
pub(crate) mod exporter;
pub(crate) mod ext4;
pub(crate) mod file;
pub(crate) mod gpu;
pub(crate) mod host;
pub(crate) mod job;
pub(crate) mod ksm;
pub(crate) mod leak;
pub(crate) mod memcg;
pub(crate) mod memory;
pub(crate) mod numa;
pub(crate) mod pace;
mod page;
pub(crate) mod place;
pub(crate) mod prefetch;
pub(crate) mod procfs;
pub(crate) mod program;
pub(crate) mod raw;
pub(crate) mod reaper;
pub(crate) mod setting;
pub(crate) mod soft_dirty;
pub(crate) mod stat;
pub(crate) mod swap;
pub(crate) mod thp;
pub(crate) mod udmabuf;
pub(crate) mod uffd;
pub(crate) mod unchanged;
pub(crate) mod victim;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{Device, Errno};

pub(crate) use self::page::{HUGE, P, PAGE};
use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};

/// Fewer rounds of a race show little, however slow the kernel is.
pub(crate) const ROUNDS: u64 = 50;

/// Says how many rounds a race has had, which must have been enough.
pub(crate) fn raced(what: &str, rounds: u64) -> TestResult {
    println!("    # {rounds} {what}");
    crate::check!(rounds >= ROUNDS, "{rounds} {what}, not {ROUNDS}");
    Ok(())
}

/// The machine the tests run on.
pub(crate) struct Env {
    /// The driver under test is this project's.
    pub(crate) ours: bool,
    /// The kernel has fault injection, and is slow.
    pub(crate) debug: bool,
    /// Percent of the usual iterations.
    scale: u64,
}

impl Env {
    pub(crate) fn new() -> Result<Self, String> {
        mount("debugfs", "/sys/kernel/debug");
        mount("tmpfs", "/dev/shm");
        let ours = match find_node() {
            // Without a node, it may be that our driver has refused the device.
            None if Path::new("/sys/module/virtgpu_userptr").exists() => true,
            None => return Err("no render node of virtio_gpu".into()),
            Some(node) => {
                let device = Device::open_path(&node).map_err(|error| error.to_string())?;
                // Linux's driver does not know the parameter; ours may say that there are none.
                match device.getparam(uapi::param::USERPTR_MODES) {
                    Ok(_) => true,
                    Err(Errno::INVAL) => false,
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        let scale = std::env::var("VIRTGPU_TESTS_SCALE")
            .ok()
            .and_then(|value| value.parse().ok())
            .unwrap_or(100);
        Ok(Self {
            ours,
            debug: Path::new("/proc/self/fail-nth").exists(),
            scale,
        })
    }

    /// The render node. Its number changes when the device is removed while a file is open.
    pub(crate) fn node(&self) -> Option<PathBuf> {
        find_node()
    }

    /// Opens the device, without a context.
    pub(crate) fn open(&self) -> TestResult<Device> {
        let node = self
            .node()
            .ok_or_else(|| Outcome::Fail("there is no render node of virtio_gpu".into()))?;
        Ok(Device::open_path(node)?)
    }

    /// Opens the device with a compute context of 4 rings.
    pub(crate) fn compute(&self) -> TestResult<Device> {
        let device = self.open()?;
        device.context_init_compute(4)?;
        Ok(device)
    }

    /// The iterations of a loop that is `full` times long on a fast machine.
    pub(crate) fn iterations(&self, full: u64) -> u64 {
        let count = self.scaled(full);
        if count != full {
            println!("    # {count} of {full} iterations (VIRTGPU_TESTS_SCALE)");
        }
        count
    }

    fn scaled(&self, full: u64) -> u64 {
        (full * self.scale / 100).max(1)
    }

    /// The rounds of a race, `full` of them on a fast machine; see [`raced`].
    pub(crate) fn rounds(&self, full: u64) -> u64 {
        self.scaled(full).max(ROUNDS)
    }

    /// Why a family cannot run here.
    pub(crate) fn cannot_run(&self, family: &Family) -> Option<String> {
        if family.kernel == Kernel::Debug && !self.debug {
            return Some("needs a kernel with fault injection".into());
        }
        match family.driver {
            Driver::Ours if !self.ours => Some("needs virtgpu_userptr".into()),
            Driver::C if self.ours => Some("needs Linux's C driver".into()),
            _ => None,
        }
    }
}

/// The render node, made accessible for tests that give up their privileges.
fn find_node() -> Option<PathBuf> {
    let node = virtgpu_client::render_nodes().into_iter().next()?;
    let _ = fs::set_permissions(&node, fs::Permissions::from_mode(0o666));
    Some(node)
}

/// Mounts a file system unless one is there already.
pub(crate) fn mount(kind: &str, at: &str) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(at))
    {
        return;
    }
    let _ = fs::create_dir_all(at);
    let (kind, at) = (cstring(kind), cstring(at));
    // SAFETY: The strings are NUL-terminated.
    unsafe {
        libc::mount(
            kind.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
}

pub(crate) fn cstring(text: &str) -> std::ffi::CString {
    std::ffi::CString::new(text).expect("no NUL in it")
}

/// Polls until `condition` holds; false if it does not in time, on this machine.
pub(crate) fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + pace::limit(limit);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Work that takes no longer than a system call may.
pub(crate) fn bounded(what: &str, work: impl FnOnce() -> TestResult) -> TestResult {
    let since = Instant::now();
    work()?;
    crate::check!(
        since.elapsed() < pace::limit(Duration::from_secs(15)),
        "{what} took {:?}",
        since.elapsed()
    );
    Ok(())
}

/// A small generator of numbers for test data (SplitMix64).
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}
