// SPDX-License-Identifier: GPL-2.0

//! Memory that is mapped for a device for a long time.
//!
//! A [`Mapper`] belongs to the binding of a driver to a device. When that ends, all that is mapped
//! is unmapped, whoever still has it: afterwards the device's addresses belong to others, or the
//! platform translates them in another way, and what was mapped before must not be touched.
//!
//! Where a device cannot reach all memory, or must not, as in an encrypted guest, the platform
//! *bounces*: the device works on a copy, in a pool of all devices, which is brought up to date
//! when the driver says so.
//!
//! C headers: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h),
//! [`include/linux/swiotlb.h`](srctree/include/linux/swiotlb.h)

use crate::kapi::bindings;
use kernel::{
    device, new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        aref::ARef,
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic,
            AtomicFlag, //
        },
        rcu,
        Arc,
        Mutex, //
    },
};

/// Pieces that are mapped or unmapped at a time.
const BATCH: usize = 16;

/// A device for which memory can be mapped as long as a driver is bound to it.
///
/// # Invariants
///
/// As long as `live` is not `None` the device is bound, and what is in it is mapped. Whatever else
/// was mapped is not any more.
#[pin_data]
pub(crate) struct Mapper {
    dev: ARef<device::Device>,
    /// Most bytes that are mapped in one piece, a multiple of the page size.
    max_piece: usize,
    bounces: bool,
    /// What is mapped; `None` when the binding has ended. Protects the list of mappings and the
    /// beginning and the end of each; nothing is taken or allocated inside.
    #[pin]
    live: Mutex<Option<Live>>,
}

struct Live {
    /// By the address of the table.
    tables: RBTree<usize, Mapped>,
    /// Bytes that are mapped.
    bytes: usize,
}

/// A table whose first pieces are mapped.
struct Mapped {
    table: Arc<Table>,
    pieces: usize,
}

/// Pieces of memory.
struct Table {
    pieces: KVVec<Piece>,
    write: bool,
    /// The binding has ended. Who finds that it has not, in an RCU read-side critical section,
    /// finds what is mapped mapped until the section ends.
    ended: AtomicFlag,
}

struct Piece {
    /// The physical address, or, once it is mapped, that of the device.
    addr: Atomic<u64>,
    len: usize,
}

impl Mapper {
    /// A mapper for `dev`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    ///
    /// # Safety
    ///
    /// [`Mapper::end`] is called before the driver is unbound from `dev`.
    pub(in crate::kapi) unsafe fn new(dev: &device::Device<device::Bound>) -> Result<Arc<Self>> {
        let dev: &device::Device = dev;
        let raw = core::ptr::from_ref(dev).cast_mut().cast();
        // SAFETY: The device is valid, as the reference is, and bound.
        let max = unsafe { bindings::dma_max_mapping_size(raw) };
        // INVARIANT: By the requirements of this function. Nothing is mapped.
        Arc::pin_init(
            pin_init!(Self {
                dev: dev.into(),
                max_piece: max.max(PAGE_SIZE) & !(PAGE_SIZE - 1),
                // Nothing else limits it.
                bounces: max != usize::MAX,
                live <- new_mutex!(Some(Live {
                    tables: RBTree::new(),
                    bytes: 0,
                }), "Mapper::live"),
            }),
            GFP_KERNEL,
        )
    }

    fn as_raw(&self) -> *mut bindings::device {
        core::ptr::from_ref::<device::Device>(&self.dev)
            .cast_mut()
            .cast()
    }

    /// Whether the device may be shown copies.
    pub(crate) fn bounces(&self) -> bool {
        self.bounces
    }

    /// Unmaps everything, and maps nothing any more. The device should have been reset: it may go
    /// on using the addresses.
    ///
    /// Sleeps.
    pub(crate) fn end(&self) {
        let mut live = self.live.lock();
        let Some(ended) = &mut *live else {
            return;
        };
        for mapped in ended.tables.values() {
            mapped.table.ended.store(true, Release);
        }
        rcu::synchronize_rcu();
        for mapped in ended.tables.values_mut() {
            while mapped.pieces > 0 {
                self.unmap_last(mapped);
                if mapped.pieces % BATCH == 0 {
                    // SAFETY: May sleep here.
                    unsafe { bindings::kapi_cond_resched() };
                }
            }
        }
        // INVARIANT: Nothing is mapped any more.
        let ended = live.take();
        drop(live);
        drop(ended);
    }

