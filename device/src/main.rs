// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The program `virtgpu-device`: a device, a list of what its options know, or the check of a log.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use virtgpu_device::backend::serve::serve;
use virtgpu_device::device::Device;
use virtgpu_device::log::{check, Event, EventLog};
use virtgpu_device::misbehave::{adversary, mutant};
use virtgpu_device::options::cli::{Cli, Command, RunArgs};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Command::CheckLog { unfinished, file }) => check_log(file, *unfinished),
        None if cli.run.list_adversary => {
            print!("{}", adversary::list());
            Ok(ExitCode::SUCCESS)
        }
        None if cli.run.list_mutants => {
            print!("{}", mutant::list());
            Ok(ExitCode::SUCCESS)
        }
        None => run(&cli.run),
    };
    result.unwrap_or_else(|error| {
        eprintln!("virtgpu-device: {error}");
        ExitCode::FAILURE
    })
}

fn check_log(file: &Path, unfinished: bool) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let input = File::open(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let report = check::check(BufReader::new(input))?;
    for (line, what) in &report.violations {
        println!("line {line}: {what}");
    }
    println!(
        "{} lines, {} requests, {} jobs, {} mistreated, {} violations{}",
        report.lines,
        report.requests,
        report.jobs,
        report.mistreated,
        report.violations.len(),
        if report.complete {
            ""
        } else {
            "; the log has no end"
        },
    );
    let good = report.violations.is_empty() && (report.complete || unfinished);
    Ok(match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn run(args: &RunArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    // A thread that died would leave the guest waiting for ever.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        hook(info);
        std::process::abort();
    }));
    let socket = args.socket.as_deref().ok_or("--socket is missing")?;
    let log = Arc::new(EventLog::new(args.event_log.as_deref())?);
    log.write(|| Event::Start {
        options: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
    });
    let device = Device::new(args.options()?, log)?;
    serve(&device, socket, || println!("ready"))?;
    Ok(ExitCode::SUCCESS)
}
