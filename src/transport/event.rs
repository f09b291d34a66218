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
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        List,
        ListArc,
        ListLinks,
        TryNewListArc, //
    },
    new_spinlock_irq,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        atomic::{
            ordering::Relaxed,
            AtomicFlag, //
        },
        Arc,
        SpinLockIrq, //
    },
};
use zerocopy::IntoBytes;

/// Most buffers in the queue, however many the device asks for.
const MAX_SLOTS: usize = 64;

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

/// What the worker is to tell the owner of a space. It is allocated with the owner, so that the
/// interrupt needs no memory however many spaces there are, and however often the device speaks.
#[pin_data]
struct News {
    space: u32,
    /// The device has dropped the space. Changed with [`Events::inner`] locked.
    lost: AtomicFlag,
    /// The owner is to look. Changed with [`Events::inner`] locked.
    look: AtomicFlag,
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for News { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for News { using ListLinks { self.links }; }
}

impl News {
    /// There is nothing to tell.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    fn new(space: u32) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                space,
                lost: AtomicFlag::new(false),
                look: AtomicFlag::new(false),
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
            }),
            GFP_KERNEL,
        )
    }
}

struct Owner {
    owner: Arc<dyn SpaceOwner>,
    news: Arc<News>,
}

struct Inner {
    /// `None` before the start and after the removal.
    queue: Option<Queue<(), ()>>,
    /// For the worker.
    news: List<News>,
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
    owners: SpinLockIrq<RBTree<u32, Owner>>,
}

