// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Draws and computes with OpenGL ES, without a window, and compares every pixel and word.
//!
//! `virtgpu-gles endless` draws until the device is gone, `virtgpu-gles busy` draws more at a time
//! and does not look at it. `virtgpu-gles together` lets the reference device compute in memory of
//! this process, too, while OpenGL draws.

mod cases;
mod context;
mod together;

use std::process::ExitCode;

fn main() -> ExitCode {
    let what = std::env::args().nth(1);
    match context::Context::new() {
        Ok(context) if what.as_deref() == Some("together") => {
            virtgpu_render::run(&context, together::CASES)
        }
        Ok(context) if what.as_deref() == Some("endless") => {
            let end = cases::endless(&context);
            println!("the end: {end:?}");
            ExitCode::SUCCESS
        }
        Ok(context) if what.as_deref() == Some("busy") => {
            println!("the end: {:?}", cases::busy(&context));
            ExitCode::SUCCESS
        }
        Ok(context) => virtgpu_render::run(&context, cases::CASES),
        Err(error) => {
            println!("not ok context: {error}");
            ExitCode::FAILURE
        }
    }
}
