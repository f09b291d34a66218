// SPDX-License-Identifier: GPL-2.0

//! A mutex for which one waits only as long as one is not killed.
//!
//! `kernel::sync::Mutex` can be waited for in one way only, uninterruptibly. Whoever holds a lock
//! while pages are faulted in can be kept by userspace (`userfaultfd`) for any time.
//!
//! C header: [`include/linux/mutex.h`](srctree/include/linux/mutex.h)

use crate::kapi::bindings;
use core::{
    cell::UnsafeCell,
    ops::{
        Deref,
        DerefMut, //
    },
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::LockClassKey,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// A mutex around `T`.
#[pin_data]
pub(crate) struct KillableMutex<T> {
    #[pin]
    raw: Opaque<bindings::mutex>,
    data: UnsafeCell<T>,
}

// SAFETY: With the mutex, its data is sent.
unsafe impl<T: Send> Send for KillableMutex<T> {}

// SAFETY: The mutex lets one thread at a time have the data.
unsafe impl<T: Send> Sync for KillableMutex<T> {}

impl<T> KillableMutex<T> {
    /// An unlocked mutex.
    pub(crate) fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(|slot| {
                // SAFETY: The slot is valid for writes and pinned; name and key are static.
                unsafe { bindings::__mutex_init(slot, name.as_char_ptr(), key.as_ptr()) }
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Locks the mutex.
    ///
    /// # Errors
    ///
    /// [`EINTR`] on a fatal signal.
    pub(crate) fn lock(&self) -> Result<KillableGuard<'_, T>> {
        // SAFETY: The mutex was initialized.
        to_result(unsafe { bindings::kapi_mutex_lock_killable(self.raw.get()) })?;
        // INVARIANT: Just locked.
        Ok(KillableGuard {
            mutex: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Locks the mutex, also if the thread is being killed.
    pub(crate) fn lock_unkillable(&self) -> KillableGuard<'_, T> {
        // SAFETY: The mutex was initialized.
        unsafe { bindings::mutex_lock(self.raw.get()) };
        // INVARIANT: Just locked.
        KillableGuard {
            mutex: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// The locked state of a [`KillableMutex`].
///
/// # Invariants
///
/// This thread holds the mutex.
pub(crate) struct KillableGuard<'a, T> {
    mutex: &'a KillableMutex<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for KillableGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant this is the only access to the data.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T> DerefMut for KillableGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariant this is the only access to the data.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T> Drop for KillableGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::mutex_unlock(self.mutex.raw.get()) }
    }
}
