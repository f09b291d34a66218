// SPDX-License-Identifier: GPL-2.0

//! The virtqueues of a virtio-gpu device, one file each.

pub(crate) mod control;
pub(crate) mod event;
pub(crate) mod knobs;
pub(crate) mod mirror;
