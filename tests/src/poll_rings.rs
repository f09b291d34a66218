// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! POLL_RINGS_MASK: the end of each job on such a ring can be read from the file, and waited for by
//! poll.

use std::time::Duration;

use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{
    compute, BlobOptions, Bytes, Device, Errno, Event, Exec, Memory, RegisterOptions, SyncStatus,
};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::memory::small_pages;
use crate::support::{job, Env, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "poll_rings",
    kernel: Kernel::Any,
    driver: Driver::Both,
    device: "",
    leak_check: true,
    cases: cases![
        masks,
        one_event_a_job,
        not_before_the_end,
        other_rings,
        failed_job,
        no_room,
        refused_jobs_take_no_room,
        read_in_parts,
        closed_before,
        beside_user_memory,
    ],
};

/// Events of 8 bytes for which a file has room.
const ROOM: usize = 4096 / 8;

fn init(device: &Device, list: &[(u64, u64)]) -> Result<(), Errno> {
    let params: Vec<_> = list
        .iter()
        .map(|&(param, value)| uapi::ContextSetParam { param, value })
        .collect();
    // SAFETY: No parameter is an address.
    unsafe { device.context_init(&params) }
}

/// A device with 4 rings, of which some are polled.
fn polled(env: &Env, mask: u64) -> TestResult<Device> {
    use uapi::context_param::*;
    let device = env.open()?;
    let list = [
        (CAPSET_ID, u64::from(wire::CAPSET_ID)),
        (NUM_RINGS, 4),
        (POLL_RINGS_MASK, mask),
    ];
    init(&device, &list)?;
    Ok(device)
}

fn masks(env: &Env) -> TestResult {
    use uapi::context_param::*;
    let id = (CAPSET_ID, u64::from(wire::CAPSET_ID));
    for (what, list) in [
        ("without rings", vec![id, (POLL_RINGS_MASK, 1)]),
        (
            "the second of one",
            vec![id, (NUM_RINGS, 1), (POLL_RINGS_MASK, 2)],
        ),
        (
            "bit 63 of 63",
            vec![id, (NUM_RINGS, 63), (POLL_RINGS_MASK, 1 << 63)],
        ),
        (
            "all of two",
            vec![id, (NUM_RINGS, 2), (POLL_RINGS_MASK, u64::MAX)],
        ),
        (
            "twice",
            vec![
                id,
                (NUM_RINGS, 2),
                (POLL_RINGS_MASK, 1),
                (POLL_RINGS_MASK, 2),
            ],
        ),
    ] {
        let device = env.open()?;
        check_err!(init(&device, &list), Errno::INVAL, "{what}");
    }
    for list in [
        vec![id, (NUM_RINGS, 64), (POLL_RINGS_MASK, u64::MAX)],
        vec![id, (POLL_RINGS_MASK, 1), (NUM_RINGS, 1)],
        vec![id, (NUM_RINGS, 2), (POLL_RINGS_MASK, 0)],
    ] {
        init(&env.open()?, &list)?;
    }
    Ok(())
}

fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
}

/// Reads events until there are `count`; none may be anything but the end of a job.
fn fences(device: &Device, count: usize) -> TestResult {
    let mut seen = 0;
    while seen < count {
        for event in device.events(job::LIMIT)? {
            check!(
                matches!(event, Event::FenceSignaled),
                "event {seen} is {event:?}"
            );
            seen += 1;
        }
    }
    check_eq!(seen, count, "events");
    Ok(())
}

fn nothing_to_read(device: &Device, when: &str) -> TestResult {
    check!(!device.wait_for_event(Duration::ZERO)?, "{when}: an event");
    Ok(())
}

fn one_event_a_job(env: &Env) -> TestResult {
    let device = polled(env, 0b0010)?;
    nothing_to_read(&device, "at first")?;
    let stream = delay(1);
    let exec = Exec::new(stream.as_bytes()).ring(1);
    for count in [1, 7, 50] {
        for _ in 0..count {
            exec.submit(&device)?;
        }
        fences(&device, count)?;
        nothing_to_read(&device, "after the last")?;
    }
    // A job with an out-fence has one, too, and no earlier than that.
    let fence = exec.submit_with_fence(&device)?;
    fences(&device, 1)?;
    check_eq!(fence.status()?, SyncStatus::Signalled, "the fence");
    Ok(())
}

fn not_before_the_end(env: &Env) -> TestResult {
    let device = polled(env, 0b0001)?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    stream.spin_until(blob.at(0), 1, 10_000_000);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[blob.handle()])
        .submit(&device)?;
    check!(device.is_busy(blob.handle())?, "the job runs");
    nothing_to_read(&device, "while the job runs")?;
    map.write_u32(0, 1);
    fences(&device, 1)?;
    check!(!device.is_busy(blob.handle())?, "the job is over");
    Ok(())
}

fn other_rings(env: &Env) -> TestResult {
    let device = polled(env, 0b1010)?;
    let stream = delay(1);
    for ring in [0, 2] {
        Exec::new(stream.as_bytes()).ring(ring).run(&device)?;
    }
    Exec::new(stream.as_bytes()).run(&device)?;
    nothing_to_read(&device, "of rings that are not polled")?;
    for ring in [1, 3] {
        Exec::new(stream.as_bytes()).ring(ring).submit(&device)?;
    }
    fences(&device, 2)?;
    // And not of another file.
    let other = env.compute()?;
    Exec::new(stream.as_bytes()).ring(1).run(&other)?;
    nothing_to_read(&other, "of a file that polls nothing")?;
    nothing_to_read(&device, "of another file")
}

