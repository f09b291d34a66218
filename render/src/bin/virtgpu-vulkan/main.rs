// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Computes and draws with Vulkan, without a window, and compares every word and pixel.

mod cases;
mod device;
mod picture;

use std::process::ExitCode;

fn main() -> ExitCode {
    match device::Device::new() {
        Ok(device) => virtgpu_render::run(&device, cases::CASES),
        Err(error) => {
            println!("not ok device: {error}");
            ExitCode::FAILURE
        }
    }
}
