// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Faults that wait for a userfaultfd which does not resolve them: only what needs the page waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use virtgpu_client::protocol::uapi::{svm_access, svm_state};
use virtgpu_client::{compute, AddressSpace, Bytes, Comparison, Deadline, Errno, Exec, Memory};

use super::support::{at, bad_address, device, family, open, End, Svm, RINGS, USUAL};
use crate::ktap::{reap, Family, TestResult};
use crate::mirrored::fences::waits;
use crate::support::place::{Place, READ, RW};
use crate::support::uffd::{Fault, Uffd, MISSING};
use crate::support::{bounded, child, eventually, job, Env, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "svm_silent",
    cases![
        others_go_on,
        other_rings_go_on,
        others_go_on_beside_many: 200,
        memory_beside_a_stall_is_taken,
        stores_are_not_repeated,
        munmap,
        close,
        kill,
        exit,
        resolved_once_then_exit: 300,
        stuck_in_both_workers,
        handler_uses_a_ring,
        resolved_late,
        refused_behind_a_stall,
    ],
);

pub(super) const SIZE: usize = 16 * PAGE;

/// Memory of which no page is there, and whoever is asked for them.
pub(super) struct Silent {
    pub(super) place: Place,
    pub(super) uffd: Uffd,
}

impl Silent {
    pub(super) fn new() -> TestResult<Self> {
        let place = Place::base(SIZE)?;
        let uffd = Uffd::missing(&place)?;
        Ok(Self { place, uffd })
    }

    /// A job that waits for a page; returns when it does.
    pub(super) fn stall(&self, svm: &Svm, ring: u32, page: usize) -> TestResult<Fault> {
        svm.submit(ring, &Svm::writing(self.place.address(page * PAGE), 7))?;
        let fault = self.uffd.asked()?;
        check_eq!(
            fault.address,
            self.place.address(page * PAGE),
            "the page that is asked for"
        );
        Ok(fault)
    }
}

fn others_go_on(env: &Env) -> TestResult {
    let (svm, other) = (open(env)?, open(env)?);
    let (silent, free) = (Silent::new()?, Place::base(SIZE)?);
    silent.stall(&svm, 0, 3)?;
    bounded("another context", || {
        other.coherent_all_over("another context", &free)
    })?;
    bounded("a context that is new", || {
        open(env)?.coherent_all_over("a context that is new", &free)
    })?;
    bounded("munmap elsewhere", || free.map(0, SIZE))?;
    bounded("SVM_QUERY", || svm.count().map(drop))?;
    bounded("a context without pointers", || {
        let fenced = device(env)?;
        let mut idle = compute::Stream::new();
        idle.delay(1);
        let fence = Exec::new(idle.as_bytes())
            .ring(0)
            .submit_with_fence(&fenced)?;
        Ok(fence.wait(Some(job::LIMIT))?)
    })?;
    check_eq!(
        svm.space.wait_ring(0, Deadline::Now),
        Err(Errno::TIME),
        "the job that waits"
    );
    silent.uffd.unregister(silent.place.address(0), SIZE)?;
    check_eq!(svm.finish(0)?, End::Done, "the job, when it need not wait");
    check_eq!(silent.place.read_u64(3 * PAGE), 7, "its write");
    Ok(())
}

/// Two threads serve faults, of which one is stuck.
fn other_rings_go_on(env: &Env) -> TestResult {
    let svm = open(env)?;
    let (silent, free) = (Silent::new()?, Place::base(4 * SIZE)?);
    silent.stall(&svm, 1, 0)?;
    let mut stream = compute::Stream::new();
    stream.add_u32(at(free.address(0)), free.len() as u64, 3);
    for ring in [0, 2, 3] {
        svm.run_on(ring, "another ring", &stream)?;
    }
    check_eq!(free.read_u32(free.len() - 4), 9, "additions of other rings");
    // What the device has is taken from it while the fault waits.
    bounded("MAP_FIXED", || free.map(0, free.len()))?;
    svm.run("new memory", &stream)?;
    check_eq!(free.read_u32(0), 3, "additions to new memory");
    silent.uffd.zero(silent.place.address(0), PAGE)?;
    check_eq!(svm.finish(1)?, End::Done, "the job that has waited");
    Ok(())
}

