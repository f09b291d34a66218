// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A thread that writes to mapped pages as long as it may.
//!
//! It keeps rewriting each writable page of the spaces that a test has marked with the bytes that
//! the page had when it was mapped, through the mapping of the space, until that is revoked. In a
//! guest that gives a page to somebody else before INVALIDATE is acknowledged, what the new owner
//! writes does not last. The mark is bit 63 of the `blob_id` of a HOST3D_GUEST resource; no one may
//! write to the pages of one that is marked, neither guest nor jobs.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::log::{Event, EventLog};
use crate::memory::area::Area;
use crate::memory::PAGE;

/// Bit of `blob_id` that marks a resource.
pub(crate) const MARK: u64 = 1 << 63;

/// A page: its space and its address there.
type Key = (u32, u64);

struct Page {
    area: Arc<Area>,
    /// What was in it when it was mapped.
    bytes: Box<[u8]>,
}

#[derive(Default)]
struct Inner {
    pages: BTreeMap<Key, Page>,
    started: bool,
    over: bool,
}

/// The thread's work.
pub(crate) struct Hammer {
    inner: Mutex<Inner>,
    work: Condvar,
    /// Who wants the lock: the thread takes it again and again, and would let no one else have it.
    waiting: AtomicUsize,
    log: Arc<EventLog>,
}

impl Hammer {
    /// Without work.
    pub(crate) fn new(log: Arc<EventLog>) -> Self {
        Self {
            inner: Mutex::default(),
            work: Condvar::new(),
            waiting: AtomicUsize::new(0),
            log,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, before the thread gets it once more.
    fn lock_first(&self) -> MutexGuard<'_, Inner> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let guard = self.lock();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        guard
    }

    /// From now on pages of a space are rewritten: `length` bytes at `start`, which are mapped.
    pub(crate) fn add(self: &Arc<Self>, space: u32, area: &Arc<Area>, start: u64, length: u64) {
        let mut pages = Vec::new();
        for at in (start..start + length).step_by(PAGE as usize) {
            let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
            if area.read(at, &mut bytes).is_ok() {
                let area = area.clone();
                pages.push(((space, at), Page { area, bytes }));
            }
        }
        let mut inner = self.lock_first();
        self.log.write(|| Event::Hammer {
            space,
            start,
            length,
            on: true,
        });
        inner.pages.extend(pages);
        if !std::mem::replace(&mut inner.started, true) {
            let hammer = self.clone();
            std::thread::spawn(move || hammer.run());
        }
        drop(inner);
        self.work.notify_one();
    }

    /// Ends what [`Self::add`] began, for what is between `start` and `end`. When it returns,
    /// nothing is written there any more.
    pub(crate) fn remove(&self, space: u32, start: u64, end: u64) {
        let mut inner = self.lock_first();
        let range = inner.pages.range((space, start)..(space, end));
        let keys: Vec<Key> = range.map(|(key, _)| *key).collect();
        for key in &keys {
            inner.pages.remove(key);
        }
        if !keys.is_empty() {
            self.log.write(|| Event::Hammer {
                space,
                start,
                length: end - start,
                on: false,
            });
        }
    }

    /// Ends the thread.
    pub(crate) fn end(&self) {
        self.lock_first().over = true;
        self.work.notify_one();
    }

    fn run(&self) {
        let mut last = (0, 0);
        loop {
            let mut inner = self.lock();
            while inner.pages.is_empty() && !inner.over {
                inner = self
                    .work
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if inner.over {
                return;
            }
            let after = (Bound::Excluded(last), Bound::Unbounded);
            let next = inner
                .pages
                .range(after)
                .next()
                .or(inner.pages.iter().next());
            if let Some((key, page)) = next {
                last = *key;
                // A page that has been revoked is about to be removed.
                let _ = page.area.write(key.1, &page.bytes);
            }
            drop(inner);
            while self.waiting.load(Ordering::SeqCst) > 0 {
                std::thread::yield_now();
            }
        }
    }
}
