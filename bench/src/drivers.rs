// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! P8: this driver against Linux's own, on the same device, loaded in turns.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::{compute, BlobOptions, Bytes, Device, Exec};

use crate::report::{Goal, Report, Sample};
use crate::setup::{open, since, wait, Result};
use crate::Options;

const OURS: &str = "virtgpu_userptr";
const C: &str = "virtio_gpu";

fn unload(name: &str) -> Result {
    let text = std::ffi::CString::new(name)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        // SAFETY: A NUL-terminated string.
        let result =
            unsafe { libc::syscall(libc::SYS_delete_module, text.as_ptr(), libc::O_NONBLOCK) };
        if result == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENOENT) {
            return Ok(());
        }
        // The last user may go with a worker.
        if Instant::now() > deadline {
            return Err(format!("unloading {name}: {error}").into());
        }
        std::thread::yield_now();
    }
}

fn load_file(path: &Path) -> Result {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let none = c"";
    // SAFETY: An open file and a NUL-terminated string.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!("{}: {error}", path.display()).into());
    }
    Ok(())
}

fn load_c(module: &str) -> Result {
    if module.contains('/') {
        return load_file(Path::new(module));
    }
    let status = Command::new("modprobe").arg(module).status()?;
    if !status.success() {
        return Err(format!("modprobe {module}: {status}").into());
    }
    Ok(())
}

/// Waits for the render node.
fn ready() -> Result<Device> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match open() {
            Ok(device) => return Ok(device),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// The three numbers of one driver, in nanoseconds: medians, which a busy host disturbs least.
fn numbers(device: &Device) -> Result<[f64; 3]> {
    // The first of everything is different.
    blobs(device, 50)?;
    trips(device, 50)?;
    Ok([
        blobs(device, 500)?,
        trips(device, 2000)?,
        latency(device, 300)?,
    ])
}

/// A guest blob created and closed, until the device has seen the last one of a batch.
fn blobs(device: &Device, times: u32) -> Result<f64> {
    const BATCH: u32 = 50;
    let mut nothing = compute::Stream::new();
    nothing.delay(0);
    let mut batches = Sample::default();
    for _ in 0..times.div_ceil(BATCH) {
        let start = Instant::now();
        for _ in 0..BATCH {
            device.create_blob(&BlobOptions::guest(64 << 10))?;
        }
        wait(&Exec::new(nothing.as_bytes()), device)?;
        batches.0.push(since(start) / f64::from(BATCH));
    }
    Ok(batches.median())
}

/// A job that does nothing, submitted and waited for.
fn trips(device: &Device, times: u32) -> Result<f64> {
    let mut nothing = compute::Stream::new();
    nothing.delay(0);
    let mut trips = Sample::default();
    for _ in 0..times {
        let start = Instant::now();
        wait(&Exec::new(nothing.as_bytes()), device)?;
        trips.0.push(since(start));
    }
    Ok(trips.median())
}

/// From the last write of a job, as another processor sees it, to the return of poll(2).
fn latency(device: &Device, times: u32) -> Result<f64> {
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    let map = blob.map()?;
    let mut latencies = Sample::default();
    for time in 1..=u64::from(times) {
        let mut stream = compute::Stream::new();
        // Long enough for the waiter to sleep.
        stream.delay(300).fill(blob.at(0), 8, time);
        let started = AtomicBool::new(false);
        let (written, woken) = std::thread::scope(|scope| -> Result<(Instant, Instant)> {
            let watcher = scope.spawn(|| {
                started.store(true, Ordering::Release);
                let deadline = Instant::now() + Duration::from_secs(10);
                while map.read_u64(0) != time && Instant::now() < deadline {
                    std::hint::spin_loop();
                }
                Instant::now()
            });
            while !started.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            wait(&Exec::new(stream.as_bytes()), device)?;
            let woken = Instant::now();
            let written = watcher.join().map_err(|_| "the watcher panicked")?;
            Ok((written, woken))
        })?;
        latencies
            .0
            .push(woken.saturating_duration_since(written).as_nanos() as f64);
    }
    Ok(latencies.median())
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result {
    let result = in_turns(options, report);
    // The other measures, and whoever comes next, expect this driver.
    unload(C)?;
    if !Path::new("/sys/module").join(OURS).exists() {
        load_file(&options.ours)?;
    }
    result
}

fn in_turns(options: &Options, report: &mut Report) -> Result {
    let mut ours: [Sample; 3] = Default::default();
    let mut theirs: [Sample; 3] = Default::default();
    unload(OURS)?;
    for run in 0..options.runs {
        load_c(&options.c)?;
        for (sample, number) in theirs.iter_mut().zip(numbers(&ready()?)?) {
            sample.0.push(number);
        }
        unload(C)?;
        load_file(&options.ours)?;
        for (sample, number) in ours.iter_mut().zip(numbers(&ready()?)?) {
            sample.0.push(number);
        }
        unload(OURS)?;
        eprintln!("  round {} of {}", run + 1, options.runs);
    }
    let names = [
        ("P8-blob", "a guest blob created and closed"),
        ("P8-execbuffer", "round trip of a job that does nothing"),
        (
            "P8-fence",
            "from the job's last write to the return of poll",
        ),
    ];
    for ((name, what), samples) in names.into_iter().zip(ours.into_iter().zip(theirs)) {
        report.add(name, what, "ns", [samples.0, samples.1], Goal::AtMost(1.05));
    }
    Ok(())
}