/// More jobs wait than the device runs beyond one of each context.
fn others_go_on_beside_many(env: &Env) -> TestResult {
    const CONTEXTS: usize = 80;
    /// What the device runs of a context.
    const JOBS: u32 = 8;
    // Skips where there is no shared virtual memory.
    drop(open(env)?);
    let silent = Silent::new()?;
    let contexts = (0..CONTEXTS)
        .map(|_| {
            let device = env.open()?;
            device.context_init_compute(JOBS)?;
            let svm = Svm::new(AddressSpace::enable(device, USUAL)?)?;
            for ring in 0..JOBS {
                svm.submit(ring, &Svm::writing(silent.place.address(0), 7))?;
            }
            Ok(svm)
        })
        .collect::<TestResult<Vec<_>>>()?;
    bounded("another context", || {
        super::support::others_work(env, "many jobs that wait")
    })?;
    silent.uffd.unregister(silent.place.address(0), SIZE)?;
    for svm in &contexts {
        for ring in 0..JOBS {
            check_eq!(svm.finish(ring)?, End::Done, "a job, when it need not wait");
        }
    }
    Ok(())
}

/// INVALIDATE is acknowledged whatever stalls: whoever waits for that would lose the device.
fn memory_beside_a_stall_is_taken(env: &Env) -> TestResult {
    type Event = fn(&Place) -> TestResult;
    let events: [(&str, Event); 5] = [
        ("MADV_DONTNEED", |place| {
            place.advise(0, SIZE, libc::MADV_DONTNEED)
        }),
        ("mprotect", |place| {
            place.protect(0, SIZE, READ)?;
            place.protect(0, SIZE, RW)
        }),
        ("fork", |_| child::run(|| Ok(()))),
        ("MAP_FIXED", |place| place.map(0, SIZE)),
        ("munmap", |place| place.unmap(0, SIZE)),
    ];
    let svm = open(env)?;
    let (silent, free) = (Silent::new()?, Place::base(SIZE)?);
    silent.stall(&svm, 1, 0)?;
    for (what, event) in events {
        svm.run(&format!("before {what}"), &Svm::adding(&free))?;
        let before = svm.count()?;
        check!(
            before.mapped_bytes >= SIZE as u64,
            "{what}: the device has {} bytes",
            before.mapped_bytes
        );
        bounded(what, || event(&free))?;
        let after = svm.count()?;
        check!(
            after.invalidations > before.invalidations,
            "{what}: the device was not told"
        );
        check_eq!(after.state, svm_state::ACTIVE, "{what}: the state");
        check_eq!(
            svm.space.wait_ring(1, Deadline::Now),
            Err(Errno::TIME),
            "{what}: the job that waits"
        );
    }
    silent.uffd.zero(silent.place.address(0), PAGE)?;
    check_eq!(svm.finish(1)?, End::Done, "the job that has waited");
    check_eq!(silent.place.read_u64(0), 7, "its write");
    Ok(())
}

/// What an access has written before it stalls, it does not write again when it goes on.
fn stores_are_not_repeated(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(4 * PAGE)?;
    place.fill(0);
    let uffd = Uffd::open(0)?;
    for page in 1..4 {
        place.map(page * PAGE, PAGE)?;
        uffd.register(place.address(page * PAGE), PAGE, MISSING)?;
    }
    let mut stream = compute::Stream::new();
    for page in 1..4 {
        // The last word of a page, and the first one of the next.
        stream.fill(at(place.address(page * PAGE - 8)), 16, 7);
    }
    svm.submit(0, &stream)?;
    for page in 1..4 {
        let fault = uffd.next(job::LIMIT)?;
        check!(
            fault.is_some_and(|fault| fault.address == place.address(page * PAGE)),
            "the fault on page {page} is {fault:?}"
        );
        // Somebody else's turn to write what the job is done with.
        check_eq!(
            place.read_u64(page * PAGE - 8),
            7,
            "the end of the page before"
        );
        place.write_u64(page * PAGE - 8, 9);
        uffd.zero(place.address(page * PAGE), PAGE)?;
    }
    check_eq!(svm.finish(0)?, End::Done, "the job");
    for page in 1..4 {
        check_eq!(
            place.read_u64(page * PAGE - 8),
            9,
            "what was written behind the device before page {page}"
        );
        check_eq!(place.read_u64(page * PAGE), 7, "page {page}");
    }
    Ok(())
}

