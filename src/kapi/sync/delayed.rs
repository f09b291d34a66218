// SPDX-License-Identifier: GPL-2.0

//! Cancelling delayed work, which `kernel::workqueue` cannot yet.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::kapi::bindings;
use kernel::{
    container_of,
    sync::Arc,
    workqueue::{
        HasDelayedWork,
        Work,
        WorkItem, //
    },
};

/// Makes sure that the delayed work `ID` of `item` neither is pending nor runs.
///
/// Sleeps. Must not be called from that work.
pub(crate) fn cancel_delayed_sync<T, const ID: u64>(item: &Arc<T>)
where
    T: HasDelayedWork<T, ID> + WorkItem<ID, Pointer = Arc<T>>,
{
    let raw = Arc::as_ptr(item).cast_mut();
    // SAFETY: `raw` is valid. The trait says that the work is part of a `DelayedWork`. A pending
    // work owns a reference to its item, which is ours if we cancelled it.
    unsafe {
        let work = Work::raw_get(T::raw_get_work(raw));
        let delayed = container_of!(work, bindings::delayed_work, work);
        if bindings::cancel_delayed_work_sync(delayed) {
            drop(Arc::from_raw(raw.cast_const()));
        }
    }
}
