// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P8: this driver against Linux's own, on the same device, loaded in turns; with `--before` an
//! older build of this driver takes its turns with them.

mod modules;
mod reference;
mod timing;
mod venus;
mod venus_stream;
mod virgl;

use virtgpu_client::Device;

use crate::report::{Goal, Report, Sample};
use crate::setup::Result;
use crate::Options;
use modules::Driver;
use timing::Number;

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

    fn numbers(self, device: &Device) -> Result<Vec<Number>> {
        match self {
            Self::Reference => reference::numbers(device),
            Self::Virgl => virgl::numbers(device),
            Self::Venus => venus::numbers(device),
        }
    }
}

/// What the rounds have shown of one number.
struct Row {
    id: &'static str,
    what: &'static str,
    ours: Sample,
    before: Sample,
    theirs: Sample,
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let result = in_turns(options, report);
    // The other measures, and whoever comes next, expect this driver.
    Driver::Linux.unload()?;
    if !Driver::Ours.is_loaded() {
        Driver::Ours.load(options)?;
    }
    result
}

fn in_turns(options: &Options, report: &mut Report) -> Result {
    let mut rows = Vec::new();
    let mut order = vec![Driver::Linux, Driver::Ours];
    if options.before.is_some() {
        order.push(Driver::Before);
    }
    Driver::Ours.unload()?;
    for run in 0..options.runs {
        for &driver in &order {
            driver.load(options)?;
            let numbers = options.host_gpu.numbers(&modules::ready()?)?;
            driver.unload()?;
            for number in numbers {
                add(&mut rows, driver, &number);
            }
        }
        // A host that becomes slower or faster favours no one.
        order.rotate_left(1);
        eprintln!("  round {} of {}", run + 1, options.runs);
    }
    for row in rows {
        let samples = [row.ours, row.theirs.clone()];
        report.add(row.id, row.what, "ns", samples, Goal::AtMost(1.05));
        if options.before.is_some() {
            let samples = [row.before, row.theirs];
            report.add(
                &format!("{}-before", row.id),
                row.what,
                "ns",
                samples,
                Goal::None,
            );
        }
    }
    Ok(())
}

fn add(rows: &mut Vec<Row>, driver: Driver, number: &Number) {
    let index = match rows.iter().position(|row| row.id == number.id) {
        Some(index) => index,
        None => {
            rows.push(Row {
                id: number.id,
                what: number.what,
                ours: Sample::default(),
                before: Sample::default(),
                theirs: Sample::default(),
            });
            rows.len() - 1
        }
    };
    let row = &mut rows[index];
    let sample = match driver {
        Driver::Linux => &mut row.theirs,
        Driver::Ours => &mut row.ours,
        Driver::Before => &mut row.before,
    };
    sample.0.push(number.nanoseconds);
}