    /// Bytes of the pool, if the platform bounces and has one.
    fn pool(&self) -> Option<usize> {
        if !self.bounces {
            return None;
        }
        // SAFETY: By the type invariant the device is valid; the function reads numbers.
        let pool = unsafe { bindings::kapi_dma_bounce_pool(self.as_raw()) };
        (pool != 0).then_some(pool)
    }

    /// Bytes that may be mapped: where the platform bounces, a part of the pool is left for
    /// messages and for other devices.
    fn room(&self) -> usize {
        self.pool().map_or(usize::MAX, |pool| pool - pool / 4)
    }

    /// Bytes of the pool for messages that are on their way, if that is limited. They and what is
    /// mapped for long leave the rest to other devices.
    pub(in crate::kapi) fn message_room(&self) -> Option<usize> {
        self.pool().map(|pool| pool / 8)
    }

    /// Maps the next piece of a table in `live`, which has one.
    fn map_next(&self, mapped: &mut Mapped) -> Result {
        let piece = &mapped.table.pieces[mapped.pieces];
        let mut ok = false;
        // SAFETY: The table is in `live`, so by the type invariant the device is bound. Whoever has
        // made the table keeps the memory until it is not there any more.
        let addr = unsafe {
            bindings::kapi_dma_map_phys(
                self.as_raw(),
                piece.addr.load(Relaxed),
                piece.len,
                mapped.table.write,
                &mut ok,
            )
        };
        if !ok {
            return Err(ENOMEM);
        }
        piece.addr.store(addr, Relaxed);
        // INVARIANT: One piece more is mapped.
        mapped.pieces += 1;
        Ok(())
    }

    /// Unmaps the last piece of a table in `live` that is mapped; there is one.
    fn unmap_last(&self, mapped: &mut Mapped) {
        // INVARIANT: One piece less is mapped.
        mapped.pieces -= 1;
        let piece = &mapped.table.pieces[mapped.pieces];
        // SAFETY: By the type invariant the device is bound, and the piece was mapped. What it
        // bounced is where the last synchronization has left it: the CPU may have written since.
        unsafe {
            bindings::kapi_dma_unmap_phys(
                self.as_raw(),
                piece.addr.load(Relaxed),
                piece.len,
                mapped.table.write,
                !self.bounces,
            )
        }
    }
}

/// Memory mapped for a device, until this is dropped or the driver is unbound from the device.
///
/// It belongs to who keeps the memory, so that the mapping cannot be used when the memory is gone:
///
/// ```compile_fail,E0505
/// fn release(pins: crate::kapi::mm::Pins) {
///     let dma = pins.dma();
///     drop(pins); // error[E0505]: cannot move out of `pins` because it is borrowed
///     if let Some(dma) = dma {
///         dma.sync_for_cpu();
///     }
/// }
/// ```
///
/// # Invariants
///
/// All pieces of `table` are mapped, or the binding has ended. The memory is there as long as this
/// is.
pub(crate) struct DmaMap {
    mapper: Arc<Mapper>,
    table: Arc<Table>,
}

impl DmaMap {
    /// Maps memory for a device, which may write it only with `write`. `runs` passes the memory to
    /// its argument, as physical addresses and bytes, multiples of the page size; it may be called
    /// several times.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], also if the pool of a platform that bounces is full; [`ENODEV`] if the driver
    /// has been unbound; those of `runs`.
    ///
    /// # Safety
    ///
    /// `runs` names pages that stay allocated until the `DmaMap` has been dropped.
    pub(in crate::kapi) unsafe fn new(
        mapper: &Arc<Mapper>,
        write: bool,
        runs: impl Fn(&mut dyn FnMut(u64, u64) -> Result) -> Result,
    ) -> Result<Self> {
        let mut max = mapper.max_piece;
        loop {
            let table = Table::new(write, max, &runs)?;
            match Self::of_table(mapper, table) {
                // The pool has room, but not in one piece.
                Err(e) if e == ENOMEM && mapper.bounces && max > PAGE_SIZE => {
                    max = (max / 2).max(PAGE_SIZE) & !(PAGE_SIZE - 1);
                }
                Err(e) if e == ENOSPC => return Err(ENOMEM),
                other => return other,
            }
        }
    }

