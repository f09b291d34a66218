// SPDX-License-Identifier: GPL-2.0

//! Notifications that a change to a process's page tables is over.
//!
//! An [`IntervalNotifier`](super::IntervalNotifier) is told of the beginning of a change only; the
//! kernel keeps to itself which changes are under way, and says no more than whether there are any
//! in the whole address space. A driver that wants to wait for those of some addresses needs the
//! end of each.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)

use super::notifier::ChangeId;
use crate::kapi::bindings;
use core::marker::PhantomData;
use kernel::{
    container_of,
    error::to_result,
    mm::Mm,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::Full,
            AtomicFlag, //
        }, //
    },
    types::Opaque, //
};

/// The driver's side of an [`EndNotifier`].
pub(crate) trait EndHandler: Send + Sync {
    /// A change is over that was allowed to block. It may be one of which the driver knows nothing:
    /// at other addresses, or begun before the notifier was registered.
    ///
    /// No end is told of a change that an interval notifier has refused, nor of one that is under
    /// way when the notifier is removed, nor of the end of the address space and what comes after
    /// it.
    ///
    /// Runs in whatever has changed the page tables, possibly in memory reclaim, and must neither
    /// allocate nor wait.
    fn ended(&self, change: ChangeId);
}

/// A notifier of the end of all changes to an address space, which is called for as long as this
/// lives, or until it is removed.
///
/// Dropping it waits for callbacks that are running; it must not be dropped by a callback, nor with
/// a lock held that a callback takes.
///
/// # Invariants
///
/// `raw` was registered for `mm`, and is removed by whoever sets `removed`.
#[pin_data(PinnedDrop)]
pub(crate) struct EndNotifier<H: EndHandler> {
    #[pin]
    raw: Opaque<bindings::mmu_notifier>,
    mm: ARef<Mm>,
    removed: AtomicFlag,
    handler: H,
}

// SAFETY: A notifier may be used and removed by any thread.
unsafe impl<H: EndHandler> Send for EndNotifier<H> {}

// SAFETY: All functions on a shared reference may be called concurrently.
unsafe impl<H: EndHandler> Sync for EndNotifier<H> {}

struct Ops<H>(PhantomData<H>);

impl<H: EndHandler> Ops<H> {
    const OPS: bindings::mmu_notifier_ops = {
        let mut ops: bindings::mmu_notifier_ops = pin_init::zeroed();
        ops.invalidate_range_end = Some(EndNotifier::<H>::end_callback);
        ops
    };
}

impl<H: EndHandler> EndNotifier<H> {
    /// A notifier for the address space `mm`, which must be the current process's.
    ///
    /// No change is under way at the moment of the registration. Takes `mmap_lock` for writing, and
    /// the locks of all mappings.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EINTR`] on a signal.
    pub(crate) fn new<'a>(mm: &'a Mm, handler: H) -> impl PinInit<Self, Error> + 'a
    where
        H: 'a,
    {
        try_pin_init!(Self {
            mm: mm.into(),
            removed: AtomicFlag::new(false),
            // Callbacks use it, so that the registration comes last.
            handler,
            raw <- Opaque::try_ffi_init(|slot: *mut bindings::mmu_notifier| {
                // SAFETY: The slot is pinned memory that is valid for writes, and `mm` is valid.
                // The table is static. What the callback uses was initialized before.
                to_result(unsafe {
                    slot.write(pin_init::zeroed());
                    (*slot).ops = const { &Ops::<H>::OPS };
                    bindings::mmu_notifier_register(slot, mm.as_raw())
                })
            }),
        }? Error)
    }

    /// Removes the notifier, unless that was done: waits for callbacks that are running, after
    /// which none is called.
    ///
    /// As a drop, this must not be done by a callback, nor with a lock held that a callback takes.
    pub(crate) fn remove(&self) {
        if !self.removed.xchg(true, Full) {
            // SAFETY: By the type invariant the notifier is registered for `mm`, and this is who
            // removes it.
            unsafe { bindings::mmu_notifier_unregister(self.raw.get(), self.mm.as_raw()) }
        }
    }

    extern "C" fn end_callback(
        raw: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: The range is valid during the callback.
        if !unsafe { bindings::kapi_mmu_range_blockable(range) } {
            return;
        }
        let raw: *mut Opaque<bindings::mmu_notifier> = raw.cast();
        // SAFETY: The core calls with a notifier that is registered, which is part of an
        // `EndNotifier<H>`; removing waits for callbacks.
        let this: &Self = unsafe { &*container_of!(raw, Self, raw) };
        this.handler.ended(ChangeId::of(range));
    }
}

#[pinned_drop]
impl<H: EndHandler> PinnedDrop for EndNotifier<H> {
    fn drop(self: Pin<&mut Self>) {
        self.remove();
    }
}
