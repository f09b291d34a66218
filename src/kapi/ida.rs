// SPDX-License-Identifier: GPL-2.0

//! Allocation of small integers.
//!
//! C header: [`include/linux/idr.h`](srctree/include/linux/idr.h)

use crate::kapi::bindings;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc, //
    },
    types::Opaque, //
};

/// The largest integer.
const MAX: u32 = c_int::MAX as u32;

/// Hands out integers that are in use once at a time.
#[pin_data(PinnedDrop)]
pub(crate) struct Ida {
    #[pin]
    inner: Opaque<bindings::ida>,
    /// Where [`Ida::allocate_cyclic`] goes on.
    next: Atomic<u32>,
}

// SAFETY: The functions of an IDA lock it themselves.
unsafe impl Send for Ida {}

// SAFETY: As above.
unsafe impl Sync for Ida {}

impl Ida {
    /// An IDA with all integers free.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writes and pinned.
                unsafe { bindings::kapi_ida_init(slot) }
            }),
            next: Atomic::new(1),
        })
    }

    /// Whether no integer is in use, at this moment.
    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: The IDA was initialized.
        unsafe { bindings::kapi_ida_is_empty(self.inner.get()) }
    }

    /// The lowest free integer, 1 or more.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`ENOSPC`].
    pub(crate) fn allocate(self: &Arc<Self>) -> Result<Id> {
        self.allocate_from(1)
    }

    /// A free integer, 1 or more, that was not in use for as long as possible.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`ENOSPC`].
    pub(crate) fn allocate_cyclic(self: &Arc<Self>) -> Result<Id> {
        let next = self.next.load(Relaxed);
        let id = match self.allocate_from(next) {
            Err(e) if e == ENOSPC && next > 1 => self.allocate_from(1),
            other => other,
        }?;
        // Others may do so at the same time: then some numbers come around earlier.
        let after = id.get() + 1;
        let wrapped = if after > MAX { 1 } else { after };
        self.next.store(wrapped, Relaxed);
        Ok(id)
    }

    fn allocate_from(self: &Arc<Self>, least: u32) -> Result<Id> {
        // SAFETY: The IDA was initialized. Only positive `int`s are asked for.
        let id = unsafe {
            bindings::ida_alloc_range(self.inner.get(), least, MAX, bindings::GFP_KERNEL)
        };
        kernel::error::to_result(id)?;
        // INVARIANT: The integer was just allocated.
        Ok(Id {
            ida: self.clone(),
            id: id as u32,
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Ida {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The IDA was initialized, and is not in use any more.
        unsafe { bindings::ida_destroy(self.inner.get()) }
    }
}

/// An integer that is free again when this is dropped.
///
/// # Invariants
///
/// `id` is allocated from `ida`, and this is its only owner.
pub(crate) struct Id {
    ida: Arc<Ida>,
    id: u32,
}

impl Id {
    /// The integer.
    pub(crate) fn get(&self) -> u32 {
        self.id
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the integer is allocated.
        unsafe { bindings::ida_free(self.ida.inner.get(), self.id) }
    }
}
