// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the guest driver, the device and userspace must agree on, written once.
//!
//! - [`virtio_gpu`]: the control queue's structures, as in Linux's
//!   `include/uapi/linux/virtio_gpu.h`;
//! - [`virtio_gpu_image`]: resources that are not blobs, and transfers;
//! - [`virtio_gpu_2d`]: the display commands, for the device only;
//! - [`mirror`]: the extension by which a device follows the guest's page tables;
//! - [`compute`]: the command stream of the reference device's compute context;
//! - [`uapi`]: the ioctl structures, as in Linux's `include/uapi/drm/virtgpu_drm.h` and in
//!   `uapi/drm/virtgpu_userptr_drm.h` of this project;
//! - [`runs`]: merging of pages into the fewest possible memory entries.
//!
//! The files are compiled three ways: as this crate for the device and the tests, and as a module
//! of the kernel driver (`src/main.rs` includes this file with `#[path]`). Hence the rules of the
//! house: `core` and `zerocopy` only, no `crate::` paths, no floating point.
#![cfg_attr(not(any(test, MODULE)), no_std)]

pub mod compute;
pub mod mirror;
pub mod runs;
pub mod uapi;
pub mod virtio_gpu;
pub mod virtio_gpu_2d;
pub mod virtio_gpu_image;
