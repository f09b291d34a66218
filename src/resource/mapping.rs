// SPDX-License-Identifier: GPL-2.0

//! Addresses that a device is given in place of physical ones.
//!
//! A device with `VIRTIO_F_ACCESS_PLATFORM` sees memory through the platform's DMA translation.
//! Its addresses end with the resource or with the device, whichever goes first: once the driver
//! has left the device, nothing may be mapped for it any more, but files that are still open keep
//! their resources.

use super::Entries;
use crate::{
    gpu::Gpu,
    kapi::dma::map::Mapper, //
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

/// The mappings of a device's resources, by resource id.
pub(crate) struct Mappings {
    /// Protects the tree only; nothing is taken inside. `None` once the device is gone.
    live: Pin<KBox<Mutex<Option<RBTree<u32, Arc<List>>>>>>,
}

/// The mappings of one resource.
struct List {
    mapper: Mapper,
    write: bool,
    /// Address and length in bytes of each; `None` once they have ended. Protects only itself.
    mapped: Pin<KBox<Mutex<Option<KVVec<(u64, usize)>>>>>,
}

impl List {
    fn unmap_all(&self) {
        let mapped = self.mapped.lock().take();
        for (addr, len) in mapped.into_iter().flatten() {
            self.mapper.unmap(addr, len, self.write);
        }
    }
}

impl Mappings {
    /// No mappings.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            live: KBox::pin_init(
                new_mutex!(Some(RBTree::new()), "Mappings::live"),
                GFP_KERNEL,
            )?,
        })
    }

    /// Ends all mappings, and allows no new ones. The device has been reset.
    pub(crate) fn end(&self) {
        let Some(live) = self.live.lock().take() else {
            return;
        };
        for (_, list) in &live {
            list.unmap_all();
        }
    }
}

/// The device's view of a resource's memory, which ends when this is dropped.
pub(crate) struct Mapping {
    gpu: Arc<Gpu>,
    resource_id: u32,
    list: Option<Arc<List>>,
}

impl Mapping {
    /// A view for resource `resource_id`; the device may write only with `write`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`ENODEV`] if the device is gone.
    pub(crate) fn new(gpu: &Arc<Gpu>, resource_id: u32, write: bool) -> Result<Self> {
        let list = match &gpu.mapper {
            Some(mapper) => {
                let list = Arc::new(
                    List {
                        mapper: mapper.clone(),
                        write,
                        mapped: KBox::pin_init(
                            new_mutex!(Some(KVVec::new()), "Mapping::mapped"),
                            GFP_KERNEL,
                        )?,
                    },
                    GFP_KERNEL,
                )?;
                let node = RBTreeNode::new(resource_id, list.clone(), GFP_KERNEL)?;
                let mut live = gpu.mappings.live.lock();
                let Some(live) = &mut *live else {
                    return Err(ENODEV);
                };
                live.insert(node);
                Some(list)
            }
            None => None,
        };
        Ok(Self {
            gpu: gpu.clone(),
            resource_id,
            list,
        })
    }

    /// Adds `len` bytes of memory at `phys` to the view, and their address to `entries`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`E2BIG`], [`ENODEV`] if the device is gone.
    pub(crate) fn push(&self, phys: u64, len: u64, entries: &mut Entries) -> Result {
        let Some(list) = &self.list else {
            return entries.push(phys, len);
        };
        let bytes = usize::try_from(len)?;
        let mut guard = list.mapped.lock();
        let Some(mapped) = &mut *guard else {
            return Err(ENODEV);
        };
        mapped.reserve(1, GFP_KERNEL)?;
        let addr = list.mapper.map(phys, bytes, list.write)?;
        mapped.push((addr, bytes), GFP_KERNEL)?;
        drop(guard);
        entries.push(addr, len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let Some(list) = &self.list else {
            return;
        };
        let node = match &mut *self.gpu.mappings.live.lock() {
            Some(live) => live.remove_node(&self.resource_id),
            None => None,
        };
        drop(node);
        list.unmap_all();
    }
}
