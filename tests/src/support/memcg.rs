// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A limit on the memory of a process and its children.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::ktap::{Outcome, TestResult};
use crate::support::eventually;

/// A control group with a limit; removed on drop.
pub(crate) struct Group(PathBuf);

impl Group {
    /// A new group of at most `bytes` of memory.
    pub(crate) fn new(name: &str, bytes: u64) -> TestResult<Self> {
        let root = PathBuf::from("/sys/fs/cgroup");
        fs::write(root.join("cgroup.subtree_control"), "+memory")
            .map_err(|error| Outcome::Skip(format!("memory control group: {error}")))?;
        let group = Self(root.join(format!("virtgpu-tests-{name}")));
        let _ = fs::create_dir(&group.0);
        fs::write(group.0.join("memory.max"), bytes.to_string())?;
        Ok(group)
    }

    /// Lets nothing of it go to swap.
    pub(crate) fn forbid_swap(&self) -> TestResult {
        Ok(fs::write(self.0.join("memory.swap.max"), "0")?)
    }

    /// Puts this process into it.
    pub(crate) fn enter(&self) -> TestResult {
        Ok(fs::write(self.0.join("cgroup.procs"), "0")?)
    }

    /// The number that `key` has in one of its files; the only one for an empty key.
    pub(crate) fn number(&self, file: &str, key: &str) -> TestResult<u64> {
        let text = fs::read_to_string(self.0.join(file))?;
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            .ok_or_else(|| Outcome::Fail(format!("{file} of the group has no {key}")))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has ended may take a moment to leave.
        eventually(Duration::from_secs(30), || fs::remove_dir(&self.0).is_ok());
    }
}
