// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Timelines, and which of them a worker serves next.
//!
//! It is the one that has been ready for longest, of those whose context can have one more worker.
//! What that depends on is the same for all timelines of a context, so a pool keeps them together
//! and sorts the contexts by their first ones: however many wait, the next is found in a time that
//! grows with the logarithm of the number of contexts.

use std::collections::{BTreeMap, HashMap, VecDeque};

use virtgpu_protocol::virtio_gpu::{Header, FLAG_INFO_RING_IDX};

/// A sequence of jobs and responses that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Timeline {
    /// That of all requests without a ring, of any context.
    Global,
    /// A ring of a context.
    Ring(u32, u8),
    /// The jobs of a ring of a context in fault mode, with which no responses wait.
    Faulting(u32, u8),
}

impl Timeline {
    /// The timeline of a request.
    pub(crate) fn of(header: &Header) -> Self {
        if header.flags.get() & FLAG_INFO_RING_IDX != 0 {
            Self::Ring(header.ctx_id.get(), header.ring_idx)
        } else {
            Self::Global
        }
    }

    /// The ring's number.
    pub(crate) fn ring(self) -> Option<u8> {
        match self {
            Self::Global => None,
            Self::Ring(_, ring) | Self::Faulting(_, ring) => Some(ring),
        }
    }

    /// Which workers serve it.
    pub(crate) fn pool(self) -> Which {
        match self {
            Self::Faulting(..) => Which::Faulting,
            _ => Which::Others,
        }
    }
}

/// Workers: those of jobs that may stall, or all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Others,
    Faulting,
}

/// The timelines of a context of which a pool knows, or all of those that no share limits.
#[derive(Debug, Default)]
struct Client {
    /// Workers that serve one, of those that may stall.
    busy: usize,
    /// Timelines that a worker should look at, and when each came.
    ready: VecDeque<(u64, Timeline)>,
}

/// The workers of one kind.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Workers waiting for a timeline.
    pub(crate) idle: usize,
    /// Workers.
    pub(crate) workers: usize,
    /// Those who have a timeline that is ready, or one that is served. What no share limits is of
    /// no context.
    clients: HashMap<Option<u32>, Client>,
    /// Whose timeline is ready, by when the first of each came: those who have none served.
    first: BTreeMap<u64, Option<u32>>,
    /// The same of those who have, and not yet their share.
    further: BTreeMap<u64, Option<u32>>,
    /// Timelines that are ready.
    ready: usize,
    /// How many have ever been.
    came: u64,
    /// Workers that are not the only one of their context.
    more: usize,
}

impl Pool {
    /// The most that a context has at work of those that may stall.
    const SHARE: usize = 8;
    /// The most that all contexts have, beyond one for each.
    pub(crate) const MORE: usize = 512;

    /// Whose share a timeline is of.
    fn client(timeline: Timeline) -> Option<u32> {
        match timeline {
            Timeline::Faulting(ctx, _) => Some(ctx),
            Timeline::Global | Timeline::Ring(..) => None,
        }
    }

    /// Changes what is known of a client.
    fn change<T>(&mut self, of: Option<u32>, f: impl FnOnce(&mut Client) -> T) -> T {
        let client = self.clients.entry(of).or_default();
        if let Some((came, _)) = client.ready.front() {
            self.first.remove(came);
            self.further.remove(came);
        }
        let result = f(client);
        match client.ready.front() {
            Some((came, _)) if client.busy == 0 => drop(self.first.insert(*came, of)),
            Some((came, _)) if client.busy < Self::SHARE => drop(self.further.insert(*came, of)),
            Some(_) => {}
            None if client.busy == 0 => drop(self.clients.remove(&of)),
            None => {}
        }
        result
    }

    /// Timelines that a worker should look at.
    pub(crate) fn ready(&self) -> usize {
        self.ready
    }

    /// A worker should look at a timeline.
    pub(crate) fn push(&mut self, timeline: Timeline) {
        let came = self.came;
        self.came += 1;
        self.ready += 1;
        self.change(Self::client(timeline), |client| {
            client.ready.push_back((came, timeline));
        });
    }

    /// No worker should look at any.
    pub(crate) fn clear(&mut self) {
        self.ready = 0;
        self.first.clear();
        self.further.clear();
        for client in self.clients.values_mut() {
            client.ready.clear();
        }
        self.clients.retain(|_, client| client.busy > 0);
    }

    /// Whose turn it is. A context can always have one worker, however many jobs of others stall.
    fn turn(&self) -> Option<Option<u32>> {
        let further = (self.more < Self::MORE).then_some(&self.further);
        let fronts = [Some(&self.first), further].into_iter().flatten();
        let fronts = fronts.filter_map(BTreeMap::first_key_value);
        fronts.min().map(|(_, of)| *of)
    }

    /// Whether it is the turn of a timeline.
    pub(crate) fn has_next(&self) -> bool {
        self.turn().is_some()
    }

    /// The next timeline whose turn it is.
    pub(crate) fn next(&mut self) -> Option<Timeline> {
        let of = self.turn()?;
        let (_, timeline) = self.change(of, |client| client.ready.pop_front())?;
        self.ready -= 1;
        Some(timeline)
    }

    /// A worker begins to serve a timeline.
    pub(crate) fn begin(&mut self, timeline: Timeline) {
        let of = Self::client(timeline);
        if of.is_some() {
            let others = self.change(of, |client| {
                client.busy += 1;
                client.busy - 1
            });
            self.more += usize::from(others > 0);
        }
    }

