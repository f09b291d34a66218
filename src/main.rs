// SPDX-License-Identifier: GPL-2.0

//! virtio-gpu guest driver.
#![crate_name = "virtgpu_userptr"]

use kernel::prelude::*;

mod kapi;
mod transport;
#[path = "../protocol/src/lib.rs"]
mod protocol;

module! {
    type: Test,
    name: "virtgpu_userptr",
    authors: ["virtio-gpu-userptr developers"],
    description: "virtio-gpu render driver with user memory",
    license: "GPL",
}
struct Test;
impl kernel::Module for Test {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Test)
    }
}
