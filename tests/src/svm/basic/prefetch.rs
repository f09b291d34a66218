// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! SVM_PREFETCH.

use std::fs;
use std::time::{Duration, Instant};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, Bytes, Errno, Memory};

use crate::ktap::{Outcome, TestResult};
use crate::support::memcg::Group;
use crate::support::place::{Pages, Place, NONE, READ};
use crate::support::uffd::Uffd;
use crate::support::{child, eventually, job, raw, Env, HUGE, PAGE};
use crate::svm::support::{at, device, open};
use crate::{check, check_eq, check_err};

pub(super) fn prefetch_partial(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(8 * PAGE)?;
    place.unmap(4 * PAGE, PAGE)?;
    let start = place.address(0);
    let mut argument = uapi::SvmPrefetch {
        addr: start,
        length: 8 * PAGE as u64,
        flags: uapi::SVM_PREFETCH_WRITE,
        ..Default::default()
    };
    check_err!(
        raw::call(svm.device(), uapi::nr::SVM_PREFETCH, &mut argument),
        Errno::FAULT,
        "a range with a hole"
    );
    check_eq!(argument.done, 4 * PAGE as u64, "bytes before the hole");
    check_eq!(
        svm.count()?.mapped_bytes,
        4 * PAGE as u64,
        "bytes mapped by it"
    );
    let behind = place.address(5 * PAGE);
    check_eq!(
        svm.space.prefetch_for_writing(behind, 3 * PAGE as u64)?,
        3 * PAGE as u64,
        "bytes behind the hole"
    );
    // What is there has no fault any more.
    let before = svm.count()?.faults;
    let mut stream = compute::Stream::new();
    stream
        .fill(at(start), 4 * PAGE as u64, 5)
        .fill(at(behind), 3 * PAGE as u64, 6);
    svm.run("writing what was prefetched", &stream)?;
    check_eq!(svm.count()?.faults, before, "faults after it");
    check_eq!(place.read_u64(3 * PAGE), 5, "before the hole");
    check_eq!(place.read_u64(7 * PAGE), 6, "behind it");

    // For reading, no page of its own is made.
    let untouched = Place::base(4 * PAGE)?;
    check_eq!(
        svm.space.prefetch(untouched.address(0), 4 * PAGE as u64)?,
        4 * PAGE as u64,
        "bytes prefetched for reading"
    );
    let before = svm.count()?.faults;
    check_eq!(
        svm.csum(untouched.address(0), 4 * PAGE)?,
        compute::crc32c(0, &[0; 4 * PAGE]),
        "zeros"
    );
    // That of the staging memory may be one.
    let faults = svm.count()?.faults - before;
    check!(faults <= 1, "{faults} faults on what was prefetched");
    svm.coherent_all_over("written after that", &untouched)
}

/// Where nothing is mapped, nothing is kept.
pub(super) fn holes_cost_nothing(env: &Env) -> TestResult {
    const HOLES: u64 = 3000;
    // What the driver divides addresses into.
    const APART: u64 = 64 << 20;
    let group = Group::new("holes", 256 << 20)?;
    child::run(|| {
        group.enter()?;
        let svm = open(env)?;
        let start = 0x2000_0000_0000;
        let kernel = || group.number("memory.stat", "kernel ");
        let before = kernel()?;
        for hole in 0..HOLES {
            check_err!(
                svm.space.prefetch(start + hole * APART, PAGE as u64),
                Errno::FAULT,
                "a hole"
            );
        }
        let kept = kernel()?.saturating_sub(before);
        check!(
            kept < HOLES * 100,
            "{kept} bytes are kept for {HOLES} holes"
        );
        Ok(())
    })
}

