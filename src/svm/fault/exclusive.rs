// SPDX-License-Identifier: GPL-2.0

//! Faults of a device whose atomic accesses are not coherent with the processors': it needs the
//! page alone. How it gets it is in `mirror/exclusive.rs`.
//!
//! The page is looked up as for a write before the kernel is asked for it alone. That is where a
//! userfaultfd may bring, or another device gives the page back; and it is a lookup like any
//! other, so that a change of the page between the two is noticed in the same way. Taking the page
//! may be such a change itself, once: where it was part of a huge page, or was shared with a child.

use super::{
    room::Room,
    Loss,
    Outcome,
    Refusal,
    Svm,
    MEMORY_TRIES, //
};
use crate::{
    kapi::mm::FaultWait,
    mirror::{
        Committed,
        Deadline,
        Sent,
        Wanted,
        Window, //
    },
    protocol::{
        mirror::{
            resolution,
            status, //
        },
        uapi::svm_reason, //
    },
    transport::event::Fault,
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::ordering::Relaxed,
        Arc, //
    }, //
};

impl Svm {
    /// Serves a fault of an access for which the device needs the page alone.
    pub(super) fn serve_atomic(self: &Arc<Self>, fault: &Fault) -> Result<Outcome> {
        let address = usize::try_from(fault.address)?;
        let window = match self.window(address, true)? {
            Ok(window) => window,
            Err(Refusal(reason)) => return Ok(Outcome::Refuse(reason)),
        };
        let page = (address - window.start()) >> PAGE_SHIFT;
        let mut deadline = Deadline::new();
        let mut memory_tries = 0;
        loop {
            let timeout = deadline.next_try_ms()?;
            let room = self.room();
            // Another thread may have got it meanwhile, from which it is not to be taken again.
            if window.is_exclusive(page) {
                if self.is_resolved(&window, page)? {
                    return Ok(Outcome::Coalesced);
                }
                continue;
            }
            let area = match self.area(address, true)? {
                Ok(area) => area,
                Err(Refusal(reason)) => return Ok(Outcome::Refuse(reason)),
            };
            // What is not refused here the kernel does not give. It is spared the write.
            if area.is_shared() || area.is_hugetlb() {
                return Ok(Outcome::Refuse(svm_reason::NO_ATOMIC));
            }
            let mut wanted = Wanted {
                ask: page..page + 1,
                around: page..page + 1,
                write: true,
                eager: false,
                read_only: false,
                alone: true,
                wait: FaultWait::Interruptible,
            };
            let lookup = match window.look_up(&self.windows, &mut wanted, timeout) {
                Ok(Some(lookup)) => lookup,
                Ok(None) => continue,
                Err(e) if e == ENOMEM && memory_tries < MEMORY_TRIES => {
                    memory_tries += 1;
                    continue;
                }
                Err(e) => return Err(e),
            };
            // The page stays with the device for a short time only, so that the resolution goes
            // with the MAP whatever becomes of that.
            let committed = self.commit_resolved(fault, |how| {
                // Ahead: the job may be over before this thread goes on.
                self.counts.exclusive.fetch_add(1, Relaxed);
                let committed = window.commit_exclusive(&lookup, how);
                if !matches!(committed, Ok(Committed::Sent(_))) {
                    self.counts.exclusive.fetch_sub(1, Relaxed);
                }
                committed
            });
            drop(lookup);
            let sent = match committed {
                Ok(Committed::Sent(sent)) => sent,
                Ok(Committed::Closed) => return Ok(Outcome::Closed),
                Ok(Committed::Stale) => continue,
                Ok(Committed::Revoking) => {
                    drop(self.revoking.lock()?);
                    continue;
                }
                Err(e) if e == EOPNOTSUPP => return Ok(Outcome::Refuse(svm_reason::NO_ATOMIC)),
                // What was there is not any more, which the next lookup tells.
                Err(e) if e == EFAULT => continue,
                Err(e) if e == ENOMEM => return Ok(Outcome::Resolve(resolution::RETRY)),
                Err(e) => return Err(e),
            };
            let number = address >> PAGE_SHIFT;
            self.in_vain.lock().mapped(number..number + 1);
            self.counts.pages.fetch_add(1, Relaxed);
            self.confirm_alone(&window, &sent, fault, room);
            return Ok(Outcome::Resolved);
        }
    }

    /// Waits for the response to the MAP that was sent along with the resolution of `fault`. If the
    /// device has refused it, there is another fault, for which there is room by then, or which
    /// is refused, as the context is lost. [`Svm::room`] was `room` before it was sent.
    fn confirm_alone(&self, window: &Window, sent: &Sent, fault: &Fault, room: Room) {
        let Ok(response) = self.confirm_sent(window, sent) else {
            return;
        };
        let reason = match response.status {
            status::NO_MEMORY
                if self.make_room(room.but_for(response.invalidations), 1) == Ok(false) =>
            {
                svm_reason::NO_MEMORY
            }
            // An event says that the space is gone.
            status::OK | status::NO_MEMORY | status::NO_SUCH_SPACE => return,
            _ => svm_reason::BAD_ADDRESS,
        };
        self.lose(Loss::of(fault, reason));
    }
}
