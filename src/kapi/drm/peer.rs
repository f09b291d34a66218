// SPDX-License-Identifier: GPL-2.0

//! Memory of a device that other devices have mapped.
//!
//! Who imports the dma-buf of an I/O object maps addresses on the bus. When the driver leaves the
//! device, the bus may give them to another device. So the memory is revoked from all importers
//! then, as `dma_buf_invalidate_mappings()` describes it: they are told, what they have begun ends,
//! and they unmap it.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use super::gem::IoMemory;
use crate::kapi::{
    bindings,
    sync::{
        jiffies,
        WaitQueue, //
    }, //
};
use core::ptr;
use kernel::{
    device,
    error::from_err_ptr,
    new_spinlock,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::SpinLock, //
};

/// After how long importers that have not unmapped are complained of each time, in milliseconds.
const TELL_MS: u32 = 10_000;

/// The mappings of a device's I/O objects by other devices.
#[pin_data]
pub(super) struct PeerMappings {
    /// How many there are of each dma-buf, by its address. Protects only itself; taken with the
    /// reservation of the dma-buf locked.
    #[pin]
    mapped: SpinLock<RBTree<usize, usize>>,
    /// Waiters for the end of those of a dma-buf.
    #[pin]
    unmapped: WaitQueue,
}

impl PeerMappings {
    /// None.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            mapped <- new_spinlock!(RBTree::new(), "PeerMappings::mapped"),
            unmapped <- WaitQueue::new(),
        })
    }

    /// Maps `memory` for an importer of the object that it is of. The device must not be unplugged
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], that of mapping a resource for the importer's device.
    ///
    /// # Safety
    ///
    /// `attach` is an attachment to the dma-buf of an I/O object of the device, whose reservation
    /// is locked. It is not detached before [`PeerMappings::unmap`].
    pub(super) unsafe fn map(
        &self,
        attach: *mut bindings::dma_buf_attachment,
        memory: &IoMemory,
        direction: bindings::dma_data_direction,
    ) -> Result<*mut bindings::sg_table> {
        let place = RBTreeNodeReservation::new(GFP_KERNEL)?;
        // SAFETY: By the requirements of this function.
        let (buf, table) = unsafe {
            let (dev, len) = ((*attach).dev, memory.len as usize);
            let table = bindings::kapi_dma_map_io(dev, memory.phys, len, direction);
            ((*attach).dmabuf as usize, from_err_ptr(table)?)
        };
        let mut mapped = self.mapped.lock();
        if let Some(count) = mapped.get_mut(&buf) {
            *count += 1;
        } else {
            mapped.insert(place.into_node(buf, 1));
        }
        Ok(table)
    }

    /// Undoes a mapping.
    ///
    /// # Safety
    ///
    /// `table` is from [`PeerMappings::map`] with the same `attach` and `direction`, and was not
    /// unmapped before. The reservation is locked.
    pub(super) unsafe fn unmap(
        &self,
        attach: *mut bindings::dma_buf_attachment,
        table: *mut bindings::sg_table,
        direction: bindings::dma_data_direction,
    ) {
        // SAFETY: By the requirements of this function.
        let buf = unsafe {
            bindings::kapi_dma_unmap_io((*attach).dev, table, direction);
            (*attach).dmabuf as usize
        };
        let mut mapped = self.mapped.lock();
        let last = match mapped.get_mut(&buf) {
            Some(count) => {
                *count -= 1;
                *count == 0
            }
            None => false,
        };
        let node = if last { mapped.remove_node(&buf) } else { None };
        drop(mapped);
        drop(node);
        self.unmapped.wake_all();
    }

    /// A dma-buf that is mapped, with a reference.
    fn any(&self) -> Option<*mut bindings::dma_buf> {
        let mapped = self.mapped.lock();
        let cursor = mapped.cursor_front()?;
        let buf = *cursor.current().0 as *mut bindings::dma_buf;
        // SAFETY: Who has mapped it has a reference, and does not put it before `unmap`, which
        // takes the lock.
        unsafe { bindings::kapi_get_dma_buf(buf) };
        Some(buf)
    }

    /// Revokes the memory from all who have mapped it, and returns when they have unmapped it: they
    /// do so soon, but there is no limit. `dev` is named if it takes long.
    ///
    /// Waits for all fences of the dma-bufs. The device is unplugged, so that there are no new
    /// mappings.
    pub(super) fn revoke(&self, dev: &device::Device) {
        let tell = || {
            dev_warn!(
                dev,
                "waiting for other devices to unmap memory of this one\n"
            );
        };
        while let Some(buf) = self.any() {
            // SAFETY: There is a reference. The reservation is locked without a context, which
            // cannot fail.
            unsafe {
                let resv = (*buf).resv;
                let any = bindings::dma_resv_usage_DMA_RESV_USAGE_BOOKKEEP;
                bindings::dma_resv_lock(resv, ptr::null_mut());
                bindings::dma_buf_invalidate_mappings(buf);
                while bindings::dma_resv_wait_timeout(resv, any, false, jiffies(TELL_MS)) == 0 {
                    tell();
                }
                bindings::dma_resv_unlock(resv);
            }
            let gone = || self.mapped.lock().get(&(buf as usize)).is_none();
            while !self.unmapped.wait_timeout(gone, TELL_MS) {
                tell();
            }
            // SAFETY: The reference is that of `any`, and is not used after this.
            unsafe { bindings::dma_buf_put(buf) };
        }
    }
}
