// SPDX-License-Identifier: GPL-2.0

//! Mirrored memory: the device follows the process's page tables, and the driver holds no page.
//!
//! A registration has a space on the device and an interval notifier. Pages are mapped into the
//! space when a job wants to use them ([`populate`]), and invalidated before the kernel changes
//! their page tables ([`invalidate`]). What is mapped is in [`table`], which is valid under the
//! file's [`NotifierLock`]; the notifier's sequence only tells that a lookup must be repeated.
//!
//! A job is queued with the lock held, after a look at the tables of all its ranges, and its fence
//! is attached under the same lock: so a callback either comes before, and the job is not queued,
//! or comes after, and waits for its fence.
//!
//! The lock is a mutex, not one for many readers: what is done under it is a few microseconds of
//! marking or queueing.

mod changes;
#[cfg(CONFIG_KUNIT = "y")]
mod changes_tests;
mod commit;
mod event;
mod evict;
mod exclusive;
mod invalidate;
mod lookup;
mod populate;
mod range;
mod slices;
mod space;
mod table;
#[cfg(CONFIG_KUNIT = "y")]
mod table_tests;
mod window;
mod windows;

pub(crate) use self::{
    commit::Committed,
    event::{
        EventSender,
        RangeEvents, //
    },
    lookup::{
        Lookup,
        Wanted, //
    },
    populate::Deadline,
    range::{
        Jobs,
        MirroredRange,
        RangeParams, //
    },
    space::Space,
    window::{
        Response,
        Sent,
        Window,
        WINDOW, //
    },
    windows::Windows,
};

use self::{
    evict::{
        Oldest,
        Residents, //
    },
    invalidate::Handler,
    populate::MapMode,
    slices::Slices, //
};
use crate::{
    kapi::{
        mm::{
            is_current,
            IntervalNotifier, //
        },
        sync::{
            reclaim,
            KillableMutex, //
        },
    },
    transport::{
        event::SpaceOwner,
        mirror::SpaceOf, //
    },
};
use kernel::{
    mm::Mm,
    new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::ordering::Relaxed,
        Arc,
        Mutex, //
    },
};

/// Evidence that a file's [`NotifierLock`] is held. It has a size, so that one can be told from
/// another.
pub(crate) struct Commits {
    /// Pages that the device has alone since a short time.
    slices: Slices,
}

/// The lock of all mirrored ranges of a file.
///
/// Taken by notifier callbacks: while it is held, nothing is allocated that memory reclaim may be
/// entered for, no user memory is touched and nothing is waited for.
#[pin_data]
pub(crate) struct NotifierLock {
    /// Protects the tables of the ranges.
    #[pin]
    pub(crate) commits: Mutex<Commits>,
    /// The ranges that have a space.
    #[pin]
    residents: Residents,
}

impl NotifierLock {
    /// A new lock.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new() -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            pin_init!(Self {
                commits <- new_mutex!(Commits { slices: Slices::new() }, "NotifierLock::commits"),
                residents <- Residents::new(),
            }),
            GFP_KERNEL,
        )?;
        // Reclaim takes the lock seldom; lockdep is to know it from the start.
        let section = reclaim::enter();
        drop(this.commits.lock());
        drop(section);
        Ok(this)
    }

    /// Whether the file has mirrored memory.
    pub(crate) fn has_ranges(&self) -> bool {
        !self.residents.is_empty()
    }

    /// The time of a job that begins, see [`Mirrored::touch`].
    pub(crate) fn now(&self) -> u64 {
        self.residents.now()
    }
}

type Notifier = IntervalNotifier<Handler>;
type PinnedNotifier = Pin<KBox<Notifier>>;

/// A registration of mirrored memory.
#[pin_data]
pub(crate) struct Mirrored {
    range: Arc<MirroredRange>,
    /// The process.
    mm: ARef<Mm>,
    /// Held while pages are looked up, faulted in and mapped, by one thread at a time. `None`
    /// before the beginning of the registration, and after its end.
    #[pin]
    outer: KillableMutex<Option<PinnedNotifier>>,
}

