// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The driver's folder in debugfs: counters, and knobs that make rare courses happen.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::ktap::{Outcome, TestResult};
use crate::support::Env;

/// The folder of the device under test. All knobs are off, and are again when this is dropped.
pub(crate) struct Knobs {
    folder: PathBuf,
}

const ALL: [&str; 6] = [
    "force_retries",
    "exhaust_invalidates",
    "exhaust_nodes",
    "delay_map_ms",
    "hold_reset",
    "exhaust_descriptors",
];

impl Knobs {
    /// Finds the folder; a skip if the kernel has no debugfs.
    pub(crate) fn open(env: &Env) -> TestResult<Self> {
        let knobs = Self {
            folder: folder(env)?,
        };
        knobs.counters()?;
        for name in ALL {
            knobs.set(name, 0)?;
        }
        Ok(knobs)
    }

    /// Where the knobs are before anybody has turned them.
    pub(crate) fn values(env: &Env) -> TestResult<Vec<(&'static str, u32)>> {
        let folder = folder(env)?;
        let value = |name| Ok((name, read(&folder, name)?));
        ALL.into_iter().map(value).collect()
    }

    /// What has happened since the device was bound.
    pub(crate) fn counters(&self) -> TestResult<Counters> {
        Counters::read(&self.folder.join("mirror"))
    }

    /// Turns a knob.
    pub(crate) fn set(&self, name: &str, value: u32) -> TestResult {
        let path = self.folder.join(name);
        fs::write(&path, value.to_string())
            .map_err(|error| Outcome::Fail(format!("{}: {error}", path.display())))
    }

    /// Where a knob is.
    pub(crate) fn get(&self, name: &str) -> TestResult<u32> {
        read(&self.folder, name)
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &PathBuf {
        &self.folder
    }
}

/// Address spaces of which something is left in the driver; 0 if that has no counters.
pub(crate) fn address_spaces(env: &Env) -> TestResult<u64> {
    let path = match folder(env) {
        Err(Outcome::Skip(_)) => return Ok(0),
        folder => folder?.join("mirror"),
    };
    match path.exists() {
        true => Counters::read(&path)?.get("address_spaces_now"),
        false => Ok(0),
    }
}

/// The folder of the device under test.
pub(crate) fn folder(env: &Env) -> TestResult<PathBuf> {
    let node = env
        .node()
        .ok_or_else(|| Outcome::Fail("there is no render node of virtio_gpu".into()))?;
    let dri = Path::new("/sys/kernel/debug/dri");
    if !dri.exists() {
        return Err(Outcome::Skip(format!("there is no {}", dri.display())));
    }
    let name = node.file_name().unwrap_or_default().to_string_lossy();
    // A link to the folder of the device.
    Ok(fs::canonicalize(
        dri.join(name.trim_start_matches("renderD")),
    )?)
}

fn read(folder: &Path, knob: &str) -> TestResult<u32> {
    let text = fs::read_to_string(folder.join(knob))?;
    text.trim()
        .parse()
        .map_err(|_| Outcome::Fail(format!("{knob} is {text:?}")))
}

impl Drop for Knobs {
    fn drop(&mut self) {
        for name in ALL {
            // Where the device is gone, so are its knobs.
            let _ = self.set(name, 0);
        }
    }
}

/// The counters at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counters(BTreeMap<String, u64>);

impl Counters {
    fn read(path: &Path) -> TestResult<Self> {
        let text = fs::read_to_string(path)
            .map_err(|error| Outcome::Fail(format!("{}: {error}", path.display())))?;
        let mut values = BTreeMap::new();
        for line in text.lines() {
            let value = line
                .split_once(": ")
                .and_then(|(name, value)| Some((name.to_string(), value.parse().ok()?)));
            let Some((name, value)) = value else {
                return Err(Outcome::Fail(format!("{}: {line:?}", path.display())));
            };
            values.insert(name, value);
        }
        Ok(Self(values))
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> TestResult<u64> {
        self.0
            .get(name)
            .copied()
            .ok_or_else(|| Outcome::Fail(format!("there is no counter {name}")))
    }

    /// How far one has moved from `before` to this.
    pub(crate) fn since(&self, before: &Self, name: &str) -> TestResult<u64> {
        Ok(self.get(name)? - before.get(name)?)
    }

    /// The names of those whose name starts with `prefix` that have moved since `before`.
    pub(crate) fn moved(&self, before: &Self, prefix: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter(|(name, value)| name.starts_with(prefix) && before.0.get(*name) != Some(value))
            .map(|(name, _)| name.as_str())
            .collect()
    }
}
