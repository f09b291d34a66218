// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Computes and draws with Vulkan, without a window, and compares every word and pixel.
//!
//! `virtgpu-vulkan endless` draws until a picture is wrong, `virtgpu-vulkan busy` has the device do
//! much at a time, each time with a fence of the kernel, and does not look at it.

mod cases;
mod device;
mod picture;

use std::process::ExitCode;

fn main() -> ExitCode {
    let what = std::env::args().nth(1);
    match device::Device::new() {
        Ok(device) if what.as_deref() == Some("endless") => {
            println!("the end: {:?}", cases::endless(&device));
            ExitCode::SUCCESS
        }
        Ok(device) if what.as_deref() == Some("busy") => {
            println!("the end: {:?}", cases::busy(&device));
            ExitCode::SUCCESS
        }
        Ok(device) => virtgpu_render::run(&device, cases::CASES),
        Err(error) => {
            println!("not ok device: {error}");
            ExitCode::FAILURE
        }
    }
}
