// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Draws and computes with OpenGL ES, without a window, and compares every pixel and word.

mod cases;
mod context;

use std::process::ExitCode;

fn main() -> ExitCode {
    match context::Context::new() {
        Ok(context) => virtgpu_render::run(&context, cases::CASES),
        Err(error) => {
            println!("not ok context: {error}");
            ExitCode::FAILURE
        }
    }
}
