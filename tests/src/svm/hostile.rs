// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that misbehaves towards a context in fault mode. What no device may say costs the
//! device, and everything ends; what is only of no use costs that context, and others notice
//! nothing. Memory stays right, and nothing is kept in the end.
//!
//! The device aims at contexts of one name, so that the others here are treated well.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtgpu_client::protocol::uapi::{svm_access, svm_reason, svm_state, SVM_NO_RING};
use virtgpu_client::{
    compute, pointer, AddressSpace, BlobOptions, Bytes, Deadline, Errno, Event, Exec, Memory,
    RegisterOptions, SpaceOptions,
};

use super::silent::{Silent, SIZE};
use super::support::{
    at, bad_address, device, family as well_behaved, open, others_work, Cause, End, Svm, COOKIE,
    RINGS, USUAL,
};
use crate::hostile::{given_back, unbinds, LIMIT};
use crate::isolation;
use crate::ktap::{Case, Family, Outcome, TestResult};
use crate::support::debugfs::{self, Knobs};
use crate::support::errno::describe;
use crate::support::place::{Pages, Place};
use crate::support::uffd::{Uffd, MISSING};
use crate::support::{bounded, child, eventually, gpu, Env, HUGE, PAGE};
use crate::{cases, check, check_eq, check_err};

/// A device that is sane but towards the contexts of one name.
const fn family(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        device,
        ..well_behaved(name, cases)
    }
}

/// A device that is lost, and cannot be asked.
const fn lost(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        leak_check: false,
        ..family(name, device, cases)
    }
}

/// The driver has to mark such a device lost, whatever waits for a page.
const LOST: &[Case] = cases![ends_in_a_fault: 300, unbinds: 300, given_back: 200];
/// The same, also when its own threads are serving faults.
const LOST_ANYWHERE: &[Case] = cases![
    ends_in_a_fault: 300,
    ends_while_served: 300,
    unbinds: 300,
    given_back: 200,
];

pub(crate) const FAMILIES: &[Family] = &[
    lost(
        "svm_hostile_fault_id_in_use",
        "--adversary bad-fault:1 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_without_access",
        "--adversary bad-fault:2 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_of_access_7",
        "--adversary bad-fault:3 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_misaligned",
        "--adversary bad-fault:4 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_outside",
        "--adversary bad-fault:5 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_too_many",
        "--adversary bad-fault:6 --adversary-on MAP --adversary-context silent",
        LOST_ANYWHERE,
    ),
    lost(
        "svm_hostile_fault_of_no_ring",
        "--adversary bad-fault:7 --adversary-on MAP --adversary-context silent",
        LOST,
    ),
    lost(
        "svm_hostile_fault_of_a_resource",
        "--adversary bad-fault --adversary-on MAP --adversary-context silent",
        cases![ends_by_a_resource: 300, unbinds: 300, given_back: 200],
    ),
    lost(
        "svm_hostile_done_unknown",
        "--adversary bad-done --adversary-on MAP --adversary-context silent",
        LOST_ANYWHERE,
    ),
    lost(
        "svm_hostile_done_twice",
        "--adversary done-again --adversary-context silent",
        cases![ends_by_a_job: 300, unbinds: 300, given_back: 200],
    ),
    lost(
        "svm_hostile_done_out_of_order",
        "--adversary done-swapped --adversary-every 2 --adversary-context silent",
        cases![ends_by_two_jobs: 300, unbinds: 300, given_back: 200],
    ),
    lost(
        "svm_lost_in_fault",
        "--adversary device-lost --adversary-on MAP --adversary-context silent",
        LOST_ANYWHERE,
    ),
    lost(
        "svm_gone_in_fault",
        "--adversary exit --adversary-on FAULT_RESOLVE --adversary-context silent",
        cases![gone_in_a_fault: 300, unbinds: 300, given_back: 200],
    ),
    family(
        "svm_hostile_dead_space",
        "--adversary bad-fault --adversary bad-done --adversary-on SPACE_DESTROY",
        cases![spaces_that_are_gone: 300],
    ),
    family(
        "svm_hostile_fault_of_nothing",
        "--adversary bad-fault --adversary-on MAP --adversary-context silent",
        cases![is_one_more_fault: 300],
    ),
    family(
        "svm_hostile_refault",
        "--adversary refault --adversary-context silent",
        cases![faults_for_ever: 300, killed_while_it_faults: 300],
    ),
    family(
        "svm_hostile_no_memory",
        "--adversary refuse --adversary-on MAP --adversary-context silent",
        cases![one_context_has_no_memory: 300],
    ),
    family(
        "svm_hostile_map_limit",
        "--adversary refuse:4 --adversary-on MAP --adversary-context silent",
        cases![prefetch_tells_why: 300],
    ),
    family(
        "svm_hostile_map_refused_once",
        "--adversary refuse --adversary-on MAP --adversary-count 1 --adversary-context silent",
        cases![prefetch_waits_behind_the_refused: 300],
    ),
    family(
        "svm_hostile_slow_space",
        "--adversary slow:1500 --adversary-on SPACE_CREATE",
        cases![killed_while_it_begins: 300],
    ),
    family(
        "svm_hostile_resolve_kept",
        "--adversary silence --adversary-on FAULT_RESOLVE --adversary-context silent",
        cases![runs_out_alone: 600],
    ),
    family(
        "svm_hostile_resolve_ignored",
        "--adversary ignore --adversary-on FAULT_RESOLVE --adversary-context silent",
        cases![stalls_alone: 300],
    ),
    family(
        "svm_hostile_done_never",
        "--adversary done-never --adversary-context silent",
        cases![never_done: 300, never_done_and_killed: 300],
    ),
];

