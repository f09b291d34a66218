// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What no device may say or leave out: the driver marks it lost, and all of its clients end.

use virtgpu_client::protocol::uapi::{svm_reason, svm_state, SVM_NO_RING};
use virtgpu_client::{compute, BlobOptions, Bytes, Errno, Event, Exec, Memory, RegisterOptions};

use super::{delay, victim};
use crate::hostile::LIMIT;
use crate::isolation;
use crate::ktap::{Outcome, TestResult};
use crate::support::debugfs::Knobs;
use crate::support::errno::describe;
use crate::support::place::Place;
use crate::support::{bounded, eventually, gpu, Env, PAGE};
use crate::svm::silent::{Silent, SIZE};
use crate::svm::support::{at, device, open, End, Svm, COOKIE, RINGS};
use crate::{check, check_eq, check_err};

/// A driver that does not wait long.
fn impatient(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000")
}

/// A job that reads a word until that is 1, which no one makes it.
fn spinning(place: &Place) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.spin_until(at(place.address(0)), 1, 100_000_000);
    stream
}

/// The context has ended because the device has, as all who ask are told.
fn ended_by_the_device(what: &str, svm: &Svm) -> TestResult {
    for ring in 0..2 {
        check_eq!(svm.finish(ring)?, End::Lost, "{what}: ring {ring}");
    }
    let query = svm.count()?;
    check_eq!(
        (query.state, query.reason, query.access, query.ring),
        (svm_state::LOST, svm_reason::LOST, 0, SVM_NO_RING),
        "{what}: what QUERY says"
    );
    let events = svm.space.events(LIMIT)?;
    let [Event::Svm(event)] = events[..] else {
        return Err(Outcome::Fail(format!("{what}: the events are {events:?}")));
    };
    check_eq!(
        (event.reason, event.access, event.ring, event.cookie),
        (svm_reason::LOST, 0, SVM_NO_RING, COOKIE),
        "{what}: what the event says"
    );
    svm.quiet(what)?;
    check_eq!(
        svm.submit(0, &delay(1)),
        Err(Errno::NODEV),
        "{what}: a later job"
    );
    let place = Place::base(PAGE)?;
    check_err!(
        svm.space.prefetch(place.address(0), PAGE as u64),
        Errno::NODEV,
        "{what}: PREFETCH"
    );
    Ok(())
}

/// The device has been reset, and has nothing any more: no page is kept for it, no space is
/// counted.
fn nothing_is_kept(env: &Env) -> TestResult {
    let mut last = Ok((u64::MAX, u64::MAX));
    let none = eventually(LIMIT, || {
        last = Knobs::open(env).and_then(|knobs| {
            let counters = knobs.counters()?;
            Ok((
                counters.get("spaces_now")?,
                counters.get("quarantined_pages_now")?,
            ))
        });
        last == Ok((0, 0))
    });
    check!(none, "spaces, and pages in quarantine: {last:?}");
    Ok(())
}

/// Two faults of the victim wait for their pages, in both of its threads, and others have jobs with
/// and without fences, when `provoke` has the device do what costs it all of its clients.
fn lost_by(env: &Env, provoke: impl FnOnce(&Svm, &Place) -> TestResult) -> TestResult {
    impatient(env)?;
    let (victim, other, fenced) = (victim(env)?, open(env)?, device(env)?);
    let (one, two) = (Silent::new()?, Silent::new()?);
    let (used, word) = (Place::base(SIZE)?, Place::base(PAGE)?);
    let data = Svm::scatter(&used, 1);
    let sums = Place::base(SIZE)?;
    other.run_on(1, "a job of another context", &Svm::adding(&sums))?;
    other.submit(0, &spinning(&word))?;
    let fence = Exec::new(delay(60_000_000).as_bytes())
        .ring(0)
        .submit_with_fence(&fenced)?;
    one.stall(&victim, 0, 1)?;
    two.stall(&victim, 1, 2)?;

    provoke(&victim, &used)?;
    let mut last = Ok(());
    let lost = eventually(LIMIT, || {
        last = fenced.create_blob(&BlobOptions::guest(4096)).map(drop);
        matches!(last, Err(Errno::NODEV | Errno::IO))
    });
    check!(lost, "the device is not lost; a blob: {}", describe(&last));
    ended_by_the_device("the victim", &victim)?;
    ended_by_the_device("another context", &other)?;
    check!(
        fence.wait(Some(LIMIT)) != Err(Errno::TIMEDOUT),
        "a fence has not signalled"
    );

    check!(used.to_vec(0, SIZE) == data, "the memory has changed");
    for offset in (0..SIZE).step_by(4) {
        check_eq!(sums.read_u32(offset), 1, "the sum at {offset:#x}");
    }
    bounded("munmap of what was mapped", || {
        used.unmap(0, SIZE)?;
        sums.unmap(0, SIZE)
    })?;
    // One who waits is let go, one is left alone with its page.
    one.uffd.zero(one.place.address(0), SIZE)?;
    check_eq!(
        one.place.read_u64(PAGE),
        0,
        "what a job has written behind the loss"
    );
    bounded("munmap of what is waited for", || two.place.unmap(0, SIZE))?;
    bounded("closing", || {
        drop((victim, other));
        Ok(())
    })?;
    drop(fenced);
    nothing_is_kept(env)
}

