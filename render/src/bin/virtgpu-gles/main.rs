// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Draws and computes with OpenGL ES, without a window, and compares every pixel and word.
//!
//! `virtgpu-gles endless` draws until the device is gone.

mod cases;
mod context;

use std::process::ExitCode;

fn main() -> ExitCode {
    match context::Context::new() {
        Ok(context) if std::env::args().nth(1).as_deref() == Some("endless") => {
            let end = cases::endless(&context);
            println!("the end: {end:?}");
            ExitCode::SUCCESS
        }
        Ok(context) => virtgpu_render::run(&context, cases::CASES),
        Err(error) => {
            println!("not ok context: {error}");
            ExitCode::FAILURE
        }
    }
}
