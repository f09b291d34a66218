// SPDX-License-Identifier: GPL-2.0

//! The virtio bus.
//!
//! - [`binding`]: what ends when a driver is unbound;
//! - [`driver`]: registration of drivers, in the manner of `kernel::auxiliary`;
//! - [`device`]: a device, its features, configuration space and shared memory regions;
//! - [`setup`]: what a driver does to get the device's queues;
//! - [`queue_set`]: the queues all together, which are stopped and taken down;
//! - [`queue`]: virtqueues, which own the messages that are on their way;
//! - [`message`]: memory for a request and its response.
//!
//! C headers: [`include/linux/virtio.h`](srctree/include/linux/virtio.h),
//! [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

pub(crate) mod binding;
pub(crate) mod device;
pub(crate) mod driver;
pub(crate) mod message;
pub(crate) mod queue;
mod queue_set;
mod setup;

pub(crate) use self::{
    binding::Binding,
    device::Device,
    driver::{
        Adapter,
        DeviceId,
        Driver,
        IdTable, //
    },
    message::{
        Chunks,
        Message,
        Pieces, //
    },
    queue::{
        Notification,
        Queue, //
    },
    setup::{
        QueueHandler,
        QueueSetup, //
    },
};