/// More than the driver maps at a time, up to a hole.
pub(super) fn prefetch_in_parts(env: &Env) -> TestResult {
    let svm = open(env)?;
    for pages in [Pages::Base, Pages::Huge] {
        let place = Place::new(pages, 8 * HUGE)?;
        let hole = 6 * HUGE + 3 * PAGE;
        place.unmap(hole, PAGE)?;
        let start = place.address(0);
        let before = svm.count()?.mapped_bytes;
        let mut argument = uapi::SvmPrefetch {
            addr: start,
            length: place.len() as u64,
            flags: uapi::SVM_PREFETCH_WRITE,
            ..Default::default()
        };
        check_err!(
            raw::call(svm.device(), uapi::nr::SVM_PREFETCH, &mut argument),
            Errno::FAULT,
            "{}: a range with a hole",
            pages.name()
        );
        check_eq!(argument.done, hole as u64, "bytes before the hole");
        let after = svm.count()?;
        check_eq!(
            after.mapped_bytes - before,
            hole as u64,
            "bytes mapped by it"
        );
        let mut stream = compute::Stream::new();
        stream.fill(at(start), hole as u64, 5);
        svm.run("writing what was prefetched", &stream)?;
        check_eq!(svm.count()?.faults, after.faults, "faults after it");
        for offset in (0..hole).step_by(PAGE) {
            check_eq!(
                place.read_u64(offset),
                5,
                "what the job wrote at {offset:#x}"
            );
        }
    }
    Ok(())
}

pub(super) fn prefetch_errors(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(4 * PAGE)?;
    let call = |addr: u64, length: u64, flags: u32, pad: u32| {
        let mut argument = uapi::SvmPrefetch {
            addr,
            length,
            flags,
            pad,
            done: 0,
        };
        raw::call(svm.device(), uapi::nr::SVM_PREFETCH, &mut argument).map(drop)
    };
    let (start, page) = (place.address(0), PAGE as u64);
    for (what, addr, length, flags, pad) in [
        ("an odd address", start + 8, page, 0, 0),
        ("an odd length", start, page + 8, 0, 0),
        ("no length", start, 0, 0, 0),
        ("a wrap", start, u64::MAX - page + 1, 0, 0),
        (
            "addresses that there are not",
            svm.space.va_end(),
            page,
            0,
            0,
        ),
        ("an unknown flag", start, page, 2, 0),
        ("padding", start, page, 0, 1),
    ] {
        check_err!(call(addr, length, flags, pad), Errno::INVAL, "{what}");
    }
    place.protect(0, PAGE, READ)?;
    check_err!(
        call(start, page, uapi::SVM_PREFETCH_WRITE, 0),
        Errno::PERM,
        "what may not be written"
    );
    call(start, page, 0, 0)?;
    place.protect(0, PAGE, NONE)?;
    check_err!(call(start, page, 0, 0), Errno::PERM, "PROT_NONE");
    // A hint that fails costs nothing.
    check_eq!(svm.count()?.state, uapi::svm_state::ACTIVE, "the state");
    svm.coherent("afterwards", &place, PAGE)
}

pub(super) fn prefetch_killed(env: &Env) -> TestResult {
    drop(device(env)?);
    let child = child::spawn(|| {
        let svm = open(env)?;
        let place = Place::base(4 * PAGE)?;
        // No one ever resolves it.
        let _uffd = Uffd::missing(&place)?;
        svm.space.prefetch(place.address(0), place.len() as u64)?;
        Err(Outcome::Fail("it has come to its end".into()))
    })?;
    let waits = || fs::read_to_string(format!("/proc/{}/stack", child.pid)).unwrap_or_default();
    let stuck = eventually(job::LIMIT, || {
        waits().contains("handle_userfault") || child.is_finished() == Ok(true)
    });
    if child.is_finished()? {
        return child.join();
    }
    check!(stuck, "it is in {}", waits());
    let since = Instant::now();
    child.kill()?;
    check!(
        since.elapsed() < Duration::from_secs(5),
        "a killed process has lived for {:?}",
        since.elapsed()
    );
    Ok(())
}
