// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Memory that the driver needs in the kernel for pages of an address space, measured as in P7.

use rustix::mm::{Advice, MapFlags, ProtFlags};
use virtgpu_client::{Mapping, Memory, SpaceOptions};

use super::Svm;
use crate::footprint::Memories;
use crate::memory::{make, touch, Kind};
use crate::report::{Goal, Report, Sample};
use crate::setup::{Result, MIB, PAGE};
use crate::Options;

/// What the driver keeps a table for.
const WINDOW: usize = 64 * MIB;
/// A part of the table.
const GRANULE: usize = 2 * MIB;
/// Windows in a run.
const MANY: usize = 256;
/// Spaces of the same memory at a time.
const LAYERS: usize = 4;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result {
    let ones = Sample(vec![1.0; options.runs]);
    report.add(
        "P9-memory-page",
        "kernel memory per page of 4 KiB that the device reaches, in transparent huge pages",
        "B",
        [per_page(options)?, ones.clone()],
        Goal::AtMost(9.0),
    );
    let (windows, granules) = per_window(options)?;
    report.add(
        "P9-memory-window",
        "kernel memory per 64 MiB of which the device reaches something, without that per 2 MiB",
        "B",
        [windows, ones.clone()],
        Goal::AtMost(1280.0),
    );
    report.add(
        "P9-memory-granule",
        "kernel memory per 2 MiB of which the device reaches a page",
        "B",
        [granules, ones],
        Goal::None,
    );
    Ok(())
}

/// Has the device reach `length` bytes.
fn prefetch(svm: &Svm, start: *const u8, length: usize) -> Result {
    match svm.space.prefetch(start as u64, length as u64)? {
        done if done == length as u64 => Ok(()),
        done => Err(format!("{done} of {length} bytes could be prefetched").into()),
    }
}

/// All of much memory, in spaces that all stay: where the next tables are put, there is no room
/// that others have left.
fn per_page(options: &Options) -> Result<Sample> {
    let memory = make(Kind::Thp, options.largest.min(512) * MIB)?;
    let mut bytes = Sample::default();
    let mut spaces = Vec::new();
    for run in 0..=options.runs {
        for _ in 0..LAYERS {
            spaces.push(Svm::open(1, SpaceOptions::new())?);
        }
        let before = Memories::now()?;
        for svm in &spaces[run * LAYERS..] {
            prefetch(svm, memory.as_ptr(), memory.len())?;
        }
        let pages = (LAYERS * memory.len() / PAGE) as f64;
        let needed = Memories::now()?.since(before) / pages;
        if run > 0 {
            bytes.0.push(needed);
        }
    }
    Ok(bytes)
}

/// A page in each of many windows, and then another one in each: what a window needs, and what the
/// 2 MiB around a page do.
fn per_window(options: &Options) -> Result<(Sample, Sample)> {
    let runs = options.runs + 1;
    let memory = Mapping::anonymous_with(
        (runs * MANY + 1) * WINDOW,
        ProtFlags::READ | ProtFlags::WRITE,
        MapFlags::PRIVATE | MapFlags::NORESERVE,
    )?;
    // SAFETY: The range is ours, and nothing is in it yet.
    unsafe {
        let start = memory.as_ptr().cast();
        rustix::mm::madvise(start, memory.len(), Advice::LinuxNoHugepage)?;
    }
    let skip = memory.as_ptr().align_offset(WINDOW);
    let page_of = |window: usize, granule: usize| {
        let at = skip + window * WINDOW + granule * GRANULE;
        memory.as_ptr().wrapping_add(at)
    };
    // Page tables are no part of it.
    for window in 0..runs * MANY {
        for granule in [0, 1] {
            touch(&Page(page_of(window, granule)));
        }
    }
    let svm = Svm::open(1, SpaceOptions::new().exact())?;
    let (mut windows, mut granules) = (Sample::default(), Sample::default());
    for run in 0..runs {
        let these = run * MANY..(run + 1) * MANY;
        let mut needed = [0.0; 2];
        for (granule, needed) in needed.iter_mut().enumerate() {
            let before = Memories::now()?;
            for window in these.clone() {
                prefetch(&svm, page_of(window, granule), PAGE)?;
            }
            *needed = Memories::now()?.since(before) / MANY as f64;
        }
        if run > 0 {
            windows.0.push(needed[0] - needed[1]);
            granules.0.push(needed[1]);
        }
    }
    Ok((windows, granules))
}

/// A page of a mapping.
struct Page(*mut u8);

// SAFETY: The mapping lives for longer, and no one else uses it.
unsafe impl Memory for Page {
    fn as_ptr(&self) -> *mut u8 {
        self.0
    }
    fn len(&self) -> usize {
        PAGE
    }
}
