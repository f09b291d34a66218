// SPDX-License-Identifier: GPL-2.0

//! Looking up pages of a window for a fault of the device: what is missing is faulted in first.
//!
//! No lock is held, and nothing keeps the pages: a [`Lookup`] says when it has become stale.

use super::{
    range::count,
    table::Reach,
    window::Window,
    windows::{
        Look,
        Windows, //
    }, //
};
use crate::kapi::mm::{
    fault_in,
    FaultWait,
    HmmPage, //
};
use core::ops::Range;
use kernel::{
    page::PAGE_SHIFT,
    prelude::*, //
};

/// How often pages are faulted in that are gone again at once, in one lookup: pages may be missing
/// in several places.
const LOOKS: usize = 8;

/// What a fault asks for. All pages are of one granule of the window, and of one area of the
/// process.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Pages that must be had, or it is an error.
    pub(crate) ask: Range<usize>,
    /// Pages around them that are mapped, too, if they are there. With those of `ask`.
    pub(crate) around: Range<usize>,
    /// The device wants to write.
    pub(crate) write: bool,
    /// It may write wherever the process can without a fault, also if it wants to read only.
    pub(crate) eager: bool,
    /// It may write nowhere.
    pub(crate) read_only: bool,
    /// It wants the page alone.
    pub(crate) alone: bool,
    /// How a page is waited for.
    pub(crate) wait: FaultWait,
}

/// Pages that were looked up.
pub(crate) struct Lookup<'a> {
    /// Those of [`Wanted::around`].
    pub(super) pages: KVec<HmmPage>,
    /// What the device is to be able to do with each that it cannot do yet; [`Reach::Nothing`] if
    /// that is nothing.
    pub(super) rights: KVec<Reach>,
    pub(super) around: Range<usize>,
    pub(super) look: Look<'a>,
}

impl Lookup<'_> {
    /// The first page from `page` on that the process may not read, or write with `write`, without
    /// a fault; the end of what was looked up if there is none.
    pub(crate) fn usable_end(&self, page: usize, write: bool) -> usize {
        let is_usable = |page: &&HmmPage| page.is_valid() && (!write || page.is_writable());
        let from = self.pages.get(page - self.around.start..);
        page + from.map_or(0, |from| from.iter().take_while(is_usable).count())
    }
}

impl Window {
    /// Looks up what is wanted, by a thread of the process: what is there, after what is missing of
    /// what is asked for has been faulted in. If that is possible for the first pages only,
    /// `wanted` is cut to them. `None` if the device has got the first one meanwhile, as it wants
    /// it, or if pages are being changed, and that is not to be waited for. The window is one of
    /// `windows`.
    ///
    /// # Errors
    ///
    /// - Those of [`fault_in`];
    /// - [`EFAULT`] if what was faulted in is no ordinary page;
    /// - [`EBUSY`] if the pages kept changing for `timeout_ms` milliseconds, or were gone again at
    ///   once.
    pub(crate) fn look_up<'a>(
        &self,
        windows: &'a Windows,
        wanted: &mut Wanted,
        timeout_ms: u32,
    ) -> Result<Option<Lookup<'a>>> {
        let Wanted {
            ask,
            around,
            write,
            alone,
            wait,
            ..
        } = wanted;
        let mut pages = KVec::from_elem(HmmPage::default(), around.len(), GFP_KERNEL)?;
        let mut tries = 0;
        // The page that was just faulted in.
        let mut faulted = None;
        let look = loop {
            let look = loop {
                let start = self.start() + (around.start << PAGE_SHIFT);
                if around.len() == 1 && *wait != FaultWait::Not {
                    let interruptible = *wait == FaultWait::Interruptible;
                    break windows.look(start, &mut pages, interruptible, timeout_ms)?;
                }
                if let Some(look) = windows.try_look(start, &mut pages, timeout_ms)? {
                    break look;
                }
                if *wait == FaultWait::Not {
                    return Ok(None);
                }
                // More than the first page is not worth a wait.
                if around == ask {
                    ask.end = ask.start + 1;
                }
                *around = ask.clone();
                pages.truncate(around.len());
            };
            let is_missing = |page: &HmmPage| !page.is_valid() || *write && !page.is_writable();
            let asked = ask.start - around.start..ask.end - around.start;
            let asked = pages.get(asked).ok_or(EINVAL)?;
            let Some(first) = asked.iter().position(is_missing) else {
                break look;
            };
            // Faulting it in may take any time.
            drop(look);
            let missing = asked[first..].iter().take_while(|page| is_missing(page));
            let missing = missing.count();
            // The device may have got it meanwhile, alone perhaps: then it would lose it.
            let page = ask.start + first;
            let is_special =
                faulted == Some(page) && asked.get(first).is_some_and(|page| page.is_error());
            let has_it = match *alone {
                true => self.is_exclusive(page),
                false => self.is_reachable(page, *write),
            };
            if has_it {
                if first == 0 {
                    return Ok(None);
                }
                ask.end = ask.start + first;
                *around = ask.clone();
                pages.truncate(around.len());
                continue;
            }
            if tries == LOOKS {
                return Err(EBUSY);
            }
            tries += 1;
            let addr = self.start() + ((ask.start + first) << PAGE_SHIFT);
            let outcome = match is_special {
                true => Err(EFAULT),
                false => fault_in(addr, missing, *write, *wait),
            };
            match outcome {
                Ok(_) => faulted = Some(page),
                // Those before it can be had.
                Err(e) if first > 0 && e != EINTR => {
                    ask.end = ask.start + first;
                    *around = ask.clone();
                    pages.truncate(around.len());
                }
                Err(e) => return Err(e),
            }
        };
        count(&self.range().counters.faults, ask.len() as u64);
        let rights = KVec::from_elem(Reach::Nothing, pages.len(), GFP_KERNEL)?;
        self.range().gpu.knobs.delay_map();
        Ok(Some(Lookup {
            pages,
            rights,
            around: around.clone(),
            look,
        }))
    }
}
