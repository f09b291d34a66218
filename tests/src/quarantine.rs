// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that no longer listens, but still writes. What it may write stays with the driver until
//! it has been reset, whatever becomes of the process; only then it is the kernel's again. All of
//! this is what the kernel says of its pages, and not what the driver says of itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use virtgpu_client::{
    compute, Bytes, Device, Exec, Memory, RegisterOptions, Registration, SyncFile,
};

use crate::ktap::{Case, Driver, Family, Kernel, Outcome, TestResult};
use crate::mirrored::open_mirrored;
use crate::support::debugfs::Knobs;
use crate::support::memory::small_pages;
use crate::support::place::Place;
use crate::support::procfs::{self, kernel_page};
use crate::support::{child, eventually, gpu, Env, Random, PAGE};
use crate::{cases, check, check_eq};

const fn family(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        name,
        kernel: Kernel::Any,
        driver: Driver::Ours,
        device,
        // The device does not respond.
        leak_check: false,
        cases,
    }
}

/// INVALIDATE is neither carried out nor acknowledged, and the pages are rewritten all the time.
pub(crate) const MIRRORED: Family = family(
    "quarantine_mirrored",
    "--hammer --adversary ignore --adversary-on INVALIDATE",
    cases![
        mirrored_unmapped: 300,
        mirrored_exit: 300,
    ],
);

/// A job writes to the memory without end.
pub(crate) const PINNED: Family = family(
    "quarantine_pinned",
    "--adversary endless --adversary abandon",
    cases![
        pinned_closed: 300,
        pinned_exit: 300,
    ],
);

/// RESOURCE_UNREF is neither carried out nor responded to.
pub(crate) const UNREF: Family = family(
    "quarantine_unref",
    "--adversary ignore --adversary-on RESOURCE_UNREF",
    cases![forgotten: 300],
);

const PAGES: usize = 64;
const SIZE: usize = PAGES * PAGE;
/// Marks a host object whose pages the device rewrites, see `virtgpu-device --hammer`.
const HAMMER: u64 = 1 << 63;
/// What an endless job writes.
const WRITTEN: u64 = 0x5a5a_a5a5_5a5a_a5a5;

/// Long enough for everything that ends.
const LIMIT: Duration = Duration::from_secs(60);

/// How many of the pages `frames` no process has mapped, and still are not free.
fn held(frames: &[u64]) -> TestResult<usize> {
    // Processors keep some pages back for a moment.
    procfs::drain_pages()?;
    let flags = procfs::page_flags(frames)?;
    let mapped = procfs::page_mapped(frames)?;
    let is_held = |(flags, mapped): (&u64, &u64)| {
        flags & kernel_page::ANON != 0 && flags & kernel_page::BUDDY == 0 && *mapped == 0
    };
    Ok(flags
        .iter()
        .zip(&mapped)
        .filter(|page| is_held(*page))
        .count())
}

/// None of the pages is held for the device any more.
fn all_let_go(frames: &[u64]) -> TestResult {
    let mut last = Ok(usize::MAX);
    let gone = eventually(LIMIT, || {
        last = held(frames);
        last == Ok(0)
    });
    check!(gone, "{last:?} pages are held after the reset");
    Ok(())
}

/// The place's pages, all of which are in memory.
fn frames(place: &Place) -> TestResult<Vec<u64>> {
    let frames: Vec<u64> = place.frames()?.into_iter().flatten().collect();
    check_eq!(frames.len(), PAGES, "pages in memory");
    check_eq!(
        procfs::page_mapped(&frames)?,
        vec![1; PAGES],
        "how often each is mapped"
    );
    Ok(frames)
}

/// Other memory has none of the pages, and keeps what is written to it.
fn belong_to_no_one(frames: &[u64]) -> TestResult {
    const LENGTH: usize = 96 << 20;
    let memory = small_pages(LENGTH)?;
    let data = Random(frames[0]).bytes(LENGTH);
    memory.write(0, &data);
    let mine = procfs::frames(memory.as_ptr() as usize, LENGTH / PAGE)?;
    let shared = mine
        .iter()
        .flatten()
        .filter(|frame| frames.contains(*frame));
    check_eq!(shared.count(), 0, "pages of new memory that the device has");
    check!(memory.to_vec(0, LENGTH) == data, "new memory has changed");
    Ok(())
}

