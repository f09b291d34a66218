// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P7: memory that the driver needs in the kernel for registrations.
//!
//! Taken as the growth of slab and vmalloc, or as the loss of free memory if that is more; so what
//! the allocators add is included. The memory that is registered is resident before.

use std::collections::BTreeMap;
use std::fs;

use virtgpu_client::{Device, Memory, RegisterOptions};

use crate::memory::{make, Kind, Region};
use crate::report::{Goal, Report, Sample};
use crate::setup::{map_all, open_mirroring, wait_unpinned, Result, MIB, PAGE};
use crate::Options;

/// Registrations of the same memory at a time.
const LAYERS: usize = 8;
/// Registrations of a page each, in all runs.
const MANY: usize = 12 << 10;

/// Bytes in use by the kernel, and bytes free.
#[derive(Clone, Copy)]
pub(crate) struct Memories {
    kernel: i64,
    free: i64,
}

impl Memories {
    pub(crate) fn now() -> Result<Self> {
        shrink_slabs();
        // What processors keep to themselves of the counts is added up by this.
        fs::write("/proc/sys/vm/stat_refresh", "1")?;
        let text = fs::read_to_string("/proc/meminfo")?;
        let field = |name: &str| -> Result<i64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            let number = number.ok_or_else(|| format!("/proc/meminfo has no {name}"))?;
            Ok(number.parse::<i64>()? << 10)
        };
        // MemFree lacks the free pages that processors have at hand.
        let zones = fs::read_to_string("/proc/zoneinfo")?;
        let at_hand = zones
            .lines()
            .filter_map(|line| line.trim().strip_prefix("count:"))
            .filter_map(|count| count.trim().parse::<i64>().ok())
            .sum::<i64>();
        Ok(Self {
            kernel: field("Slab:")? + field("VmallocUsed:")? + field("Percpu:")?,
            free: field("MemFree:")? + at_hand * PAGE as i64,
        })
    }

    /// Bytes that are needed more than before.
    pub(crate) fn since(self, before: Self) -> f64 {
        (self.kernel - before.kernel).max(before.free - self.free) as f64
    }
}

/// Has slab caches give back what they keep for later: the next object would take none.
fn shrink_slabs() {
    let Ok(caches) = fs::read_dir("/sys/kernel/slab") else {
        return;
    };
    for cache in caches.flatten() {
        // Caches that are merged with others refuse.
        let _ = fs::write(cache.path().join("shrink"), "1");
    }
}

/// Objects in use, and bytes of each, by slab cache; nothing on a kernel without SLUB_DEBUG.
fn slabs() -> BTreeMap<String, (i64, i64)> {
    let text = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let cache = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_string();
        let active = words.next()?.parse().ok()?;
        Some((name, (active, words.nth(1)?.parse().ok()?)))
    };
    text.lines().filter_map(cache).collect()
}

/// Says which slab caches have grown since `before`, for each of `count` registrations.
fn explain(name: &str, before: &BTreeMap<String, (i64, i64)>, count: usize) {
    for (cache, (active, size)) in slabs() {
        let grown = active - before.get(&cache).map_or(0, |(active, _)| *active);
        let each = grown as f64 / count as f64;
        if each > 0.1 {
            eprintln!("  P7-{name}-registration: {each:.2} of {cache}, {size} bytes each");
        }
    }
}

/// Memory that registrations of all of `memory` need for each of its pages.
fn per_page(
    options: &Options,
    device: &Device,
    memory: &Region,
    register: RegisterOptions,
) -> Result<Sample> {
    let mut bytes = Sample::default();
    for run in 0..=options.runs {
        let before = Memories::now()?;
        let userptrs = (0..LAYERS)
            .map(|_| device.register(memory, register))
            .collect::<virtgpu_client::Result<Vec<_>>>()?;
        for userptr in &userptrs {
            map_all(device, userptr.handle())?;
        }
        let pages = (LAYERS * memory.len() / PAGE) as f64;
        let needed = Memories::now()?.since(before) / pages;
        if run > 0 {
            bytes.0.push(needed);
        }
        drop(userptrs);
        wait_unpinned()?;
    }
    Ok(bytes)
}

/// Memory that a registration of one page needs, of which nothing is mapped if it is mirrored.
fn per_registration(options: &Options, name: &str, register: RegisterOptions) -> Result<Sample> {
    // As many as the device has spaces for. A file gets a quarter of them, which is enough for a
    // run.
    let many = MANY / (options.runs + 1);
    let devices = (0..=options.runs)
        .map(|_| open_mirroring())
        .collect::<Result<Vec<_>>>()?;
    let memory = make(Kind::Fragmented, PAGE)?;
    let mut bytes = Sample::default();
    // All stay: where the next are put, there is no room that others have left.
    let mut userptrs = Vec::with_capacity(MANY);
    let before_all = slabs();
    for (run, device) in devices.iter().enumerate() {
        let before = Memories::now()?;
        for _ in 0..many {
            userptrs.push(device.register(&memory, register)?);
        }
        let needed = Memories::now()?.since(before) / many as f64;
        if run > 0 {
            bytes.0.push(needed);
        }
    }
    explain(name, &before_all, userptrs.len());
    drop(userptrs);
    wait_unpinned()?;
    Ok(bytes)
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let device = open_mirroring()?;
    let memory = make(Kind::Thp, options.largest.min(1024) * MIB)?;
    let ways = [
        ("mirrored", RegisterOptions::mirrored(), 9.0),
        ("pinned", RegisterOptions::pinned(), 1.0),
    ];
    let ones = Sample(vec![1.0; options.runs]);
    for (name, register, most) in ways {
        let bytes = per_page(options, &device, &memory, register)?;
        report.add(
            &format!("P7-{name}-page"),
            "kernel memory per mapped page of 4 KiB, in transparent huge pages",
            "B",
            [bytes, ones.clone()],
            Goal::AtMost(most),
        );
    }
    drop(memory);
    for (name, register, _) in ways {
        let bytes = per_registration(options, name, register)?;
        report.add(
            &format!("P7-{name}-registration"),
            "kernel memory per registration of one page",
            "B",
            [bytes, ones.clone()],
            Goal::AtMost(1024.0),
        );
    }
    Ok(())
}
