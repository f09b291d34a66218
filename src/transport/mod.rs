// SPDX-License-Identifier: GPL-2.0

//! The virtqueues of a virtio-gpu device.
//!
//! - [`control`]: requests, answers, fences, and the end of a device;
//! - [`mirror`]: what tells the device of a process's pages;
//! - [`event`]: what the device says unasked;
//! - [`interrupt`]: which queue an interrupt is for;
//! - [`knobs`]: rare courses, made to happen.

pub(crate) mod control;
pub(crate) mod event;
mod interrupt;
pub(crate) mod knobs;
pub(crate) mod mirror;
