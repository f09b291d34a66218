// SPDX-License-Identifier: GPL-2.0

//! Making memory reachable before a job touches it.
//!
//! Each page is looked up and mapped as for a fault. While the device carries out a MAP, the pages
//! of the next one are looked up already. If one fails, what comes after it waits for its outcome.

use super::{
    attempt::Attempt,
    is_about_pages,
    room::Room,
    Refusal,
    Svm, //
};
use crate::{
    kapi::{
        mm::FaultWait,
        task::check_not_killed, //
    },
    mirror::{
        Deadline,
        Response,
        Sent,
        Wanted,
        Window, //
    },
    protocol::{
        mirror::status,
        uapi::svm_reason, //
    },
};
use core::ops::Range;
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::ordering::Relaxed,
        Arc, //
    }, //
};

/// Most parts of a range whose MAPs have no response yet.
const IN_FLIGHT: usize = 4;

/// Neighbouring pages of a granule, for which MAP was sent.
struct Part {
    window: Arc<Window>,
    sent: Sent,
    /// Addresses.
    which: Range<usize>,
    /// Pages for which MAP was sent, of which some may be gone again.
    pages: usize,
    /// [`Svm::room`] before that.
    room: Room,
}

/// A part that the device has refused.
struct Refused {
    /// Its end, an address.
    end: usize,
    /// Most pages of each of the parts that it is divided into.
    most: usize,
    /// Since there was progress.
    deadline: Deadline,
}

/// What was done about the first pages of a range.
enum Step {
    /// The device reaches all pages before this address.
    Reachable(usize),
    /// They are being mapped.
    Sent(Part),
}

impl From<Refusal> for Error {
    fn from(Refusal(reason): Refusal) -> Self {
        match reason {
            svm_reason::BAD_ACCESS => EPERM,
            _ => EFAULT,
        }
    }
}

/// Why a page cannot be mapped whose MAP the device has refused, although not for want of memory.
fn to_error(response: u32) -> Error {
    match response {
        status::NO_SUCH_SPACE => EIO,
        status::LIMIT => ENOSPC,
        _ => EFAULT,
    }
}

impl Svm {
    /// Makes `which`, addresses of whole pages, reachable for the device, for writing with `write`,
    /// by the current thread, which is one of the process. Returns how many bytes are, from the
    /// first on, also on failure.
    ///
    /// # Errors
    ///
    /// About the first page that is not reachable:
    ///
    /// - [`EFAULT`] if there is no memory that a device can use;
    /// - [`EPERM`] if the process may not access it so;
    /// - [`EBUSY`] if pages keep changing for a second;
    /// - [`ENOSPC`] if the device has a limit that is reached;
    /// - [`EIO`] if the address space ends;
    /// - [`ENOMEM`], [`ENODEV`], [`EINTR`].
    pub(crate) fn prefetch(&self, which: Range<usize>, write: bool) -> (usize, Result) {
        let mut parts = match KVec::with_capacity(IN_FLIGHT, GFP_KERNEL) {
            Ok(parts) => parts,
            Err(e) => return (0, Err(e.into())),
        };
        let (mut at, mut outcome) = self.prefetch_all(which.clone(), write, &mut parts);
        // A MAP must not be forgotten: what it has failed to map is not reachable.
        for part in parts {
            let confirmed = self.confirm_part(&part);
            let failed = match confirmed {
                Ok(response) if response.status == status::OK => continue,
                // Another call tells why.
                Ok(_) => EBUSY,
                Err(e) => e,
            };
            if part.which.start < at {
                (at, outcome) = (part.which.start, Err(failed));
            }
        }
        (at - which.start, outcome)
    }

