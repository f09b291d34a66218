// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P6: memory entries sent to the device, against the fewest that the physical pages allow.

use virtgpu_client::{Memory, RegisterOptions};

use crate::memory::{make, minimal_runs, Kind};
use crate::report::{Goal, Report, Sample};
use crate::setup::{open, Result, MIB};
use crate::Options;

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let device = open()?;
    for (kind, mib) in [
        (Kind::Hugetlb, 64),
        (Kind::Thp, 256),
        (Kind::Fragmented, 256),
    ] {
        let (mut sent, mut fewest) = (Sample::default(), Sample::default());
        for _ in 0..options.runs {
            let memory = make(kind, mib * MIB)?;
            let userptr = device.register(&memory, RegisterOptions::pinned())?;
            let size = (memory.len() / MIB) as f64;
            sent.0.push(userptr.query()?.entries as f64 / size);
            fewest.0.push(minimal_runs(&memory)? as f64 / size);
        }
        let exact = sent.0 == fewest.0;
        report.add(
            &format!("P6-{}", kind.name()),
            if exact {
                "memory entries per MiB, against the fewest possible; equal in every run"
            } else {
                "memory entries per MiB, against the fewest possible; NOT equal in every run"
            },
            "1/MiB",
            [sent, fewest],
            Goal::AtMost(1.0),
        );
    }
    // The huge pages go back.
    std::fs::write("/proc/sys/vm/nr_hugepages", "0")?;
    Ok(())
}
