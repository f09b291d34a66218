// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Loading and unloading the two drivers, with the guest's own commands.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use virtgpu_client::Device;

use crate::outcome::Result;

/// Whose driver serves the device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Linux,
    Ours,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "Linux's driver",
            Self::Ours => "this driver",
        })
    }
}

impl Driver {
    fn module(self) -> &'static str {
        match self {
            Self::Linux => "virtio_gpu",
            Self::Ours => "virtgpu_userptr",
        }
    }
}

/// Longer than a driver may take to come or go.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a command and returns what it complained about.
fn command(words: &[&str]) -> Result<Option<String>> {
    let output = Command::new(words[0]).args(&words[1..]).output()?;
    Ok((!output.status.success()).then(|| {
        let text = String::from_utf8_lossy(&output.stderr);
        format!("{}: {}", words.join(" "), text.trim())
    }))
}

fn must(words: &[&str]) -> Result {
    command(words)?.map_or(Ok(()), |problem| Err(problem.into()))
}

/// Loads a driver and waits for its render node.
pub(crate) fn load(driver: Driver) -> Result {
    match driver {
        Driver::Linux => must(&["modprobe", "virtio-gpu"])?,
        Driver::Ours => {
            // Its own dependencies, as modpost wrote them down.
            let file = "/job/virtgpu_userptr.ko";
            let output = Command::new("modinfo").arg(file).output()?;
            for line in String::from_utf8(output.stdout)?.lines() {
                if let Some(list) = line.strip_prefix("depends:") {
                    for module in list.trim().split(',').filter(|name| !name.is_empty()) {
                        must(&["modprobe", module])?;
                    }
                }
            }
            must(&["insmod", file])?;
        }
    }
    ready(driver)
}

/// Unloads a driver. Its last user may go with a worker.
pub(crate) fn unload(driver: Driver) -> Result {
    let deadline = Instant::now() + LIMIT;
    while let Some(problem) = command(&["rmmod", driver.module()])? {
        if Instant::now() > deadline {
            return Err(problem.into());
        }
    }
    Ok(())
}

/// Waits for the render node; brings the device back if a test has left it without driver.
pub(crate) fn ready(driver: Driver) -> Result {
    let deadline = Instant::now() + LIMIT;
    let half = Instant::now() + LIMIT / 2;
    let mut rescanned = false;
    while Device::open().is_err() {
        let now = Instant::now();
        if now > deadline {
            return Err(format!("no render node of {driver}").into());
        }
        if now > half && !rescanned {
            rescanned = true;
            rescan(driver)?;
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Looks for PCI devices, and gives the driver those of its bus that have none.
pub(crate) fn rescan(driver: Driver) -> Result {
    fs::write("/sys/bus/pci/rescan", "1")?;
    for entry in fs::read_dir("/sys/bus/virtio/devices")?.flatten() {
        if !entry.path().join("driver").exists() {
            let folder = Path::new("/sys/bus/virtio/drivers").join(driver.module());
            // Others than the GPU refuse.
            let _ = fs::write(folder.join("bind"), entry.file_name().as_encoded_bytes());
        }
    }
    Ok(())
}

/// Writes a line into the kernel's log, so that it shows which test a message or a taint belongs
/// to.
pub(crate) fn note(text: &str) -> Result {
    let line = format!("virtgpu-compare: {text}, tainted {}\n", tainted()?);
    Ok(fs::write("/dev/kmsg", line)?)
}

/// Tells `scan-log.sh` whose part of the kernel's log begins. Linux's driver leaves warnings when
/// it is unloaded while objects of its own are still on their way.
pub(crate) fn mark(driver: Driver) -> Result {
    let whose = match driver {
        Driver::Linux => "THEIRS",
        Driver::Ours => "OURS",
    };
    let line = format!("VIRTGPU-GUEST-{whose} tainted={}\n", tainted()?);
    Ok(fs::write("/dev/kmsg", line)?)
}

fn tainted() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/tainted")?
        .trim()
        .to_string())
}
