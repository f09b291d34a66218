// SPDX-License-Identifier: GPL-2.0

//! Registration of user memory.
//!
//! - [`params`]: what userspace asks for, validated;
//! - [`pinned`]: the registration of pinned memory;
//! - [`mirrored`]: that of mirrored memory, followed by the device.

pub(crate) mod mirrored;
pub(crate) mod params;
pub(crate) mod pinned;
