// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Random choices: which numbers are worth trying, and how a good structure goes bad.

use crate::layout::{Scratch, MEMORY, MEMORY_SIZE};
use crate::support::{Random, HUGE, PAGE};

/// An element.
pub(crate) fn one_of<'a, T>(random: &mut Random, from: &'a [T]) -> Option<&'a T> {
    match from.len() {
        0 => None,
        length => from.get(random.below(length as u64) as usize),
    }
}

/// Whether something happens that does so `part` times of `of`.
pub(crate) fn chance(random: &mut Random, part: u64, of: u64) -> bool {
    random.below(of) < part
}

/// A number at which code may go wrong.
pub(crate) fn number(random: &mut Random) -> u64 {
    let page = PAGE as u64;
    match random.below(12) {
        0 => 0,
        1 => u64::MAX,
        2 => random.below(16),
        3 => random.below(0x10000),
        4 => random.below(64) * page,
        5 => u64::from(u32::MAX),
        6 => i64::MAX as u64,
        7 => i32::MAX as u64,
        // Around a power of two.
        8 | 9 => (1_u64 << random.below(64))
            .wrapping_add(random.below(3))
            .wrapping_sub(1),
        10 => u64::MAX - random.below(2 * page),
        _ => random.next(),
    }
}

/// A range of whole pages of the shared memory.
pub(crate) fn range(random: &mut Random) -> (usize, usize) {
    let pages = MEMORY_SIZE / PAGE;
    let count = match random.below(8) {
        0 => 1,
        1..=4 => 1 + random.below(16) as usize,
        5 | 6 => 1 + random.below(256) as usize,
        _ => 1 + random.below(2 * (HUGE / PAGE) as u64) as usize,
    };
    let mut first = random.below((pages - count) as u64 + 1) as usize;
    // Huge pages need the right places.
    if chance(random, 1, 6) {
        first -= first % (HUGE / PAGE);
    }
    (MEMORY + first * PAGE, count * PAGE)
}

/// An address that is not what it should be.
pub(crate) fn bad_pointer(random: &mut Random, scratch: &Scratch) -> usize {
    match random.below(7) {
        0 => 0,
        1 => PAGE,
        // Of the kernel's map of all memory, of modules, of no half at all.
        2 => 0xffff_8880_0010_0000,
        3 => 0xffff_ffff_a000_0000,
        4 => 0x8000_0000_0000_0000,
        5 => scratch.read_only,
        // Memory that may go at any time.
        _ => MEMORY + random.below(MEMORY_SIZE as u64) as usize,
    }
}

/// Changes a structure at one to three places of four or eight bytes.
pub(crate) fn mutate(random: &mut Random, bytes: &mut [u8]) {
    if bytes.len() < 4 {
        return;
    }
    let mut touched = 0_u64;
    for _ in 0..1 + random.below(3) {
        let word = random.below(bytes.len() as u64 / 4) as usize;
        // One change at a place: two could make an address out of another.
        if touched & (1 << (word / 2)) != 0 {
            continue;
        }
        touched |= 1 << (word / 2);
        let wide = word % 2 == 0 && word * 4 + 8 <= bytes.len() && chance(random, 1, 2);
        let place = &mut bytes[word * 4..word * 4 + if wide { 8 } else { 4 }];
        let mut old = [0; 8];
        old[..place.len()].copy_from_slice(place);
        let old = u64::from_le_bytes(old);
        let bits = place.len() as u64 * 8;
        let new = match random.below(5) {
            0 | 1 => old ^ (1 << random.below(bits)),
            2 => old.wrapping_add(random.below(9)).wrapping_sub(4),
            _ => number(random),
        };
        place.copy_from_slice(&new.to_le_bytes()[..place.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_inside() {
        let mut random = Random(1);
        for _ in 0..10_000 {
            let (start, length) = range(&mut random);
            assert!(start >= MEMORY && length > 0);
            assert!(start + length <= MEMORY + MEMORY_SIZE);
            assert_eq!((start % PAGE, length % PAGE), (0, 0));
        }
    }

    #[test]
    fn structures_change_and_repeat() {
        let mut changed = 0;
        for seed in 0..1000 {
            let mut bytes = [7; 72];
            mutate(&mut Random(seed), &mut bytes);
            let mut again = [7; 72];
            mutate(&mut Random(seed), &mut again);
            assert_eq!(bytes, again);
            changed += usize::from(bytes != [7; 72]);
        }
        assert!(changed > 900);
        mutate(&mut Random(1), &mut []);
    }
}
