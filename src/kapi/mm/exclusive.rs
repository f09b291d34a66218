// SPDX-License-Identifier: GPL-2.0

//! Pages that a device uses alone: the process has them back when it touches them.
//!
//! The page table entry is replaced by one that faults. A notification comes before the fault puts
//! the page back, as before any other change of the page.
//!
//! C function: `make_device_exclusive()` in `mm/rmap.c`.

use crate::kapi::bindings;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    error::to_result,
    prelude::*, //
};

/// Whom a page is made exclusive for. By this one tells one's own notifications from those of
/// others.
#[derive(Clone, Copy)]
pub(crate) struct Owner(*mut c_void);

impl Owner {
    /// The owner that `identity` stands for where it is, as long as that lives.
    pub(crate) fn of<T>(identity: &T) -> Self {
        const { assert!(size_of::<T>() > 0) };
        Self(ptr::from_ref(identity).cast_mut().cast())
    }

    /// Whether a pointer that the kernel has kept is that of this owner.
    pub(super) fn is(self, other: *mut c_void) -> bool {
        ptr::eq(self.0, other)
    }
}

/// A page that was taken from the page tables of the process. Whoever touches it waits until this
/// is dropped, and takes it back then.
///
/// # Invariants
///
/// `folio` is valid and locked, and this has the lock and a reference.
pub(crate) struct ExclusivePage {
    folio: NonNull<bindings::folio>,
    phys: u64,
}

impl ExclusivePage {
    /// Takes the page at `addr` from the page tables of the current process, for `owner`.
    ///
    /// If the process cannot write the page as it is, it is made so first, as by a write of its
    /// own, but without a userfaultfd. Notifications come of all that changes, and one of
    /// [`Change::Exclusive`].
    ///
    /// May sleep, and enters memory reclaim. Must be called without `mmap_lock`, without the lock
    /// of another folio, and without a lock that a callback takes.
    ///
    /// [`Change::Exclusive`]: super::Change::Exclusive
    ///
    /// # Errors
    ///
    /// - [`EOPNOTSUPP`] if it is no anonymous memory, or of huge pages of a pool, or if the kernel
    ///   cannot do this at all;
    /// - [`EFAULT`] if nothing is there that the process can write, or only a userfaultfd could
    ///   give it;
    /// - `EHWPOISON` if it is broken;
    /// - [`ENOMEM`], [`EINTR`] on a fatal signal.
    pub(crate) fn take(addr: usize, owner: Owner) -> Result<Self> {
        let mut folio = ptr::null_mut();
        let mut phys = 0;
        // SAFETY: Changes the current process only as an access would; both places are valid for
        // writes. The owner is compared only.
        to_result(unsafe {
            bindings::kapi_current_make_exclusive(addr, owner.0, &mut folio, &mut phys)
        })?;
        let folio = NonNull::new(folio).ok_or(EFAULT)?;
        // INVARIANT: On success the folio is locked, and its reference is the caller's.
        Ok(Self { folio, phys })
    }

    /// Physical address.
    pub(crate) fn phys(&self) -> u64 {
        self.phys
    }
}

impl Drop for ExclusivePage {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the lock and the reference are this one's.
        unsafe { bindings::kapi_folio_unlock_put(self.folio.as_ptr()) }
    }
}
