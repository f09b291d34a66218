// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The GPU as the kernel's device model shows it.

use std::ffi::CStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use virtgpu_client::Errno;

use crate::ktap::{Outcome, TestResult};
use crate::support::{cstring, eventually, Env};

/// Longer than binding or unbinding may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A virtio-gpu device with a driver.
#[derive(Debug)]
pub(crate) struct Gpu {
    /// Name on the virtio bus.
    pub(crate) name: String,
    /// Folder of the driver.
    pub(crate) driver: PathBuf,
    /// Folder of the PCI device.
    pub(crate) pci: PathBuf,
}

/// The first virtio-gpu device that has a driver.
pub(crate) fn find() -> TestResult<Gpu> {
    for entry in fs::read_dir("/sys/bus/virtio/devices")?.flatten() {
        let path = fs::canonicalize(entry.path())?;
        let id = fs::read_to_string(path.join("device")).unwrap_or_default();
        if id.trim() != "0x0010" {
            continue;
        }
        let Ok(driver) = fs::canonicalize(path.join("driver")) else {
            continue;
        };
        let pci = path
            .parent()
            .ok_or_else(|| Outcome::Fail("a virtio device without parent".into()))?;
        return Ok(Gpu {
            name: entry.file_name().to_string_lossy().into_owned(),
            driver,
            pci: pci.to_path_buf(),
        });
    }
    Err(Outcome::Fail("no virtio-gpu device has a driver".into()))
}

/// The first virtio-gpu device that has no driver, for `driver`.
pub(crate) fn unbound(driver: &str) -> TestResult<Gpu> {
    for entry in fs::read_dir("/sys/bus/virtio/devices")?.flatten() {
        let path = fs::canonicalize(entry.path())?;
        let id = fs::read_to_string(path.join("device")).unwrap_or_default();
        if id.trim() != "0x0010" || path.join("driver").exists() {
            continue;
        }
        let pci = path
            .parent()
            .ok_or_else(|| Outcome::Fail("a virtio device without parent".into()))?;
        return Ok(Gpu {
            name: entry.file_name().to_string_lossy().into_owned(),
            driver: Path::new("/sys/bus/virtio/drivers").join(driver),
            pci: pci.to_path_buf(),
        });
    }
    Err(Outcome::Fail("no virtio-gpu device without driver".into()))
}

impl Gpu {
    /// What binding ends with, if it fails.
    pub(crate) fn bind_error(&self) -> TestResult<Option<Errno>> {
        match fs::write(self.driver.join("bind"), &self.name) {
            Ok(()) => Ok(None),
            Err(error) => match error.raw_os_error() {
                Some(number) => Ok(Some(Errno::from_raw_os_error(number))),
                None => Err(error.into()),
            },
        }
    }

    pub(crate) fn unbind(&self) -> TestResult {
        Ok(fs::write(self.driver.join("unbind"), &self.name)?)
    }

    pub(crate) fn bind(&self) -> TestResult {
        Ok(fs::write(self.driver.join("bind"), &self.name)?)
    }
}

/// Brings the device back that a case which failed has left without driver.
pub(crate) fn restore(env: &Env) -> TestResult {
    if env.node().is_some() {
        return Ok(());
    }
    println!("    # bringing the device back");
    if !Path::new("/sys/module/virtgpu_userptr").exists() {
        load(&module_file()?)?;
    }
    fs::write("/sys/bus/pci/rescan", "1")?;
    let driver = Path::new("/sys/bus/virtio/drivers/virtgpu_userptr");
    for entry in fs::read_dir("/sys/bus/virtio/devices")?.flatten() {
        if !entry.path().join("driver").exists() {
            let _ = fs::write(driver.join("bind"), entry.file_name().as_encoded_bytes());
        }
    }
    wait_for_node(env)
}

/// Waits until a render node is there and works, and lets everyone open it.
pub(crate) fn wait_for_node(env: &Env) -> TestResult {
    let there = eventually(LIMIT, || env.node().is_some());
    if !there {
        return Err(Outcome::Fail("no render node has come back".into()));
    }
    Ok(())
}

/// Waits until there is no render node.
pub(crate) fn wait_for_no_node(env: &Env) -> bool {
    eventually(LIMIT, || env.node().is_none())
}

/// Our module's file.
pub(crate) fn module_file() -> TestResult<PathBuf> {
    let path = std::env::var("VIRTGPU_MODULE").unwrap_or("/job/virtgpu_userptr.ko".into());
    let path = PathBuf::from(path);
    if path.exists() {
        return Ok(path);
    }
    Err(Outcome::Skip(format!(
        "{} is not there (set VIRTGPU_MODULE)",
        path.display()
    )))
}

/// How many use the driver, so that it cannot be unloaded.
pub(crate) fn module_users() -> TestResult<u64> {
    let text = fs::read_to_string("/sys/module/virtgpu_userptr/refcnt")?;
    text.trim()
        .parse()
        .map_err(|e| Outcome::Fail(format!("{text:?}: {e}")))
}

/// delete_module(2), which does not wait.
pub(crate) fn unload(module: &str) -> std::io::Result<()> {
    let name = cstring(module);
    // SAFETY: A NUL-terminated string.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// finit_module(2) without parameters.
pub(crate) fn load(file: &Path) -> std::io::Result<()> {
    load_with(file, c"")
}

/// finit_module(2), with the parameters in VIRTGPU_MODULE_ARGS, too: those that the guest's module
/// is to keep.
pub(crate) fn load_with(file: &Path, parameters: &CStr) -> std::io::Result<()> {
    let kept = std::env::var("VIRTGPU_MODULE_ARGS").unwrap_or_default();
    let parameters = cstring(&format!("{kept} {}", parameters.to_string_lossy()));
    let file = fs::File::open(file)?;
    // SAFETY: An open file and a NUL-terminated string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            0,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    if std::env::var_os("VIRTGPU_COVERAGE").is_some() {
        // For scripts/virtgpu/coverage.py.
        let text = fs::read_to_string("/sys/module/virtgpu_userptr/sections/.text");
        println!("    # VIRTGPU-TEXT {}", text.unwrap_or_default().trim());
    }
    Ok(())
}

/// Unloads our module and loads it with parameters.
pub(crate) fn reload(env: &Env, parameters: &CStr) -> TestResult {
    let file = module_file()?;
    let mut result = Ok(());
    // Files of processes that were killed may take a moment.
    eventually(LIMIT, || {
        result = unload("virtgpu_userptr");
        result.is_ok()
    });
    result?;
    load_with(&file, parameters)?;
    wait_for_node(env)
}
