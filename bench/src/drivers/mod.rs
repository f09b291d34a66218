// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P8: this driver against Linux's own, on the same device, loaded in turns; with `--before` an
//! older build of this driver takes its turns with them.

mod calls;
mod modules;
mod reference;
mod venus;
mod venus_stream;
mod virgl;

use virtgpu_client::Device;

use crate::meter::profile::{Profile, Worst};
use crate::meter::{Meter, Number, Symbols};
use crate::report::{Goal, Report, Sample};
use crate::setup::Result;
use crate::Options;
use modules::Driver;

/// What the guest's device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostGpu {
    /// This project's.
    Reference,
    /// QEMU's virtio-gpu-gl, with OpenGL only.
    Virgl,
    /// QEMU's virtio-gpu-gl, with blobs and Vulkan.
    Venus,
}

impl HostGpu {
    /// By the name that `vm.sh --host-gpu` has for it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "reference" => Self::Reference,
            "virgl" => Self::Virgl,
            "venus" => Self::Venus,
            _ => return None,
        })
    }

    fn numbers(self, device: &Device, meter: &mut Meter) -> Result<Vec<Number>> {
        match self {
            Self::Reference => reference::numbers(device, meter),
            Self::Virgl => virgl::numbers(device, meter),
            Self::Venus => venus::numbers(device, meter),
        }
    }
}

/// What the rounds have shown of one number.
struct Row {
    id: String,
    what: &'static str,
    ours: Sample,
    before: Sample,
    theirs: Sample,
    /// Instructions of interrupts and of other threads, ours and theirs.
    others: [Sample; 2],
    /// Where the instructions were in the last round, if they were counted.
    profiles: [Profile; 2],
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let mut worst = Worst::new();
    let goal = Goal::AtMost(1.05);
    compare(options, report, ("P8", goal), &mut Meter::Clock, &mut worst)
}

/// Measures the same with all drivers, in rows of `measure`.
pub(crate) fn compare(
    options: &Options,
    report: &mut Report,
    (measure, goal): (&str, Goal),
    meter: &mut Meter,
    worst: &mut Worst,
) -> Result {
    let result = in_turns(options, meter);
    // The other measures, and whoever comes next, expect this driver.
    Driver::Linux.unload()?;
    if !Driver::Ours.is_loaded() {
        Driver::Ours.load(options)?;
    }
    for row in result? {
        let id = format!("{measure}-{}", row.id);
        let [ours, theirs] = &row.profiles;
        worst.add(
            &id,
            row.ours.median() / row.theirs.median(),
            [("this driver", ours), ("Linux's", theirs)],
        );
        let samples = [row.ours, row.theirs.clone()];
        report.add(&id, row.what, meter.unit(), samples, goal);
        if row.others.iter().any(|others| others.median() > 0.0) {
            let what = "meanwhile, in interrupts and other threads";
            let id = format!("{id}-others");
            report.add(&id, what, meter.unit(), row.others, Goal::None);
        }
        if options.before.is_some() {
            let samples = [row.before, row.theirs];
            let id = format!("{id}-before");
            report.add(&id, row.what, meter.unit(), samples, Goal::None);
        }
    }
    Ok(())
}

fn in_turns(options: &Options, meter: &mut Meter) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut order = vec![Driver::Linux, Driver::Ours];
    if options.before.is_some() {
        order.push(Driver::Before);
    }
    Driver::Ours.unload()?;
    for run in 0..options.runs {
        for &driver in &order {
            driver.load(options)?;
            let numbers = options.host_gpu.numbers(&modules::ready()?, meter)?;
            let symbols = match run + 1 == options.runs {
                true => Some(meter.symbols()?),
                false => None,
            };
            driver.unload()?;
            for number in numbers {
                add(&mut rows, driver, &number, symbols.as_ref());
            }
        }
        // A host that becomes slower or faster favours no one.
        order.rotate_left(1);
        eprintln!("  round {} of {}", run + 1, options.runs);
    }
    Ok(rows)
}

fn add(rows: &mut Vec<Row>, driver: Driver, number: &Number, symbols: Option<&Symbols>) {
    let index = match rows.iter().position(|row| row.id == number.id) {
        Some(index) => index,
        None => {
            rows.push(Row {
                id: number.id.clone(),
                what: number.what,
                ours: Sample::default(),
                before: Sample::default(),
                theirs: Sample::default(),
                others: Default::default(),
                profiles: Default::default(),
            });
            rows.len() - 1
        }
    };
    let row = &mut rows[index];
    let [ours, theirs] = [0, 1];
    let (sample, which) = match driver {
        Driver::Linux => (&mut row.theirs, Some(theirs)),
        Driver::Ours => (&mut row.ours, Some(ours)),
        Driver::Before => (&mut row.before, None),
    };
    sample.0.push(number.value);
    if let Some(which) = which {
        row.others[which].0.push(number.others);
        if let Some(symbols) = symbols {
            row.profiles[which] = Profile::new(number, symbols);
        }
    }
}