/// The memory that is asked for goes away, which no one waits for.
fn munmap(env: &Env) -> TestResult {
    let svm = open(env)?;
    let silent = Silent::new()?;
    silent.stall(&svm, 0, 1)?;
    bounded("munmap", || silent.place.unmap(0, SIZE))?;
    // Whoever waits is woken, as a thread of the program would be, and looks again.
    let Silent { place, uffd } = silent;
    drop(uffd);
    check_eq!(svm.finish(0)?, End::Lost, "the job");
    svm.is_lost(
        "munmap in a fault",
        bad_address(svm_access::WRITE, place.address(PAGE)),
    )
}

fn close(env: &Env) -> TestResult {
    let svm = open(env)?;
    let silent = Silent::new()?;
    for ring in 0..RINGS {
        svm.submit(ring, &Svm::writing(silent.place.address(0), 1))?;
    }
    silent.uffd.asked()?;
    bounded("the close of the file", || {
        drop(svm);
        Ok(())
    })?;
    super::support::others_work(env, "a file closed in a fault")?;
    // Whoever still waits is let go.
    silent.uffd.zero(silent.place.address(0), SIZE)?;
    check_eq!(
        silent.place.read_u64(0),
        0,
        "what a job of a closed file has written"
    );
    Ok(())
}

/// A child in which a job waits for a page; it says so in `flag`, and then does `then`.
fn stuck_child(
    env: &Env,
    flag: &Place,
    then: fn(&Silent, Fault) -> TestResult,
) -> TestResult<child::Child> {
    child::spawn(|| {
        let svm = open(env)?;
        let silent = Silent::new()?;
        let fault = silent.stall(&svm, 0, 0)?;
        flag.write_u64(0, 1);
        then(&silent, fault)
    })
}

fn kill(env: &Env) -> TestResult {
    let svm = open(env)?;
    let flag = Place::shared_page()?;
    let child = stuck_child(env, &flag, |_, _| loop {
        // SAFETY: Takes nothing.
        unsafe { libc::pause() };
    })?;
    let stuck = eventually(job::LIMIT, || flag.read_u64(0) == 1);
    let place = Place::base(SIZE)?;
    let works = svm.coherent_all_over("while another process waits", &place);
    bounded("the end of the killed process", || child.kill())?;
    check!(stuck, "the child's job has not waited");
    works?;
    svm.coherent_all_over("in the end", &place)
}

/// The thread that would resolve the fault ends the process instead.
fn exit(env: &Env) -> TestResult {
    let flag = Place::shared_page()?;
    let child = stuck_child(env, &flag, |_, _| {
        // SAFETY: Ends the child, the threads that serve faults with it.
        unsafe { libc::_exit(3) }
    })?;
    bounded("the end of the process", || child.exits_with(3))?;
    check_eq!(flag.read_u64(0), 1, "the child's job has waited");
    super::support::others_work(env, "a process that is gone")
}

/// The fault is resolved, and has hardly been told to the device when the process ends.
fn resolved_once_then_exit(env: &Env) -> TestResult {
    let flag = Place::shared_page()?;
    for _ in 0..env.iterations(20) {
        let child = stuck_child(env, &flag, |silent, fault| {
            silent.uffd.zero(fault.address, PAGE)?;
            // SAFETY: Ends the child.
            unsafe { libc::_exit(0) }
        })?;
        bounded("the end of the process", || reap(child.pid).map(drop))?;
    }
    Ok(())
}

