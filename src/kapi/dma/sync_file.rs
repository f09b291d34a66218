// SPDX-License-Identifier: GPL-2.0

//! Fences as file descriptors.
//!
//! C header: [`include/linux/sync_file.h`](srctree/include/linux/sync_file.h)

use super::fence::{
    Fence,
    UnpublishedFence, //
};
use crate::kapi::bindings;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

/// The file of a fence that is not published yet, made ahead, as making it may fail.
///
/// # Invariants
///
/// `file` is that of a `sync_file` of `fence`, to which it has a reference. The file is not
/// published.
pub(crate) struct PendingSyncFile {
    file: ARef<File>,
    fence: *const bindings::dma_fence,
}

impl PendingSyncFile {
    /// Makes a file that becomes readable when `fence` is signalled.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(fence: &UnpublishedFence) -> Result<Self> {
        // SAFETY: The fence is valid; the file takes a reference of its own.
        let sync_file = unsafe { bindings::sync_file_create(fence.as_raw()) };
        let sync_file = NonNull::new(sync_file).ok_or(ENOMEM)?;
        // SAFETY: A new `sync_file` has a valid file with one reference, which is ours. It was
        // never in a descriptor table, so no thread uses its position.
        let file = unsafe {
            let file = NonNull::new((*sync_file.as_ptr()).file).ok_or(ENOMEM)?;
            ARef::from_raw(file.cast())
        };
        // INVARIANT: Just made.
        Ok(Self {
            file,
            fence: fence.as_raw(),
        })
    }

    /// The file, now that its fence is published.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `fence` is another one.
    pub(crate) fn publish(self, fence: &Fence) -> Result<ARef<File>> {
        // The file has a reference, so no other fence has this address.
        if !ptr::eq(self.fence, fence.as_raw()) {
            return Err(EINVAL);
        }
        Ok(self.file)
    }
}

/// The fence of the sync_file with descriptor `fd` of the current process.
///
/// # Errors
///
/// [`EINVAL`] if it is no sync_file.
pub(crate) fn fence_of(fd: c_int) -> Result<ARef<Fence>> {
    // SAFETY: Any integer is allowed.
    let raw = unsafe { bindings::sync_file_get_fence(fd) };
    let raw = NonNull::new(raw).ok_or(EINVAL)?;
    // SAFETY: The function returns a reference.
    Ok(unsafe { Fence::from_owned(raw) })
}
