// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What an INVALIDATE has to wait for: the commands that were in the queue before it.
//!
//! The guest's memory reclaim waits for INVALIDATE, and a process of the guest can have as many
//! MAPs sent as the driver lets it. How many of one client were before an INVALIDATE of another is
//! what a driver can bound.

use std::collections::{HashMap, VecDeque};

/// The commands that are in the queue, and those that were in it when they came.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// Commands that were taken from the queue.
    taken: u64,
    /// Of each command that is known to be in the queue, which was taken last when it was seen.
    seen: VecDeque<u64>,
    /// MAPs, oldest first: their numbers and contexts.
    maps: VecDeque<(u64, u32)>,
}

impl Backlog {
    /// A command was taken, and `more` are in the queue. It is a MAP of context `map`, if that is
    /// `Some`. Returns the number of the command that was taken last when it was seen.
    pub(crate) fn take(&mut self, more: u16, map: Option<u32>) -> u64 {
        let number = self.taken;
        self.taken += 1;
        let since = self.seen.pop_front().unwrap_or(number);
        self.seen.resize(self.seen.len().max(more.into()), number);
        let oldest = self.seen.front().map_or(since, |seen| since.min(*seen));
        while self.maps.front().is_some_and(|(map, _)| *map < oldest) {
            self.maps.pop_front();
        }
        if let Some(ctx) = map {
            self.maps.push_back((number, ctx));
        }
        since
    }

    /// Most MAPs of one context, not `except`, from number `since` on.
    pub(crate) fn maps_since(&self, since: u64, except: u32) -> u64 {
        let mut counts: HashMap<u32, u64> = HashMap::new();
        for (number, ctx) in &self.maps {
            if *number >= since && *ctx != except {
                *counts.entry(*ctx).or_default() += 1;
            }
        }
        counts.into_values().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before() {
        let mut backlog = Backlog::default();
        // Nothing else is in the queue.
        assert_eq!(backlog.take(0, Some(1)), 0);
        let since = backlog.take(0, None);
        assert_eq!(backlog.maps_since(since, 2), 0);
        // Four more come with this one: MAPs of 1, 1, 3 and 2, and then an INVALIDATE of 2.
        for (more, ctx) in [(4, 1), (3, 1), (2, 3), (1, 2)] {
            backlog.take(more, Some(ctx));
        }
        let since = backlog.take(2, None);
        assert_eq!(backlog.maps_since(since, 2), 2);
        assert_eq!(backlog.maps_since(since, 1), 1);
        // Two came behind it, and it is no MAP.
        backlog.take(1, Some(1));
        let since = backlog.take(0, None);
        assert_eq!(backlog.maps_since(since, 2), 1);
        assert_eq!(backlog.maps.len(), 1);
    }

    #[test]
    fn it_forgets() {
        let mut backlog = Backlog::default();
        for number in 0..10_000 {
            backlog.take(if number % 7 == 6 { 0 } else { 3 }, Some(1));
        }
        assert!(backlog.maps.len() < 20 && backlog.seen.len() < 20);
    }
}
