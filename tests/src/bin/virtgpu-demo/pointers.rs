// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The third act: nothing is registered at all. The device walks a hash table from one pointer, and
//! works on a vector that grows and on an array of the stack; pages come by its own faults, also
//! while the kernel invalidates them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::{AddressSpace, Device, Job, Result, SpaceOptions};

use crate::disturb::Pieces;
use crate::kernel;
use crate::{failed, Report, PAGE};

/// Entries of the table.
const NODES: usize = 40_000;
/// Times that the device adds 1 to each of them.
const ROUNDS: u32 = 8;
/// Operations of a job.
const OPS: usize = 4000;
/// Pages that are swapped or moved at a time.
const PIECE: usize = 128 * PAGE;
/// Words of the array of the stack: more than one page has.
const WORDS: usize = 16 * 1024;

/// An entry, in a block of malloc's of its own. Its first word is what the device follows.
#[repr(C)]
struct Node {
    next: *const Node,
    in_bucket: Option<usize>,
    key: u64,
    value: AtomicU64,
    /// So that the table is larger than a few pages.
    _text: [u8; 160],
}

/// A hash table, whose entries are also one list.
struct Table {
    #[expect(clippy::vec_box, reason = "an entry stays where it is")]
    nodes: Vec<Box<Node>>,
    buckets: Vec<Option<usize>>,
    /// The entries in the order of the list.
    order: Vec<usize>,
}

fn key(index: usize) -> u64 {
    (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Table {
    fn new(count: usize) -> Self {
        let mut table = Self {
            nodes: Vec::new(),
            buckets: vec![None; count.next_power_of_two()],
            order: (0..count).collect(),
        };
        for index in 0..count {
            table.insert(key(index), index as u64);
        }
        // The list goes from each entry to one that lies somewhere else.
        table.order.sort_by_key(|index| key(*index).rotate_left(17));
        for (at, next) in table.order.iter().zip(&table.order[1..]) {
            let next: *const Node = &raw const *table.nodes[*next];
            table.nodes[*at].next = next;
        }
        table
    }

    fn bucket(&self, key: u64) -> usize {
        (key >> 32) as usize % self.buckets.len()
    }

    fn insert(&mut self, key: u64, value: u64) {
        let bucket = self.bucket(key);
        let in_bucket = self.buckets[bucket].replace(self.nodes.len());
        self.nodes.push(Box::new(Node {
            next: std::ptr::null(),
            in_bucket,
            key,
            value: AtomicU64::new(value),
            _text: [0; 160],
        }));
    }

    fn get(&self, key: u64) -> Option<u64> {
        let mut at = self.buckets[self.bucket(key)];
        while let Some(index) = at {
            let node = &self.nodes[index];
            if node.key == key {
                return Some(node.value.load(Ordering::SeqCst));
            }
            at = node.in_bucket;
        }
        None
    }

    /// The entry at a place of the list.
    fn at(&self, place: usize) -> *const Node {
        &raw const *self.nodes[self.order[place]]
    }

    /// The addresses that the entries lie in, as whole pages.
    fn pages(&self) -> Range<usize> {
        let addresses = || self.nodes.iter().map(|node| (&raw const **node).addr());
        let start = addresses().min().unwrap_or_default() & !(PAGE - 1);
        let end = addresses().max().unwrap_or_default() + size_of::<Node>();
        start..end.next_multiple_of(PAGE)
    }
}

/// Plays it.
pub(crate) fn play(device: Device, report: &mut Report) -> Result<()> {
    let pinned = kernel::pinned().map_err(failed)?;
    let space = AddressSpace::enable(device, SpaceOptions::new().events(0))?;
    table(&space, report)?;
    vector(&space, report)?;
    stack(&space, report)?;
    let count = space.query()?;
    report.say(&format!(
        "  counters: {} faults, {} of them told twice, {} pages in {} MAPs, {} INVALIDATEs",
        count.faults, count.coalesced, count.pages, count.maps, count.invalidations
    ));
    let nothing_held = kernel::pinned().map_err(failed)? == pinned;
    report.status("nothing was registered or pinned", nothing_held);
    Ok(())
}

/// The device follows the whole list from its first entry, and adds 1 to the value of each where it
/// lies. Whether the list ended where it should.
fn walk_and_add(space: &AddressSpace, table: &Table) -> Result<bool> {
    let (mut last, mut end) = (0_u64, 1_u64);
    let mut job = Job::new();
    job.pointer_chase((&mut last).into(), table.at(0), NODES as u64 - 1)
        .pointer_chase((&mut end).into(), table.at(0), NODES as u64);
    space.run(0, &job)?;
    for part in table.nodes.chunks(OPS) {
        let mut job = Job::new();
        for node in part {
            job.atomic_add(&node.value, 1, 1);
        }
        space.run(0, &job)?;
    }
    Ok(last == table.at(NODES - 1).addr() as u64 && end == 0)
}

/// A hash table, while the kernel swaps and moves it.
fn table(space: &AddressSpace, report: &mut Report) -> Result<()> {
    let table = Table::new(NODES);
    let memory = table.pages();
    report.say(&format!(
        "a hash table of {NODES} entries, a malloc each, over {} KiB",
        memory.len() >> 10
    ));
    let pieces = Pieces {
        memory,
        piece: PIECE,
        swapped: 4,
    };
    let before = space.query()?;
    let (mut right, mut slowest) = (true, Duration::ZERO);
    let disturbance = pieces.disturb(ROUNDS, |_| {
        let start = Instant::now();
        let ended_well = walk_and_add(space, &table);
        slowest = slowest.max(start.elapsed());
        right &= ended_well?;
        Ok(())
    })?;
    let after = space.query()?;
    report.result(
        &format!("{ROUNDS} times walked from one pointer, and += 1"),
        right,
        slowest,
    );
    let found =
        (0..NODES).all(|index| table.get(key(index)) == Some(index as u64 + u64::from(ROUNDS)));
    report.status("the CPU finds each entry, with the right value", found);
    let driver = [
        (after.invalidations - before.invalidations, "INVALIDATEs"),
        (after.faults - before.faults, "faults of the device"),
    ];
    disturbance.report(report, &driver);
    Ok(())
}

/// A vector that moves when it grows.
fn vector(space: &AddressSpace, report: &mut Report) -> Result<()> {
    let mut numbers: Vec<u32> = Vec::new();
    let (mut moves, mut slowest) = (0, Duration::ZERO);
    for round in 0..10_u32 {
        let address = numbers.as_ptr();
        numbers.resize((1 << round) * 2048, round);
        moves += u32::from(numbers.as_ptr() != address);
        let mut job = Job::new();
        job.add_u32((&mut numbers[..]).into(), 1);
        let start = Instant::now();
        space.run(0, &job)?;
        slowest = slowest.max(start.elapsed());
    }
    // Those of a round have been added to in it and in all that followed.
    let right = numbers.iter().all(|number| *number == 10);
    report.result(
        &format!(
            "a vector of {} KiB, moved {moves} times",
            numbers.len() >> 8
        ),
        right && moves > 1,
        slowest,
    );
    Ok(())
}

/// An array of this function.
fn stack(space: &AddressSpace, report: &mut Report) -> Result<()> {
    let mut array = [0_u64; WORDS];
    let start = Instant::now();
    let mut job = Job::new();
    job.fill((&mut array).into(), 0x57ac);
    space.run(0, &job)?;
    let time = start.elapsed();
    let right = array.iter().all(|word| *word == 0x57ac);
    report.result("an array of the calling function's, filled", right, time);
    Ok(())
}
