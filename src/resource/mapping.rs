// SPDX-License-Identifier: GPL-2.0

//! What the device can reach of a resource's memory.
//!
//! That ends with the resource or with the device, whichever goes first. Files that are still open
//! when a device is lost or removed keep their resources, but what these held for the device is
//! given back as soon as the device has been reset: pins, and the addresses of a device that sees
//! memory through the platform's DMA translation (`VIRTIO_F_ACCESS_PLATFORM`).

use super::{
    space::Space,
    Entries, //
};
use crate::{
    gpu::Gpu,
    kapi::{
        dma::map::Mapper,
        drm::prime::Mapped, //
    },
    observe::Counters,
    transport::control::OnReset,
    userptr::{
        mirrored::MirroredRange,
        pinned::Pinned, //
    }, //
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

/// What a device can reach, by resource id.
pub(crate) struct Mappings {
    /// Has mapped memory for it, if it wants that.
    mapper: Option<Arc<Mapper>>,
    /// Told of the end of what there was.
    counters: Arc<Counters>,
    /// Protects the tree only; nothing is taken inside. `None` once the device has been reset.
    live: Pin<KBox<Mutex<Live>>>,
}

type Live = Option<RBTree<u32, Arc<Shared>>>;

/// What the device can reach of one resource.
struct Shared {
    /// `None` once it cannot. Protects only itself; held while memory is mapped.
    held: Pin<KBox<Mutex<Option<Held>>>>,
}

struct Held {
    memory: Memory,
}

/// What the view is of, as far as it must be given back.
pub(crate) enum Memory {
    /// Pinned pages.
    Pinned(Pinned),
    /// Pages that move.
    Mirrored(Arc<MirroredRange>),
    /// Memory of another driver. Held only to be given back.
    Imported(#[expect(dead_code, reason = "held, not read")] Mapped),
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Memory::Mirrored(range) = &self.memory {
            range.disconnect();
        }
    }
}

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
}

impl OnReset for Mappings {
    /// Gives everything back, and lets nothing new be reached.
    fn reset(&self) {
        let live = self.live.lock().take();
        for (_, shared) in live.iter().flatten() {
            // Under the lock, so that nobody believes it was done before it is.
            *shared.held.lock() = None;
        }
        // What is left is memory of the driver's own.
        if let Some(mapper) = &self.mapper {
            mapper.end();
        }
        self.counters.forget_spaces();
    }

    /// Has those told who use memory that moves; that will not be done by `reset` for a long time.
    fn overdue(&self) {
        let mut next = 0;
        loop {
            let found = {
                let live = self.live.lock();
                let cursor = live
                    .as_ref()
                    .and_then(|live| live.cursor_lower_bound(&next));
                cursor.map(|cursor| {
                    let (&id, shared) = cursor.current();
                    (id, shared.clone())
                })
            };
            let Some((id, shared)) = found else {
                break;
            };
            if let Some(Held {
                memory: Memory::Mirrored(range),
            }) = &*shared.held.lock()
            {
                range.tell_loss();
            }
            let Some(following) = id.checked_add(1) else {
                break;
            };
            next = following;
        }
    }
}

/// The device's view of a resource's memory, which ends when this is dropped.
pub(crate) struct Mapping {
    gpu: Arc<Gpu>,
    resource_id: u32,
    shared: Arc<Shared>,
}

impl Mapping {
    /// A view of `memory` for resource `resource_id`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`ENODEV`] if the device is gone.
    pub(crate) fn new(gpu: &Arc<Gpu>, resource_id: u32, memory: Memory) -> Result<Self> {
        let held = Held { memory };
        let shared = Arc::new(
            Shared {
                held: KBox::pin_init(new_mutex!(Some(held), "Shared::held"), GFP_KERNEL)?,
            },
            GFP_KERNEL,
        )?;
        let node = RBTreeNode::new(resource_id, shared.clone(), GFP_KERNEL)?;
        let this = Self {
            gpu: gpu.clone(),
            resource_id,
            shared,
        };
        match &mut *gpu.mappings.live.lock() {
            Some(live) => live.insert(node),
            None => return Err(ENODEV),
        };
        Ok(this)
    }

    /// Adds the addresses of the pinned pages to `entries`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`E2BIG`], [`ENODEV`] if the device is gone, those of [`Pinned::map_for`].
    pub(crate) fn push_pinned(&self, entries: &mut Entries) -> Result {
        let mut guard = self.shared.held.lock();
        let Some(Held {
            memory: Memory::Pinned(pinned),
        }) = &mut *guard
        else {
            return Err(ENODEV);
        };
        if let Some(mapper) = &self.gpu.mapper {
            pinned.map_for(mapper)?;
        }
        pinned.for_each_address(|addr, len| entries.push(addr, len))
    }

    /// Maps the runs of the pinned pages into `space`; returns how many entries that took.
    ///
    /// # Errors
    ///
    /// Those of [`Space::map_fixed`], [`ENODEV`] if the device is gone.
    pub(crate) fn map_pinned(&self, space: &Space) -> Result<u64> {
        let guard = self.shared.held.lock();
        let Some(Held {
            memory: Memory::Pinned(pinned),
        }) = &*guard
        else {
            return Err(ENODEV);
        };
        space.map_fixed(pinned.runs().iter().map(|run| (run.phys, run.len)))
    }

    /// What ends the view before the resource goes.
    pub(super) fn ending(&self) -> Ending {
        Ending(self.shared.clone())
    }

    /// Whether the device can still reach the memory.
    pub(crate) fn is_live(&self) -> bool {
        self.shared.held.lock().is_some()
    }
}

/// Ends a view, which may be gone already.
pub(super) struct Ending(Arc<Shared>);

impl Ending {
    /// Gives the memory back. The device does not use it any more.
    pub(super) fn end(&self) {
        let held = self.0.held.lock().take();
        drop(held);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First this, so that the removal of the device does not overlook it.
        *self.shared.held.lock() = None;
        let node = match &mut *self.gpu.mappings.live.lock() {
            Some(live) => live.remove_node(&self.resource_id),
            None => None,
        };
        drop(node);
    }
}
