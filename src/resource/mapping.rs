// SPDX-License-Identifier: GPL-2.0

//! What the device can reach of a resource's memory.
//!
//! That ends with the resource or with the device, whichever goes first ([`Mappings`]). What is given
//! back as soon as the device has been reset: pins, and the addresses of a device that sees memory
//! through the platform's DMA translation (`VIRTIO_F_ACCESS_PLATFORM`).
//!
//! [`Mappings`]: crate::gpu::Mappings

use super::{
    pinned::Pinned,
    Entries, //
};
use crate::{
    gpu::{
        Gpu,
        Reachable, //
    },
    kapi::drm::prime::Mapped,
    mirror::{
        MirroredRange,
        Space, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

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

impl Reachable for Shared {
    fn give_back(&self) {
        // Under the lock, so that nobody believes it was done before it is.
        *self.held.lock() = None;
    }

    /// Has those told who use mirrored memory.
    fn overdue(&self) {
        if let Some(Held {
            memory: Memory::Mirrored(range),
        }) = &*self.held.lock()
        {
            range.tell_loss();
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
        let this = Self {
            gpu: gpu.clone(),
            resource_id,
            shared,
        };
        gpu.mappings.add(resource_id, this.shared.clone())?;
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
        self.gpu.mappings.remove(self.resource_id);
    }
}
