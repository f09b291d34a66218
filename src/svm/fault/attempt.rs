// SPDX-License-Identifier: GPL-2.0

//! One attempt to map pages of one granule: they are looked up, and MAP is sent unless anything has
//! changed meanwhile. Who makes the attempt decides whether there is another.

use super::Svm;
use crate::{
    kapi::mm::Area,
    mirror::{
        Committed,
        Lookup,
        Sent,
        Wanted,
        Window, //
    },
};
use kernel::prelude::*;

/// How an attempt ends for which all that was asked for could be looked up.
pub(super) enum Attempt {
    /// MAP was sent.
    Sent(Sent),
    /// Nothing was sent, as the device reaches the first page by now; or as pages are being
    /// changed, where that is not to be waited for.
    Overtaken,
    /// Nothing was sent, as the pages or their area have changed.
    Changed,
    /// Nothing was sent, as one of the pages is being revoked.
    Revoking,
    /// Nothing was sent, as the address space ends.
    Closed,
    /// Nothing was sent, and that is not about the pages.
    Unsent(Error),
}

impl Svm {
    /// Looks up what is wanted of a window, and has `commit` send MAP if the pages are still in
    /// `area`, or in one like it.
    ///
    /// # Errors
    ///
    /// Those of [`Window::look_up`].
    pub(super) fn attempt<'a>(
        &'a self,
        window: &Window,
        area: &Area,
        wanted: &mut Wanted,
        timeout_ms: u32,
        commit: impl FnOnce(&Wanted, &mut Lookup<'a>) -> Result<Committed>,
    ) -> Result<Attempt> {
        let Some(mut lookup) = window.look_up(&self.windows, wanted, timeout_ms)? else {
            return Ok(Attempt::Overtaken);
        };
        let looked_up = window.addresses(&wanted.around);
        match Area::at(window.addresses(&wanted.ask).start)? {
            Some(again) if again.is_as(area, looked_up) => {}
            _ => return Ok(Attempt::Changed),
        }
        Ok(match commit(wanted, &mut lookup) {
            Ok(Committed::Sent(sent)) => Attempt::Sent(sent),
            Ok(Committed::Stale) => Attempt::Changed,
            Ok(Committed::Revoking) => Attempt::Revoking,
            Ok(Committed::Closed) => Attempt::Closed,
            Err(e) => Attempt::Unsent(e),
        })
    }
}
