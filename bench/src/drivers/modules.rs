// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Loading and unloading the drivers.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use virtgpu_client::Device;

use crate::setup::Result;
use crate::Options;

/// Longer than a driver may take to come or go.
const LIMIT: Duration = Duration::from_secs(30);

/// Whose driver serves the device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    Linux,
    Ours,
    /// An older build of ours.
    Before,
}

impl Driver {
    fn module(self) -> &'static str {
        match self {
            Self::Linux => "virtio_gpu",
            Self::Ours | Self::Before => "virtgpu_userptr",
        }
    }

    /// Whether it is there.
    pub(super) fn is_loaded(self) -> bool {
        Path::new("/sys/module").join(self.module()).exists()
    }

    /// Loads it.
    pub(super) fn load(self, options: &Options) -> Result {
        match self {
            Self::Linux if options.c.contains('/') => load_file(Path::new(&options.c)),
            Self::Linux => modprobe(&options.c),
            Self::Ours => load_file(&options.ours),
            Self::Before => load_file(options.before.as_deref().ok_or("no --before was given")?),
        }
    }

    /// Unloads it, if it is there. `scan-log.sh` is told when that is Linux's driver, which warns
    /// at that time of what it has not released.
    pub(super) fn unload(self) -> Result {
        if self != Self::Linux || !self.is_loaded() {
            return self.delete();
        }
        std::fs::write("/dev/kmsg", "VIRTGPU-GUEST-LINUX-UNLOADS\n")?;
        let result = self.delete();
        std::fs::write("/dev/kmsg", "VIRTGPU-GUEST-LINUX-UNLOADED\n")?;
        result
    }

    /// Its last user may go with a worker.
    fn delete(self) -> Result {
        let name = std::ffi::CString::new(self.module())?;
        let deadline = Instant::now() + LIMIT;
        loop {
            // SAFETY: A NUL-terminated string.
            let result =
                unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
            if result == 0 {
                return Ok(());
            }
            let error = std::io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ENOENT) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("unloading {}: {error}", self.module()).into());
            }
            std::thread::yield_now();
        }
    }
}

fn load_file(path: &Path) -> Result {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let none = c"";
    // SAFETY: An open file and a NUL-terminated string.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!("{}: {error}", path.display()).into());
    }
    Ok(())
}

fn modprobe(module: &str) -> Result {
    let status = Command::new("modprobe").arg(module).status()?;
    if !status.success() {
        return Err(format!("modprobe {module}: {status}").into());
    }
    Ok(())
}

/// Waits for the render node.
pub(super) fn ready() -> Result<Device> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match Device::open() {
            Ok(device) => return Ok(device),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::yield_now(),
        }
    }
}
