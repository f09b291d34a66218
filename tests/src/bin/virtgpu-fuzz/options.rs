// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The command line.

use clap::Parser;

/// Calls every ioctl of the virtio-gpu driver at random, in several threads and on several files,
/// beside whatever else a process can do with memory and files, and reports in KTAP.
///
/// It runs in rounds, each in a process of its own. Round n of seed s does what round 0 of seed
/// s + n does, as far as threads repeat, so that a round can be repeated alone. Exit status: 0 if
/// nothing was wrong, 1 if something was, 2 for a wrong command line.
#[derive(Clone, Debug, Parser)]
#[command(name = "virtgpu-fuzz", max_term_width = 100)]
pub(crate) struct Options {
    /// The seed of all random numbers; without it, one that the clock gives. It is printed.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// How long to go on, not counting what is checked between rounds.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub(crate) seconds: u64,

    /// Threads of a round.
    #[arg(long, value_name = "N", default_value_t = 4,
        value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(crate) threads: u64,

    /// Actions of each thread in a round.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) steps: u64,

    /// The device misbehaves: jobs need not work afterwards, and the driver may lose it, after
    /// which it is unbound and bound again.
    #[arg(long)]
    pub(crate) hostile: bool,

    /// Print each action before it is taken. Slow, but the last ones are there when the kernel is
    /// not any more.
    #[arg(long)]
    pub(crate) trace: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn is_consistent() {
        Options::command().debug_assert();
    }
}
