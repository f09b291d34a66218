// SPDX-License-Identifier: GPL-2.0

//! The queues of a device all together: what can be done with them, from their setup until they are
//! taken down.
//!
//! C header: [`include/linux/virtio.h`](srctree/include/linux/virtio.h)

use super::{
    device::Device,
    message, //
};
use crate::kapi::bindings;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic, //
        },
        rcu, //
    }, //
};

/// Messages go both ways.
pub(super) const LIVE: u32 = 0;
/// The device is being reset: it must not be notified.
pub(super) const STOPPED: u32 = 1;
/// The device has been reset, and knows nothing of the messages.
pub(super) const RESET: u32 = 2;
/// There are no queues any more.
pub(super) const GONE: u32 = 3;

/// A virtqueue.
pub(super) struct Virtqueue {
    pub(super) vq: NonNull<bindings::virtqueue>,
    /// Notifications that were found necessary and have not reached the device.
    pub(super) owed: Atomic<u32>,
}

/// The queues of a device, all together.
///
/// # Invariants
///
/// - `state` only grows. Whoever looks at it and acts upon it does both in one RCU read-side
///   critical section, and a grace period passes before what the new state forbids is relied on.
/// - Until `state` is [`GONE`] the queues are valid, and `priv` of their device is the reference
///   that `drop_handler` drops.
/// - Every token in them is a `ListArc` of a [`Message`] turned into a raw pointer.
pub(super) struct QueueSet {
    pub(super) state: Atomic<u32>,
    pub(super) queues: KVec<Virtqueue>,
    pub(super) drop_handler: unsafe fn(*mut c_void),
}

// SAFETY: By the type invariant the queues are valid when they are used; their functions may be
// called from any thread, those that must not run concurrently need a `&mut Queue`.
unsafe impl Send for QueueSet {}

// SAFETY: As above.
unsafe impl Sync for QueueSet {}

impl QueueSet {
    /// Says whether the queues are in a state from `from` to `to`, and keeps what the caller relies
    /// on as long as the guard lives.
    pub(super) fn enter(&self, from: u32, to: u32) -> Option<rcu::Guard> {
        let guard = rcu::read_lock();
        let state = self.state.load(Acquire);
        (from <= state && state <= to).then_some(guard)
    }

    fn advance(&self, state: u32) {
        // INVARIANT: The states are in this order; those who change them hold `Binding::queues`, or
        // have taken the queues from there.
        if self.state.load(Relaxed) < state {
            self.state.store(state, Release);
        }
    }

    /// Stops all threads from adding messages and notifying the device. When this returns none
    /// does.
    pub(super) fn stop(&self) {
        self.advance(STOPPED);
        rcu::synchronize_rcu();
    }

    /// Allows unused messages to be detached.
    ///
    /// # Safety
    ///
    /// The device has been reset after [`QueueSet::stop`].
    pub(super) unsafe fn set_reset(&self) {
        self.advance(RESET);
    }

    /// Takes the queues down, with the messages that are still in them.
    ///
    /// # Safety
    ///
    /// They are queues of `vdev`, which is bound and was reset after [`QueueSet::stop`]. This is
    /// called once.
    pub(super) unsafe fn take_down(&self, vdev: &Device) {
        self.advance(GONE);
        rcu::synchronize_rcu();
        for queue in &self.queues {
            loop {
                // SAFETY: The queue has not been deleted, and this is its last user.
                let token = unsafe { bindings::virtqueue_detach_unused_buf(queue.vq.as_ptr()) };
                let Some(token) = NonNull::new(token) else {
                    break;
                };
                // SAFETY: By the type invariant the token is a `ListArc` turned raw, which the
                // queue has returned.
                unsafe { message::drop_token(token) };
            }
        }
        let vdev = vdev.as_raw();
        // SAFETY: The queues exist, and have no users. After `del_vqs` no callback runs, so the
        // reference that `priv` holds can go.
        unsafe {
            bindings::kapi_virtio_del_vqs(vdev);
            let handler = (*vdev).priv_;
            (*vdev).priv_ = ptr::null_mut();
            (self.drop_handler)(handler);
        }
    }
}
