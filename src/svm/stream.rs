// SPDX-License-Identifier: GPL-2.0

//! How much a fault maps: more and more as long as a job goes through memory in order, and then
//! what comes after it, too, ahead of its faults.

use kernel::prelude::*;

/// Streams that are followed at a time: those of that many rings, or fewer.
const STREAMS: usize = 8;
/// Pages of the first fault of a stream.
const FIRST: usize = 16;
/// Most pages of a fault: those of a granule.
const MOST: usize = 512;
/// Most granules that are mapped ahead of a fault.
const MOST_AHEAD: usize = 2;

/// Faults of one ring, as far as they follow one another.
#[derive(Clone, Copy, Default)]
struct Stream {
    /// The ring plus 1, or 0; and whether there is anything known of it.
    name: u32,
    known: bool,
    /// The page behind those that were mapped last.
    next: usize,
    /// Pages that the last fault asked for, or that were mapped by it, whichever is more: that a
    /// granule ends is no reason to begin with few again.
    pages: usize,
    /// Granules that were to be mapped ahead of it.
    ahead: usize,
    /// That of [`Mark`].
    number: u64,
}

/// What a stream was before it went on.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    /// Of all times that streams went on.
    number: u64,
    before: Stream,
}

/// What to map for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Pages, from the one that was touched on.
    pub(super) pages: usize,
    /// Granules behind them.
    pub(super) ahead: usize,
}

impl Extent {
    /// What to note of a fault that mapped one page, since the others had changed meanwhile: that
    /// the next one is to ask for half as much as this one has.
    pub(super) fn missed(self) -> Self {
        Self {
            pages: self.pages / 4,
            ahead: 0,
        }
    }
}

/// The streams of an address space.
pub(super) struct Streams {
    streams: [Stream; STREAMS],
    /// How often they went on.
    number: u64,
}

impl Streams {
    /// Nothing is known.
    pub(super) fn new() -> Self {
        Self {
            streams: [Stream::default(); STREAMS],
            number: 0,
        }
    }

    /// What to ask for at a fault of stream `name` at page `page`.
    pub(super) fn extent(&self, name: u32, page: usize) -> Extent {
        let (pages, ahead) = match self.streams[name as usize % STREAMS] {
            stream if !stream.known || stream.name != name => (FIRST, 0),
            stream if stream.next != page => (1, 0),
            stream if stream.pages < MOST => ((stream.pages * 2).clamp(FIRST, MOST), 0),
            stream => (MOST, (stream.ahead + 1).min(MOST_AHEAD)),
        };
        Extent { pages, ahead }
    }

    /// The pages from page `page` to page `end` are about to be mapped for a fault of stream
    /// `name`, for which `extent` was asked for. Returns what [`Streams::not_mapped`] takes.
    pub(super) fn mapped(&mut self, name: u32, page: usize, end: usize, extent: Extent) -> Mark {
        self.number += 1;
        let stream = Stream {
            name,
            known: true,
            next: end,
            pages: extent.pages.max(end - page),
            ahead: extent.ahead,
            number: self.number,
        };
        Mark {
            number: self.number,
            before: core::mem::replace(&mut self.streams[name as usize % STREAMS], stream),
        }
    }

    /// The pages were not mapped after all for which stream `name` got `mark`: it is again as it
    /// was before, unless it went on meanwhile.
    pub(super) fn not_mapped(&mut self, name: u32, mark: Mark) {
        let stream = &mut self.streams[name as usize % STREAMS];
        if stream.number == mark.number {
            *stream = mark.before;
        }
    }

    /// Stream `name` goes on at page `to`, if it would go on at page `from`: what is between them
    /// is about to be mapped ahead of it, or was not mapped after all.
    pub(super) fn goes_on_at(&mut self, name: u32, from: usize, to: usize) {
        let stream = &mut self.streams[name as usize % STREAMS];
        if stream.known && stream.name == name && stream.next == from {
            stream.next = to;
        }
    }
}

