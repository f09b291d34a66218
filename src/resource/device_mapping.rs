// SPDX-License-Identifier: GPL-2.0

//! What the device can reach of a resource's memory.
//!
//! A mapping ends with the resource or with the device, whichever goes first ([`DeviceMappings`]).
//! The reset of the device releases the pins at once, and the addresses of a device that sees
//! memory through the platform's DMA translation (`VIRTIO_F_ACCESS_PLATFORM`).
//!
//! [`DeviceMappings`]: crate::gpu::DeviceMappings

use super::{
    pinned::Pinned,
    releases::DROPS,
    Entries, //
};
use crate::{
    gpu::{
        Gpu,
        Reachable,
        ReachedBy, //
    },
    kapi::drm::prime::Mapped,
    mirror::{
        MirroredRange,
        Space, //
    }, //
};
use kernel::{
    impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            AtomicFlag, //
        },
        Arc,
        Mutex, //
    },
    workqueue::{
        Work,
        WorkItem, //
    },
};

/// What the device can reach of one resource.
#[pin_data]
struct Shared {
    /// `None` once it can reach nothing. Protects only itself; held while memory is mapped.
    backing: Pin<KBox<Mutex<Option<Backing>>>>,
    /// Whether there is anything in `backing`, for those who must not sleep.
    live: AtomicFlag,
    /// Unmaps what is revoked.
    #[pin]
    unmap: Work<Shared, 1>,
}

impl_has_work! {
    impl HasWork<Self, 1> for Shared { self.unmap }
}

impl WorkItem<1> for Shared {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // Under the lock, so that the removal of the device does not miss it.
        let mut backing = this.backing.lock();
        // Not after the exporter has learnt of it.
        this.live.store(false, Relaxed);
        *backing = None;
    }
}

impl Shared {
    /// Drops what is held for the mapping. It counts as live until that is done.
    fn end(&self) {
        let mut backing = self.backing.lock();
        *backing = None;
        self.live.store(false, Relaxed);
    }
}

struct Backing {
    memory: Memory,
}

/// Memory that the device can reach, and what is held for that.
pub(crate) enum Memory {
    /// Pinned pages.
    Pinned(Pinned),
    /// Pages that are mirrored.
    Mirrored(Arc<MirroredRange>),
    /// Memory of another driver, unmapped when this is dropped.
    Imported(#[expect(dead_code, reason = "held, not read")] Mapped),
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Memory::Mirrored(range) = &self.memory {
            range.device_reset();
        }
    }
}

impl Reachable for Shared {
    fn release(&self) {
        self.end();
    }

    /// Tells programs that use mirrored memory that the device is lost.
    fn overdue(&self) {
        if let Some(Backing {
            memory: Memory::Mirrored(range),
        }) = &*self.backing.lock()
        {
            range.report_loss();
        }
    }
}

/// A resource's memory as mapped for the device, until this is dropped.
pub(crate) struct DeviceMapping {
    gpu: Arc<Gpu>,
    resource_id: u32,
    shared: Arc<Shared>,
}

impl DeviceMapping {
    /// Maps `memory` for resource `resource_id`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`ENODEV`] if the device is gone.
    pub(crate) fn new(gpu: &Arc<Gpu>, resource_id: u32, memory: Memory) -> Result<Self> {
        let backing = Backing { memory };
        let backing = KBox::pin_init(new_mutex!(Some(backing), "Shared::backing"), GFP_KERNEL)?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                backing,
                live: AtomicFlag::new(true),
                unmap <- new_work!("Shared::unmap"),
            }),
            GFP_KERNEL,
        )?;
        let this = Self {
            gpu: gpu.clone(),
            resource_id,
            shared,
        };
        gpu.mappings
            .add(ReachedBy::Resource(resource_id), this.shared.clone())?;
        Ok(this)
    }

    /// Adds the addresses of the pinned pages to `entries`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`E2BIG`], [`ENODEV`] if the device is gone, those of [`Pinned::map_for`].
    pub(crate) fn push_pinned(&self, entries: &mut Entries) -> Result {
        let mut guard = self.shared.backing.lock();
        let Some(Backing {
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
        let guard = self.shared.backing.lock();
        let Some(Backing {
            memory: Memory::Pinned(pinned),
        }) = &*guard
        else {
            return Err(ENODEV);
        };
        space.map_fixed(pinned.runs().iter().map(|run| (run.phys, run.len)))
    }

    /// What unmaps the memory before the resource goes.
    pub(super) fn unmap(&self) -> Unmap {
        Unmap(self.shared.clone())
    }

    /// Whether the device can still reach the memory. Does not sleep.
    pub(crate) fn is_live(&self) -> bool {
        self.shared.live.load(Relaxed)
    }
}

/// Unmaps memory, which may be unmapped already.
pub(super) struct Unmap(Arc<Shared>);

impl Unmap {
    /// Has the memory released, which the device does not use any more. Does not wait for that,
    /// as the exporter may let it wait.
    pub(super) fn run(&self) {
        if !DROPS.enqueue::<Arc<Shared>, 1>(self.0.clone()) {
            // The module is being unloaded, and does not wait for this thread.
            self.0.end();
        }
    }
}

impl Drop for DeviceMapping {
    fn drop(&mut self) {
        // First this, so that the removal of the device does not miss it.
        self.shared.end();
        self.gpu
            .mappings
            .remove(ReachedBy::Resource(self.resource_id));
    }
}
