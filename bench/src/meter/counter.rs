// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The guest's side of QEMU's plugin `bench/plugin/count.c`, which says what the two stores are.

use std::arch::asm;
use std::collections::BTreeMap;

use super::busy::Busy;
use super::symbols::Symbols;
use crate::report::Sample;
use crate::setup::Result;

const START: i32 = 0x7667_7001;
const STOP: i32 = 0x7667_7002;
/// Through it each interrupt of the local timer comes.
const TIMER_HANDLER: &str = "asm_sysvec_apic_timer_interrupt";

/// A piece of the kernel without jumps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) address: u64,
    pub(crate) instructions: u32,
    pub(crate) executions: u32,
}

/// More than one call reaches.
const BLOCKS: usize = 1 << 15;
/// What [`Reply::complete`] is as long as there is no reply.
const NO_REPLY: u64 = u64::MAX;

/// What the plugin writes.
#[repr(C)]
struct Reply {
    instructions: u64,
    /// Of interrupts, and of other threads.
    others: u64,
    /// Interrupts of the timer, which are not counted.
    ticks: u64,
    blocks: u64,
    complete: u64,
    /// How often this thread let another one run: in a call, not in an interrupt.
    breaks: u64,
    block: [Block; BLOCKS],
}

/// What a count has shown beside the number.
#[derive(Default)]
pub(super) struct Seen {
    /// How often this thread let another one run.
    pub(super) breaks: u64,
    /// Where the instructions were, in how many calls.
    pub(super) blocks: Vec<Block>,
    pub(super) calls: u32,
    /// Instructions of a call that others executed.
    pub(super) others: f64,
}

/// Counts instructions that the kernel executes.
pub(crate) struct Counter {
    reply: Box<Reply>,
    timer_handler: u64,
    /// Of the last count.
    seen: Seen,
    /// Of the repetition that was chosen last.
    typical: Seen,
    _busy: Busy,
}

impl Counter {
    pub(super) fn new() -> Result<Self> {
        let reply = Box::new(Reply {
            instructions: 0,
            others: 0,
            ticks: 0,
            blocks: 0,
            complete: NO_REPLY,
            breaks: 0,
            // The plugin writes only to memory that is there: not zeros, which might not be.
            block: [Block {
                address: 0,
                instructions: 0,
                executions: 1,
            }; BLOCKS],
        });
        let timer_handler = Symbols::read()?
            .address(TIMER_HANDLER)
            .ok_or_else(|| format!("no {TIMER_HANDLER} in /proc/kallsyms"))?;
        let mut counter = Self {
            reply,
            timer_handler,
            seen: Seen::default(),
            typical: Seen::default(),
            _busy: Busy::new()?,
        };
        counter.count(1, || Ok(()))?;
        Ok(counter)
    }

    /// Instructions that the kernel executes for this thread in one call, if `run` is so many.
    pub(super) fn count(&mut self, calls: u32, run: impl FnOnce() -> Result) -> Result<f64> {
        self.reply.complete = NO_REPLY;
        self.tell::<START>(self.timer_handler);
        let result = run();
        self.tell::<STOP>(BLOCKS as u64);
        result?;
        match self.reply.complete {
            NO_REPLY => return Err("no plugin of QEMU's counts here; use vm.sh --count".into()),
            0 => return Err("the plugin has no room for what it counts".into()),
            _ => {}
        }
        let calls_of = |count: u64| count as f64 / f64::from(calls);
        self.seen = Seen {
            breaks: self.reply.breaks,
            blocks: self.reply.block[..self.reply.blocks as usize].to_vec(),
            calls,
            others: calls_of(self.reply.others),
        };
        Ok(calls_of(self.reply.instructions))
    }

    /// What the last count has shown.
    pub(super) fn take_seen(&mut self) -> Seen {
        std::mem::take(&mut self.seen)
    }

    /// Chooses among repetitions; returns the count of the chosen one.
    pub(super) fn choose_typical(&mut self, counts: Vec<f64>, seen: Vec<Seen>) -> f64 {
        let mut all: Vec<_> = counts.into_iter().zip(seen).collect();
        let usual = usual(all.iter().map(|(_, seen)| seen.breaks));
        all.retain(|(_, seen)| seen.breaks == usual);
        all.sort_by(|(left, _), (right, _)| left.total_cmp(right));
        let others = Sample(all.iter().map(|(_, seen)| seen.others).collect());
        let middle = (all.len() - 1) / 2;
        let (count, seen) = all.swap_remove(middle);
        self.typical = Seen {
            others: others.median(),
            ..seen
        };
        count
    }

    /// What was chosen last.
    pub(super) fn take_typical(&mut self) -> Seen {
        std::mem::take(&mut self.typical)
    }

    /// Whether this thread did not sleep in the last count.
    pub(super) fn is_without_break(&self) -> bool {
        self.seen.breaks == 0
    }

    fn tell<const WHAT: i32>(&mut self, value: u64) {
        let reply = &raw mut *self.reply;
        let base = reply.cast::<u8>().wrapping_offset(-(WHAT as isize));
        // SAFETY: It stores to the first word of the reply, which is ours. When there is a plugin,
        // it writes to the rest of it meanwhile, which holds numbers.
        unsafe {
            asm!(
                "mov qword ptr [rdi + {what}], rsi",
                what = const WHAT,
                in("rdi") base,
                in("rsi") value,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// The most frequent number, and the smallest of those that are equally frequent; 0 of none.
fn usual(numbers: impl Iterator<Item = u64>) -> u64 {
    let mut times = BTreeMap::new();
    for number in numbers {
        *times.entry(number).or_insert(0) += 1;
    }
    let most = times.values().copied().max();
    times
        .into_iter()
        .find(|(_, count)| Some(*count) == most)
        .map_or(0, |(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_numbers() {
        assert_eq!(usual([3, 1, 1, 2].into_iter()), 1);
        assert_eq!(usual([2, 1, 1, 2].into_iter()), 1);
        assert_eq!(usual([].into_iter()), 0);
    }
}