/// All threads of the context are stuck. Other contexts, the ioctls and the close are not.
fn stuck_in_both_workers(env: &Env) -> TestResult {
    let svm = open(env)?;
    let (one, two) = (Silent::new()?, Silent::new()?);
    one.stall(&svm, 0, 2)?;
    two.stall(&svm, 1, 5)?;
    let place = Place::base(SIZE)?;
    bounded("PREFETCH, which this thread does itself", || {
        let done = svm
            .space
            .prefetch_for_writing(place.address(0), SIZE as u64)?;
        check_eq!(done, SIZE as u64, "bytes prefetched");
        svm.run_on(2, "what was prefetched", &Svm::writing(place.address(0), 1))
    })?;
    super::support::others_work(env, "two threads that are stuck")?;
    // In the other order.
    two.uffd.zero(two.place.address(5 * PAGE), PAGE)?;
    check_eq!(svm.finish(1)?, End::Done, "the second job");
    one.uffd.zero(one.place.address(2 * PAGE), PAGE)?;
    check_eq!(svm.finish(0)?, End::Done, "the first job");
    check_eq!(svm.count()?.state, svm_state::ACTIVE, "the state");
    Ok(())
}

/// Whoever resolves faults may have the device compute the page, in the same context.
fn handler_uses_a_ring(env: &Env) -> TestResult {
    let svm = open(env)?;
    let silent = Silent::new()?;
    let source = Place::base(PAGE)?;
    for page in 0..SIZE / PAGE {
        silent.stall(&svm, 0, page)?;
        svm.run_on(1, "computing the page", &Svm::adding(&source))?;
        silent
            .uffd
            .copy(silent.place.address(page * PAGE), &source.to_vec(0, PAGE))?;
        check_eq!(svm.finish(0)?, End::Done, "the job on page {page}");
        check_eq!(silent.place.read_u64(page * PAGE), 7, "the job's write");
        check_eq!(
            silent.place.read_u32(page * PAGE + 8),
            page as u32 + 1,
            "the page beside it"
        );
    }
    Ok(())
}

/// An access waits as long as it has to, and so does who waits for its value.
fn resolved_late(env: &Env) -> TestResult {
    let svm = open(env)?;
    let silent = Silent::new()?;
    let word = AtomicU64::new(0);
    let mut stream = compute::Stream::new();
    stream.fill(at(silent.place.address(0)), 8, 7).fill(
        virtgpu_client::pointer(word.as_ptr()),
        8,
        1,
    );
    svm.submit(0, &stream)?;
    silent.uffd.asked()?;
    let soon = Deadline::after(Duration::from_secs(3));
    check_eq!(
        svm.space
            .wait_value(&word, Comparison::Equal, 1, u64::MAX, soon),
        Err(Errno::TIME),
        "a value that is not written yet"
    );
    silent.uffd.zero(silent.place.address(0), PAGE)?;
    let deadline = Deadline::after(job::LIMIT);
    svm.space
        .wait_value(&word, Comparison::Equal, 1, u64::MAX, deadline)?;
    check_eq!(word.load(Ordering::SeqCst), 1, "the value");
    check_eq!(svm.finish(0)?, End::Done, "the job");
    Ok(())
}

/// Whoever waits for a ring waits for the jobs that were there, not for as many: the device refuses
/// one at once that makes no sense, and the memory of one before it is still written.
fn refused_behind_a_stall(env: &Env) -> TestResult {
    let svm = open(env)?;
    let silent = Silent::new()?;
    silent.stall(&svm, 1, 0)?;
    let done = AtomicBool::new(false);
    let wait = || {
        let end = svm.finish(1)?;
        done.store(true, Ordering::SeqCst);
        check_eq!(end, End::Lost, "the job that has waited");
        Ok(())
    };
    waits("SVM_WAIT", wait, || {
        Exec::new(&[0xff; 80]).ring(1).submit(svm.device())?;
        let is_lost = || {
            svm.count()
                .is_ok_and(|query| query.state == svm_state::LOST)
        };
        check!(eventually(job::LIMIT, is_lost), "the context is not lost");
        super::support::others_work(env, "a job refused behind a stall")?;
        let early = done.load(Ordering::SeqCst);
        silent.uffd.zero(silent.place.address(0), PAGE)?;
        check!(!early, "SVM_WAIT has not waited for the job that stalls");
        Ok(())
    })
}
