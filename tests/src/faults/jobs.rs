// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs, and waits for them.

use std::fs;
use std::os::unix::net::UnixDatagram;

use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{
    compute, AddressSpace, BlobOptions, Bytes, Device, Errno, Exec, SpaceOptions,
};

use super::{configure, each_fault, each_fault_of_a_file, each_fault_on_a_buffer, nothing};
use crate::ktap::{Outcome, TestResult};
use crate::support::{job, Env, PAGE};
use crate::{check, check_eq, check_err, skip};

pub(super) fn execbuffer(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blobs = (0..3)
        .map(|_| device.create_blob(&BlobOptions::guest(4096)))
        .collect::<Result<Vec<_>, _>>()?;
    let handles: Vec<_> = blobs.iter().map(virtgpu_client::Blob::handle).collect();
    let mut stream = compute::Stream::new();
    stream.add_u32(blobs[0].at(0), 4096, 1);
    let exec = Exec::new(stream.as_bytes()).ring(1).buffers(&handles);
    each_fault("EXECBUFFER", || exec.submit(&device), nothing)
}

/// The space of a new file.
pub(super) fn fault_mode(env: &Env) -> TestResult<AddressSpace> {
    let device = env.open()?;
    if device.userptr_modes()? & uapi::USERPTR_MODE_SVM == 0 {
        skip!("there is no shared virtual memory here");
    }
    device.context_init_compute(1)?;
    Ok(AddressSpace::enable(device, SpaceOptions::new())?)
}

/// Submits a job of a context in fault mode that lists a buffer, and does nothing.
pub(super) fn list(device: &Device, handle: u32) -> Result<(), Errno> {
    let mut stream = compute::Stream::new();
    stream.delay(1);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[handle])
        .submit(device)
}

/// A job in fault mode that is not sent has listed nothing: the buffer can still be shared.
pub(super) fn execbuffer_fault_mode(env: &Env) -> TestResult {
    /// It was sent if the copy of the result fails, and there may be a fault more or less before
    /// that.
    const MOST_UNTOLD: u32 = 2;
    let space = fault_mode(env)?;
    // SAFETY: The jobs use no memory.
    let device = unsafe { space.device() };
    let mut untold = 0;
    each_fault_on_a_buffer(
        device,
        |handle, result| {
            let exported = device.prime_export(handle).map(drop);
            match result {
                Ok(()) => check_err!(
                    exported,
                    Errno::OPNOTSUPP,
                    "exporting what a job has listed"
                ),
                Err(Errno::FAULT) if exported == Err(Errno::OPNOTSUPP) => untold += 1,
                Err(_) => exported?,
            }
            Ok(())
        },
        |handle| list(device, handle),
    )?;
    check!(
        untold <= MOST_UNTOLD,
        "{untold} jobs have failed and list the buffer"
    );
    Ok(())
}

pub(super) fn execbuffer_long(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    let mut stream = compute::Stream::new();
    let count = device.compute_caps()?.max_ops.get().min(500);
    for _ in 0..count {
        stream.add_u32(blob.at(0), 4, 1);
    }
    let handles = [blob.handle()];
    let exec = Exec::new(stream.as_bytes()).buffers(&handles);
    each_fault("a long EXECBUFFER", || exec.submit(&device), nothing)
}

/// As long as this is there, the kernel gives this thread two pages at most: as many as 4 KiB of
/// kmalloc() take where there are zones around them for KASAN.
struct SmallPages;

impl SmallPages {
    /// Allocations of more that are refused before there are some again: more than there will be.
    const TIMES: u64 = 1 << 20;

    fn configure(settings: &[(&str, &str)]) -> std::io::Result<()> {
        for (file, value) in settings {
            fs::write(format!("/sys/kernel/debug/fail_page_alloc/{file}"), value)?;
        }
        Ok(())
    }

    fn begin() -> TestResult<Self> {
        configure()?;
        let times = Self::TIMES.to_string();
        Self::configure(&[
            ("min-order", "2"),
            ("times", &times),
            ("task-filter", "Y"),
            ("probability", "100"),
        ])?;
        fs::write("/proc/thread-self/make-it-fail", "1")?;
        Ok(Self)
    }

