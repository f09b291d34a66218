// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Programs are killed while Mesa draws for them; others notice nothing of it.

use std::process::Command;
use std::time::Duration;

use crate::drivers;
use crate::outcome::{Outcome, Result, Status};
use crate::program::Program;

/// Longer than a program takes to start to draw.
const LIMIT: Duration = Duration::from_secs(60);
/// Longer than the driver waits for a response of the device before it takes it for lost: the
/// default of `ack_timeout_ms`, and some more.
const NOTICED: Duration = Duration::from_secs(25);
/// How the driver says that it has lost a device.
const LOST: &str = "device lost:";
/// What the killed program has printed, and the one that goes on.
const VICTIM: &str = "/tmp/virtgpu-compare-victim.out";
const WITNESS: &str = "/tmp/virtgpu-compare-witness.out";

/// Kills `busy`, which says when it draws and always has work on the device, again and again, while
/// `endless` draws until something is wrong. After each time `again` starts, which must pass.
pub(crate) fn run(
    busy: impl Fn() -> Program,
    endless: impl Fn() -> Program,
    again: impl Fn() -> Result<Vec<Outcome>>,
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let lost = losses()?;
    let mut witness = endless().start(WITNESS)?;
    let mut drew = witness.says("drawing", LIMIT)?;
    for round in 1..=2 {
        let mut victim = busy().start(VICTIM)?;
        let worked = victim.says("drawing", LIMIT)?;
        let output = victim.kill()?;
        outcomes.push(Outcome::new(
            format!("killed_{round}"),
            if worked {
                Status::Pass(String::new())
            } else {
                Status::Fail(format!("nothing was drawn\n{}", output.tail(8)))
            },
        ));
        outcomes.extend(again()?.into_iter().map(|outcome| Outcome {
            name: format!("after_{round}/{}", outcome.name),
            ..outcome
        }));
    }
    drew &= !witness.ends_within(NOTICED)?;
    let output = witness.kill()?;
    let status = if !drew {
        Status::Fail(format!("it did not draw all the time\n{}", output.tail(8)))
    } else if losses()? != lost {
        Status::Fail("the kernel's log says that the device was lost".into())
    } else {
        Status::Pass(String::new())
    };
    outcomes.push(Outcome::new("others_go_on", status));
    drivers::ready(drivers::Driver::Ours)?;
    Ok(outcomes)
}

/// How often the kernel's log says that this driver has lost a device.
fn losses() -> Result<usize> {
    let output = Command::new("dmesg").output()?;
    if !output.status.success() || output.stdout.is_empty() {
        return Err(format!("dmesg: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter(|line| line.contains(LOST)).count())
}
