// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The guest's side of QEMU's plugin `bench/plugin/count.c`, which says what the two stores are.

use std::arch::asm;

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
    reserved: u64,
    block: [Block; BLOCKS],
}

/// What [`Counter::count`] has seen of some repetitions.
pub(super) struct Seen {
    /// The fewest instructions of a call.
    least: f64,
    /// Where those were, in how many calls.
    pub(super) blocks: Vec<Block>,
    pub(super) calls: u32,
    /// Instructions of a call that others executed.
    pub(super) others: Sample,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            least: f64::INFINITY,
            blocks: Vec::new(),
            calls: 1,
            others: Sample::default(),
        }
    }
}

/// Counts instructions that the kernel executes.
pub(crate) struct Counter {
    reply: Box<Reply>,
    timer_handler: u64,
    seen: Seen,
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
            reserved: 0,
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
            _busy: Busy::new()?,
        };
        counter.count(1, || Ok(()))?;
        counter.take_seen();
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
        let per_call = calls_of(self.reply.instructions);
        self.seen.others.0.push(calls_of(self.reply.others));
        if per_call < self.seen.least {
            self.seen.least = per_call;
            self.seen.blocks = self.reply.block[..self.reply.blocks as usize].to_vec();
            self.seen.calls = calls;
        }
        Ok(per_call)
    }

    /// What was seen since this was last called.
    pub(super) fn take_seen(&mut self) -> Seen {
        std::mem::take(&mut self.seen)
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
