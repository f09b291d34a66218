// SPDX-License-Identifier: GPL-2.0

//! Synchronization objects: fences under handles of a file.
//!
//! C header: [`include/drm/drm_syncobj.h`](srctree/include/drm/drm_syncobj.h)

use super::{
    device::Driver,
    file::File, //
};
use crate::kapi::{
    bindings,
    dma::fence::{
        ChainNode,
        Fence, //
    },
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::aref::ARef, //
};

/// A reference to a syncobj.
///
/// # Invariants
///
/// The pointer is valid, and this owns a reference count.
pub(crate) struct Syncobj(NonNull<bindings::drm_syncobj>);

impl Syncobj {
    /// The syncobj with `handle` of `file`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is none.
    pub(crate) fn find<D: Driver>(file: &File<D>, handle: u32) -> Result<Self> {
        // SAFETY: The file is valid.
        let raw = unsafe { bindings::drm_syncobj_find(file.as_raw(), handle) };
        // INVARIANT: The function returns a reference.
        NonNull::new(raw).map(Self).ok_or(EINVAL)
    }

    /// Replaces the fence of a binary syncobj; `None` resets it.
    pub(crate) fn replace_fence(&self, fence: Option<&Fence>) {
        let fence = fence.map_or(ptr::null_mut(), Fence::as_raw);
        // SAFETY: By the type invariant the syncobj is valid, and takes a reference of its own.
        unsafe { bindings::drm_syncobj_replace_fence(self.0.as_ptr(), fence) }
    }

    /// Adds `point` to the timeline.
    pub(crate) fn add_point(&self, node: ChainNode, fence: &Fence, point: u64) {
        // SAFETY: By the type invariant the syncobj is valid; it takes over the node, and a
        // reference of its own to the fence.
        unsafe {
            bindings::drm_syncobj_add_point(self.0.as_ptr(), node.into_raw(), fence.as_raw(), point)
        }
    }
}

impl Drop for Syncobj {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this owns a reference.
        unsafe { bindings::kapi_drm_syncobj_put(self.0.as_ptr()) }
    }
}

/// The fence of `point` of the syncobj with `handle` of `file`; does not wait for one.
///
/// # Errors
///
/// [`ENOENT`] if there is no such syncobj, [`EINVAL`] if it has no such fence.
pub(crate) fn find_fence<D: Driver>(
    file: &File<D>,
    handle: u32,
    point: u64,
) -> Result<ARef<Fence>> {
    let mut raw = ptr::null_mut();
    // SAFETY: The file is valid, and `raw` valid for writes.
    to_result(unsafe {
        bindings::drm_syncobj_find_fence(file.as_raw(), handle, point, 0, &mut raw)
    })?;
    let raw = NonNull::new(raw).ok_or(EINVAL)?;
    // SAFETY: The function returns a reference.
    Ok(unsafe { Fence::from_owned(raw) })
}
