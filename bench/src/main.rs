// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The measures, taken in the guest: what registering memory costs (P1), what it saves (P2), what
//! mirroring costs where nothing is used yet (P3), what it saves programs that allocate and free
//! all the time (P4), how long it delays the kernel (P5), how few memory entries registrations need
//! (P6) and how little memory of the kernel's (P7), how this driver compares with Linux's own (P8),
//! what it costs that jobs use pointers of the process, with nothing registered (P9), and how many
//! instructions the kernel executes for calls of P8, P4 and P5 (P10).
//!
//! Everything is a ratio of two numbers from the same run. The result is a table, and a last line
//! `BENCH-JSON {"rows":[...]}`.

mod copying;
mod counting;
mod drivers;
mod entries;
mod faulting;
mod footprint;
mod gup;
mod memory;
mod meter;
mod p3_register_untouched;
mod p4_alloc_use_free;
mod p5_invalidate;
mod pinning;
mod report;
mod setup;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use drivers::HostGpu;
use report::Report;

/// What the command line says.
struct Options {
    /// Repetitions of each measurement.
    runs: usize,
    /// Measures to take; all if empty.
    only: Vec<String>,
    /// Our module.
    ours: PathBuf,
    /// An older build of our module.
    before: Option<PathBuf>,
    /// Linux's module, or its name for modprobe.
    c: String,
    /// Largest registration, in MiB.
    largest: usize,
    /// What P9 touches for the first time, in MiB.
    touch: usize,
    /// Of how many rows of each kind P10 lists functions.
    profiles: usize,
    /// How many.
    functions: usize,
    /// What the device is.
    host_gpu: HostGpu,
}

const USAGE: &str = "\
usage: virtgpu-bench [options] [P1] [P2] [P3] [P4] [P5] [P6] [P7] [P8] [P9] [P10]
  --runs N       repetitions of each measurement, 5 or more (5)
  --largest MIB  largest registration of P1 (1024)
  --touch MIB    untouched memory that P9 has a job fill (64)
  --profiles N   rows of each kind, the worst, of which P10 lists functions (3)
  --functions N  how many it lists (15)
  --ours FILE    this project's module (/job/virtgpu_userptr.ko)
  --before FILE  an older build of it, which P8 measures in the same run, in rows of its own
  --c MODULE     Linux's module: a file, or a name for modprobe (virtio-gpu)
  --host-gpu GPU what P8 finds in the guest: reference, virgl or venus, as vm.sh --host-gpu
                 (reference); the other measures but P10 want the reference device
P10 is taken only if it is named, in a guest whose instructions are counted (vm.sh --count)";

fn options() -> Result<Options, String> {
    let mut options = Options {
        runs: 5,
        only: Vec::new(),
        ours: "/job/virtgpu_userptr.ko".into(),
        before: None,
        c: "virtio-gpu".into(),
        largest: 1024,
        touch: 64,
        profiles: 3,
        functions: 15,
        host_gpu: HostGpu::Reference,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        let number = |text: String| {
            text.parse::<usize>()
                .map_err(|error| format!("{text}: {error}"))
        };
        match argument.as_str() {
            "--runs" => options.runs = number(value()?)?.max(5),
            "--largest" => options.largest = number(value()?)?.max(32),
            "--touch" => options.touch = number(value()?)?.max(2),
            "--profiles" => options.profiles = number(value()?)?,
            "--functions" => options.functions = number(value()?)?,
            "--ours" => options.ours = value()?.into(),
            "--before" => options.before = Some(value()?.into()),
            "--c" => options.c = value()?,
            "--host-gpu" => {
                let name = value()?;
                options.host_gpu =
                    HostGpu::named(&name).ok_or_else(|| format!("{name}: no such device"))?;
            }
            "P1" | "P2" | "P3" | "P4" | "P5" | "P6" | "P7" | "P8" | "P9" | "P10" => {
                options.only.push(argument);
            }
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}

impl Options {
    fn wants(&self, measure: &str) -> bool {
        (self.only.is_empty() && measure != "P10") || self.only.iter().any(|name| name == measure)
    }
}

type Measure = fn(&Options, &mut Report) -> setup::Result;

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let anywhere = |name: &String| name == "P8" || name == "P10";
    if options.host_gpu != HostGpu::Reference
        && (options.only.is_empty() || !options.only.iter().all(anywhere))
    {
        eprintln!("only P8 and P10 can be measured on another device than the reference device");
        return ExitCode::from(2);
    }
    setup::prepare();
    let mut report = Report::new();
    let mut failed = false;
    let measures: [(&str, Measure); 10] = [
        ("P1", pinning::measure),
        ("P2", copying::measure),
        ("P3", p3_register_untouched::measure),
        ("P4", p4_alloc_use_free::measure),
        ("P5", p5_invalidate::measure),
        ("P6", entries::measure),
        ("P7", footprint::measure),
        ("P8", drivers::measure),
        ("P9", faulting::measure),
        ("P10", counting::measure),
    ];
    for (name, measure) in measures {
        if !options.wants(name) {
            continue;
        }
        eprintln!("measuring {name}");
        if let Err(error) = measure(&options, &mut report) {
            eprintln!("{name}: {error}");
            failed = true;
        }
    }
    report.print();
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
