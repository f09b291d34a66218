// SPDX-License-Identifier: GPL-2.0

//! The event queue, by which the device announces that it has dropped a space (SPACE_LOST), that an
//! access is stalled (FAULT) and that a job of a context in fault mode is over (RING_DONE).
//!
//! The buffers go back to the device as soon as they are read, in the interrupt. There the owner of
//! the space takes note of faults and jobs; that a space was dropped is told by a worker. Nothing
//! that a fence or memory reclaim waits for depends on it.

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
    new_spinlock_irq,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        Arc,
        SpinLockIrq, //
    },
};
use zerocopy::IntoBytes;

/// Most buffers in the queue, however many the device asks for.
const MAX_SLOTS: usize = 64;
/// Most lost spaces that wait for the worker. A device that says more at once is not sane.
const MAX_LOST: usize = 1024;

/// An access of the device that is stalled until its fault is resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// Address in the space, in bytes.
    pub(crate) address: u64,
    /// One of [`access`](crate::protocol::mirror::access).
    pub(crate) access: u32,
    /// Number of the ring plus 1 whose job it is, or 0.
    pub(crate) stream: u32,
    /// What the device calls the fault.
    pub(crate) id: u64,
}

/// The end of a job of a context in fault mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingDone {
    /// The ring.
    pub(crate) ring: u32,
    /// The fence id with which the job was submitted.
    pub(crate) fence_id: u64,
    /// A [`job_result`](crate::protocol::mirror::job_result).
    pub(crate) result: u32,
    /// The address of an access that was not possible, in bytes.
    pub(crate) address: u64,
}

/// What an owner makes of something that the device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noted {
    /// It has taken note.
    Done,
    /// A worker is to call [`SpaceOwner::look`].
    Look,
    /// The device may not say this.
    Refused,
}

/// The owner of a space, which learns what the device says of it.
pub(crate) trait SpaceOwner: Send + Sync {
    /// The device has dropped the space by itself, and accesses nothing through it any more.
    ///
    /// Called by a worker, without locks; may still be called when [`Events::remove_owner`] has
    /// returned.
    fn space_lost(self: Arc<Self>);

    /// An access is stalled, which it cannot be in a space that was created without faults.
    ///
    /// Called in the interrupt, with locks held that are taken there.
    fn fault(&self, _fault: Fault) -> Noted {
        Noted::Refused
    }

    /// A job is over. Called as [`SpaceOwner::fault`].
    fn ring_done(&self, _done: RingDone) -> Noted {
        Noted::Refused
    }

    /// What was noted asks for more than the interrupt can do. Called as
    /// [`SpaceOwner::space_lost`].
    fn look(&self) {}
}

struct Inner {
    /// `None` before the start and after the removal.
    queue: Option<Queue<(), ()>>,
    /// Spaces that the device has dropped, and those whose owners are to look, for the worker.
    /// Neither grows beyond its capacity.
    lost: KVec<u32>,
    looks: KVec<u32>,
}

/// The event queue of a device, as part of its [`Transport`](super::Transport).
#[pin_data]
pub(super) struct Events {
    /// Protects the ring and what it brought. Taken in the interrupt.
    #[pin]
    inner: SpinLockIrq<Inner>,
    /// Protects the list only; held while an owner takes note of a fault or a job. Taken in the
    /// interrupt, inside of `inner`.
    #[pin]
    owners: SpinLockIrq<RBTree<u32, Arc<dyn SpaceOwner>>>,
}

impl Events {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_spinlock_irq!(Inner {
                queue: None,
                lost: KVec::new(),
                looks: KVec::new(),
            }, "Events::inner"),
            owners <- new_spinlock_irq!(RBTree::new(), "Events::owners"),
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
        let looks = KVec::with_capacity(MAX_LOST, GFP_KERNEL)?;
        for _ in 0..slots.clamp(1, MAX_SLOTS).min(queue.size()) {
            let buffer = Self::buffer()?;
            queue.add(buffer, usize::MAX).map_err(|(_, e)| e)?;
        }
        let mut inner = self.inner.lock();
        inner.queue = Some(queue);
        inner.lost = lost;
        inner.looks = looks;
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
        let Inner { queue, lost, looks } = &mut *inner;
        let Some(queue) = queue else {
            return true;
        };
        loop {
            queue.disable_callback();
            while let Some((buffer, len)) = queue.take_used() {
                let mut said = Event::default();
                buffer.read_response(said.as_mut_bytes());
                let sane = len as usize == size_of::<Event>()
                    && match said.kind.get() {
                        event::SPACE_LOST => lost.push_within_capacity(said.space_id.get()).is_ok(),
                        event::FAULT | event::RING_DONE => match self.note(&said) {
                            Noted::Done => true,
                            Noted::Look => looks.push_within_capacity(said.space_id.get()).is_ok(),
                            Noted::Refused => false,
                        },
                        _ => false,
                    };
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

    /// Has the owner of a space take note of a fault or of the end of a job.
    fn note(&self, said: &Event) -> Noted {
        let owners = self.owners.lock();
        // A space may have ended after the device has said it.
        let Some(owner) = owners.get(&said.space_id.get()) else {
            return Noted::Done;
        };
        if said.kind.get() == event::FAULT {
            owner.fault(Fault {
                address: said.address.get(),
                access: said.access.get(),
                stream: said.info.get(),
                id: said.id.get(),
            })
        } else {
            owner.ring_done(RingDone {
                ring: said.info.get(),
                fence_id: said.id.get(),
                result: said.access.get(),
                address: said.address.get(),
            })
        }
    }

    /// Calls the owners of spaces that the device has dropped, and those who are to look.
    pub(super) fn tell(&self) {
        loop {
            let (lost, look) = {
                let mut inner = self.inner.lock();
                (inner.lost.pop(), inner.looks.pop())
            };
            if lost.is_none() && look.is_none() {
                break;
            }
            // One that has ended meanwhile has no owner.
            let owner = |space| self.owners.lock().get(&space).cloned();
            if let Some(owner) = look.and_then(owner) {
                owner.look();
            }
            if let Some(owner) = lost.and_then(owner) {
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

    /// Removes the owner of space `space_id`, which learns of no faults and jobs any more.
    pub(super) fn remove_owner(&self, space_id: u32) {
        let node = self.owners.lock().remove_node(&space_id);
        drop(node);
    }
}
