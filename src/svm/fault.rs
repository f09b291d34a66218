// SPDX-License-Identifier: GPL-2.0

//! Serving a fault: a thread of the process does what the processor would do for an access of its
//! own, and tells the device the outcome.
//!
//! A page is looked up without any lock. Whether the lookup still holds is asked under the lock
//! that notifier callbacks take, and MAP and the resolution are sent under the same lock. So a
//! callback comes either before, and the page is looked up again, or after, and its INVALIDATE
//! follows the MAP in the queue. The resolution does not wait for the response to the MAP: if that
//! fails, the access faults again. Nor does the thread, as long as there are other faults.

mod ahead;
mod attempt;
mod exclusive;
mod prefetch;
mod room;
mod wanted;

use self::{attempt::Attempt, room::Room};
use super::{
    inbox::Unconfirmed,
    Loss,
    Svm, //
};
use crate::{
    kapi::mm::Area,
    mirror::{
        Committed,
        Deadline,
        Sent,
        Window, //
    },
    protocol::{
        mirror::{
            access,
            resolution,
            status, //
        },
        uapi::svm_reason,
    },
    transport::{
        event::Fault,
        mirror::MirrorQueue, //
    },
};
use kernel::{
    error::code::EHWPOISON,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc, //
    }, //
};

/// How often memory for a fault is asked for, before the fault is refused.
const MEMORY_TRIES: u32 = 3;

/// How a fault ends.
enum Outcome {
    /// It was resolved together with its MAP.
    Resolved,
    /// It is to be resolved in this way, a [`resolution`].
    Resolve(u32),
    /// It is to be resolved, as the device reaches the page by now.
    Coalesced,
    /// It is to be refused, for this reason, a [`svm_reason`].
    Refuse(u32),
    /// The thread was interrupted: it is to be served again.
    Again,
    /// It is put aside until another thread has mapped the page.
    Parked,
    /// The address space ends, which resolves all of its faults.
    Closed,
}

/// A page that the process may not have in the way that was asked for.
struct Refusal(u32);

/// Whether a lookup of several pages may have failed because of some of them.
fn is_about_pages(e: Error) -> bool {
    e == EFAULT || e == EPERM || e == ENOMEM || e == EBUSY
}

impl Svm {
    /// Serves a fault, by a thread of the process.
    pub(super) fn serve(self: &Arc<Self>, fault: Fault) {
        self.counts.faults.fetch_add(1, Relaxed);
        let outcome = match self.try_serve(&fault) {
            Ok(outcome) => outcome,
            // The thread is to be stopped, or the process is being killed.
            Err(e) if e == EINTR || e == ERESTARTSYS => Outcome::Again,
            Err(e) if e == EBUSY || e == EAGAIN => Outcome::Resolve(resolution::RETRY),
            Err(e) if e == ENOMEM => Outcome::Refuse(svm_reason::NO_MEMORY),
            Err(e) if e == EFAULT || e == EHWPOISON => Outcome::Refuse(svm_reason::BAD_ADDRESS),
            Err(e) if e == EPERM || e == EACCES => Outcome::Refuse(svm_reason::BAD_ACCESS),
            Err(_) if self.gpu.transport.is_lost() => Outcome::Closed,
            // Perhaps another time.
            Err(_) => Outcome::Resolve(resolution::RETRY),
        };
        match outcome {
            Outcome::Resolved | Outcome::Closed => {}
            Outcome::Parked => {
                self.counts.faults.fetch_sub(1, Relaxed);
            }
            Outcome::Again => {
                self.counts.faults.fetch_sub(1, Relaxed);
                self.put_back(fault);
            }
            Outcome::Resolve(how) => self.resolve(&fault, how, None),
            Outcome::Coalesced => {
                self.resolve(&fault, resolution::OK, Some(&self.counts.coalesced));
            }
            Outcome::Refuse(reason) => {
                self.lose(Loss::of(&fault, reason));
                let how = match reason {
                    svm_reason::BAD_ACCESS | svm_reason::NO_ATOMIC => resolution::BAD_ACCESS,
                    _ => resolution::BAD_ADDRESS,
                };
                self.resolve(&fault, how, Some(&self.counts.bad));
            }
        }
    }

