// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that the kernel lends to programs until a device wants it in one piece.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use crate::ktap::{Outcome, TestResult};

/// A contiguous area (boot with `cma=SIZE`), and what was allocated of it, which is given back on
/// drop.
pub(crate) struct Area {
    folder: PathBuf,
    /// Frame numbers.
    frames: Range<u64>,
    /// Pages of each allocation.
    taken: Vec<u64>,
}

impl Area {
    /// The largest area; a skip if there is none.
    pub(crate) fn find() -> TestResult<Self> {
        let none = || Outcome::Skip("no contiguous area (cma=, CONFIG_CMA_DEBUGFS)".into());
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/kernel/debug/cma").map_err(|_| none())? {
            let folder = entry?.path();
            let (first, count) = (number(&folder, "base_pfn")?, number(&folder, "count")?);
            found.push(Self {
                folder,
                frames: first..first + count,
                taken: Vec::new(),
            });
        }
        let size = |area: &Self| area.frames.end - area.frames.start;
        found.into_iter().max_by_key(size).ok_or_else(none)
    }

    /// How many of `frames` are in it.
    pub(crate) fn count(&self, frames: &[Option<u64>]) -> usize {
        let inside = |frame: &&u64| self.frames.contains(frame);
        frames.iter().flatten().filter(inside).count()
    }

    /// Pages of it in all.
    pub(crate) fn pages(&self) -> u64 {
        self.frames.end - self.frames.start
    }

    /// Takes the first free piece of `pages` pages; those in it move elsewhere. Returns whether
    /// there was one.
    pub(crate) fn take(&mut self, pages: u64) -> TestResult<bool> {
        match fs::write(self.folder.join("alloc"), pages.to_string()) {
            Ok(()) => {
                self.taken.push(pages);
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives all back.
    pub(crate) fn give_back(&mut self) -> TestResult {
        while let Some(pages) = self.taken.pop() {
            fs::write(self.folder.join("free"), pages.to_string())?;
        }
        Ok(())
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let _ = self.give_back();
    }
}

fn number(folder: &std::path::Path, name: &str) -> TestResult<u64> {
    let text = fs::read_to_string(folder.join(name))?;
    text.trim()
        .parse()
        .map_err(|_| Outcome::Fail(format!("{name} is {text:?}")))
}
