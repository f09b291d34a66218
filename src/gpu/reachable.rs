// SPDX-License-Identifier: GPL-2.0

//! What the device can reach, resource by resource.
//!
//! That ends with the resource or with the device, whichever goes first. Files that are still open
//! when a device is lost or removed keep their resources, but what these held for the device is
//! given back as soon as the device has been reset. What that is, is for those to know who make
//! resources; here is who has something.

use super::Counters;
use crate::{
    kapi::dma::map::Mapper,
    transport::control::OnReset, //
};
use kernel::{
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        Arc,
        Mutex, //
    },
};

/// What the device can reach of one resource.
pub(crate) trait Reachable: Send + Sync {
    /// The device has been reset, and reaches nothing any more: gives back what is held for it. May
    /// sleep.
    fn give_back(&self);

    /// The device does not return from its reset, so that nothing is given back for a long time. May
    /// sleep.
    fn overdue(&self);
}

/// What a device can reach, by resource id.
pub(crate) struct Mappings {
    /// Has mapped memory for it, if it wants that.
    mapper: Option<Arc<Mapper>>,
    /// Told of the end of what there was.
    counters: Arc<Counters>,
    /// Protects the tree only; nothing is taken inside. `None` once the device has been reset.
    live: Pin<KBox<Mutex<Live>>>,
}

type Live = Option<RBTree<u32, Arc<dyn Reachable>>>;

impl Mappings {
    /// Nothing can be reached, of a device with these counters, for which `mapper` maps memory if it is
    /// not to see physical addresses.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(mapper: Option<Arc<Mapper>>, counters: Arc<Counters>) -> Result<Self> {
        Ok(Self {
            mapper,
            counters,
            live: KBox::pin_init(
                new_mutex!(Some(RBTree::new()), "Mappings::live"),
                GFP_KERNEL,
            )?,
        })
    }

    /// From now on the device can reach `what` of resource `id`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`ENODEV`] if the device is gone.
    pub(crate) fn add(&self, id: u32, what: Arc<dyn Reachable>) -> Result {
        let node = RBTreeNode::new(id, what, GFP_KERNEL)?;
        match &mut *self.live.lock() {
            Some(live) => live.insert(node),
            None => return Err(ENODEV),
        };
        Ok(())
    }

    /// The device can reach nothing of resource `id` any more.
    pub(crate) fn remove(&self, id: u32) {
        let node = match &mut *self.live.lock() {
            Some(live) => live.remove_node(&id),
            None => None,
        };
        drop(node);
    }
}

impl OnReset for Mappings {
    /// Gives everything back, and lets nothing new be reached.
    fn reset(&self) {
        let live = self.live.lock().take();
        for (_, reachable) in live.iter().flatten() {
            reachable.give_back();
        }
        // What is left is memory of the driver's own.
        if let Some(mapper) = &self.mapper {
            mapper.end();
        }
        self.counters.forget_spaces();
    }

    /// Has those told who use mirrored memory; that will not be done by `reset` for a long time.
    fn overdue(&self) {
        let mut next = 0;
        loop {
            let found = {
                let live = self.live.lock();
                let cursor = live
                    .as_ref()
                    .and_then(|live| live.cursor_lower_bound(&next));
                cursor.map(|cursor| {
                    let (&id, reachable) = cursor.current();
                    (id, reachable.clone())
                })
            };
            let Some((id, reachable)) = found else {
                break;
            };
            reachable.overdue();
            let Some(following) = id.checked_add(1) else {
                break;
            };
            next = following;
        }
    }
}
