// SPDX-License-Identifier: GPL-2.0

//! Fences as file descriptors.
//!
//! C header: [`include/linux/sync_file.h`](srctree/include/linux/sync_file.h)

use super::fence::Fence;
use crate::kapi::bindings;
use core::ptr::NonNull;
use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

/// Makes a file that becomes readable when `fence` is signalled.
///
/// # Errors
///
/// [`ENOMEM`].
pub(crate) fn create(fence: &Fence) -> Result<ARef<File>> {
    // SAFETY: The fence is valid; the file takes a reference of its own.
    let sync_file = unsafe { bindings::sync_file_create(fence.as_raw()) };
    let sync_file = NonNull::new(sync_file).ok_or(ENOMEM)?;
    // SAFETY: A new `sync_file` has a valid file with one reference, which is ours. It was never
    // in a descriptor table, so no thread uses its position.
    unsafe {
        let file = NonNull::new((*sync_file.as_ptr()).file).ok_or(ENOMEM)?;
        Ok(ARef::from_raw(file.cast()))
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