/// Memory that the device rewrites, if it can.
fn mirror<'a>(device: &'a Device, place: &'a Place) -> TestResult<Registration<'a, &'a Place>> {
    place.write(0, &Random(1).bytes(SIZE));
    let options = RegisterOptions::mirrored().host3d_guest(HAMMER | 1);
    let userptr = device.register(place, options)?;
    check_eq!(userptr.prefetch(0, SIZE as u64)?, SIZE as u64, "prefetched");
    check!(
        rewritten(place),
        "the device does not rewrite what is mapped"
    );
    Ok(userptr)
}

/// Whether the device writes to all pages.
fn rewritten(place: &Place) -> bool {
    (0..SIZE).step_by(PAGE).all(|at| {
        let before = place.read_u64(at);
        place.write_u64(at, !before);
        eventually(LIMIT, || place.read_u64(at) == before)
    })
}

/// Pages that were unmapped while the device has them are held until it has been reset.
fn mirrored_unmapped(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000 job_grace_ms=500")?;
    let knobs = Knobs::open(env)?;
    knobs.set("hold_reset", 1)?;
    let device = open_mirrored(env)?;
    let place = Place::base(SIZE)?;
    let userptr = mirror(&device, &place)?;
    let frames = frames(&place)?;
    check_eq!(held(&frames)?, 0, "pages held while they are mapped");
    place.unmap(0, SIZE)?;
    check_eq!(held(&frames)?, PAGES, "pages held after munmap");
    belong_to_no_one(&frames)?;
    drop(userptr);
    drop(device);
    check_eq!(held(&frames)?, PAGES, "pages held after close");
    knobs.set("hold_reset", 0)?;
    all_let_go(&frames)
}

/// The same when the process ends, killed.
fn mirrored_exit(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000 job_grace_ms=500")?;
    let knobs = Knobs::open(env)?;
    knobs.set("hold_reset", 1)?;
    let Victim { child, frames } = Victim::new(|show| {
        let device = open_mirrored(env)?;
        let place = Place::base(SIZE)?;
        let _userptr = mirror(&device, &place)?;
        show(&frames(&place)?)
    })?;
    child.kill()?;
    check_eq!(held(&frames)?, PAGES, "pages held after the end");
    belong_to_no_one(&frames)?;
    knobs.set("hold_reset", 0)?;
    all_let_go(&frames)
}

/// Registers memory and starts a job on it that has no end.
fn write_without_end<'a>(
    device: &'a Device,
    place: &'a Place,
) -> TestResult<(Registration<'a, &'a Place>, SyncFile)> {
    place.write(0, &Random(1).bytes(SIZE));
    let userptr = device.register(place, RegisterOptions::pinned())?;
    let mut stream = compute::Stream::new();
    stream.fill(userptr.at(0), SIZE as u64, WRITTEN);
    let fence = Exec::new(stream.as_bytes())
        .buffers(&[userptr.handle()])
        .submit_with_fence(device)?;
    let written = || (0..SIZE).step_by(8).all(|at| place.read_u64(at) == WRITTEN);
    check!(eventually(LIMIT, written), "the job does not write");
    check!(rewritten(place), "the job does not write again");
    Ok((userptr, fence))
}

/// The pins, and what they cost, stay until the reset.
fn pinned_closed(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000")?;
    check_eq!(procfs::pinned_pages()?, 0, "pages pinned before");
    let device = env.compute()?;
    let place = Place::base(SIZE)?;
    let (userptr, fence) = write_without_end(&device, &place)?;
    let frames = frames(&place)?;
    check_eq!(procfs::pinned_pages()?, PAGES as i64, "pages pinned");
    check_eq!(procfs::vm_pin()?, SIZE as u64, "VmPin");
    // There is no response to either.
    let _ = userptr.close();
    check_eq!(
        procfs::pinned_pages()?,
        PAGES as i64,
        "pinned after GEM_CLOSE"
    );
    drop(device);
    check!(rewritten(&place), "the job does not write after close");
    place.unmap(0, SIZE)?;
    check!(fence.wait(Some(LIMIT)).is_err(), "the job has ended well");
    check_eq!(procfs::pinned_pages()?, PAGES as i64, "pinned after close");
    check_eq!(procfs::vm_pin()?, SIZE as u64, "VmPin after close");
    check_eq!(held(&frames)?, PAGES, "pages held after munmap");
    belong_to_no_one(&frames)?;
    check_eq!(
        procfs::pinned_pages()?,
        PAGES as i64,
        "pinned until the reset"
    );
    reset_device()?;
    check_eq!(procfs::pinned_pages()?, 0, "pages pinned after the reset");
    check_eq!(procfs::vm_pin()?, 0, "VmPin after the reset");
    all_let_go(&frames)
}

