// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Properties of the merging of pages into runs.

use proptest::prelude::*;
use virtgpu_protocol::runs::{Merger, Run, MAX_RUN};

fn merge(pieces: &[(u64, u64)]) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut merger = Merger::new();
    for &(addr, length) in pieces {
        merger
            .push(addr, length, |run| {
                runs.push(run);
                Ok::<_, ()>(())
            })
            .unwrap();
    }
    merger
        .flush(|run| {
            runs.push(run);
            Ok::<_, ()>(())
        })
        .unwrap();
    runs
}

/// The pages of a list of pieces, in order.
fn pages(pieces: impl IntoIterator<Item = (u64, u64)>) -> Vec<u64> {
    pieces
        .into_iter()
        .flat_map(|(addr, length)| (0..length / 4096).map(move |page| addr + page * 4096))
        .collect()
}

/// Pieces of a few pages each, many of which touch the one before.
fn pieces() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0u64..4, 0u64..64, 0u64..5), 0..200).prop_map(|steps| {
        let mut at = 0x1000_0000;
        steps
            .into_iter()
            .map(|(jump, to, count)| {
                if jump == 0 {
                    at = 0x1000_0000 + to * 4096;
                }
                let piece = (at, count * 4096);
                at += count * 4096;
                piece
            })
            .collect()
    })
}

proptest! {
    /// Nothing is lost, added or reordered.
    #[test]
    fn same_pages(pieces in pieces()) {
        let runs = merge(&pieces);
        let merged = pages(runs.iter().map(|run| (run.addr, u64::from(run.length))));
        prop_assert_eq!(merged, pages(pieces));
    }

    /// There are as few runs as the addresses allow: no two neighbours could be one.
    #[test]
    fn fewest_runs(pieces in pieces()) {
        let list = pages(pieces.iter().copied());
        let breaks = list.windows(2).filter(|pair| pair[1] != pair[0] + 4096).count();
        let fewest = if list.is_empty() { 0 } else { breaks + 1 };
        prop_assert_eq!(merge(&pieces).len(), fewest);
    }

    /// Long stretches are cut as seldom as the 32-bit length allows.
    #[test]
    fn long_stretches(parts in prop::collection::vec(1u64..3 * MAX_RUN / 4096, 1..4)) {
        let mut at = 0;
        let pieces: Vec<_> = parts
            .iter()
            .map(|&count| {
                let piece = (at, count * 4096);
                at += count * 4096;
                piece
            })
            .collect();
        let runs = merge(&pieces);
        prop_assert_eq!(runs.len() as u64, at.div_ceil(MAX_RUN));
        prop_assert_eq!(runs.iter().map(|run| u64::from(run.length)).sum::<u64>(), at);
    }
}

#[test]
fn nothing_at_the_end_of_the_address_space() {
    let runs = merge(&[(u64::MAX - 4095, 8192)]);
    assert_eq!(
        runs,
        [Run {
            addr: u64::MAX - 4095,
            length: 4095
        }]
    );
}

#[test]
fn errors_come_back() {
    let mut merger = Merger::new();
    assert_eq!(merger.push(0, 4096, |_| Err(7)), Ok(()));
    assert_eq!(merger.push(1 << 20, 4096, |_| Err(7)), Err(7));
}