impl Mirrored {
    /// A registration of `range`, which is memory of `mm`'s. Nothing is followed yet.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(range: Arc<MirroredRange>, mm: ARef<Mm>) -> Result<Arc<Self>> {
        let key = kernel::static_lock_class!();
        Arc::pin_init(
            pin_init!(Self {
                range,
                mm,
                outer <- KillableMutex::new(None, c"Mirrored::outer", key),
            }),
            GFP_KERNEL,
        )
    }

    /// Follows the memory, which is at `addr`: has the device make the space, of `size` bytes, for
    /// resource `id`, and begins the notifications. [`Mirrored::end`] ends what has begun, also on
    /// failure.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if the device has no more spaces, [`ENOMEM`], [`EBUSY`], [`ENODEV`], [`EINTR`] on
    /// a signal, that of the device.
    pub(crate) fn begin(&self, id: u32, size: u64, addr: usize) -> Result {
        let range = &self.range;
        let mut outer = self.outer.lock()?;
        let owner: Arc<dyn SpaceOwner> = range.clone();
        range
            .space
            .create(SpaceOf::Resource(id), size, Some(owner))?;
        *outer = Some(KBox::pin_init(
            Notifier::new(
                &self.mm,
                addr,
                range.pages << PAGE_SHIFT,
                Handler(range.clone()),
            ),
            GFP_KERNEL,
        )?);
        drop(outer);
        // Taken out by `Mirrored::end`.
        range.lock.residents.add(range)
    }

    /// The range, as others see it.
    pub(crate) fn range(&self) -> &Arc<MirroredRange> {
        &self.range
    }

    /// A job that uses the range has begun at `now`: the range is not evicted for the sake of that
    /// job, nor of one that began before.
    pub(crate) fn touch(&self, now: u64) {
        self.range.used.store(now, Relaxed);
    }

    /// Makes everything usable that a job needs which uses the range.
    ///
    /// # Errors
    ///
    /// [`EIO`] if the device has dropped the space, [`EACCES`] in another process, [`EFAULT`] where
    /// nothing is mapped, [`EPERM`] where the process may not write, [`EBUSY`] if pages keep
    /// changing for a second, [`ENOMEM`], [`ENODEV`], [`EINTR`].
    pub(crate) fn make_ready(&self) -> Result {
        self.check_process()?;
        if self.range.is_revoked() {
            return Err(EIO);
        }
        if self.range.is_ready(&self.range.lock.commits.lock()) {
            // MAPs of another thread have been responded to when their pages are mapped.
            return Ok(());
        }
        let mode = if self.range.sparse {
            MapMode::Known
        } else {
            MapMode::All
        };
        self.map(0, self.range.pages, mode).1
    }

    /// Makes `pages` pages from page `first` on usable; returns how many are, also on failure.
    ///
    /// # Errors
    ///
    /// As [`Mirrored::make_ready`], about the first page that is not usable.
    pub(crate) fn prefetch(&self, first: usize, pages: usize) -> (usize, Result) {
        if let Err(e) = self.check_process() {
            return (0, Err(e));
        }
        if self.range.is_revoked() {
            return (0, Err(EIO));
        }
        self.touch(self.range.lock.now());
        self.map(first, pages, MapMode::Prefix)
    }

    /// The registration has a handle, by which events call it.
    pub(crate) fn set_handle(&self, handle: u32) {
        if let Some(events) = &self.range.events {
            events.open(handle);
        }
    }

    /// The handle is closed: no events are sent any more.
    pub(crate) fn close_handle(&self) {
        if let Some(events) = &self.range.events {
            events.close();
        }
    }

    fn check_process(&self) -> Result {
        if !is_current(&self.mm) {
            return Err(EACCES);
        }
        Ok(())
    }

    fn map(&self, first: usize, pages: usize, mode: MapMode) -> (usize, Result) {
        // Dropped when the locks are free.
        let mut oldest = [Oldest::new(), Oldest::new()];
        let outer = match self.outer.lock() {
            Ok(outer) => outer,
            Err(e) => return (0, Err(e)),
        };
        let Some(notifier) = &*outer else {
            return (0, Err(ENODEV));
        };
        let which = first..first + pages;
        self.range.refused.store(false, Relaxed);
        let (mut end, mut outcome) = self.range.map_stale(notifier, which.clone(), mode);
        // As much as is needed, then all there is: runs of pages, not pages, are what the device is
        // short of.
        for (most, oldest) in [pages, usize::MAX].into_iter().zip(&mut oldest) {
            if outcome.is_ok() || !self.range.refused.xchg(false, Relaxed) {
                break;
            }
            let since = self.range.used.load(Relaxed);
            match self.range.lock.residents.evict(since, most, oldest) {
                Ok(0) => break,
                Ok(_) => (end, outcome) = self.range.map_stale(notifier, which.clone(), mode),
                Err(_) => break,
            }
        }
        (end - first, outcome)
    }

    /// What the pages are mapped into.
    pub(crate) fn space(&self) -> &Space {
        &self.range.space
    }

    /// Removes the notifier; on an error of `ended` the device is lost, otherwise the space has
    /// ended. The caller has the only reference to the registration. Waits for all changes of the
    /// process's memory that are under way, for which there is no bound.
    ///
    /// Must not be called with a lock held that a notifier callback takes.
    pub(crate) fn end(&self, ended: Result) {
        self.range.lock.residents.remove(&self.range);
        let mut outer = self.outer.lock_unkillable();
        match ended {
            Ok(()) => self.range.set_all_unmapped(),
            // The device may reach the pages until it has been reset.
            Err(_) => self.range.quarantine(0..self.range.pages),
        }
        let notifier = outer.take();
        drop(outer);
        drop(notifier);
    }
}