impl Events {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_spinlock_irq!(Inner {
                queue: None,
                news: List::new(),
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
        for _ in 0..slots.clamp(1, MAX_SLOTS).min(queue.size()) {
            let buffer = Self::buffer()?;
            queue.add(buffer, usize::MAX).map_err(|(_, e)| e)?;
        }
        self.inner.lock().queue = Some(queue);
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
        let Inner { queue, news } = &mut *inner;
        let Some(queue) = queue else {
            return true;
        };
        loop {
            queue.disable_callback();
            while let Some((buffer, len)) = queue.take_used() {
                let mut said = Event::default();
                buffer.read_response(said.as_mut_bytes());
                let sane = len as usize == size_of::<Event>() && self.note(&said, news);
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

    /// Has the owner of a space take note of what the device says, or puts it into `news` for the
    /// worker. Returns whether the device may say it.
    fn note(&self, said: &Event, news: &mut List<News>) -> bool {
        let owners = self.owners.lock();
        // A space may have ended after the device has said it.
        let Some(Owner { owner, news: of }) = owners.get(&said.space_id.get()) else {
            return matches!(
                said.kind.get(),
                event::SPACE_LOST | event::FAULT | event::RING_DONE
            );
        };
        let noted = match said.kind.get() {
            event::SPACE_LOST => Noted::Look,
            event::FAULT => owner.fault(Fault {
                address: said.address.get(),
                access: said.access.get(),
                stream: said.info.get(),
                id: said.id.get(),
            }),
            event::RING_DONE => owner.ring_done(RingDone {
                ring: said.info.get(),
                fence_id: said.id.get(),
                result: said.access.get(),
                address: said.address.get(),
            }),
            _ => Noted::Refused,
        };
        match noted {
            Noted::Done => return true,
            Noted::Look if said.kind.get() == event::SPACE_LOST => of.lost.store(true, Relaxed),
            Noted::Look => of.look.store(true, Relaxed),
            Noted::Refused => return false,
        }
        // It may be there already.
        if let Ok(of) = ListArc::try_from_arc(of.clone()) {
            news.push_back(of);
        }
        true
    }

    /// Calls the owners of spaces that the device has dropped, and those who are to look.
    pub(super) fn tell(&self) {
        loop {
            let mut inner = self.inner.lock();
            let Some(news) = inner.news.pop_front() else {
                break;
            };
            // What is noted from here on puts it into the list again.
            let news = news.into_arc();
            let look = news.look.xchg(false, Relaxed);
            let lost = news.lost.xchg(false, Relaxed);
            drop(inner);
            // One that has ended meanwhile has no owner, and another space may have its number.
            let owner = {
                let owners = self.owners.lock();
                let owner = owners.get(&news.space);
                owner
                    .filter(|owner| Arc::ptr_eq(&owner.news, &news))
                    .map(|owner| owner.owner.clone())
            };
            let Some(owner) = owner else {
                continue;
            };
            if look {
                owner.look();
            }
            if lost {
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
        let news = News::new(space_id)?;
        let node = RBTreeNode::new(space_id, Owner { owner, news }, GFP_KERNEL)?;
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

#[kunit_tests(virtgpu_userptr_events)]
mod tests {
    use super::*;
    use kernel::sync::atomic::Atomic;

    /// More than fit into any list that is not made for as many as there are.
    const SPACES: u32 = 3000;

    /// Counts what it is told.
    struct Counts {
        lost: Atomic<u32>,
        looks: Atomic<u32>,
        noted: Noted,
    }

    impl Counts {
        fn new(noted: Noted) -> Result<Arc<Self>> {
            let counts = Self {
                lost: Atomic::new(0),
                looks: Atomic::new(0),
                noted,
            };
            Ok(Arc::new(counts, GFP_KERNEL)?)
        }

        fn told(&self) -> (u32, u32) {
            (self.lost.load(Relaxed), self.looks.load(Relaxed))
        }
    }

    impl SpaceOwner for Counts {
        fn space_lost(self: Arc<Self>) {
            self.lost.fetch_add(1, Relaxed);
        }

        fn fault(&self, _: Fault) -> Noted {
            self.noted
        }

        fn look(&self) {
            self.looks.fetch_add(1, Relaxed);
        }
    }

    fn events() -> Result<Arc<Events>> {
        Arc::pin_init(Events::new(), GFP_KERNEL)
    }

    /// Whether the device may say this of a space.
    fn say(events: &Events, kind: u32, space: u32) -> bool {
        let said = Event {
            kind: kind.into(),
            space_id: space.into(),
            ..Default::default()
        };
        events.note(&said, &mut events.inner.lock().news)
    }

    #[test]
    fn all_owners_may_have_to_look_at_once() -> Result {
        let events = events()?;
        let owner = Counts::new(Noted::Look)?;
        for space in 0..SPACES {
            events.add_owner(space, owner.clone())?;
        }
        for space in 0..SPACES {
            assert!(say(&events, event::FAULT, space));
            assert!(say(&events, event::SPACE_LOST, space));
        }
        events.tell();
        assert_eq!(owner.told(), (SPACES, SPACES));
        events.tell();
        assert_eq!(owner.told(), (SPACES, SPACES));
        for space in 0..SPACES {
            events.remove_owner(space);
        }
        Ok(())
    }

    #[test]
    fn an_owner_is_told_again() -> Result {
        let events = events()?;
        let owner = Counts::new(Noted::Look)?;
        events.add_owner(7, owner.clone())?;
        for told in 1..3 {
            assert!(say(&events, event::FAULT, 7) && say(&events, event::FAULT, 7));
            events.tell();
            assert_eq!(owner.told(), (0, told));
        }
        events.remove_owner(7);
        Ok(())
    }

    #[test]
    fn the_next_owner_of_a_number_is_not_told() -> Result {
        let events = events()?;
        let (old, new) = (Counts::new(Noted::Look)?, Counts::new(Noted::Done)?);
        events.add_owner(7, old.clone())?;
        assert!(say(&events, event::SPACE_LOST, 7));
        events.remove_owner(7);
        events.add_owner(7, new.clone())?;
        events.tell();
        assert_eq!((old.told(), new.told()), ((0, 0), (0, 0)));
        events.remove_owner(7);
        Ok(())
    }

    #[test]
    fn what_no_device_may_say() -> Result {
        let events = events()?;
        let owner = Counts::new(Noted::Refused)?;
        events.add_owner(7, owner)?;
        assert!(!say(&events, event::FAULT, 7));
        assert!(!say(&events, 77, 7) && !say(&events, 77, 8));
        // Of a space that has ended it may have been said before.
        assert!(say(&events, event::FAULT, 8) && say(&events, event::SPACE_LOST, 8));
        events.remove_owner(7);
        Ok(())
    }
}
