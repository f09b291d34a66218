// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! How fast this machine is, so that time limits mean the same on all of them.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::ktap::pipe;

/// Percent of the time that things take on the machine for which limits were written.
static PERCENT: AtomicU32 = AtomicU32::new(100);

/// A round trip between two processes on an emulated machine with nothing else to do.
const USUAL: Duration = Duration::from_micros(400);
/// The same with the debug kernel.
const USUAL_DEBUG: Duration = Duration::from_micros(2000);
/// Limits become no longer than this many times.
const MOST: u32 = 4;

/// `limit`, which is for a usual machine, on this one.
pub(crate) fn limit(limit: Duration) -> Duration {
    limit * PERCENT.load(Ordering::Relaxed) / 100
}

/// Finds out. The time limits of a machine that is faster than usual stay as they are.
pub(crate) fn measure(debug: bool) -> std::io::Result<()> {
    let usual = if debug { USUAL_DEBUG } else { USUAL };
    let mut rounds = (0..5)
        .map(|_| round_trip())
        .collect::<std::io::Result<Vec<_>>>()?;
    rounds.sort();
    let median = rounds[rounds.len() / 2];
    let percent = (median.as_micros() * 100 / usual.as_micros()) as u32;
    let percent = percent.clamp(100, MOST * 100);
    PERCENT.store(percent, Ordering::Relaxed);
    println!("# a round trip takes {median:?}, limits are {percent} percent");
    Ok(())
}

/// The time between a byte to another process and its response, of many.
fn round_trip() -> std::io::Result<Duration> {
    const COUNT: u32 = 50;
    let (mut question, mut ask) = pipe()?;
    let (mut response, mut respond) = pipe()?;
    // SAFETY: This process has one thread, so that the child may do anything.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut byte = [0];
    if pid == 0 {
        drop((ask, response));
        while matches!(question.read(&mut byte), Ok(1)) && respond.write_all(&byte).is_ok() {}
        // SAFETY: Ends the child without running the parent's destructors.
        unsafe { libc::_exit(0) }
    }
    drop((question, respond));
    let mut turn = || {
        ask.write_all(&[1])?;
        response.read_exact(&mut byte)
    };
    let result = turn().and_then(|()| {
        let start = Instant::now();
        (0..COUNT).try_for_each(|_| turn())?;
        Ok(start.elapsed() / COUNT)
    });
    drop(ask);
    // SAFETY: Our own child, which ends when there is nothing more to read.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    result
}
