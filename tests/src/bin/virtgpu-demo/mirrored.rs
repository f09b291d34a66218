// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The second act: memory is mirrored, once, and nothing of it is held. Jobs work on it while
//! the kernel takes its pages away, and after the program has freed it and allocated anew.

use std::cell::Cell;
use std::time::{Duration, Instant};

use virtgpu_client::{
    compute, Bytes, Device, Errno, Event, Memory, RegisterOptions, Registration, Result,
};

use crate::disturb::Pieces;
use crate::kernel;
use crate::{datum, failed, milliseconds, run, Malloc, Report, MIB, PAGE};

/// More than malloc ever takes from its heap: free gives it back to the kernel.
const LENGTH: usize = 40 * MIB;
/// What is swapped or moved at a time.
const PIECE: usize = MIB;
/// Jobs while that goes on.
const JOBS: u32 = 10;
/// Submissions that may be abandoned, in all: on a slow machine the kernel's second is short.
const PATIENCE: u32 = 50;

/// The word at `index` after `times` jobs.
fn word(index: usize, times: u32) -> u32 {
    datum(index).to_bits().wrapping_add(times)
}

/// CRC32C of all words, by the CPU.
fn expected(salt: usize, times: u32) -> u32 {
    let mut bytes = vec![0; MIB];
    let mut crc = 0;
    for first in (0..LENGTH / 4).step_by(MIB / 4) {
        for (at, bytes) in bytes.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&word(salt + first + at, times).to_le_bytes());
        }
        crc = compute::crc32c(crc, &bytes);
    }
    crc
}

/// Memory that the program frees while the device has it registered.
struct Stage<'d> {
    device: &'d Device,
    userptr: Registration<'d>,
    word: &'d Malloc,
    result: Registration<'d, &'d Malloc>,
    /// Submissions that the kernel gave up because pages kept moving.
    given_up: Cell<u32>,
}

impl Stage<'_> {
    /// A job that adds 1 to each word, if it is to, and finds the CRC32C of all of them.
    fn job(&self, add: bool) -> Result<(u32, Duration)> {
        let mut job = compute::Stream::new();
        if add {
            job.add_u32(self.userptr.at(0), LENGTH as u64, 1);
        }
        job.crc32c(self.result.at(0), self.userptr.at(0), LENGTH as u64);
        let handles = [self.userptr.handle(), self.result.handle()];
        let start = Instant::now();
        loop {
            match run(self.device, &job, &handles) {
                // A job that was not queued changes nothing. Whoever moved the pages waits for us.
                Err(Errno::BUSY) if self.given_up.get() < PATIENCE => {
                    self.given_up.set(self.given_up.get() + 1);
                }
                result => {
                    result?;
                    return Ok((self.word.read_u32(0), start.elapsed()));
                }
            }
        }
    }
}

fn fill(memory: &Malloc, salt: usize) {
    for index in 0..LENGTH / 4 {
        memory.write_u32(4 * index, word(salt + index, 0));
    }
}

/// Plays it.
pub(crate) fn play(device: &Device, report: &mut Report) -> Result<()> {
    let pinned = kernel::pinned().map_err(failed)?;
    let memory = Malloc::new(LENGTH);
    let options = RegisterOptions::mirrored().events(0);
    let start = Instant::now();
    // SAFETY: What is at these addresses is the memory of one `Malloc` after the other, to which
    // there are no references, and when there is none, no job is submitted that the kernel takes.
    let userptr = unsafe { device.register_raw(memory.as_ptr() as u64, LENGTH as u64, options)? };
    report.say(&format!(
        "malloc: {} MiB, mirrored in {:.1} ms; nothing is pinned, nothing was touched",
        LENGTH / MIB,
        milliseconds(start.elapsed())
    ));
    let word = Malloc::new(PAGE);
    let stage = Stage {
        device,
        userptr,
        result: device.register(&word, RegisterOptions::mirrored())?,
        word: &word,
        given_up: Cell::new(0),
    };
    fill(&memory, 0);
    let (crc, time) = stage.job(false)?;
    report.result("CRC32C of all of it", crc == expected(0, 0), time);

    disturbed(&stage, &memory, report)?;
    freed(&stage, memory, report)?;

    let count = stage.userptr.query()?;
    report.say(&format!(
        "  counters: {} MAPs of {} entries, {} INVALIDATEs, {} retries, {} pages faulted in",
        count.maps, count.entries, count.invalidations, count.retries, count.faults
    ));
    report.say(&format!(
        "  jobs submitted again because pages kept moving: {}",
        stage.given_up.get()
    ));
    let nothing_held = count.resident_bytes == 0 && kernel::pinned().map_err(failed)? == pinned;
    report.status("nothing was pinned all along", nothing_held);
    Ok(())
}

/// Jobs on memory that is swapped out and moved to and fro meanwhile.
fn disturbed(stage: &Stage<'_>, memory: &Malloc, report: &mut Report) -> Result<()> {
    let before = stage.userptr.query()?;
    let start = memory.as_ptr() as usize;
    let pieces = Pieces {
        memory: start..start + LENGTH,
        piece: PIECE,
        swapped: 1,
    };
    let mut slowest = Duration::ZERO;
    let mut wrong = 0;
    let disturbance = pieces.disturb(JOBS, |job| {
        let (crc, time) = stage.job(true)?;
        wrong += u32::from(crc != expected(0, job));
        slowest = slowest.max(time);
        Ok(())
    })?;
    let invalidated = stage.userptr.query()?.invalidations - before.invalidations;
    report.result(
        &format!("{JOBS} times += 1 and CRC32C, the slowest of them"),
        wrong == 0,
        slowest,
    );
    disturbance.report(report, &[(invalidated, "INVALIDATEs")]);
    let same = (0..LENGTH / 4).all(|index| memory.read_u32(4 * index) == word(index, JOBS));
    report.status("the CPU finds every word right", same);
    Ok(())
}

/// The program frees the memory and allocates again; the registration stays.
fn freed(stage: &Stage<'_>, mut memory: Malloc, report: &mut Report) -> Result<()> {
    let address = memory.as_ptr();
    for salt in [1, 2, 3] {
        drop(memory);
        let mapped = stage.userptr.query()?.mapped_bytes;
        let refused = stage.job(false) == Err(Errno::FAULT);
        let events = stage.device.events(Duration::from_secs(20))?;
        let told = events.iter().any(|event| {
            matches!(event, Event::Userptr(event) if event.bo_handle == stage.userptr.handle())
        });
        report.status(
            "free(): mapping gone, event sent, job refused",
            mapped == 0 && refused && told,
        );
        memory = Malloc::new(LENGTH);
        if memory.as_ptr() != address {
            // It usually does.
            report.say("  malloc did not give the same addresses again");
            report.status("the registration is still of use", false);
            return Ok(());
        }
        fill(&memory, salt);
        let (crc, time) = stage.job(false)?;
        let right = crc == expected(salt, 0);
        report.result("malloc(): CRC32C of the new memory", right, time);
    }
    Ok(())
}
