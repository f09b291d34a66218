// SPDX-License-Identifier: GPL-2.0

//! Buffers in memory of the process.

use kernel::{
    prelude::*,
    sync::atomic::{
        ordering::Full, //
        AtomicFlag,
    }, //
};

/// A registration of user memory.
pub(crate) struct Userptr {
    /// Pages registered.
    pub(crate) pages: usize,
    /// Guest-virtual address, 0 for a file.
    pub(crate) addr: u64,
    /// As registered.
    pub(crate) flags: u32,
    opened: AtomicFlag,
}

impl Userptr {
    /// A registration that has no handle yet.
    pub(crate) fn new(pages: usize, addr: u64, flags: u32) -> Self {
        Self {
            pages,
            addr,
            flags,
            opened: AtomicFlag::new(false),
        }
    }

    /// Takes the one handle: the memory belongs to the process that registered it, and the handle
    /// cannot be handed on.
    ///
    /// # Errors
    ///
    /// [`EACCES`] if there is a handle already.
    pub(super) fn open(&self) -> Result {
        if self.opened.xchg(true, Full) {
            return Err(EACCES);
        }
        Ok(())
    }
}