/// A job that fails ends as well.
fn failed_job(env: &Env) -> TestResult {
    let device = polled(env, 0b0001)?;
    // Not an operation.
    Exec::new(&[0xff; 96]).ring(0).submit(&device)?;
    fences(&device, 1)
}

/// What is not read keeps its room, and jobs without room are refused.
fn no_room(env: &Env) -> TestResult {
    let device = polled(env, 0b0001)?;
    let stream = delay(1);
    let exec = Exec::new(stream.as_bytes()).ring(0);
    for _ in 0..ROOM {
        exec.submit(&device)?;
    }
    check_err!(exec.submit(&device), Errno::NOMEM, "one job too many");
    // Another ring needs no room.
    Exec::new(stream.as_bytes()).ring(1).run(&device)?;
    fences(&device, ROOM)?;
    exec.submit(&device)?;
    fences(&device, 1)?;
    nothing_to_read(&device, "after the last")
}

fn refused_jobs_take_no_room(env: &Env) -> TestResult {
    let device = polled(env, 0b0001)?;
    let stream = delay(1);
    for _ in 0..=ROOM {
        check_err!(
            Exec::new(stream.as_bytes())
                .ring(0)
                .buffers(&[12345])
                .submit(&device),
            Errno::NOENT,
            "a buffer that is not there"
        );
    }
    if env.ours {
        let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
        // Refused when the event has its room.
        for _ in 0..=ROOM {
            check_err!(
                Exec::new(stream.as_bytes())
                    .ring(0)
                    .buffers(&[blob.handle(), blob.handle()])
                    .submit(&device),
                Errno::ALREADY,
                "the same buffer twice"
            );
        }
    }
    nothing_to_read(&device, "of jobs that were refused")?;
    Exec::new(stream.as_bytes()).ring(0).submit(&device)?;
    fences(&device, 1)
}

/// A read returns whole events, as many as fit.
fn read_in_parts(env: &Env) -> TestResult {
    let device = polled(env, 0b0001)?;
    let stream = delay(1);
    for _ in 0..3 {
        Exec::new(stream.as_bytes()).ring(0).run(&device)?;
    }
    let mut buffer = [0; 20];
    check_eq!(rustix::io::read(&device, &mut buffer)?, 16, "two events");
    let words: Vec<_> = buffer[..16]
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes")))
        .collect();
    let kind = uapi::EVENT_FENCE_SIGNALED;
    check_eq!(words, [kind, 8, kind, 8], "type and length");
    check_eq!(
        rustix::io::read(&device, &mut buffer)?,
        8,
        "the third event"
    );
    nothing_to_read(&device, "after the last")
}

/// Files are closed with events unread, and with jobs whose events are still to come.
fn closed_before(env: &Env) -> TestResult {
    let stream = delay(50_000);
    for _ in 0..env.iterations(20) {
        let device = polled(env, 0b0011)?;
        for ring in [0, 1, 0, 1] {
            Exec::new(stream.as_bytes()).ring(ring).submit(&device)?;
        }
    }
    let device = polled(env, 0b0001)?;
    let stream = delay(1);
    Exec::new(stream.as_bytes()).ring(0).run(&device)?;
    check!(device.wait_for_event(job::LIMIT)?, "an event");
    Ok(())
}

/// Events of memory that is gone come from the same file.
fn beside_user_memory(env: &Env) -> TestResult {
    if !env.ours {
        skip!("Linux's driver has no user memory");
    }
    let device = polled(env, 0b0001)?;
    let stream = delay(1);
    let exec = Exec::new(stream.as_bytes()).ring(0);
    let memory = small_pages(4 * PAGE)?;
    let options = RegisterOptions::mirrored().events(9);
    let userptr = device.register(&memory, options)?;
    userptr.prefetch(0, 4 * PAGE as u64)?;
    // All room is taken by jobs: what happens to the memory has to wait.
    for _ in 0..ROOM {
        exec.submit(&device)?;
    }
    let addr = memory.as_ptr() as u64;
    let (pointer, length) = (memory.as_ptr(), 4 * PAGE);
    // SAFETY: The mapping is replaced by one that `memory` may unmap as well.
    let again = unsafe {
        rustix::mm::mmap_anonymous(
            pointer.cast(),
            length,
            rustix::mm::ProtFlags::READ,
            rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::FIXED,
        )?
    };
    check_eq!(again.cast(), pointer, "the address of the new mapping");
    let (mut ends, mut gone) = (0, Vec::new());
    while ends < ROOM || gone.is_empty() {
        for event in device.events(job::LIMIT)? {
            match event {
                Event::FenceSignaled => ends += 1,
                Event::Userptr(event) => gone.push(event),
                other => check!(false, "{other:?}"),
            }
        }
    }
    check_eq!(ends, ROOM, "ends of jobs");
    check_eq!(gone.len(), 1, "events of memory");
    check_eq!(
        (gone[0].addr, gone[0].size, gone[0].cookie),
        (addr, 4 * PAGE as u64, 9),
        "what is gone"
    );
    userptr.close()?;
    Ok(())
}