    /// How many were refused.
    fn refused() -> TestResult<u64> {
        let left = fs::read_to_string("/sys/kernel/debug/fail_page_alloc/times")?;
        let left: u64 = left
            .trim()
            .parse()
            .map_err(|_| Outcome::Fail(format!("fail_page_alloc says that {left} are left")))?;
        Ok(Self::TIMES - left)
    }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        let _ = fs::write("/proc/thread-self/make-it-fail", "0");
        let _ = Self::configure(&[
            ("probability", "0"),
            ("task-filter", "N"),
            ("min-order", "0"),
        ]);
    }
}

/// A command of many pages is sent in pieces where there are no large ones.
pub(super) fn execbuffer_without_large_pages(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    let mut stream = compute::Stream::new();
    let count = device.compute_caps()?.max_ops.get();
    for _ in 0..count {
        stream.add_u32(blob.at(0), 4, 1);
    }
    let length = stream.as_bytes().len();
    check!(length > 16 * PAGE, "the command has {length} bytes only");
    let handles = [blob.handle()];
    let exec = Exec::new(stream.as_bytes()).buffers(&handles);
    let (sender, receiver) = UnixDatagram::pair()?;
    let submitted = {
        let _small = SmallPages::begin()?;
        let submitted = exec.submit_with_fence(&device);
        // Not of this driver: it wants large pages, and is refused without.
        let sent = sender.send(&[1; 8 * PAGE]);
        check!(sent.is_err(), "there are large pages");
        let refused = SmallPages::refused()?;
        check!(refused > 0, "no allocation was refused");
        submitted
    };
    drop(receiver);
    submitted?.wait(Some(job::LIMIT))?;
    check_eq!(
        blob.map()?.read_u32(0),
        count,
        "additions of {length} bytes"
    );
    Ok(())
}

pub(super) fn execbuffer_fences(env: &Env) -> TestResult {
    let device = env.compute()?;
    let mut stream = compute::Stream::new();
    stream.delay(1);
    let before = Exec::new(stream.as_bytes())
        .ring(0)
        .submit_with_fence(&device)?;
    let exec = Exec::new(stream.as_bytes()).ring(1).after(&before);
    each_fault_of_a_file("EXECBUFFER with fences", || exec.submit_with_fence(&device))
}

pub(super) fn execbuffer_syncobjs(env: &Env) -> TestResult {
    let device = env.compute()?;
    let (first, second) = (device.create_syncobj()?, device.create_syncobj()?);
    let point = |handle, point| uapi::ExecBufferSyncobj {
        handle,
        flags: 0,
        point,
    };
    let mut stream = compute::Stream::new();
    stream.delay(1);
    let prepare = [point(first.handle(), 0)];
    Exec::new(stream.as_bytes())
        .signal_syncobjs(&prepare)
        .run(&device)?;
    let mut value = 0;
    each_fault(
        "EXECBUFFER with syncobjs",
        || {
            value += 1;
            let (input, output) = ([point(first.handle(), 0)], [point(second.handle(), value)]);
            Exec::new(stream.as_bytes())
                .wait_syncobjs(&input)
                .signal_syncobjs(&output)
                .submit(&device)
        },
        nothing,
    )
}

pub(super) fn execbuffer_polled(env: &Env) -> TestResult {
    let device = env.open()?;
    let params = [(1, u64::from(wire::CAPSET_ID)), (2, 1), (3, 1)]
        .map(|(param, value)| uapi::ContextSetParam { param, value });
    // SAFETY: No parameter is an address.
    unsafe { device.context_init(&params)? };
    let mut stream = compute::Stream::new();
    stream.delay(1);
    let exec = Exec::new(stream.as_bytes()).ring(0);
    let mut queued = 0;
    each_fault(
        "EXECBUFFER on a polled ring",
        || {
            let result = exec.submit(&device);
            // The last fault is that of copying the result.
            queued += u64::from(matches!(result, Ok(()) | Err(Errno::FAULT)));
            result
        },
        nothing,
    )?;
    let mut ended = 0;
    while device.wait_for_event(std::time::Duration::from_secs(1))? {
        ended += device.events(job::LIMIT)?.len() as u64;
    }
    check!(
        ended <= queued && ended > 0,
        "{ended} events for {queued} jobs"
    );
    Ok(())
}

pub(super) fn wait(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    each_fault("WAIT", || device.wait(blob.handle()), nothing)
}