    /// Sends the resolution of a fault for which nothing is mapped, and counts it in `counter`.
    fn resolve(&self, fault: &Fault, how: u32, counter: Option<&Atomic<u64>>) {
        let count = |by: u64| counter.map(|counter| counter.fetch_add(by, Relaxed));
        // Ahead: who waits for the job may ask for the counts as soon as it is over.
        count(1);
        let sent = || -> Result {
            let resolve = MirrorQueue::fault_resolve(self.space.id(), fault.id, how)?;
            let queue = self.space.queue();
            let mut credit = queue.credit(resolve.descriptors())?;
            let commits = self.lock.commits.lock();
            if self.space.is_closed(&commits) {
                return Ok(());
            }
            self.forget_fault(fault.id);
            queue.put_unkicked(resolve, &mut credit)?;
            drop(commits);
            queue.kick();
            Ok(())
        };
        match sent() {
            Ok(()) => {}
            // Without memory, or room, later, when it is counted again.
            Err(e) if e != ENODEV => {
                count(u64::MAX);
                self.counts.faults.fetch_sub(1, Relaxed);
                self.put_back(*fault);
            }
            Err(_) => {}
        }
    }

    fn try_serve(self: &Arc<Self>, fault: &Fault) -> Result<Outcome> {
        // Its jobs are to end.
        if self.loss.lock().is_some() {
            return Ok(Outcome::Refuse(svm_reason::LOST));
        }
        if fault.access == access::ATOMIC {
            return self.serve_atomic(fault);
        }
        let write = fault.access == access::WRITE;
        let address = usize::try_from(fault.address)?;
        let window = match self.window(address, write)? {
            Ok(window) => window,
            Err(Refusal(reason)) => return Ok(Outcome::Refuse(reason)),
        };
        let page = (address - window.start()) >> PAGE_SHIFT;
        let global_page = address >> PAGE_SHIFT;
        let extent = self.streams.lock().extent(fault.stream, global_page);
        let mut deadline = Deadline::new();
        let mut memory_tries = 0;
        // More than the page has cost the page.
        let mut narrow = self.exact;
        loop {
            let timeout = deadline.next_try_ms()?;
            let room = self.room();
            if window.is_reachable(page, write) {
                if self.is_resolved(&window, page)? {
                    return Ok(Outcome::Coalesced);
                }
                continue;
            }
            if self.park(fault) {
                return Ok(Outcome::Parked);
            }
            let area = match self.area(address, write)? {
                Ok(area) => area,
                Err(Refusal(reason)) => return Ok(Outcome::Refuse(reason)),
            };
            let mut wanted = if narrow {
                Self::wanted_alone(&area, page, write)
            } else {
                self.wanted(&window, &area, page, write, extent.pages)
            };
            let resolved = !self.is_scarce();
            let extent = if narrow { extent.missed() } else { extent };
            // The page behind those that are mapped.
            let mut next = global_page;
            let mut mark = None;
            let attempt = self.attempt(&window, &area, &mut wanted, timeout, |wanted, lookup| {
                let number = |page: usize| (window.start() >> PAGE_SHIFT) + page;
                next = number(lookup.usable_end(page, write)).max(global_page + 1);
                // Ahead: the next fault of the stream may come before this thread goes on.
                let mut streams = self.streams.lock();
                mark = Some(streams.mapped(fault.stream, global_page, next, extent));
                drop(streams);
                match resolved {
                    true => {
                        self.commit_resolved(fault, |how| window.commit(wanted, lookup, Some(how)))
                    }
                    false => window.commit(wanted, lookup, None),
                }
            });
            if let (Some(mark), false) = (mark, matches!(attempt, Ok(Attempt::Sent(_)))) {
                self.streams.lock().not_mapped(fault.stream, mark);
            }
            let sent = match attempt {
                Ok(Attempt::Sent(sent)) => sent,
                Ok(Attempt::Overtaken) => continue,
                Ok(Attempt::Changed) => {
                    narrow = true;
                    continue;
                }
                Ok(Attempt::Revoking) => {
                    drop(self.revoking.lock()?);
                    continue;
                }
                Ok(Attempt::Closed) => return Ok(Outcome::Closed),
                // For the commands, not for what was touched.
                Ok(Attempt::Unsent(e)) if e == ENOMEM => {
                    return Ok(Outcome::Resolve(resolution::RETRY));
                }
                Ok(Attempt::Unsent(e)) => return Err(e),
                // Which of them it is about is to be known.
                Err(e) if !narrow && is_about_pages(e) => {
                    narrow = true;
                    continue;
                }
                Err(e) if e == ENOMEM && memory_tries < MEMORY_TRIES => {
                    memory_tries += 1;
                    continue;
                }
                Err(e) => return Err(e),
            };
            self.counts.pages.fetch_add(sent.pages() as u64, Relaxed);
            if sent.pages() > 0 {
                self.in_vain.lock().mapped(global_page..global_page + 1);
            }
            let end = window.reachable_end(page..window.granule(page).end, write);
            // There may have been too few commands for all.
            let reached = global_page + (end - page).max(1);
            self.streams.lock().goes_on_at(fault.stream, next, reached);
            if resolved {
                self.confirm_later(Unconfirmed {
                    window,
                    sent,
                    ahead: false,
                });
                if write {
                    self.map_ahead(fault.stream, reached << PAGE_SHIFT, &area, extent.ahead);
                }
                return Ok(Outcome::Resolved);
            }
            match self.outcome(&window, &sent, narrow, room)? {
                Some(outcome) => return Ok(outcome),
                None => narrow = true,
            }
        }
    }

