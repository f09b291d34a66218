// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Settings of the kernel that a test changes for its time.

use std::fs;

use crate::ktap::{Outcome, TestResult};

/// A file of /proc or /sys that is written again as it was when this is dropped.
pub(crate) struct Setting {
    file: String,
    before: String,
}

impl Setting {
    /// Writes `value`. A skip if there is no such file, or the kernel refuses the value.
    pub(crate) fn new(file: impl Into<String>, value: &str) -> TestResult<Self> {
        let file = file.into();
        let skip = |error| Outcome::Skip(format!("{file}: {error}"));
        let text = fs::read_to_string(&file).map_err(skip)?;
        // Of several words the one in brackets is in force.
        let chosen = text.split(['[', ']']).nth(1);
        let before = chosen.unwrap_or(&text).trim().to_string();
        fs::write(&file, value).map_err(skip)?;
        Ok(Self { file, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.file, &self.before);
    }
}