#[kunit_tests(virtgpu_userptr_stream)]
mod tests {
    use super::*;

    impl Streams {
        /// Serves a fault, and maps what is to be mapped; returns that.
        fn fault(&mut self, name: u32, page: usize) -> (usize, usize) {
            let extent = self.extent(name, page);
            self.mapped(name, page, page + extent.pages, extent);
            (extent.pages, extent.ahead)
        }
    }

    #[test]
    fn one_that_goes_on_doubles() {
        let mut streams = Streams::new();
        let mut page = 100;
        for pages in [16, 32, 64, 128, 256, 512] {
            assert_eq!(streams.fault(3, page), (pages, 0));
            page += pages;
        }
        for ahead in [1, 2, 2] {
            assert_eq!(streams.fault(3, page), (512, ahead));
            page += 512;
            for _ in 0..ahead {
                streams.goes_on_at(3, page, page + 512);
                page += 512;
            }
        }
    }

    #[test]
    fn what_is_mapped_beside_it_counts() {
        let mut streams = Streams::new();
        let extent = streams.extent(3, 1024);
        assert_eq!(extent.pages, 16);
        // It is a huge page.
        streams.mapped(3, 1024, 1536, extent);
        assert_eq!(streams.fault(3, 1536), (512, 1));
    }

    #[test]
    fn the_end_of_a_granule_is_no_new_beginning() {
        let mut streams = Streams::new();
        assert_eq!(streams.fault(3, 0), (16, 0));
        let extent = streams.extent(3, 16);
        assert_eq!(extent.pages, 32);
        streams.mapped(3, 16, 20, extent);
        assert_eq!(streams.fault(3, 20), (64, 0));
    }

    #[test]
    fn one_that_jumps_asks_for_its_page() {
        let mut streams = Streams::new();
        let extent = Extent {
            pages: 512,
            ahead: 2,
        };
        streams.mapped(1, 100, 612, extent);
        assert_eq!(streams.fault(1, 90), (1, 0));
        assert_eq!(streams.fault(1, 91), (16, 0));
        // What is ahead of another place does not count.
        streams.goes_on_at(1, 612, 1124);
        assert_eq!(streams.fault(1, 107), (32, 0));
    }

    #[test]
    fn a_miss_costs_half() {
        let mut streams = Streams::new();
        let extent = Extent {
            pages: 512,
            ahead: 2,
        };
        streams.mapped(3, 0, 1, extent.missed());
        assert_eq!(streams.fault(3, 1), (256, 0));
        assert_eq!(streams.fault(3, 257), (512, 0));
        let extent = streams.extent(3, 769);
        assert_eq!(extent.ahead, 1);
        let missed = Extent { pages: 1, ahead: 0 };
        streams.mapped(3, 769, 770, missed.missed());
        assert_eq!(streams.fault(3, 770), (16, 0));
    }

    #[test]
    fn what_was_not_mapped_does_not_count() {
        let mut streams = Streams::new();
        streams.mapped(1, 100, 164, streams.extent(1, 100));
        let mark = streams.mapped(9, 500, 516, streams.extent(9, 500));
        streams.not_mapped(9, mark);
        assert_eq!(streams.fault(1, 164), (128, 0));
        let mark = streams.mapped(1, 292, 548, streams.extent(1, 292));
        // Another thread serves a fault on the same page.
        streams.mapped(1, 292, 548, streams.extent(1, 292));
        streams.not_mapped(1, mark);
        assert_eq!(streams.fault(1, 548), (512, 0));
    }

    #[test]
    fn rings_do_not_disturb_each_other() {
        let mut streams = Streams::new();
        let extent = streams.extent(1, 100);
        streams.mapped(1, 100, 164, extent);
        streams.mapped(2, 500, 516, extent);
        assert_eq!(streams.fault(1, 164), (128, 0));
        // In the place of ring 1.
        assert_eq!(streams.fault(9, 292), (16, 0));
    }
}
