// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Runs unmodified userspace in a guest, first on Linux's own driver, then on this project's, and
//! compares what they say, test by test. Neither driver may be loaded when it starts.
//!
//! `virtgpu-compare igt TEST…` runs tests of igt-gpu-tools, `virtgpu-compare virgl` and
//! `virtgpu-compare venus` run programs on Mesa's drivers of those names, with `short` only a few
//! of them, with `killed` only those that are killed and those beside them. The report is KTAP:
//!
//! - what passes on Linux's driver must pass on this one;
//! - what passes on neither counts as skipped, with the reason, except that what Linux's driver
//!   skips must not fail on this one;
//! - a group in which fewer tests pass on Linux's driver than it says is a failure, since it shows
//!   nothing, or less than it did.
//!
//! `virtgpu-compare reference` runs a few of virgl's on the reference device, and one that lets it
//! compute at the same time.
//!
//! `virtgpu-compare display` has both drivers loaded, each with a device of its own.
//!
//! Lines `# time: …` and `# rate: …` say how long each group took on either, and how fast it was.

mod display;
mod drivers;
mod group;
mod igt;
mod killed;
mod mesa;
mod outcome;
mod piglit;
mod program;
mod unplug;

use std::process::ExitCode;
use std::time::Instant;

use drivers::Driver;
use group::{Group, Run};
use outcome::{Comparison, Result};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["display"] {
        return ended(display());
    }
    let groups = match arguments.split_first() {
        Some((what, tests)) if what == "igt" && !tests.is_empty() => Ok(igt::groups(tests)),
        Some((what, [])) if what == "virgl" => mesa::virgl(),
        Some((what, [])) if what == "venus" => Ok(mesa::venus()),
        Some((what, [])) if what == "reference" => Ok(mesa::reference()),
        Some((what, [how])) if how == "short" && what == "virgl" => Ok(mesa::short_virgl()),
        Some((what, [how])) if how == "short" && what == "venus" => Ok(mesa::short_venus()),
        Some((what, [how])) if how == "killed" && what == "virgl" => Ok(vec![mesa::killed_gles()]),
        Some((what, [how])) if how == "killed" && what == "venus" => {
            Ok(vec![mesa::killed_vulkan()])
        }
        _ => {
            eprintln!(
                "usage: virtgpu-compare igt TEST... | virgl [short|killed] | venus [short|killed] | \
                 reference | display"
            );
            return ExitCode::from(2);
        }
    };
    ended(groups.and_then(|groups| compare(&groups)))
}

fn ended(result: Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("Bail out! {error}");
            ExitCode::FAILURE
        }
    }
}

/// Both drivers at a time, with a device each.
fn display() -> Result<bool> {
    println!("KTAP version 1");
    println!("1..1");
    let group = Group::new("display", display::run);
    let start = Instant::now();
    let run = Run {
        outcomes: (group.run)()?,
        time: start.elapsed(),
    };
    let all = report(1, &group, None, &run);
    // This one is unloaded already.
    drivers::mark(Driver::Linux)?;
    drivers::unload(Driver::Linux)?;
    Ok(all)
}

/// Runs all groups on both drivers and reports; returns whether nothing failed.
fn compare(groups: &[Group]) -> Result<bool> {
    let mut theirs = Vec::new();
    drivers::load(Driver::Linux)?;
    for group in groups {
        if group.alone {
            theirs.push(None);
            continue;
        }
        println!("# {} on {}", group.name, Driver::Linux);
        theirs.push(Some(group.run(Driver::Linux)?));
    }
    drivers::unload(Driver::Linux)?;
    drivers::mark(Driver::Ours)?;
    drivers::load(Driver::Ours)?;
    println!("KTAP version 1");
    println!("1..{}", groups.len());
    let mut all = true;
    for (number, (group, theirs)) in groups.iter().zip(&theirs).enumerate() {
        let ours = group.run(Driver::Ours)?;
        all &= report(number + 1, group, theirs.as_ref(), &ours);
    }
    drivers::unload(Driver::Ours)?;
    Ok(all)
}

fn report(number: usize, group: &Group, theirs: Option<&Run>, ours: &Run) -> bool {
    let name = &group.name;
    let results = match theirs {
        Some(theirs) if group.strict => {
            outcome::strict(&theirs.outcomes, &ours.outcomes, group.floor)
        }
        Some(theirs) => outcome::compare(&theirs.outcomes, &ours.outcomes, group.floor),
        None => outcome::alone(&ours.outcomes),
    };
    println!("    KTAP version 1");
    println!("    1..{}", results.len());
    let mut all = true;
    for (index, (test, comparison)) in results.iter().enumerate() {
        let number = index + 1;
        match comparison {
            Comparison::Same => println!("    ok {number} {test}"),
            Comparison::Skip(reason) => println!("    ok {number} {test} # SKIP {reason}"),
            Comparison::Differs(reason) => {
                all = false;
                println!("    # {}", reason.replace('\n', "\n    # "));
                println!("    not ok {number} {test}");
            }
        }
    }
    println!("{} {number} {name}", if all { "ok" } else { "not ok" });
    let seconds = ours.time.as_secs_f64();
    let Some(theirs) = theirs else {
        println!("# time: {name}: {seconds:.1} s, not run on Linux's driver");
        return all;
    };
    for outcome in &ours.outcomes {
        let theirs = theirs
            .outcomes
            .iter()
            .find(|other| other.name == outcome.name);
        if let (Some(ours), Some(theirs)) = (outcome.rate, theirs.and_then(|other| other.rate)) {
            println!(
                "# rate: {name}/{}: {ours:.1} a second, on Linux's driver {theirs:.1}, ratio {:.2}",
                outcome.name,
                ours / theirs
            );
        }
    }
    println!(
        "# baseline: {name}: {} of {} pass on Linux's driver, at least {} must",
        outcome::passed(&theirs.outcomes),
        results.len(),
        group.floor
    );
    let theirs = theirs.time.as_secs_f64();
    println!(
        "# time: {name}: {seconds:.1} s, on Linux's driver {theirs:.1} s, ratio {:.2}",
        seconds / theirs
    );
    all
}
