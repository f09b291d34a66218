// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that the kernel has a reason to move: it lies among holes.

use std::fs;

use virtgpu_client::{Bytes, Memory};

use crate::ktap::TestResult;
use crate::skip;
use crate::support::place::Place;
use crate::support::{HUGE, PAGE};

/// Memory whose pages lie among those of a larger area.
pub(crate) struct Fragmented {
    pub(crate) place: Place,
    holes: Place,
}

impl Fragmented {
    pub(crate) fn new() -> TestResult<Self> {
        let (place, holes) = (Place::base(4 * HUGE)?, Place::base(64 << 20)?);
        for offset in (0..holes.len()).step_by(PAGE) {
            holes.write_u64(offset, 1);
            if offset % (8 * PAGE) == 0 && offset / 8 < place.len() {
                place.write_u64(offset / 8, 1);
            }
        }
        Ok(Self { place, holes })
    }

    /// Gives half of the area back and has the kernel compact what is left, with a `look` each
    /// time. A skip if no page has moved.
    pub(crate) fn compact(&self, look: impl Fn() -> TestResult) -> TestResult {
        let frames = self.place.frames()?;
        for offset in (0..self.holes.len()).step_by(2 * PAGE) {
            self.holes.advise(offset, PAGE, libc::MADV_DONTNEED)?;
        }
        let mut moved = 0;
        for _ in 0..4 {
            fs::write("/proc/sys/vm/compact_memory", "1")?;
            look()?;
            moved = frames
                .iter()
                .zip(self.place.frames()?)
                .filter(|(before, after)| **before != *after)
                .count();
        }
        println!("    # {moved} pages of {} have moved", frames.len());
        if moved == 0 {
            skip!("compaction moved none of the pages");
        }
        Ok(())
    }
}
