// SPDX-License-Identifier: GPL-2.0

//! What a driver may use of a device only for as long as it is bound to it.
//!
//! C headers: [`include/linux/virtio.h`](srctree/include/linux/virtio.h),
//! [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

use super::{
    device::{
        Device,
        F_ACCESS_PLATFORM, //
    },
    queue_set::QueueSet, //
};
use crate::kapi::{
    bindings,
    dma::map::Mapper, //
};
use kernel::{
    device::Core,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        Mutex, //
    }, //
};

struct Queues {
    /// The driver has not been unbound.
    bound: bool,
    /// The queues, if they have been set up.
    set: Option<Arc<QueueSet>>,
}

/// The binding of a driver to a device.
///
/// It owns the device's queues. When the driver is unbound, when its probe fails and when the
/// machine goes to sleep the bus resets the device, takes the queues down and drops the messages
/// that are still in them, whatever the driver has kept: a [`Queue`](super::Queue) of queues that
/// are gone refuses messages and has none. What the driver has mapped for the device is unmapped
/// when the driver is unbound or its probe fails.
///
/// Drivers may keep references for as long as they like.
#[pin_data]
pub(crate) struct Binding {
    vdev: ARef<Device>,
    /// Most bytes of a piece of a message.
    max_piece: usize,
    mapper: Arc<Mapper>,
    /// Whether the driver is bound; held while the configuration space is read.
    #[pin]
    config: Mutex<bool>,
    /// Held while the device is reset and while its queues are set up.
    #[pin]
    queues: Mutex<Queues>,
}

impl Binding {
    /// The binding of a driver that is about to be probed.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(vdev: &Device<Core<'_>>) -> Result<Arc<Self>> {
        // SAFETY: The parent is the transport's device, which stays bound to the transport's driver
        // for longer than the driver of the virtio device is bound. Whoever binds that calls
        // `revoke` before it is unbound; without a binding nothing is mapped.
        let mapper = unsafe { Mapper::new(vdev.parent()) }?;
        Arc::pin_init(
            pin_init!(Self {
                vdev: vdev.into(),
                // SAFETY: The device is valid, and bound as long as it is probed.
                max_piece: unsafe { bindings::virtio_max_dma_size(vdev.as_raw()) },
                mapper,
                config <- new_mutex!(true, "Binding::config"),
                queues <- new_mutex!(Queues {
                    bound: true,
                    set: None,
                }, "Binding::queues"),
            }),
            GFP_KERNEL,
        )
    }

    /// The device.
    pub(crate) fn device(&self) -> &Device {
        &self.vdev
    }

    /// Maps memory for a device with [`F_ACCESS_PLATFORM`].
    pub(crate) fn mapper(&self) -> &Arc<Mapper> {
        &self.mapper
    }

    /// Most bytes of a [`Message`](super::Message) that lie in one piece: what the platform maps at
    /// once.
    pub(crate) fn max_piece(&self) -> usize {
        self.max_piece
    }

    /// Bytes that all messages in the queues may have, as [`Message::bytes`] counts them, if that
    /// is limited: where the platform shows the device copies, all devices have one pool of them.
    ///
    /// [`Message::bytes`]: super::Message::bytes
    pub(crate) fn message_room(&self) -> Option<usize> {
        let mapped = self.vdev.has_feature(F_ACCESS_PLATFORM);
        mapped.then(|| self.mapper.message_room()).flatten()
    }

    /// The little-endian 32-bit field at byte `offset` of the configuration space.
    ///
    /// May sleep. Must not be called once the device may be dead: some hosts fail hard then.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the driver has been unbound.
    pub(crate) fn config_read32(&self, offset: usize) -> Result<u32> {
        let bound = self.config.lock();
        if !*bound {
            return Err(ENODEV);
        }
        // SAFETY: The driver is bound, and is not unbound while the lock is held.
        Ok(unsafe { self.vdev.read32(offset) })
    }

    /// Resets the device: when this returns, it accesses no memory, no notification is on its way
    /// to it, and no callback of a queue is running. Nothing can be added to the queues from now
    /// on, and what the device has not used can be detached.
    ///
    /// Sleeps, for as long as the device takes. Does nothing if the driver has been unbound: then
    /// all that was done.
    pub(crate) fn reset(&self) {
        let queues = self.queues.lock();
        if queues.bound {
            self.reset_locked(&queues);
        }
    }

    fn reset_locked(&self, queues: &Queues) {
        if let Some(set) = &queues.set {
            set.stop();
        }
        // SAFETY: The driver is bound, so the transport is there. No notification is running, and
        // none will: the queues were stopped.
        unsafe {
            bindings::virtio_reset_device(self.vdev.as_raw());
            bindings::kapi_virtio_synchronize_cbs(self.vdev.as_raw());
        }
        if let Some(set) = &queues.set {
            // SAFETY: The device has just been reset.
            unsafe { set.set_reset() };
        }
    }

    /// Resets the device and takes its queues down. The driver stays bound, and may be given queues
    /// again.
    pub(super) fn leave_queues(&self) {
        let set = {
            let mut queues = self.queues.lock();
            if !queues.bound {
                return;
            }
            self.reset_locked(&queues);
            queues.set.take()
        };
        if let Some(set) = set {
            // SAFETY: They are the device's, by `find_queues`, and it was reset. No one else has
            // found them here.
            unsafe { set.take_down(&self.vdev) };
        }
    }

    /// Ends the binding: the driver is being unbound, or its probe has failed.
    pub(super) fn revoke(&self) {
        *self.config.lock() = false;
        self.leave_queues();
        self.queues.lock().bound = false;
        self.mapper.end();
    }

    /// Has `find` set up the queues.
    pub(super) fn set_up_queues(
        &self,
        find: impl FnOnce(&Device) -> Result<Arc<QueueSet>>,
    ) -> Result<Arc<QueueSet>> {
        let mut queues = self.queues.lock();
        if !queues.bound || queues.set.is_some() {
            return Err(EBUSY);
        }
        let set = find(&self.vdev)?;
        queues.set = Some(set.clone());
        Ok(set)
    }
}
