// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A file system that needs to know which pages were written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ktap::TestResult;
use crate::support::program::run;

const FOLDER: &str = "/tmp/virtgpu-tests-ext4";
const IMAGE: &str = "/tmp/virtgpu-tests-ext4.img";

/// A folder on ext4, mounted from an image by a loop device.
pub(crate) fn folder() -> TestResult<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    if !mounts.contains(FOLDER) {
        fs::create_dir_all(FOLDER)?;
        let file = fs::File::create(IMAGE)?;
        file.set_len(64 << 20)?;
        drop(file);
        run("mkfs.ext4", &["-q", "-F", IMAGE])?;
        // In two steps: `mount -o loop` holds the device open for writing, which kernels without
        // BLK_DEV_WRITE_MOUNTED refuse.
        let device = run("losetup", &["-f"])?;
        run("losetup", &[&device, IMAGE])?;
        run("mount", &["-t", "ext4", &device, FOLDER])?;
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(FOLDER, everyone)?;
    }
    Ok(Path::new(FOLDER).to_path_buf())
}
