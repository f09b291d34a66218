// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The memory of a resource for jobs in fault mode.
//!
//! A job of a context in fault mode may stall for as long as a process of the guest likes, so what
//! ends access to a resource cannot wait for its end. It waits for the access at hand instead,
//! which is one of a block of bytes and stalls on nothing; the next access of the job finds nothing
//! there.

use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use super::guarded::Fault;
use super::segments::Segments;

/// The memory of a resource, until it is revoked.
#[derive(Debug)]
pub struct Lent(RwLock<Option<Arc<Segments>>>);

impl Lent {
    pub(crate) fn new(memory: Arc<Segments>) -> Self {
        Self(RwLock::new(Some(memory)))
    }

    /// Accesses the memory, which is not revoked meanwhile.
    ///
    /// # Errors
    ///
    /// If it was revoked, and those of `access`.
    pub(crate) fn with<T>(
        &self,
        access: impl FnOnce(&Segments) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let memory = self.0.read().unwrap_or_else(PoisonError::into_inner);
        access(memory.as_ref().ok_or(Fault)?)
    }

    /// No one accesses the memory through this until the guard is dropped, nor afterwards, if it is
    /// empty then.
    pub(crate) fn hold(&self) -> RwLockWriteGuard<'_, Option<Arc<Segments>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Revokes the memory: when this returns, no one accesses it through this any more.
    pub(crate) fn revoke(&self) {
        *self.hold() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::area::Area;
    use crate::memory::usage::Usage;

    #[test]
    fn revoked() {
        let area = Arc::new(Area::new(4096, Usage::default()).unwrap());
        let lent = Lent::new(Arc::new(Segments::mirrored(area.clone())));
        assert_eq!(lent.with(|memory| memory.check(0, 4096)), Ok(()));
        assert_eq!(lent.with(|memory| memory.check(1, 4096)), Err(Fault));
        lent.revoke();
        assert_eq!(lent.with(|memory| memory.check(0, 4096)), Err(Fault));
        // Nothing keeps the memory.
        assert_eq!(Arc::strong_count(&area), 1);
    }
}
