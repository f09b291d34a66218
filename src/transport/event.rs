// SPDX-License-Identifier: GPL-2.0

//! The event queue, by which the device announces that it has dropped a space (SPACE_LOST).
//!
//! The buffers go back to the device as soon as they are read, in the interrupt; what is left to
//! do then is a worker's. Nothing that a fence or memory reclaim waits for depends on it.

use crate::{
    kapi::virtio::{
        Chunks,
        Message,
        Queue, //
    },
    protocol::mirror::{
        event,
        Event, //
    },
};
use kernel::{
    list::ListArc,
    new_mutex, new_spinlock_irq,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        Arc,
        Mutex,
        SpinLockIrq, //
    },
};
use zerocopy::IntoBytes;

/// Most buffers in the queue, however many the device asks for.
const MAX_SLOTS: usize = 64;
/// Most lost spaces that wait for the worker. A device that says more at once is not sane.
const MAX_LOST: usize = 1024;

/// The owner of a space, which learns that the device has dropped it.
pub(crate) trait SpaceOwner: Send + Sync {
    /// The device has dropped the space by itself, and accesses nothing through it any more.
    ///
    /// Called by a worker, without locks but that of the list of spaces.
    fn space_lost(&self);
}

struct Inner {
    /// `None` before the start and after the removal.
    queue: Option<Queue<(), ()>>,
    /// Spaces that the device has dropped, for the worker. Never grows beyond its capacity.
    lost: KVec<u32>,
}

/// The event queue of a device, as part of its [`Control`].
#[pin_data]
pub(super) struct Events {
    /// Protects the ring and what it brought. Taken in the interrupt.
    #[pin]
    inner: SpinLockIrq<Inner>,
    /// Protects the list only; held while an owner is told.
    #[pin]
    owners: Mutex<RBTree<u32, Arc<dyn SpaceOwner>>>,
}

impl Events {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_spinlock_irq!(Inner {
                queue: None,
                lost: KVec::new(),
            }, "Events::inner"),
            owners <- new_mutex!(RBTree::new(), "Events::owners"),
        })
    }

    /// Takes the queue of a device that is being probed, and gives it `slots` buffers, or as many
    /// as make sense.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EIO`] if the ring is broken.
    pub(super) fn start(&self, mut queue: Queue<(), ()>, slots: usize) -> Result {
        let lost = KVec::with_capacity(MAX_LOST, GFP_KERNEL)?;
        for _ in 0..slots.clamp(1, MAX_SLOTS).min(queue.size()) {
            let buffer = Self::buffer()?;
            queue.add(buffer, usize::MAX).map_err(|(_, e)| e)?;
        }
        let mut inner = self.inner.lock();
        inner.queue = Some(queue);
        inner.lost = lost;
        Ok(())
    }

    /// The device is ready: it is told of the buffers.
    pub(super) fn kick(&self) {
        let mut inner = self.inner.lock();
        let queue = inner.queue.as_mut();
        let notification = queue.and_then(|queue| queue.kick_prepare());
        drop(inner);
        drop(notification);
    }

    fn buffer() -> Result<ListArc<Message<(), ()>>> {
        let nothing = pin_init::init_zeroed::<()>();
        Message::new(
            &[],
            Chunks::new(),
            size_of::<Event>(),
            Chunks::new(),
            nothing,
            (),
        )
    }

    /// Takes the queue away: the device is gone.
    pub(super) fn take_queue(&self) -> Option<Queue<(), ()>> {
        self.inner.lock().queue.take()
    }

    /// The device has said something. Returns whether it keeps to the protocol; if it does,
    /// [`Events::tell`] is to be called by a worker.
    pub(super) fn used(&self) -> bool {
        let mut inner = self.inner.lock();
        let Inner { queue, lost } = &mut *inner;
        let Some(queue) = queue else {
            return true;
        };
        loop {
            queue.disable_callback();
            while let Some((buffer, len)) = queue.take_used() {
                let mut said = Event::default();
                buffer.read_response(said.as_mut_bytes());
                // The only event of a device whose faults are not resolved.
                let sane = len as usize == size_of::<Event>()
                    && said.kind.get() == event::SPACE_LOST
                    && lost.push_within_capacity(said.space_id.get()).is_ok();
                if !sane || queue.add(buffer, usize::MAX).is_err() {
                    return false;
                }
            }
            if queue.is_broken() {
                return false;
            }
            if queue.enable_callback() {
                break;
            }
        }
        let notification = queue.kick_prepare();
        drop(inner);
        drop(notification);
        true
    }

    /// Calls the owners of spaces that the device has dropped.
    pub(super) fn tell(&self) {
        loop {
            let space = self.inner.lock().lost.pop();
            let Some(space) = space else {
                break;
            };
            // One that has ended meanwhile has no owner.
            if let Some(owner) = self.owners.lock().get(&space) {
                owner.space_lost();
            }
        }
    }

    /// Has `owner` called if the device drops space `space_id`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn add_owner(&self, space_id: u32, owner: Arc<dyn SpaceOwner>) -> Result {
        let node = RBTreeNode::new(space_id, owner, GFP_KERNEL)?;
        let old = self.owners.lock().insert(node);
        drop(old);
        Ok(())
    }

    /// Removes the owner of space `space_id`, which is not called any more.
    pub(super) fn remove_owner(&self, space_id: u32) {
        let node = self.owners.lock().remove_node(&space_id);
        drop(node);
    }
}
