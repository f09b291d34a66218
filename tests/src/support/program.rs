// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Programs of the guest's.

use std::process::Command;

use crate::ktap::{Outcome, TestResult};

/// Runs a program, and returns what it says; a skip if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> TestResult<String> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) => return Err(Outcome::Skip(format!("{program}: {error}"))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    Err(Outcome::Skip(format!(
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}
