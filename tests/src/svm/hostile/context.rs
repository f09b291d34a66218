// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a device may say although it is of no use: no one is harmed.

use virtgpu_client::protocol::uapi::{svm_access, svm_state};
use virtgpu_client::RegisterOptions;

use super::victim;
use crate::hostile::LIMIT;
use crate::ktap::TestResult;
use crate::support::debugfs;
use crate::support::place::Place;
use crate::support::{bounded, child, eventually, Env, PAGE};
use crate::svm::silent::{Silent, SIZE};
use crate::svm::support::{bad_address, device, open, others_work, Svm};
use crate::{check, check_eq};

/// What the device says of spaces that are gone means nothing.
pub(super) fn spaces_that_are_gone(env: &Env) -> TestResult {
    let kept = open(env)?;
    let (place, other) = (Place::base(SIZE)?, Place::base(SIZE)?);
    for round in 0..10 {
        let svm = open(env)?;
        let silent = Silent::new()?;
        svm.coherent_all_over("a context that ends", &place)?;
        if round % 2 == 0 {
            silent.stall(&svm, 0, 1)?;
        }
        drop(svm);
        let fenced = device(env)?;
        let userptr = fenced.register(&place, RegisterOptions::mirrored())?;
        userptr.prefetch(0, SIZE as u64)?;
        userptr.close()?;
        kept.coherent_all_over("one that goes on", &other)?;
    }
    let killed = child::spawn(|| {
        let svm = open(env)?;
        svm.coherent_all_over("a process that is killed", &place)?;
        // SAFETY: A signal to ourselves.
        unsafe { libc::raise(libc::SIGKILL) };
        Ok(())
    })?;
    crate::ktap::reap(killed.pid)?;
    check_eq!(kept.count()?.state, svm_state::ACTIVE, "the state");
    kept.coherent_all_over("in the end", &other)?;
    others_work(env, "faults of spaces that are gone")
}

/// A fault is what the device says it is, whether anything stalls or not: this one has no memory.
pub(super) fn is_one_more_fault(env: &Env) -> TestResult {
    let (victim, other) = (victim(env)?, open(env)?);
    let (place, used) = (Place::base(SIZE)?, Place::base(SIZE)?);
    other.coherent_all_over("before", &used)?;
    let _ = victim.end(&Svm::writing(place.address(0), 1))?;
    let lost = eventually(LIMIT, || {
        victim
            .count()
            .is_ok_and(|query| query.state == svm_state::LOST)
    });
    check!(lost, "a fault at {PAGE:#x} is served");
    victim.is_lost(
        "a fault without an access",
        bad_address(svm_access::READ, PAGE as u64),
    )?;
    other.coherent_all_over("afterwards", &used)?;
    others_work(env, "a fault without an access")
}

/// The process is killed while SVM_ENABLE waits for the device. What the ioctl does after that is
/// undone, too.
pub(super) fn killed_while_it_begins(env: &Env) -> TestResult {
    drop(device(env)?);
    let before = debugfs::address_spaces(env)?;
    for _ in 0..3 {
        let child = child::spawn(|| {
            let _svm = open(env)?;
            loop {
                std::thread::park();
            }
        })?;
        // The threads are there before the device is asked.
        let tasks = format!("/proc/{}/task", child.pid);
        let begun = || std::fs::read_dir(&tasks).is_ok_and(|tasks| tasks.count() == 3);
        let begun = eventually(LIMIT, begun);
        bounded("the end of the process", || child.kill())?;
        check!(begun, "the child has no threads");
    }
    let mut left = u64::MAX;
    check!(
        eventually(LIMIT, || {
            left = debugfs::address_spaces(env).unwrap_or(u64::MAX);
            left <= before
        }),
        "{left} address spaces are left, and were {before} before"
    );
    others_work(env, "processes that were killed")
}