    /// As [`Svm::prefetch`], but returns the end of what is reachable, and leaves in `parts` those
    /// whose MAPs have no response yet, which it takes for reachable.
    fn prefetch_all(
        &self,
        which: Range<usize>,
        write: bool,
        parts: &mut KVec<Part>,
    ) -> (usize, Result) {
        let mut at = which.start;
        let mut refused: Option<Refused> = None;
        loop {
            // Not before the last part of it is confirmed: it may be refused again.
            if parts.is_empty() {
                refused = refused.filter(|refused| at < refused.end);
            }
            let (most, limit) = match &refused {
                Some(refused) => (refused.most, 1),
                None => (usize::MAX, IN_FLIGHT),
            };
            let full = at == which.end || parts.len() >= limit;
            let oldest = if full { parts.remove(0).ok() } else { None };
            let Some(part) = oldest else {
                if at == which.end {
                    return (at, Ok(()));
                }
                match self.prefetch_part(at..which.end, write, most) {
                    Ok(Step::Reachable(end)) => at = end,
                    Ok(Step::Sent(part)) => {
                        at = part.which.end;
                        if let Err(e) = parts.push(part, GFP_KERNEL) {
                            return (at, Err(e.into()));
                        }
                    }
                    Err(e) => return (at, Err(e)),
                }
                continue;
            };
            match self.confirm_part(&part) {
                Ok(response) if response.status == status::OK => {
                    if let Some(refused) = &mut refused {
                        refused.deadline = Deadline::new();
                    }
                }
                Ok(response) => {
                    // The others may have failed, too, or have what this one lacks.
                    at = part.which.start;
                    while let Ok(part) = parts.remove(0) {
                        if let Err(e) = self.confirm_part(&part) {
                            return (at, Err(e));
                        }
                    }
                    let again = refused.get_or_insert_with(|| Refused {
                        end: at + (part.pages << PAGE_SHIFT),
                        most: part.pages,
                        deadline: Deadline::new(),
                    });
                    match again.deadline.next_try_ms() {
                        // Others may have undone their MAPs, too, for as long as that.
                        Err(e) if e == EBUSY && response.status == status::NO_MEMORY => {
                            return (at, Err(ENOMEM));
                        }
                        Err(e) => return (at, Err(e)),
                        Ok(_) => {}
                    }
                    match (response.status, part.pages) {
                        (status::NO_MEMORY, pages) => {
                            // There may never be room for as many at a time.
                            if pages > 1 {
                                again.most = pages.div_ceil(2);
                                again.deadline = Deadline::new();
                            }
                            match self
                                .make_room(part.room.but_for(response.invalidations), part.pages)
                            {
                                Ok(false) if pages == 1 => return (at, Err(ENOMEM)),
                                Ok(_) => {}
                                Err(e) => return (at, Err(e)),
                            }
                        }
                        (refused, 1) => return (at, Err(to_error(refused))),
                        // Which of them it is about is to be known.
                        _ => again.most = 1,
                    }
                }
                Err(e) => return (part.which.start, Err(e)),
            }
        }
    }

    /// The outcome of the MAPs of a part, as [`Window::confirm`] returns it.
    fn confirm_part(&self, part: &Part) -> Result<Response> {
        let response = self.confirm_sent(&part.window, &part.sent)?;
        if response.status == status::OK {
            let pages = part.which.len() >> PAGE_SHIFT;
            self.counts.pages.fetch_add(pages as u64, Relaxed);
        }
        Ok(response)
    }

    /// Sends MAP for the first pages of `which`, `most` at most.
    fn prefetch_part(&self, which: Range<usize>, write: bool, most: usize) -> Result<Step> {
        check_not_killed()?;
        let window = match self.window(which.start, write)? {
            Ok(window) => window,
            Err(refusal) => return Err(refusal.into()),
        };
        let page = (which.start - window.start()) >> PAGE_SHIFT;
        let end = window
            .granule(page)
            .end
            .min((which.end - window.start()) >> PAGE_SHIFT);
        let mut deadline = Deadline::new();
        let mut pages = most.min(end - page);
        loop {
            let timeout = deadline.next_try_ms()?;
            let room = self.room();
            let reachable = window.reachable_end(page..end, write);
            if reachable > page {
                return Ok(Step::Reachable(window.addresses(&(page..reachable)).end));
            }
            let area = match self.area(which.start, write)? {
                Ok(area) => area,
                Err(refusal) => return Err(refusal.into()),
            };
            let area_end = (area.end - window.start()) >> PAGE_SHIFT;
            let ask_end =
                window.first_reachable(page + 1..(page + pages).min(area_end).max(page + 1), write);
            let mut wanted = Wanted {
                ask: page..ask_end,
                around: page..ask_end,
                wait: FaultWait::Killable,
                ..Self::wanted_alone(&area, page, write)
            };
            let attempt = self.attempt(&window, &area, &mut wanted, timeout, |wanted, lookup| {
                window.commit(wanted, lookup, None)
            });
            let sent = match attempt {
                Ok(Attempt::Sent(sent)) => sent,
                Ok(Attempt::Overtaken | Attempt::Changed) => continue,
                Ok(Attempt::Revoking) => {
                    drop(self.revoking.lock()?);
                    continue;
                }
                Ok(Attempt::Closed) => return Err(EIO),
                Ok(Attempt::Unsent(e)) => return Err(e),
                Err(e) if pages > 1 && is_about_pages(e) => {
                    pages = 1;
                    continue;
                }
                // As in `MirroredRange::send`.
                Err(e) if e == EBUSY => {
                    self.gpu.counters.lookup_retries.add(1);
                    continue;
                }
                Err(e) => return Err(e),
            };
            // There may not have been enough commands for all. The first page was among them, even
            // if it was revoked meanwhile.
            let pages = sent.pages();
            let end = window.reachable_end(wanted.ask, write).max(page + 1);
            return Ok(Step::Sent(Part {
                pages,
                room,
                which: window.addresses(&(page..end)),
                window,
                sent,
            }));
        }
    }
}
