// SPDX-License-Identifier: GPL-2.0

//! How much a fault maps: more and more as long as a job goes through memory in order.

use kernel::prelude::*;

/// Streams that are followed at a time: those of that many rings, or fewer.
const STREAMS: usize = 8;
/// Pages of the first fault of a stream.
const FIRST: usize = 16;
/// Most pages of a fault: those of a granule.
const MOST: usize = 512;

/// Faults of one ring, as far as they follow one another.
#[derive(Clone, Copy, Default)]
struct Stream {
    /// The ring plus 1, or 0; and whether there is anything known of it.
    name: u32,
    known: bool,
    /// The page after those of the last fault.
    next: usize,
    /// Pages of the last fault.
    pages: usize,
}

/// The streams of an address space.
pub(super) struct Streams {
    streams: [Stream; STREAMS],
}

impl Streams {
    /// Nothing is known.
    pub(super) fn new() -> Self {
        Self {
            streams: [Stream::default(); STREAMS],
        }
    }

    /// How many pages to ask for at a fault of stream `name` at page `page`.
    pub(super) fn pages(&self, name: u32, page: usize) -> usize {
        match self.streams[name as usize % STREAMS] {
            stream if !stream.known || stream.name != name => FIRST,
            stream if stream.next == page => (stream.pages * 2).clamp(FIRST, MOST),
            _ => 1,
        }
    }

    /// `pages` pages from page `page` on were mapped for a fault of stream `name`.
    pub(super) fn mapped(&mut self, name: u32, page: usize, pages: usize) {
        self.streams[name as usize % STREAMS] = Stream {
            name,
            known: true,
            next: page + pages,
            pages,
        };
    }
}

#[kunit_tests(virtgpu_userptr_stream)]
mod tests {
    use super::*;

    #[test]
    fn one_that_goes_on_doubles() {
        let mut streams = Streams::new();
        let mut page = 100;
        for pages in [16, 32, 64, 128, 256, 512, 512] {
            assert_eq!(streams.pages(3, page), pages);
            streams.mapped(3, page, pages);
            page += pages;
        }
    }

    #[test]
    fn one_that_jumps_asks_for_its_page() {
        let mut streams = Streams::new();
        streams.mapped(1, 100, 64);
        assert_eq!(streams.pages(1, 90), 1);
        streams.mapped(1, 90, 1);
        assert_eq!(streams.pages(1, 91), 16);
    }

    #[test]
    fn rings_do_not_disturb_each_other() {
        let mut streams = Streams::new();
        streams.mapped(1, 100, 64);
        streams.mapped(2, 500, 16);
        assert_eq!(streams.pages(1, 164), 128);
        // In the place of ring 1.
        assert_eq!(streams.pages(9, 164), 16);
    }
}
