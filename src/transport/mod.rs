// SPDX-License-Identifier: GPL-2.0

//! The device and its virtqueues.
//!
//! - [`device`]: the device's state and its workers, and what becomes of all queues at once:
//!   - [`interrupt`]: which queue an interrupt is for;
//!   - [`loss`]: the end of a device;
//!   - [`suspend`]: its sleep;
//!   - [`watchdog`]: the timer that notices its silence;
//! - [`control`]: requests, responses and fences;
//! - [`mirror`]: what tells the device of a process's pages;
//! - [`event`]: what the device says unasked;
//! - [`knobs`]: rare courses, made to happen.
//!
//! A [`Transport`] has the queues; those who use one have a [`control::ControlQueue`] or a
//! [`mirror::MirrorQueue`], which keeps the transport.

pub(crate) mod control;
mod device;
pub(crate) mod event;
mod interrupt;
pub(crate) mod knobs;
mod loss;
pub(crate) mod mirror;
mod state;
mod status;
#[cfg(CONFIG_PM_SLEEP)]
mod suspend;
mod watchdog;

pub(crate) use self::device::{
    OnReset,
    Timeouts,
    Transport, //
};
use self::state::State;
