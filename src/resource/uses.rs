// SPDX-License-Identifier: GPL-2.0

//! What a buffer is used for: fences of one that others share are waited for, and jobs in fault
//! mode have none.
//!
//! The first use that succeeds decides for ever. One that is begun and may fail yet counts as long
//! as it is not over, so that no other kind begins meanwhile, and leaves nothing if it fails.

use kernel::{
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    }, //
};

/// What a buffer is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Others share it.
    Shared = 1,
    /// A job of a context in fault mode lists it.
    FaultMode,
}

/// The bits of [`Uses`] that are a [`Use`], or 0 if there is none.
const USE: u64 = 3;
/// Set if a use has succeeded.
const FOR_EVER: u64 = 4;
/// One use that is not over. There is room for more than there can be threads.
const ONE: u64 = 8;

/// What a buffer is used for, and how many uses are not over.
pub(super) struct Uses(Atomic<u64>);

impl Uses {
    /// No use.
    pub(super) fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Fails if a use cannot begin.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if there is, or was, one of the other kind.
    pub(super) fn check(&self, how: Use) -> Result {
        Self::check_state(self.0.load(Relaxed), how)
    }

    fn check_state(state: u64, how: Use) -> Result {
        match state & USE {
            0 => Ok(()),
            is if is == how as u64 => Ok(()),
            _ => Err(EOPNOTSUPP),
        }
    }

    /// Begins a use, which fails unless [`Begun::succeeds`] is called.
    ///
    /// # Errors
    ///
    /// As [`Uses::check`].
    pub(super) fn begin(&self, how: Use) -> Result<Begun<'_>> {
        self.update(|state| {
            Self::check_state(state, how)?;
            Ok((state | how as u64) + ONE)
        })?;
        Ok(Begun(self))
    }

    /// A use is over.
    fn end(&self, succeeds: bool) {
        // It never fails.
        let _ = self.update(|state| {
            let left = state - ONE;
            Ok(match left & !USE {
                _ if succeeds => left | FOR_EVER,
                // It was the last one, and none has succeeded.
                0 => 0,
                _ => left,
            })
        });
    }

    fn update(&self, change: impl Fn(u64) -> Result<u64>) -> Result {
        let mut state = self.0.load(Relaxed);
        loop {
            match self.0.cmpxchg(state, change(state)?, Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => state = now,
            }
        }
    }
}

/// A use that is not over. It fails when this is dropped.
#[must_use]
pub(crate) struct Begun<'a>(&'a Uses);

impl Begun<'_> {
    /// The buffer is for this use, for ever.
    pub(crate) fn succeeds(self) {
        self.0.end(true);
        core::mem::forget(self);
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.end(false);
    }
}

#[cfg(CONFIG_KUNIT = "y")]
#[kunit_tests(virtgpu_userptr_uses)]
mod tests {
    use super::*;

    const BOTH: [(Use, Use); 2] = [(Use::Shared, Use::FaultMode), (Use::FaultMode, Use::Shared)];

    fn is_refused(uses: &Uses, how: Use) -> bool {
        let checked = uses.check(how) == Err(EOPNOTSUPP);
        let begun = matches!(uses.begin(how), Err(e) if e == EOPNOTSUPP);
        assert!(checked == begun);
        begun
    }

    #[test]
    fn one_that_fails_leaves_nothing() -> Result {
        for (how, other) in BOTH {
            let uses = Uses::new();
            drop(uses.begin(how)?);
            assert!(!is_refused(&uses, other));
            assert!(!is_refused(&uses, how));
        }
        Ok(())
    }

    #[test]
    fn one_that_succeeds_is_for_ever() -> Result {
        for (how, other) in BOTH {
            let uses = Uses::new();
            uses.begin(how)?.succeeds();
            assert!(is_refused(&uses, other));
            // Whatever becomes of a later one.
            drop(uses.begin(how)?);
            assert!(is_refused(&uses, other));
            assert!(!is_refused(&uses, how));
        }
        Ok(())
    }

    #[test]
    fn one_that_is_not_over_keeps_the_other_away() -> Result {
        for (how, other) in BOTH {
            let uses = Uses::new();
            let (one, two) = (uses.begin(how)?, uses.begin(how)?);
            assert!(is_refused(&uses, other));
            drop(one);
            assert!(is_refused(&uses, other));
            drop(two);
            assert!(!is_refused(&uses, other));
        }
        Ok(())
    }

    #[test]
    fn one_that_fails_beside_one_that_succeeds() -> Result {
        for (how, other) in BOTH {
            for first_fails in [false, true] {
                let uses = Uses::new();
                let (one, two) = (uses.begin(how)?, uses.begin(how)?);
                if first_fails {
                    drop(one);
                    two.succeeds();
                } else {
                    one.succeeds();
                    drop(two);
                }
                assert!(is_refused(&uses, other));
                assert!(!is_refused(&uses, how));
            }
        }
        Ok(())
    }
}