/// A host that has not said that it has forgotten a resource may use its memory, though no job
/// does.
fn forgotten(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000")?;
    check_eq!(procfs::pinned_pages()?, 0, "pages pinned before");
    let device = env.compute()?;
    let place = Place::base(SIZE)?;
    place.fill(1);
    let userptr = device.register(&place, RegisterOptions::pinned())?;
    let frames = frames(&place)?;
    check_eq!(procfs::pinned_pages()?, PAGES as i64, "pages pinned");
    let _ = userptr.close();
    let pinned = |when: &str| -> TestResult {
        check_eq!(procfs::pinned_pages()?, PAGES as i64, "pinned {when}");
        check_eq!(procfs::vm_pin()?, SIZE as u64, "VmPin {when}");
        Ok(())
    };
    pinned("after GEM_CLOSE")?;
    place.unmap(0, SIZE)?;
    drop(device);
    pinned("after close")?;
    check_eq!(held(&frames)?, PAGES, "pages held after munmap");
    belong_to_no_one(&frames)?;
    reset_device()?;
    check_eq!(procfs::pinned_pages()?, 0, "pages pinned after the reset");
    check_eq!(procfs::vm_pin()?, 0, "VmPin after the reset");
    all_let_go(&frames)
}

/// The same when the process ends, killed.
fn pinned_exit(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000")?;
    check_eq!(procfs::pinned_pages()?, 0, "pages pinned before");
    let Victim { child, frames } = Victim::new(|show| {
        let device = env.compute()?;
        let place = Place::base(SIZE)?;
        let (_userptr, _fence) = write_without_end(&device, &place)?;
        show(&frames(&place)?)
    })?;
    child.kill()?;
    check_eq!(
        procfs::pinned_pages()?,
        PAGES as i64,
        "pinned after the end"
    );
    check_eq!(held(&frames)?, PAGES, "pages held after the end");
    belong_to_no_one(&frames)?;
    reset_device()?;
    check_eq!(procfs::pinned_pages()?, 0, "pages pinned after the reset");
    all_let_go(&frames)
}

/// The driver leaves the device, which resets it, and takes it again.
fn reset_device() -> TestResult {
    let gpu = gpu::find()?;
    gpu.unbind()?;
    gpu.bind()
}

/// A process that shows its pages and waits for its end.
struct Victim {
    child: child::Child,
    frames: Vec<u64>,
}

impl Victim {
    /// Starts one: `body` makes memory that the device writes to, and calls the function that it
    /// gets with the memory's pages, from which it does not return.
    fn new(body: impl FnOnce(&dyn Fn(&[u64]) -> TestResult) -> TestResult) -> TestResult<Self> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let child = child::spawn(|| {
            body(&|frames| {
                let bytes: Vec<u8> = frames.iter().flat_map(|f| f.to_le_bytes()).collect();
                (&theirs).write_all(&bytes)?;
                loop {
                    // SAFETY: Waits for a signal.
                    unsafe { libc::pause() };
                }
            })
        })?;
        // So that reading ends with the child.
        drop(theirs);
        let mut bytes = vec![0; PAGES * 8];
        if ours.read_exact(&mut bytes).is_err() {
            child.join()?;
            return Err(Outcome::Fail("a child has ended".into()));
        }
        let words = bytes.chunks_exact(8);
        let frames = words.map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
        Ok(Self {
            child,
            frames: frames.collect(),
        })
    }
}