/// A driver that does not wait long.
fn impatient(env: &Env) -> TestResult {
    gpu::reload(env, c"ack_timeout_ms=2000")
}

/// A context that the device is after.
fn victim(env: &Env) -> TestResult<Svm> {
    victim_with(env, USUAL)
}

fn victim_with(env: &Env, options: SpaceOptions) -> TestResult<Svm> {
    // A skip where there is no shared virtual memory.
    drop(device(env)?);
    let device = env.open()?;
    isolation::init_neglected(&device, RINGS)?;
    Svm::new(AddressSpace::enable(device, options)?)
}

fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
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
fn ends_in_a_fault(env: &Env) -> TestResult {
    lost_by(env, |victim, place| {
        // Whether the device is lost before or after it has mapped that does not matter.
        let _ = victim.space.prefetch(place.address(0), SIZE as u64);
        Ok(())
    })
}

/// By a MAP of a registration, whose space has no faults.
fn ends_by_a_resource(env: &Env) -> TestResult {
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
fn ends_by_a_job(env: &Env) -> TestResult {
    lost_by(env, |victim, _| {
        let _ = victim.end_on(2, &delay(1))?;
        Ok(())
    })
}

/// By the ends of two jobs, of which the first is known to be accepted.
fn ends_by_two_jobs(env: &Env) -> TestResult {
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
fn ends_while_served(env: &Env) -> TestResult {
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
fn gone_in_a_fault(env: &Env) -> TestResult {
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

/// What the device says of spaces that are gone means nothing.
fn spaces_that_are_gone(env: &Env) -> TestResult {
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
fn is_one_more_fault(env: &Env) -> TestResult {
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

/// A job of the victim that never ends, and which costs no one else anything.
struct Endless<'a> {
    env: &'a Env,
    victim: Svm,
    place: Place,
}

impl<'a> Endless<'a> {
    fn new(env: &'a Env) -> TestResult<Self> {
        let this = Self {
            env,
            victim: victim(env)?,
            place: Place::base(SIZE)?,
        };
        this.place.fill(1);
        this.victim
            .submit(0, &Svm::writing(this.place.address(0), 7))?;
        Ok(this)
    }

    /// Others go on, and the job does not, until the file is closed, which waits for nothing.
    fn ends_by_close(self) -> TestResult {
        let used = Place::base(SIZE)?;
        let other = open(self.env)?;
        for _ in 0..3 {
            bounded("another context", || {
                other.coherent_all_over("another context", &used)
            })?;
        }
        bounded("a new context", || others_work(self.env, "a new context"))?;
        check_eq!(
            self.victim.space.wait_ring(0, Deadline::Now),
            Err(Errno::TIME),
            "the job"
        );
        let query = self.victim.count()?;
        check_eq!(query.state, svm_state::ACTIVE, "the state");
        self.victim.quiet("a job without an end")?;
        bounded("munmap of what the job uses", || {
            self.place.unmap(SIZE / 2, SIZE / 2)
        })?;
        let Self { env, victim, place } = self;
        bounded("closing", || {
            drop(victim);
            Ok(())
        })?;
        place.write_u64(0, 9);
        check_eq!(place.read_u64(0), 9, "memory that was used");
        others_work(env, "a context that was closed")
    }
}

/// The same in a process that is killed, when `begun` says that it has come so far.
fn ends_by_kill(env: &Env, begun: fn(&Endless<'_>) -> bool) -> TestResult {
    drop(device(env)?);
    let flag = isolation::shared(PAGE)?;
    let child = child::spawn(|| {
        let endless = Endless::new(env)?;
        check!(eventually(LIMIT, || begun(&endless)), "nothing begins");
        isolation::word(&flag, 0).store(1, Ordering::SeqCst);
        loop {
            std::thread::park();
        }
    })?;
    let begun = eventually(LIMIT, || {
        isolation::word(&flag, 0).load(Ordering::SeqCst) == 1
    });
    bounded("the end of the process", || child.kill())?;
    check!(begun, "the child's job has not begun");
    others_work(env, "a process that was killed")
}

/// Faults of the same access, again and again, however often they are resolved.
fn many_faults(endless: &Endless<'_>) -> bool {
    endless
        .victim
        .count()
        .is_ok_and(|query| query.faults >= 100)
}

fn faults_for_ever(env: &Env) -> TestResult {
    let endless = Endless::new(env)?;
    check!(
        eventually(LIMIT, || many_faults(&endless)),
        "the access does not fault again: {:?}",
        endless.victim.count()
    );
    let query = endless.victim.count()?;
    check!(
        query.coalesced > 0,
        "no fault was on a page that is mapped: {query:?}"
    );
    endless.ends_by_close()
}

/// What the host says of a MAP is not what a hole would be.
fn prefetch_tells_why(env: &Env) -> TestResult {
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
fn prefetch_waits_behind_the_refused(env: &Env) -> TestResult {
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

/// The process is killed while SVM_ENABLE waits for the device. What the ioctl does after that is
/// undone, too.
fn killed_while_it_begins(env: &Env) -> TestResult {
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

fn killed_while_it_faults(env: &Env) -> TestResult {
    ends_by_kill(env, many_faults)
}

/// The device has mappings for others, and none for one.
fn one_context_has_no_memory(env: &Env) -> TestResult {
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

/// The resolutions have their effect, but their places in the ring do not come back: a client has a
/// share of them, and when that is used up, it stalls alone.
fn runs_out_alone(env: &Env) -> TestResult {
    const PAGES: usize = 1024;
    let victim = victim_with(env, USUAL.exact())?;
    let (place, used) = (Place::base(PAGES * PAGE)?, Place::base(SIZE)?);
    let soon = || Deadline::after(crate::support::pace::limit(Duration::from_secs(5)));
    let mut served = 0;
    for page in 0..PAGES {
        victim.submit(0, &Svm::writing(place.address(page * PAGE), 7))?;
        match victim.space.wait_ring(0, soon()) {
            Ok(()) => served += 1,
            Err(Errno::TIME) => break,
            Err(error) => return Err(error.into()),
        }
    }
    println!("    # {served} faults were served");
    check!(served > 10, "{served} faults were served");
    check!(served < PAGES, "all faults were served");
    for page in 0..served {
        check_eq!(
            place.read_u64(page * PAGE),
            7,
            "what job {page} has written"
        );
    }
    let other = open(env)?;
    bounded("another context", || {
        other.coherent_all_over("another context", &used)
    })?;
    // What the victim has is taken from it as ever.
    bounded("munmap", || place.unmap(0, place.len()))?;
    check_eq!(victim.count()?.state, svm_state::ACTIVE, "the state");
    bounded("closing", || {
        drop(victim);
        Ok(())
    })?;
    bounded("another context, afterwards", || {
        other.coherent_all_over("another context, afterwards", &used)
    })?;
    others_work(env, "resolutions that are kept")
}

fn stalls_alone(env: &Env) -> TestResult {
    let endless = Endless::new(env)?;
    let mapped = eventually(LIMIT, || {
        let query = endless.victim.count();
        query.is_ok_and(|query| query.mapped_bytes > 0)
    });
    check!(mapped, "the page of a fault is not mapped");
    endless.ends_by_close()
}

/// The job has done its work, as can be seen, and yet is never over.
fn has_written(endless: &Endless<'_>) -> bool {
    endless.place.read_u64(0) == 7
}

fn never_done(env: &Env) -> TestResult {
    let endless = Endless::new(env)?;
    check!(
        eventually(LIMIT, || has_written(&endless)),
        "the job does not run"
    );
    let (victim, word) = (&endless.victim, AtomicU64::new(0));
    // Its buffers are kept until the file is closed.
    let blob = victim.device().create_blob(&BlobOptions::guest(4096))?;
    let mut stream = compute::Stream::new();
    stream.fill(pointer(word.as_ptr()), 8, 1);
    Exec::new(stream.as_bytes())
        .ring(1)
        .buffers(&[blob.handle()])
        .submit(victim.device())?;
    drop(blob);
    check!(
        eventually(LIMIT, || word.load(Ordering::SeqCst) == 1),
        "the job of another ring does not run"
    );
    let soon = Deadline::after(Duration::from_secs(1));
    check_err!(
        victim.space.wait_ring(1, soon),
        Errno::TIME,
        "that job, whose end is not told either"
    );
    endless.ends_by_close()
}

fn never_done_and_killed(env: &Env) -> TestResult {
    ends_by_kill(env, has_written)
}
