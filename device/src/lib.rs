// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A reference virtio-gpu device with a compute context, as a vhost-user process.
//!
//! - [`cli`], [`serve`]: the process;
//! - [`backend`]: the vhost-user side; [`queues`]: the queues, as the device writes to them;
//! - [`device`] and its parts: what exists, the commands, the jobs;
//! - [`mirror`]: spaces, and the queue on which the guest fills and empties them;
//! - [`segments`], [`ram`], [`hostmem`]: memory; [`image`]: storage that is not shared; [`compute`]: the operations on it;
//! - [`event_log`]: what happened; [`check_log`]: whether it should have;
//! - `virgl`: OpenGL by virglrenderer;
//! - [`adversary`] is misbehaviour, [`mutant`] breaks the contract unnoticed.

mod access;
pub mod adversary;
pub mod backend;
pub mod cancel;
pub mod capsets;
pub mod check_log;
pub mod cli;
mod commands;
pub mod compute;
pub mod device;
pub mod event_log;
mod frontend;
mod guarded;
mod host;
pub mod hostmem;
pub mod image;
mod jobs;
pub mod mirror;
pub mod mutant;
pub mod names;
pub mod queues;
pub mod ram;
mod request;
pub mod segments;
pub mod serve;
mod state;
mod virgl;
pub mod vring;
