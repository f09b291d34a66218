// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! MAPs of one context that the device refuses. They cost that context, at most.

use virtgpu_client::protocol::uapi::{svm_access, svm_reason, svm_state};
use virtgpu_client::{compute, Bytes, Errno};

use super::victim;
use crate::hostile::LIMIT;
use crate::ktap::TestResult;
use crate::support::place::{Pages, Place};
use crate::support::uffd::{Uffd, MISSING};
use crate::support::{eventually, Env, HUGE, PAGE};
use crate::svm::silent::SIZE;
use crate::svm::support::{at, bad_address, open, others_work, Cause, End, Svm};
use crate::{check, check_eq, check_err};

/// What the host says of a MAP is not what a hole would be.
pub(super) fn prefetch_tells_why(env: &Env) -> TestResult {
    let place = Place::base(SIZE)?;
    place.fill(3);
    let victim = victim(env)?;
    check_err!(
        victim.space.prefetch(place.address(0), PAGE as u64),
        Errno::NOSPC,
        "PREFETCH of a page"
    );
    check_err!(
        victim.space.prefetch(place.address(0), SIZE as u64),
        Errno::NOSPC,
        "PREFETCH of all"
    );
    let count = victim.count()?;
    check_eq!(
        (count.state, count.mapped_bytes),
        (svm_state::ACTIVE, 0),
        "the state, and the bytes mapped"
    );
    others_work(env, "a context whose MAPs are refused")
}

/// A PREFETCH has sent a MAP, which the device has refused, and waits for a userfaultfd to bring
/// the page after it. A job that needs the refused page does not.
pub(super) fn prefetch_waits_behind_the_refused(env: &Env) -> TestResult {
    let victim = victim(env)?;
    let place = Place::new(Pages::Base, 2 * HUGE)?;
    place.write(0, &[7; HUGE]);
    let uffd = Uffd::open(0)?;
    uffd.register(place.address(HUGE), HUGE, MISSING)?;
    std::thread::scope(|scope| {
        let prefetch = scope.spawn(|| {
            victim
                .space
                .prefetch(place.address(0), (HUGE + PAGE) as u64)
        });
        let asked = uffd.next(LIMIT)?;
        let before = victim.count()?;
        let ended = victim.submit(0, &victim.reading(place.address(0)));
        let ended = ended.map(|()| victim.finish(0));
        let coalesced = victim.count()?.coalesced - before.coalesced;
        uffd.copy(place.address(HUGE), &[8; PAGE])?;
        let prefetched = prefetch.join().expect("no panic")?;
        check_eq!(
            asked.map(|fault| fault.address),
            Some(place.address(HUGE)),
            "the page that is asked for"
        );
        check_eq!(ended??, End::Done, "the job");
        check!(coalesced < 100, "{coalesced} faults were resolved in vain");
        check_eq!(prefetched, (HUGE + PAGE) as u64, "bytes prefetched");
        Ok(())
    })?;
    drop(uffd);
    victim.coherent_all_over("in the end", &place)
}

/// The device has mappings for others, and none for one.
pub(super) fn one_context_has_no_memory(env: &Env) -> TestResult {
    let other = open(env)?;
    let (place, used) = (Place::base(SIZE)?, Place::base(SIZE)?);
    other.coherent_all_over("before", &used)?;
    place.fill(3);
    let first = victim(env)?;
    check_err!(
        first.space.prefetch(place.address(0), SIZE as u64),
        Errno::NOMEM,
        "PREFETCH"
    );
    check_eq!(first.count()?.mapped_bytes, 0, "bytes mapped");
    check_eq!(first.count()?.state, svm_state::ACTIVE, "the state");
    let cause = |access| Cause {
        reason: svm_reason::NO_MEMORY,
        ..bad_address(access, place.address(PAGE))
    };
    first.fails(
        "a write without memory",
        &Svm::writing(place.address(PAGE), 1),
        cause(svm_access::WRITE),
    )?;
    check_eq!(first.count()?.mapped_bytes, 0, "bytes mapped in the end");
    let second = victim(env)?;
    second.fails(
        "a read without memory",
        &second.reading(place.address(PAGE)),
        cause(svm_access::READ),
    )?;
    check_eq!(place.read_u64(PAGE), 0x0303_0303_0303_0303, "the memory");
    other.coherent_all_over("afterwards", &used)?;
    check_eq!(other.count()?.state, svm_state::ACTIVE, "the other's state");
    others_work(env, "a context without memory")
}

/// A job counts in a page that the device does not take, although it was told that it has it.
fn counts_in_vain(env: &Env, reason: u32) -> TestResult {
    let victim = victim(env)?;
    let place = Place::base(SIZE)?;
    place.fill(3);
    let before = place.to_vec(0, SIZE);
    let mut stream = compute::Stream::new();
    stream.atomic_add(at(place.address(PAGE)), 1, 10);
    victim.fails(
        "a job that counts",
        &stream,
        Cause {
            reason,
            ..bad_address(svm_access::ATOMIC, place.address(PAGE))
        },
    )?;
    // Of several threads one may have more to undo than the one that has ended the job.
    let nothing_mapped = || victim.count().is_ok_and(|count| count.mapped_bytes == 0);
    check!(eventually(LIMIT, nothing_mapped), "pages stay mapped");
    let count = victim.count()?;
    check!(count.bad > 0, "no fault was refused: {count:?}");
    check!(place.to_vec(0, SIZE) == before, "the memory has changed");
    others_work(env, "a job that counts in vain")?;
    check_eq!(victim.count()?.faults, count.faults, "faults, later");
    Ok(())
}

pub(super) fn counts_where_the_device_has_a_limit(env: &Env) -> TestResult {
    counts_in_vain(env, svm_reason::BAD_ADDRESS)
}

pub(super) fn counts_where_the_device_has_no_memory(env: &Env) -> TestResult {
    counts_in_vain(env, svm_reason::NO_MEMORY)
}
