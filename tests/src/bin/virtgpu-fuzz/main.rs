// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A fuzzer of the driver's ioctls. It is seeded, knows the structures, and needs no coverage of
//! the kernel; `--help` has the options.
//!
//! What has to hold, whatever is called:
//!
//! - an ioctl returns 0 or one of the documented errors, never EAGAIN, and in bounded time;
//! - what can never be right (unknown numbers, flags and parameters, reserved fields that are not
//!   zero, structures that are too short) never succeeds ([`rules`]);
//! - an ioctl that fails leaves the structure as it was;
//! - afterwards a new file can run jobs with the right results, and nothing stays pinned and
//!   nothing is left on the host ([`rounds`]);
//! - the kernel's log has nothing to say, which `scripts/virtgpu/outcome.py` looks at.
//!
//! [`rounds`] starts processes, [`worker`] is a thread of one; what it calls is made by
//! [`standard`], [`extension`] and [`core_ioctls`], done by [`call`], and noted in [`world`];
//! [`memory`], [`files`] and [`process`] are what happens beside.

// What the tests of this package share; each program uses a part of it.
#[allow(dead_code)]
#[path = "../../ktap.rs"]
mod ktap;
#[allow(dead_code)]
#[path = "../../support/mod.rs"]
mod support;

mod call;
mod core_ioctls;
mod counts;
mod extension;
mod files;
mod health;
mod jobs;
mod layout;
mod memory;
mod options;
mod pick;
mod process;
mod rounds;
mod rules;
mod standard;
mod svm;
mod sys;
mod trace;
mod worker;
mod world;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let options = options::Options::parse();
    let env = match support::Env::new() {
        Ok(env) => env,
        Err(error) => {
            println!("Bail out! {error}");
            return ExitCode::FAILURE;
        }
    };
    if rounds::run(&env, &options) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
