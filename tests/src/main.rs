// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The guest tests: one program, so that it can be one file of a guest image.
//!
//! `virtgpu-tests list` prints one family a line, with tabs between: name, kernel (`any` or
//! `debug`), driver (`ours`, `c` or `both`), arguments for the device, parameters of the module.
//! `virtgpu-tests run FAMILY… [--filter TEXT]` runs families (of them only the cases whose
//! `family.case` contains TEXT, or one of several with commas between) and reports in KTAP; `all`
//! stands for those that need no arguments for the device. `VIRTGPU_TESTS_SCALE=N` (percent)
//! shortens the loops that say so in their output.

mod bad_input;
mod bad_memory;
mod basic;
mod belated;
mod bounce;
mod cdriver;
mod cow;
mod dma;
mod faults;
mod greedy;
mod gup_longterm;
mod handles;
mod hostile;
mod isolation;
mod ktap;
mod life;
mod mappings;
mod mirrored;
mod nomodeset;
mod observe;
mod poll_rings;
mod prime;
mod probe;
mod quarantine;
mod read_only;
mod readers;
mod releases;
mod remove;
mod revoked;
mod ring;
mod sleep;
mod support;
mod svm;
mod transfer;
mod unplug;
mod userptr;
mod uuid;
mod variants;

use std::process::ExitCode;

use ktap::{Driver, Family, Kernel};

const FAMILIES: &[&Family] = &[
    &basic::FAMILY,
    &bounce::FAMILY,
    &cdriver::FAMILY,
    &poll_rings::FAMILY,
    &dma::FAMILY,
    &prime::FAMILY,
    &revoked::FAMILY,
    &uuid::REFUSED,
    &uuid::INVALID,
    &uuid::LATE,
    &uuid::BY_TURNS,
    &prime::NO_VIRGL,
    &prime::ACCESS_PLATFORM,
    &prime::ALIGNMENT,
    &transfer::FAMILY,
    &transfer::NO_VIRGL,
    &transfer::ACCESS_PLATFORM,
    &userptr::FAMILY,
    &bad_input::FAMILY,
    &bad_memory::FAMILY,
    &read_only::FAMILY,
    &read_only::NO_MIRROR,
    &handles::FAMILY,
    &observe::FAMILY,
    &gup_longterm::FAMILY,
    &cow::FAMILY,
    &life::FAMILY,
    &isolation::SLOW_JOBS,
    &isolation::ABANDONED,
    &isolation::SILENT_JOBS,
    &isolation::SILENT_END,
    &isolation::SILENT_COMMANDS,
    &isolation::SILENT_CONTEXT,
    &isolation::DEVIATING,
    &belated::LATE,
    &belated::LATE_REFUSED,
    &belated::SILENT_CREATION,
    &belated::SILENT_MAPPING,
    &ring::FAMILY,
    &ring::DIRECT,
    &ring::TEARDOWN,
    &releases::FAMILY,
    &readers::FAMILY,
    &mappings::FAMILY,
    &quarantine::MIRRORED,
    &quarantine::PINNED,
    &quarantine::UNREF,
    &remove::FAMILY,
    &nomodeset::FAMILY,
    &probe::SMALL_RINGS,
    &sleep::FAMILY,
    &unplug::FAMILY,
    &faults::FAMILY,
    &variants::ACCESS_PLATFORM,
    &variants::ALIGNMENT,
    &variants::SMALL_ALIGNMENT,
    &variants::NO_HOSTMEM,
    &variants::NO_MIRROR,
    &variants::ROCM,
];

/// All of them.
fn families() -> impl Iterator<Item = &'static Family> {
    FAMILIES
        .iter()
        .copied()
        .chain(mirrored::FAMILIES)
        .chain(svm::FAMILIES)
        .chain(hostile())
}

/// Those for devices that misbehave towards everybody.
fn hostile() -> impl Iterator<Item = &'static Family> {
    hostile::FAMILIES
        .iter()
        .chain(mirrored::HOSTILE)
        .chain(svm::HOSTILE)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((command, [])) if command == "list" => {
            list();
            ExitCode::SUCCESS
        }
        // What a test of exec starts.
        Some((command, rest)) if command == "after-exec" => match life::after_exec(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("    # after exec: {error:?}");
                ExitCode::FAILURE
            }
        },
        Some((command, rest)) if command == "run" && !rest.is_empty() => run(rest),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: virtgpu-tests list | run FAMILY... [--filter TEXT]");
    ExitCode::from(2)
}

fn list() {
    for family in families() {
        let kernel = match family.kernel {
            Kernel::Any => "any",
            Kernel::Debug => "debug",
        };
        let driver = match family.driver {
            Driver::Ours => "ours",
            Driver::C => "c",
            Driver::Both => "both",
        };
        let module = match hostile().any(|other| other.name == family.name) {
            true => hostile::PARAMETERS,
            false => "",
        };
        println!(
            "{}\t{kernel}\t{driver}\t{}\t{module}",
            family.name, family.device
        );
    }
}

fn run(arguments: &[String]) -> ExitCode {
    let mut names = Vec::new();
    let mut filter = None;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--filter" {
            filter = arguments.next().map(String::as_str);
        } else {
            names.push(argument.as_str());
        }
    }
    let mut families: Vec<&Family> = Vec::new();
    for name in names {
        if name == "all" {
            families.extend(self::families().filter(|family| family.device.is_empty()));
            continue;
        }
        match self::families().find(|family| family.name == name) {
            Some(family) => families.push(family),
            None => {
                eprintln!("virtgpu-tests: no family is called {name}");
                return ExitCode::from(2);
            }
        }
    }
    let env = match support::Env::new() {
        Ok(env) => env,
        Err(error) => {
            println!("Bail out! {error}");
            return ExitCode::FAILURE;
        }
    };
    if ktap::run(&families, filter, &env) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