/// By a MAP of the program's own thread, since those that serve faults wait.
pub(super) fn ends_in_a_fault(env: &Env) -> TestResult {
    lost_by(env, |victim, place| {
        // Whether the device is lost before or after it has mapped that does not matter.
        let _ = victim.space.prefetch(place.address(0), SIZE as u64);
        Ok(())
    })
}

/// By a MAP of a registration, whose space has no faults.
pub(super) fn ends_by_a_resource(env: &Env) -> TestResult {
    lost_by(env, |_, place| {
        let fenced = isolation::neglected(env)?;
        let userptr = fenced.register(place, RegisterOptions::mirrored())?;
        let _ = userptr.prefetch(0, SIZE as u64);
        // Closed with the file.
        std::mem::forget(userptr);
        Ok(())
    })
}

/// By the end of a job.
pub(super) fn ends_by_a_job(env: &Env) -> TestResult {
    lost_by(env, |victim, _| {
        let _ = victim.end_on(2, &delay(1))?;
        Ok(())
    })
}

/// By the ends of two jobs, of which the first is known to be accepted.
pub(super) fn ends_by_two_jobs(env: &Env) -> TestResult {
    lost_by(env, |victim, _| {
        victim.submit(2, &delay(1))?;
        // Responses of the control queue come in order where nothing takes time.
        victim.device().create_blob(&BlobOptions::guest(4096))?;
        let _ = victim.end_on(2, &delay(1))?;
        Ok(())
    })
}

/// The device is lost while threads serve faults: whether their jobs come to an end or not, nothing
/// is written in part that a job has said is done.
pub(super) fn ends_while_served(env: &Env) -> TestResult {
    impatient(env)?;
    let victim = victim(env)?;
    let places = (0..RINGS)
        .map(|_| Place::base(16 * SIZE))
        .collect::<TestResult<Vec<_>>>()?;
    for (ring, place) in places.iter().enumerate() {
        match victim.submit(ring as u32, &Svm::adding(place)) {
            Ok(()) | Err(Errno::NODEV | Errno::IO) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (ring, place) in places.iter().enumerate() {
        let done = victim.finish(ring as u32)? == End::Done;
        for offset in (0..place.len()).step_by(4) {
            let sum = place.read_u32(offset);
            check!(
                sum == 1 || sum == 0 && !done,
                "ring {ring}: the sum at {offset:#x} is {sum}, done {done}"
            );
        }
    }
    let lost = eventually(LIMIT, || {
        victim
            .count()
            .is_ok_and(|query| query.state == svm_state::LOST)
    });
    check!(lost, "the context goes on: {:x?}", victim.count());
    bounded("the end of the memory", || {
        drop(places);
        Ok(())
    })?;
    bounded("closing", || {
        drop(victim);
        Ok(())
    })?;
    nothing_is_kept(env)
}

/// The process of the device ends instead of taking note of a resolution. That is noticed by who
/// takes memory back, and then all ends.
pub(super) fn gone_in_a_fault(env: &Env) -> TestResult {
    let (victim, other) = (victim(env)?, open(env)?);
    let (silent, used) = (Silent::new()?, Place::base(SIZE)?);
    let (sums, word) = (Place::base(SIZE)?, Place::base(PAGE)?);
    other.run_on(1, "a job of another context", &Svm::adding(&sums))?;
    other.submit(0, &spinning(&word))?;
    used.fill(5);
    silent.stall(&victim, 0, 1)?;
    victim.submit(1, &Svm::writing(used.address(0), 7))?;
    // It is mapped before its fault is resolved.
    let mapped = eventually(LIMIT, || {
        victim.count().is_ok_and(|query| query.mapped_bytes > 0)
    });
    check!(mapped, "the page of a fault is not mapped");
    let start = std::time::Instant::now();
    sums.unmap(0, SIZE)?;
    used.unmap(0, SIZE)?;
    check!(start.elapsed() < LIMIT, "munmap took {:?}", start.elapsed());
    ended_by_the_device("the victim", &victim)?;
    ended_by_the_device("another context", &other)?;
    used.map(0, SIZE)?;
    check_eq!(used.read_u64(0), 0, "new memory");
    bounded("munmap of what is waited for", || {
        silent.place.unmap(0, SIZE)
    })?;
    bounded("closing", || {
        drop((victim, other));
        Ok(())
    })?;
    nothing_is_kept(env)
}
