// SPDX-License-Identifier: GPL-2.0

//! What the device can reach, resource by resource, and of which address spaces.
//!
//! A mapping ends with the resource, or the context, or with the device, whichever goes first.
//! Files that are still open when a device is lost or removed keep their resources, but the driver
//! releases what these hold for the device as soon as the device has been reset. This file knows
//! which resources hold something; the module of each kind of memory knows what.

use super::Counters;
use crate::{
    kapi::dma::map::Mapper,
    transport::OnReset, //
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
    /// Releases what is held for the device, which has been reset and reaches nothing any more. May
    /// sleep.
    fn release(&self);

    /// The device does not return from its reset, so that nothing is released for a long time. May
    /// sleep.
    fn overdue(&self);
}

/// Whose memory a device can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReachedBy {
    /// That of the resource with this id.
    Resource(u32),
    /// That of the context with this id: an address space.
    Context(u32),
}

impl ReachedBy {
    /// The least that is greater.
    fn next(self) -> Option<Self> {
        match self {
            Self::Resource(id) => match id.checked_add(1) {
                Some(id) => Some(Self::Resource(id)),
                None => Some(Self::Context(0)),
            },
            Self::Context(id) => id.checked_add(1).map(Self::Context),
        }
    }
}

/// What a device can reach.
pub(crate) struct DeviceMappings {
    /// What maps memory for the device, if it does not see physical addresses.
    mapper: Option<Arc<Mapper>>,
    /// Where the spaces are counted, which end with the reset.
    counters: Arc<Counters>,
    /// Protects the tree only; nothing is taken inside. `None` once the device has been reset.
    live: Pin<KBox<Mutex<Live>>>,
}

type Live = Option<RBTree<ReachedBy, Arc<dyn Reachable>>>;

impl DeviceMappings {
    /// Nothing can be reached, of a device with these counters, for which `mapper` maps memory if
    /// it is not to see physical addresses.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(mapper: Option<Arc<Mapper>>, counters: Arc<Counters>) -> Result<Self> {
        Ok(Self {
            mapper,
            counters,
            live: KBox::pin_init(
                new_mutex!(Some(RBTree::new()), "DeviceMappings::live"),
                GFP_KERNEL,
            )?,
        })
    }

    /// From now on the device can reach `what` of `by`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`ENODEV`] if the device is gone, [`EBUSY`] if it can reach something of `by`
    /// already.
    pub(crate) fn add(&self, by: ReachedBy, what: Arc<dyn Reachable>) -> Result {
        let node = RBTreeNode::new(by, what, GFP_KERNEL)?;
        match &mut *self.live.lock() {
            Some(live) if live.get(&by).is_some() => return Err(EBUSY),
            Some(live) => live.insert(node),
            None => return Err(ENODEV),
        };
        Ok(())
    }

    /// The device can reach nothing of `by` any more.
    pub(crate) fn remove(&self, by: ReachedBy) {
        let node = match &mut *self.live.lock() {
            Some(live) => live.remove_node(&by),
            None => None,
        };
        drop(node);
    }
}

impl OnReset for DeviceMappings {
    /// Releases everything, and refuses what is added later.
    fn reset(&self) {
        let live = self.live.lock().take();
        for (_, reachable) in live.iter().flatten() {
            reachable.release();
        }
        // What is left is memory of the driver's own.
        if let Some(mapper) = &self.mapper {
            mapper.end();
        }
        self.counters.forget_spaces();
    }

    /// Tells programs that use mirrored memory that the device is lost: `reset` will not for a long
    /// time.
    fn overdue(&self) {
        let mut next = Some(ReachedBy::Resource(0));
        while let Some(least) = next {
            let found = {
                let live = self.live.lock();
                let cursor = live
                    .as_ref()
                    .and_then(|live| live.cursor_lower_bound(&least));
                cursor.map(|cursor| {
                    let (&id, reachable) = cursor.current();
                    (id, reachable.clone())
                })
            };
            let Some((id, reachable)) = found else {
                break;
            };
            reachable.overdue();
            next = id.next();
        }
    }
}
