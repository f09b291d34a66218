// SPDX-License-Identifier: GPL-2.0

//! The virtio bus.
//!
//! - [`binding`]: what ends when a driver is unbound;
//! - [`driver`]: registration of drivers, in the manner of `kernel::auxiliary`;
//! - [`device`]: a device, its features, configuration space and shared memory regions;
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
        Queue,
        QueueHandler,
        QueueSetup, //
    },
};
