// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs of one context that never end. They cost no one else anything, and the context ends with
//! its file or its process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtgpu_client::protocol::uapi::svm_state;
use virtgpu_client::{compute, pointer, BlobOptions, Bytes, Deadline, Errno, Exec, Memory};

use super::{victim, victim_with};
use crate::hostile::LIMIT;
use crate::isolation;
use crate::ktap::TestResult;
use crate::support::place::Place;
use crate::support::{bounded, child, eventually, Env, PAGE};
use crate::svm::silent::SIZE;
use crate::svm::support::{device, open, others_work, Svm, USUAL};
use crate::{check, check_eq, check_err};

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

pub(super) fn faults_for_ever(env: &Env) -> TestResult {
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

pub(super) fn killed_while_it_faults(env: &Env) -> TestResult {
    ends_by_kill(env, many_faults)
}

/// The resolutions have their effect, but their places in the ring do not come back: a client has a
/// share of them, and when that is used up, it stalls alone.
pub(super) fn runs_out_alone(env: &Env) -> TestResult {
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

pub(super) fn stalls_alone(env: &Env) -> TestResult {
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

pub(super) fn never_done(env: &Env) -> TestResult {
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

pub(super) fn never_done_and_killed(env: &Env) -> TestResult {
    ends_by_kill(env, has_written)
}
