// SPDX-License-Identifier: GPL-2.0

//! Safe abstractions over C kernel interfaces that the `kernel` crate lacks.
//!
//! What is `unsafe` lives here, but for trace events. Nothing here knows what a GPU is: each file
//! wraps one C interface, and could be sent upstream alone.

mod bindings;

pub(crate) mod dma;
pub(crate) mod drm;
pub(crate) mod ida;
pub(crate) mod mm;
pub(crate) mod sync;
pub(crate) mod task;
pub(crate) mod virtio;