    /// Maps what is in `table`. [`ENOSPC`] means that the pool has no room for so much.
    fn of_table(mapper: &Arc<Mapper>, table: Table) -> Result<Self> {
        let bytes = table.bytes();
        let table = Arc::new(table, GFP_KERNEL)?;
        let mapped = Mapped {
            table: table.clone(),
            pieces: 0,
        };
        let key = Arc::as_ptr(&table) as usize;
        let node = RBTreeNode::new(key, mapped, GFP_KERNEL)?;
        {
            let mut guard = mapper.live.lock();
            let live = (*guard).as_mut().ok_or(ENODEV)?;
            let sum = live.bytes.checked_add(bytes).ok_or(ENOMEM)?;
            if sum > mapper.room() {
                return Err(ENOSPC);
            }
            live.bytes = sum;
            live.tables.insert(node);
        }
        let count = table.pieces.len();
        // Undone in any case.
        let this = Self {
            mapper: mapper.clone(),
            table,
        };
        let mut done = 0;
        while done < count {
            let mut guard = mapper.live.lock();
            let live = (*guard).as_mut().ok_or(ENODEV)?;
            let mapped = live.tables.get_mut(&key).ok_or(ENODEV)?;
            for _ in 0..BATCH.min(count - done) {
                mapper.map_next(mapped)?;
                done += 1;
            }
        }
        Ok(this)
    }

    /// Passes the pieces to `emit`, as the device's addresses and bytes, in order.
    ///
    /// # Errors
    ///
    /// Those of `emit`.
    pub(crate) fn for_each(&self, mut emit: impl FnMut(u64, u64) -> Result) -> Result {
        for piece in &self.table.pieces {
            emit(piece.addr.load(Relaxed), piece.len as u64)?;
        }
        Ok(())
    }

    /// Whether CPU and device see the same memory only after it was synchronized.
    pub(crate) fn needs_sync(&self) -> bool {
        // SAFETY: The device is valid; the function reads a flag.
        unsafe { bindings::kapi_dma_needs_sync(self.mapper.as_raw()) }
    }

    /// Calls `sync` for the pieces, as long as the binding has not ended.
    fn for_each_mapped(&self, mut sync: impl FnMut(u64, usize)) {
        for piece in &self.table.pieces {
            let _guard = rcu::read_lock();
            if self.table.ended.load(Acquire) {
                return;
            }
            // They are mapped by the type invariant, and until the guard is gone: who unmaps them
            // for another reason has the one `DmaMap`.
            sync(piece.addr.load(Relaxed), piece.len);
        }
    }

    /// Lets the device see what the CPU has written. Does not sleep.
    pub(crate) fn sync_for_device(&self) {
        self.for_each_mapped(|addr, len| {
            // SAFETY: `for_each_mapped` passes what is mapped, so the device is bound, and the
            // memory is there.
            unsafe { bindings::kapi_dma_sync_for_device(self.mapper.as_raw(), addr, len) }
        });
    }

    /// Lets the CPU see what the device has written. Called in any context, also in hard
    /// interrupts.
    pub(crate) fn sync_for_cpu(&self) {
        if !self.table.write {
            return;
        }
        self.for_each_mapped(|addr, len| {
            // SAFETY: As in `sync_for_device`; the device may write the memory.
            unsafe { bindings::kapi_dma_sync_for_cpu(self.mapper.as_raw(), addr, len) }
        });
    }
}

/// Memory that a device writes, and that the CPU is to see when it has done so.
pub(crate) trait SyncForCpu: Send + Sync {
    /// Lets the CPU see what the device has written. Does not sleep.
    fn sync_for_cpu(&self);
}

impl Drop for DmaMap {
    fn drop(&mut self) {
        let key = Arc::as_ptr(&self.table) as usize;
        loop {
            let mut guard = self.mapper.live.lock();
            // If the binding has ended, all this was done.
            let Some(live) = &mut *guard else {
                return;
            };
            let Some(mapped) = live.tables.get_mut(&key) else {
                return;
            };
            for _ in 0..BATCH.min(mapped.pieces) {
                self.mapper.unmap_last(mapped);
            }
            if mapped.pieces == 0 {
                let node = live.tables.remove_node(&key);
                live.bytes -= self.table.bytes();
                drop(guard);
                drop(node);
                return;
            }
        }
    }
}

impl Table {
    /// A table of pieces of at most `max` bytes, nothing of which is mapped.
    fn new(
        write: bool,
        max: usize,
        runs: &impl Fn(&mut dyn FnMut(u64, u64) -> Result) -> Result,
    ) -> Result<Self> {
        let mut pieces = KVVec::new();
        runs(&mut |phys, len| {
            let (mut phys, mut left) = (phys, usize::try_from(len)?);
            while left > 0 {
                let len = left.min(max);
                let piece = Piece {
                    addr: Atomic::new(phys),
                    len,
                };
                pieces.push(piece, GFP_KERNEL)?;
                phys += len as u64;
                left -= len;
            }
            Ok(())
        })?;
        Ok(Self {
            pieces,
            write,
            ended: AtomicFlag::new(false),
        })
    }

    fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len).sum()
    }
}
