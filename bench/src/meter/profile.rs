// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Which functions execute how many instructions.

use std::collections::HashMap;

use super::{Number, Symbols};

/// Instructions of one call, by function, the most first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile(Vec<(String, f64)>);

impl Profile {
    /// Where the instructions of a number were, if its driver is still loaded.
    pub(crate) fn new(number: &Number, symbols: &Symbols) -> Self {
        let mut functions: HashMap<&str, u64> = HashMap::new();
        for block in &number.blocks {
            *functions
                .entry(symbols.function(block.address))
                .or_default() += u64::from(block.instructions) * u64::from(block.executions);
        }
        let mut profile: Vec<_> = functions
            .into_iter()
            .map(|(name, count)| (name.to_string(), count as f64 / f64::from(number.calls)))
            .collect();
        profile.sort_by(|(left_name, left), (right_name, right)| {
            right
                .total_cmp(left)
                .then_with(|| left_name.cmp(right_name))
        });
        Self(profile)
    }

    /// The first of them, so many, a line each.
    fn print(&self, of: &str, functions: usize) {
        let all: f64 = self.0.iter().map(|(_, count)| count).sum();
        let own: f64 = self
            .0
            .iter()
            .filter(|(name, _)| name.ends_with(']'))
            .map(|(_, count)| count)
            .sum();
        eprintln!("  {of}: {all:.0} instructions, {own:.0} of them in modules");
        for (name, count) in self.0.iter().take(functions) {
            eprintln!("    {count:>9.1}  {:>5.1} %  {name}", 100.0 * count / all);
        }
    }
}

/// A row.
struct Profiled {
    id: String,
    /// How many times as many instructions its value has.
    ratio: f64,
    /// Of its value and of its baseline, and what those are.
    profiles: [(String, Profile); 2],
}

/// Rows of a kind, to find the worst ones.
pub(crate) struct Worst(Vec<Profiled>);

impl Worst {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn add(&mut self, id: &str, ratio: f64, profiles: [(&str, &Profile); 2]) {
        let profiles = profiles.map(|(of, profile)| (of.to_string(), profile.clone()));
        self.0.push(Profiled {
            id: id.into(),
            ratio,
            profiles,
        });
    }

    /// Prints the profiles of so many rows, those with the highest ratios, and of each so many
    /// functions.
    pub(crate) fn print(mut self, rows: usize, functions: usize) {
        self.0
            .sort_by(|left, right| right.ratio.total_cmp(&left.ratio));
        for row in self.0.iter().take(rows) {
            for (of, profile) in &row.profiles {
                profile.print(&format!("{}, {of}", row.id), functions);
            }
        }
    }
}
