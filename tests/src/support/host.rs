// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a test asks of the host on which the guest runs (`serve` in `scripts/virtgpu/monitor.py`).

use std::io::Write;

use crate::ktap::TestResult;
use crate::skip;

/// Has the host do something with the device. It does it soon, and does not say when.
pub(crate) fn host(action: &str) -> TestResult {
    if std::env::var_os("VIRTGPU_KERNEL").is_none() {
        skip!("no host that listens");
    }
    println!("VIRTGPU-HOST: {action}");
    std::io::stdout().flush()?;
    Ok(())
}
