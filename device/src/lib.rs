// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A reference virtio-gpu device with a compute context, as a vhost-user process.
//!
//! From top to bottom; a module uses those below it:
//!
//! - [`backend`]: the process, and the vhost-user side: features, configuration space, threads;
//! - `commands`: what the commands of the guest do, a file each family;
//! - [`device`]: what exists, the jobs, and the life of the device from reset to reset;
//! - `virgl`: OpenGL by virglrenderer;
//! - [`options`]: the command line, and what it says;
//! - [`compute`]: the operations of a job;
//! - [`mirror`]: spaces, which follow the pages of the guest's processes;
//! - [`queues`]: chains of the guest, which are read and given back;
//! - [`misbehave`]: adversary, mutants and hammer;
//! - [`memory`]: what resources are made of; [`cancel`] ends early what uses it;
//! - [`log`]: what happened, and whether it should have.
//!
//! `device` and `commands` are one layer: both are `impl Device`, and a job that ends has commands
//! go on.

pub mod backend;
pub mod cancel;
mod commands;
pub mod compute;
pub mod device;
pub mod log;
pub mod memory;
pub mod mirror;
pub mod misbehave;
pub mod options;
pub mod queues;
mod virgl;
