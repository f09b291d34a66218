// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Whether the module loads, as `nomodeset` on the kernel's command line and its parameter
//! `modeset` have it. One guest has that command line, and its module is loaded with `modeset=1`.

use std::ffi::CStr;
use std::fs;

use virtgpu_client::{Bytes, Errno, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::gpu;
use crate::support::memory::small_pages;
use crate::support::{eventually, job, Env, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = Family {
    name: "nomodeset",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![loads_where_it_may],
};

/// A job has the right result.
fn works(env: &Env) -> TestResult {
    gpu::wait_for_node(env)?;
    let device = env.compute()?;
    let memory = small_pages(PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    job::add(&device, userptr.at(0), PAGE as u64, 1, userptr.handle())?;
    check_eq!(memory.read_u32(0), 1, "a job's result");
    Ok(())
}

fn loads_where_it_may(env: &Env) -> TestResult {
    let file = gpu::module_file()?;
    let command_line = fs::read_to_string("/proc/cmdline")?;
    let firmware_only = command_line
        .split_whitespace()
        .any(|word| word == "nomodeset");
    println!("    # nomodeset: {firmware_only}");
    let load = |parameters: &CStr, may: bool| -> TestResult {
        let result = gpu::load_with(&file, parameters);
        if may {
            result?;
            works(env)?;
            // Files of processes that have ended may take a moment.
            let unloaded = eventually(gpu::LIMIT, || gpu::unload("virtgpu_userptr").is_ok());
            check!(unloaded, "{parameters:?}: the module unloads");
        } else {
            let error = result.err().and_then(|error| error.raw_os_error());
            check_eq!(error, Some(Errno::NODEV.raw_os_error()), "{parameters:?}");
        }
        check!(env.node().is_none(), "{parameters:?}: there is no node");
        Ok(())
    };
    works(env)?;
    let unloaded = eventually(gpu::LIMIT, || gpu::unload("virtgpu_userptr").is_ok());
    check!(unloaded, "the module unloads");
    let result = load(c"modeset=0", false)
        .and_then(|()| load(c"", !firmware_only))
        .and_then(|()| load(c"modeset=-1", !firmware_only));
    gpu::load_with(&file, c"modeset=1")?;
    result?;
    works(env)
}
