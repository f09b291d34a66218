// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The memory of a resource for jobs that nobody waits for.
//!
//! A job of a context in fault mode may stall for as long as a process of the guest likes, so what
//! takes a resource away cannot wait for its end. It waits for the access at hand instead, which is
//! one of a block of bytes and stalls on nothing; the next access of the job finds nothing there.

use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use super::guarded::Fault;
use super::segments::Segments;

/// The memory of a resource, until it is taken back.
#[derive(Debug)]
pub struct Lent(RwLock<Option<Arc<Segments>>>);

impl Lent {
    pub(crate) fn new(memory: Arc<Segments>) -> Self {
        Self(RwLock::new(Some(memory)))
    }

    /// Accesses the memory, which is not taken back meanwhile.
    ///
    /// # Errors
    ///
    /// If it was taken back, and those of `access`.
    pub(crate) fn with<T>(
        &self,
        access: impl FnOnce(&Segments) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let memory = self.0.read().unwrap_or_else(PoisonError::into_inner);
        access(memory.as_ref().ok_or(Fault)?)
    }

    /// Nobody accesses the memory through this until the guard is dropped, nor afterwards, if it is
    /// empty then.
    pub(crate) fn hold(&self) -> RwLockWriteGuard<'_, Option<Arc<Segments>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the memory back: when this returns, nobody accesses it through this any more.
    pub(crate) fn take_back(&self) {
        *self.hold() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::area::Area;
    use crate::memory::usage::Usage;

    #[test]
    fn taken_back() {
        let area = Arc::new(Area::new(4096, Usage::default()).unwrap());
        let lent = Lent::new(Arc::new(Segments::mirrored(area.clone())));
        assert_eq!(lent.with(|memory| memory.check(0, 4096)), Ok(()));
        assert_eq!(lent.with(|memory| memory.check(1, 4096)), Err(Fault));
        lent.take_back();
        assert_eq!(lent.with(|memory| memory.check(0, 4096)), Err(Fault));
        // Nothing keeps the memory.
        assert_eq!(Arc::strong_count(&area), 1);
    }
}