    /// Whether a fault on page `page` of a window, which the device should reach by now, is to be
    /// resolved. If not, it does not reach the page any more.
    fn is_resolved(&self, window: &Window, page: usize) -> Result<bool> {
        let number = (window.start() >> PAGE_SHIFT) + page;
        if self.in_vain.lock().is_too_often(number) {
            let revoking = self.revoking.lock()?;
            window.revoke(page..page + 1)?;
            drop(revoking);
            return Ok(false);
        }
        Ok(true)
    }

    /// Calls `commit` with the resolution of `fault`, which it is to send along with the MAP.
    fn commit_resolved(
        &self,
        fault: &Fault,
        commit: impl FnOnce((u64, u32)) -> Result<Committed>,
    ) -> Result<Committed> {
        self.forget_fault(fault.id);
        let committed = commit((fault.id, resolution::OK));
        if !matches!(committed, Ok(Committed::Sent(_))) {
            self.remember_fault(fault.id);
        }
        committed
    }

    /// How a fault ends for which `sent` was sent, and no resolution; `None` if it is to be tried
    /// again. The page was looked up `alone`, or in company, since [`Svm::room`] was `room`.
    fn outcome(
        &self,
        window: &Window,
        sent: &Sent,
        alone: bool,
        room: Room,
    ) -> Result<Option<Outcome>> {
        let response = self.confirm_sent(window, sent)?;
        if response.status == status::OK {
            self.shortages.lock().faults.taken(sent.pages());
        }
        Ok(Some(match response.status {
            status::OK => Outcome::Resolve(resolution::OK),
            // There may be room for one, but not for all.
            status::NO_MEMORY
                if self.make_room(room.but_for(response.invalidations), sent.pages())?
                    || !alone =>
            {
                return Ok(None);
            }
            status::NO_MEMORY => Outcome::Refuse(svm_reason::NO_MEMORY),
            // An event says so, and why.
            status::NO_SUCH_SPACE => Outcome::Closed,
            // Not this page, or not in this company.
            _ if alone => Outcome::Refuse(svm_reason::BAD_ADDRESS),
            _ => return Ok(None),
        }))
    }

    /// The window around an address. None is made for one that the process may not read, or write
    /// with `write`.
    ///
    /// # Errors
    ///
    /// [`EAGAIN`] if there is no memory for it, which says nothing of what was touched; [`EIO`] if
    /// the address space ends, [`EINTR`] on a fatal signal.
    fn window(&self, address: usize, write: bool) -> Result<Result<Arc<Window>, Refusal>> {
        if let Some(window) = self.windows.existing(address) {
            return Ok(Ok(window));
        }
        match self.area(address, write)? {
            Ok(_) => match self.windows.window(address) {
                Err(e) if e == ENOMEM => Err(EAGAIN),
                window => window.map(Ok),
            },
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// The area around an address, if the process may read it, or write it with `write`.
    fn area(&self, address: usize, write: bool) -> Result<Result<Area, Refusal>> {
        let Some(area) = Area::at(address)? else {
            return Ok(Err(Refusal(svm_reason::BAD_ADDRESS)));
        };
        if area.is_special() {
            return Ok(Err(Refusal(svm_reason::BAD_ADDRESS)));
        }
        if !area.may_read() || write && !area.may_write() {
            return Ok(Err(Refusal(svm_reason::BAD_ACCESS)));
        }
        Ok(Ok(area))
    }
}
