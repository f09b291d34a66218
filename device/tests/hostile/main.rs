// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Both kinds of hostility: drivers that send nonsense to the device, and a device told to
//! misbehave.

#[path = "../common/mod.rs"]
mod common;

mod adversary;
mod driver;
mod mutant;

/// A small generator of random numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