    /// It has served it.
    pub(crate) fn end(&mut self, timeline: Timeline) {
        let of = Self::client(timeline);
        if of.is_some() {
            let others = self.change(of, |client| {
                client.busy = client.busy.saturating_sub(1);
                client.busy
            });
            self.more -= usize::from(others > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What [`Pool`] has to do, without being fast: it looks at all that is ready.
    #[derive(Default)]
    struct Model {
        ready: VecDeque<Timeline>,
        served: Vec<Timeline>,
    }

    impl Model {
        fn busy(&self, timeline: Timeline) -> usize {
            let of = Pool::client(timeline);
            let served = self.served.iter().filter(|t| Pool::client(**t) == of);
            served.count()
        }

        /// Served timelines that are not the only one of their context.
        fn more(&self) -> usize {
            let clients: std::collections::BTreeSet<_> =
                self.served.iter().map(|t| Pool::client(*t)).collect();
            self.served.len() - clients.len()
        }

        fn next(&mut self) -> Option<Timeline> {
            let may = |timeline: &Timeline| match self.busy(*timeline) {
                _ if Pool::client(*timeline).is_none() => true,
                0 => true,
                busy => busy < Pool::SHARE && self.more() < Pool::MORE,
            };
            let at = self.ready.iter().position(may)?;
            self.ready.remove(at)
        }
    }

    /// A pool and its model, which agree.
    #[derive(Default)]
    struct Both(Pool, Model);

    impl Both {
        fn push(&mut self, timeline: Timeline) {
            self.0.push(timeline);
            self.1.ready.push_back(timeline);
        }

        fn serve(&mut self) -> Option<Timeline> {
            let next = self.1.next();
            assert_eq!(self.0.has_next(), next.is_some());
            assert_eq!(self.0.next(), next);
            assert_eq!(self.0.ready(), self.1.ready.len());
            if let Some(timeline) = next {
                self.0.begin(timeline);
                if Pool::client(timeline).is_some() {
                    self.1.served.push(timeline);
                }
            }
            next
        }

        fn end(&mut self, at: usize) {
            let timeline = self.1.served.swap_remove(at);
            self.0.end(timeline);
        }
    }

    #[test]
    fn a_context_has_its_share_and_others_go_on() {
        let mut pool = Pool::default();
        let rings = |ctx| (0..20).map(move |ring| Timeline::Faulting(ctx, ring));
        rings(1).for_each(|timeline| pool.push(timeline));
        rings(2).take(2).for_each(|timeline| pool.push(timeline));
        let serve = |pool: &mut Pool| {
            let timeline = pool.next()?;
            pool.begin(timeline);
            Some(timeline)
        };
        // Those who came first, in their order, but for what is more than a share.
        let served: Vec<_> = std::iter::from_fn(|| serve(&mut pool)).collect();
        let wanted = rings(1).take(Pool::SHARE).chain(rings(2).take(2));
        assert_eq!(served, wanted.collect::<Vec<_>>());
        // One that comes again is behind those of its context that wait.
        pool.push(served[0]);
        pool.end(served[0]);
        assert_eq!(serve(&mut pool), rings(1).nth(Pool::SHARE));
        assert_eq!(serve(&mut pool), None);
    }

    #[test]
    fn each_context_has_one_however_many_others_have() {
        const CONTEXTS: u32 = 80;
        let mut both = Both::default();
        for ctx in 1..=CONTEXTS {
            (0..10).for_each(|ring| both.push(Timeline::Faulting(ctx, ring)));
        }
        while both.serve().is_some() {}
        assert_eq!(both.1.more(), Pool::MORE);
        assert_eq!(both.1.served.len(), Pool::MORE + CONTEXTS as usize);
        both.push(Timeline::Faulting(CONTEXTS + 1, 0));
        both.push(Timeline::Faulting(CONTEXTS + 1, 1));
        assert_eq!(both.serve(), Some(Timeline::Faulting(CONTEXTS + 1, 0)));
        assert_eq!(both.serve(), None);
        // Of a context that has more than one.
        both.end(0);
        assert!(both.serve().is_some());
        assert_eq!(both.serve(), None);
    }

    #[test]
    fn what_is_cleared_is_not_served() {
        let mut both = Both::default();
        let timeline = |ring| Timeline::Faulting(1, ring);
        (0..3).for_each(|ring| both.push(timeline(ring)));
        assert_eq!(both.serve(), Some(timeline(0)));
        both.0.clear();
        both.1.ready.clear();
        assert_eq!(both.serve(), None);
        (0..20).for_each(|ring| both.push(timeline(ring)));
        // The one that is served counts all the same.
        while both.serve().is_some() {}
        assert_eq!(both.1.served.len(), Pool::SHARE);
    }

    proptest! {
        /// It serves what the model serves, in the same order.
        #[test]
        fn is_as_fair_as_looking_at_all(
            steps in prop::collection::vec((0..8u8, 0..5u32, 0..64u8), 1..400)
        ) {
            let mut both = Both::default();
            for (step, ctx, ring) in steps {
                match step {
                    // More begin than end, so that some have their share.
                    0..=2 if ctx == 0 => both.push(Timeline::Global),
                    0..=2 => both.push(Timeline::Faulting(ctx, ring)),
                    3..=6 => drop(both.serve()),
                    _ if both.1.served.is_empty() => {}
                    _ => both.end(usize::from(ring) % both.1.served.len()),
                }
            }
            while both.serve().is_some() {}
        }
    }
}
