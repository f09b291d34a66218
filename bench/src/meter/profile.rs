// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Which functions execute how many instructions.

use std::collections::HashMap;

use super::{Number, Symbols};

/// Functions that are named, of each profile.
const SHOWN: usize = 15;
/// Rows whose profiles are shown.
const ROWS: usize = 3;

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

    /// The first of them, a line each.
    fn print(&self, of: &str) {
        let all: f64 = self.0.iter().map(|(_, count)| count).sum();
        let own: f64 = self
            .0
            .iter()
            .filter(|(name, _)| name.ends_with(']'))
            .map(|(_, count)| count)
            .sum();
        eprintln!("  {of}: {all:.0} instructions, {own:.0} of them in modules");
        for (name, count) in self.0.iter().take(SHOWN) {
            eprintln!("    {count:>9.1}  {:>5.1} %  {name}", 100.0 * count / all);
        }
    }
}

/// Rows with the profiles of their value and of their baseline.
pub(crate) struct Worst(Vec<(f64, String, [(String, Profile); 2])>);

impl Worst {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// One more, with how many times as many instructions the value has.
    pub(crate) fn add(&mut self, id: &str, ratio: f64, profiles: [(&str, &Profile); 2]) {
        let profiles = profiles.map(|(of, profile)| (of.to_string(), profile.clone()));
        self.0.push((ratio, id.into(), profiles));
    }

    /// Prints the profiles of those with the highest ratios.
    pub(crate) fn print(mut self) {
        self.0
            .sort_by(|(left, ..), (right, ..)| right.total_cmp(left));
        for (_, id, profiles) in self.0.iter().take(ROWS) {
            for (of, profile) in profiles {
                profile.print(&format!("{id}, {of}"));
            }
        }
    }
}
