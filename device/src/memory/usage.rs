// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Mappings of the host, of which a process has a limited number, and whose they are.
//!
//! A client of the guest is known by the context that its resources are created in. It gets no more
//! mappings by MAP than it leaves free for everybody else. INVALIDATE cannot be refused, and one in
//! the middle of a run needs two mappings more: a client may take of what was left that way, up to
//! eight times what it leaves. Then the space that would have been split is lost instead. Who has
//! fewer mappings than the client that uses most never loses a space on its account.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// How many times the free mappings a client may have after an INVALIDATE.
const SPLIT: usize = 8;

/// Mappings that a client has, and those of all clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// Its context.
    ctx: u32,
    own: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

impl Usage {
    /// The context of the client.
    pub(crate) fn client(&self) -> u32 {
        self.ctx
    }

    /// There are `count` more.
    pub(crate) fn add(&self, count: usize) {
        self.own.fetch_add(count, Ordering::Relaxed);
        self.all.fetch_add(count, Ordering::Relaxed);
    }

    /// There are `count` less.
    pub(crate) fn subtract(&self, count: usize) {
        self.own.fetch_sub(count, Ordering::Relaxed);
        self.all.fetch_sub(count, Ordering::Relaxed);
    }

    /// There are `after` where `before` were.
    pub(crate) fn change(&self, before: usize, after: usize) {
        match after.checked_sub(before) {
            Some(more) => self.add(more),
            None => self.subtract(before - after),
        }
    }

    /// Mappings of the client.
    #[cfg(test)]
    pub(crate) fn own(&self) -> usize {
        self.own.load(Ordering::Relaxed)
    }

    /// Whether the client has at most `times` what `most` leaves free, once it has `after` where
    /// `before` were.
    fn fits(&self, before: usize, after: usize, times: usize, most: usize) -> bool {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) - before + after;
        let (own, all) = (count(&self.own), count(&self.all));
        most.checked_sub(all)
            .is_some_and(|free| own <= free.saturating_mul(times))
    }
}

/// The mappings that there are for all clients.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    all: Arc<AtomicUsize>,
    /// By context.
    clients: HashMap<u32, Arc<AtomicUsize>>,
    /// How many of them there may be before those are looked for that no one counts on any more.
    enough: usize,
}

impl Budget {
    /// One of `most` mappings.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            all: Arc::default(),
            clients: HashMap::new(),
            enough: 16,
        }
    }

    /// What the client of context `ctx` uses.
    pub(crate) fn client(&mut self, ctx: u32) -> Usage {
        if self.clients.len() >= self.enough {
            self.clients.retain(|_, own| Arc::strong_count(own) > 1);
            self.enough = 16 + 2 * self.clients.len();
        }
        Usage {
            ctx,
            own: self.clients.entry(ctx).or_default().clone(),
            all: self.all.clone(),
        }
    }

    /// Whether a MAP may need `after` mappings where `before` were.
    pub(crate) fn may_map(&self, usage: &Usage, before: usize, after: usize) -> bool {
        usage.fits(before, after, 1, self.most)
    }

    /// Whether an INVALIDATE may leave `after` mappings where `before` were.
    pub(crate) fn may_split(&self, usage: &Usage, before: usize, after: usize) -> bool {
        after <= before || usage.fits(before, after, SPLIT, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let mut budget = Budget::new(900);
        let (one, two) = (budget.client(1), budget.client(2));
        assert!(budget.may_map(&one, 0, 450));
        assert!(!budget.may_map(&one, 0, 451));
        one.add(450);
        assert!(!budget.may_map(&one, 10, 11));
        assert!(budget.may_map(&one, 10, 10));
        // What is left is shared alike.
        assert!(budget.may_map(&two, 0, 225));
        assert!(!budget.may_map(&two, 0, 226));
        // Splitting goes further, but not to the end.
        assert!(budget.may_split(&one, 450, 800));
        assert!(!budget.may_split(&one, 450, 801));
        one.change(450, 800);
        assert!(budget.may_map(&two, 0, 50));
        two.add(50);
        // Now it is the larger one that cannot grow.
        assert!(!budget.may_split(&one, 0, 1));
        assert!(budget.may_split(&two, 0, 2));
        // What needs no more is always possible.
        assert!(budget.may_split(&one, 5, 5));
        one.change(800, 0);
        assert_eq!((one.own(), two.own()), (0, 50));
        assert!(budget.may_map(&two, 50, 450));
    }

    #[test]
    fn clients_are_forgotten() {
        let mut budget = Budget::new(10);
        for ctx in 0..100 {
            budget.client(ctx).add(0);
        }
        assert!(budget.clients.len() <= 16);
        let kept = budget.client(7);
        kept.add(3);
        for ctx in 0..100 {
            budget.client(ctx);
        }
        assert_eq!(budget.client(7).own(), 3);
    }
}
