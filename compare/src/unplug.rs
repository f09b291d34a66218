// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The device goes while Mesa draws with it, and comes back.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::drivers::{self, Driver};
use crate::outcome::{Outcome, Result, Status};
use crate::program::{Output, Program, OUTPUT};

/// Longer than a program takes to notice that its device is gone.
const LIMIT: Duration = Duration::from_secs(60);

/// How the device goes.
#[derive(Clone, Copy)]
enum Way {
    /// The driver is taken from it.
    Unbind,
    /// The PCI device is removed.
    Remove,
}

/// Runs `drawing`, which says when it draws, on a device that goes meanwhile; and after each time
/// `again`, which must work.
pub(crate) fn run(
    drawing: impl Fn() -> Program,
    again: impl Fn() -> Result<Vec<Outcome>>,
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for (name, way) in [("unbind", Way::Unbind), ("remove", Way::Remove)] {
        outcomes.push(Outcome::new(name, gone(drawing(), way)?));
        drivers::ready(Driver::Ours)?;
        outcomes.extend(again()?.into_iter().map(|outcome| Outcome {
            name: format!("after_{name}/{}", outcome.name),
            ..outcome
        }));
    }
    Ok(outcomes)
}

fn gone(program: Program, way: Way) -> Result<Status> {
    let _ = fs::remove_file(OUTPUT);
    let program = std::thread::spawn(move || program.run().map_err(|error| error.to_string()));
    let deadline = Instant::now() + LIMIT;
    while !fs::read_to_string(OUTPUT).is_ok_and(|text| text.contains("drawing")) {
        if program.is_finished() || Instant::now() > deadline {
            break;
        }
        std::thread::yield_now();
    }
    let drew = !program.is_finished();
    let start = Instant::now();
    take_away(way)?;
    let taken = start.elapsed();
    let output = program.join().map_err(|_| "a thread panicked")??;
    drivers::rescan(Driver::Ours)?;
    Ok(status(drew, taken, &output))
}

fn status(drew: bool, taken: Duration, output: &Output) -> Status {
    let tail = output.tail(8);
    if !drew || !output.text.contains("drawing") {
        return Status::Fail(format!("nothing was drawn\n{tail}"));
    }
    if taken > LIMIT {
        return Status::Fail(format!("it took {} s to remove it", taken.as_secs()));
    }
    // An error, an abort by Mesa, or nothing but wrong pictures: all but going on.
    match output.status {
        Some(_) => Status::Pass(String::new()),
        None => Status::Fail(format!("the program did not notice\n{tail}")),
    }
}

fn take_away(way: Way) -> Result {
    let device = device()?;
    match way {
        Way::Unbind => {
            let virtio = fs::read_dir("/sys/bus/virtio/drivers/virtgpu_userptr")?
                .flatten()
                .find(|entry| entry.file_name().to_string_lossy().starts_with("virtio"))
                .ok_or("the driver has no device")?;
            let unbind = "/sys/bus/virtio/drivers/virtgpu_userptr/unbind";
            fs::write(unbind, virtio.file_name().as_encoded_bytes())?;
        }
        Way::Remove => fs::write(device.join("remove"), "1")?,
    }
    Ok(())
}

/// The PCI device of the render node.
fn device() -> Result<PathBuf> {
    Ok(fs::canonicalize("/sys/class/drm/renderD128/device")?)
}
