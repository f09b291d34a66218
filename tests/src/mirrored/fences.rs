// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs in flight while memory goes away: who invalidates memory waits for the jobs that use it,
//! but not for ever; a job that takes too long loses its context, and no one else anything.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::protocol::compute::Operand;
use virtgpu_client::{
    compute, Blob, BlobMap, BlobOptions, Bytes, Device, Errno, Exec, Memory, SyncFile, SyncStatus,
};

use super::race::Race;
use super::support::{family, on_each_kind, open, End, Mirror, SPARSE, WHOLE};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::place::{Place, READ, RW};
use crate::support::{child, eventually, gpu, job, procfs, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = family(
    "mirrored_fences",
    cases![
        unmap_waits_for_the_job: 200,
        unmap_waits_for_all_rings: 200,
        every_event_waits_for_the_job: 300,
        no_late_write,
        job_that_ends_first,
        jobs_on_other_memory_are_not_waited_for,
        overrun: 200,
        overrun_other_contexts_go_on: 200,
        overruns_share_the_grace: 200,
        overrun_and_exit: 200,
        overrun_and_kill: 200,
        submitted_after_a_fence,
        busy_while_mapped,
        storm_of_invalidations: 300,
        storm_of_signals: 300,
        fences_signal_in_order,
    ],
);

const SIZE: usize = 16 * PAGE;
/// The longest that the device waits at a gate, in microseconds.
const AT_MOST: u64 = 60_000_000;

/// Something a job waits for: a word of memory that is never invalidated.
pub(crate) struct Gate<'d> {
    blob: Blob<'d>,
    map: BlobMap,
}

impl<'d> Gate<'d> {
    pub(crate) fn new(device: &'d Device) -> TestResult<Self> {
        let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
        let map = blob.map()?;
        map.write_u64(0, 0);
        Ok(Self { blob, map })
    }

    fn at(&self) -> Operand {
        self.blob.at(0)
    }

    pub(crate) fn open(&self) {
        self.map.write_u64(0, 1);
    }

    /// A job that writes 1 to `offset`, waits here, and writes 2 behind it.
    fn job(&self, mirror: &Mirror<'_>, offset: usize) -> compute::Stream {
        let mut stream = compute::Stream::new();
        stream
            .fill(mirror.userptr.at(offset as u64), 8, 1)
            .spin_until(self.at(), 1, AT_MOST)
            .fill(mirror.userptr.at(offset as u64 + 8), 8, 2);
        stream
    }

    pub(crate) fn submit(
        &self,
        ring: u32,
        mirror: &Mirror<'_>,
        offset: usize,
    ) -> TestResult<SyncFile> {
        let stream = self.job(mirror, offset);
        Ok(Exec::new(stream.as_bytes())
            .ring(ring)
            .buffers(&[mirror.userptr.handle(), self.blob.handle()])
            .submit_with_fence(mirror.device)?)
    }
}

/// Waits until a job has written its first word.
pub(crate) fn running(place: &Place, offset: usize) -> TestResult {
    check!(
        eventually(job::LIMIT, || place.read_u64(offset) == 1),
        "the job does not start"
    );
    Ok(())
}

/// Runs `event` in a thread, which must wait until `release` is called, and checks that it did.
pub(crate) fn waits(
    what: &str,
    event: impl FnOnce() -> TestResult + Send,
    release: impl FnOnce() -> TestResult,
) -> TestResult {
    let tid = AtomicI32::new(0);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: Takes nothing.
            tid.store(unsafe { libc::gettid() }, Ordering::Release);
            event()
        });
        // Asleep at several looks: nothing else in there sleeps for long.
        let mut looks = 0;
        eventually(job::LIMIT, || {
            let tid = tid.load(Ordering::Acquire);
            looks = match tid != 0 && procfs::asleep(tid) {
                true => looks + 1,
                false => 0,
            };
            looks == 10 || thread.is_finished()
        });
        let early = thread.is_finished();
        release()?;
        thread.join().expect("no panic")?;
        check!(!early, "{what} has not waited for the job");
        Ok(())
    })
}

/// Runs `test` with a driver that gives jobs a minute. The module is loaded anew for it.
pub(crate) fn patient(env: &Env, test: impl FnOnce() -> TestResult) -> TestResult {
    drop(open(env)?);
    gpu::reload(env, c"job_grace_ms=60000")?;
    let result = test();
    gpu::reload(env, c"")?;
    result
}

fn unmap_waits_for_the_job(env: &Env) -> TestResult {
    patient(env, || {
        on_each_kind(env, HUGE, |device, place| {
            let mirror = Mirror::new(device, place)?;
            let gate = Gate::new(device)?;
            mirror.fill(0)?;
            let fence = gate.submit(0, &mirror, PAGE)?;
            running(place, PAGE)?;
            waits(
                "munmap",
                || place.unmap(0, HUGE),
                || {
                    check_eq!(fence.status()?, SyncStatus::Active, "the fence");
                    gate.open();
                    Ok(())
                },
            )?;
            check_eq!(fence.status()?, SyncStatus::Signalled, "the fence");
            mirror.refused("unmapped", Errno::FAULT)?;
            place.map(0, HUGE)?;
            check_eq!(mirror.peek(PAGE + 8)?, 0, "new memory");
            mirror.coherent_all_over("in the end")
        })
    })
}

fn unmap_waits_for_all_rings(env: &Env) -> TestResult {
    patient(env, || {
        let device = open(env)?;
        let place = Place::base(SIZE)?;
        let mirror = Mirror::new(&device, &place)?;
        mirror.fill(0)?;
        let gates = (0..4)
            .map(|_| Gate::new(&device))
            .collect::<TestResult<Vec<_>>>()?;
        let mut fences = Vec::new();
        for (ring, gate) in gates.iter().enumerate() {
            fences.push(gate.submit(ring as u32, &mirror, ring * PAGE)?);
            running(&place, ring * PAGE)?;
        }
        waits(
            "munmap",
            || place.unmap(0, SIZE),
            || {
                // One after the other, the last one is what counts.
                for (gate, fence) in gates.iter().zip(&fences).take(3) {
                    gate.open();
                    fence.wait(Some(job::LIMIT))?;
                }
                check_eq!(fences[3].status()?, SyncStatus::Active, "the last fence");
                gates[3].open();
                Ok(())
            },
        )?;
        fences[3].wait(Some(job::LIMIT))?;
        Ok(())
    })
}

/// Not only munmap: whatever takes a page or a right away.
fn every_event_waits_for_the_job(env: &Env) -> TestResult {
    type Event = fn(&Place) -> TestResult;
    let events: [(&str, Event); 5] = [
        ("MADV_DONTNEED", |place| {
            place.advise(0, SIZE, libc::MADV_DONTNEED)
        }),
        ("mprotect", |place| place.protect(0, SIZE, READ)),
        ("MAP_FIXED", |place| place.map(0, SIZE)),
        ("mremap", |place| {
            let other = Place::reserve(place.pages(), SIZE)?;
            place.move_to(0, SIZE, &other, 0, 0)?;
            // The job's last word came along.
            check_eq!(other.read_u64(8), 2, "the last word, moved");
            Ok(())
        }),
        ("clear_refs", |_| {
            Ok(std::fs::write("/proc/self/clear_refs", "4")?)
        }),
    ];
    patient(env, || {
        for (what, event) in events {
            let device = open(env)?;
            let place = Place::base(SIZE)?;
            let mirror = Mirror::new(&device, &place)?;
            let gate = Gate::new(&device)?;
            mirror.fill(0)?;
            let fence = gate.submit(0, &mirror, 0)?;
            running(&place, 0)?;
            waits(
                what,
                || event(&place),
                || {
                    gate.open();
                    Ok(())
                },
            )?;
            check_eq!(fence.status()?, SyncStatus::Signalled, "{what}: the fence");
            place.map(0, SIZE)?;
            mirror.coherent_all_over(what)?;
        }
        Ok(())
    })
}

/// What a job has written is there or gone when the call returns; never does it come later.
fn no_late_write(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let mut random = Random(1);
    for round in 0..env.iterations(100) {
        let mut stream = compute::Stream::new();
        stream
            .delay(random.below(3000))
            .fill(mirror.userptr.at(0), SIZE as u64, round + 1);
        let fence = mirror.submit(&stream)?;
        place.advise(0, SIZE, libc::MADV_DONTNEED)?;
        check_eq!(
            fence.status()?,
            SyncStatus::Signalled,
            "the job of round {round}, when its memory is gone"
        );
        for page in 0..SIZE / PAGE {
            check_eq!(
                place.read_u64(page * PAGE),
                0,
                "page {page} in round {round}"
            );
        }
    }
    Ok(())
}

/// With no job left there is nothing to wait for.
fn job_that_ends_first(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    for round in 0..20 {
        let fence = mirror.submit(&mirror.writing(0, round))?;
        fence.wait(Some(job::LIMIT))?;
        mirror.loses("munmap", SIZE, || place.unmap(0, SIZE))?;
        place.map(0, SIZE)?;
    }
    mirror.coherent_all_over("in the end")
}

/// A job of a minute, in steps that the device can be stopped between.
fn minute() -> compute::Stream {
    let mut stream = compute::Stream::new();
    for _ in 0..6 {
        stream.delay(AT_MOST);
    }
    stream
}

fn jobs_on_other_memory_are_not_waited_for(env: &Env) -> TestResult {
    let device = open(env)?;
    let (place, other) = (Place::base(SIZE)?, Place::base(SIZE)?);
    let (mirror, busy) = (Mirror::new(&device, &place)?, Mirror::new(&device, &other)?);
    mirror.fill(1)?;
    busy.fill(1)?;
    let fence = busy.submit_on(1, &minute())?;
    mirror.loses("munmap", SIZE, || place.unmap(0, SIZE))?;
    check_eq!(
        fence.status()?,
        SyncStatus::Active,
        "the fence of the job on other memory"
    );
    check_eq!(busy.count()?.mapped_bytes, SIZE as u64, "the other's bytes");
    Ok(())
}

/// Waits for a fence that must carry the error of a context that was lost.
fn given_up(fence: &SyncFile) -> TestResult {
    match fence.wait(Some(job::LIMIT)) {
        Err(Errno::CANCELED | Errno::IO) => Ok(()),
        Err(error) => Err(Outcome::Fail(format!(
            "the fence of a job that overran: {}",
            crate::support::errno::name(error)
        ))),
        Ok(()) => Err(Outcome::Fail("a job that overran has succeeded".into())),
    }
}

/// munmap of memory in use by a job that does not end: returns when the grace is over.
fn overrun(env: &Env) -> TestResult {
    on_each_kind(env, HUGE, |device, place| {
        let mirror = Mirror::new(device, place)?;
        mirror.fill(0)?;
        let fence = mirror.submit(&minute())?;
        let start = Instant::now();
        place.unmap(0, HUGE)?;
        let time = start.elapsed();
        check!(
            (Duration::from_secs(1)..Duration::from_secs(40)).contains(&time),
            "munmap took {time:?}"
        );
        given_up(&fence)?;
        place.map(0, HUGE)?;
        check_eq!(
            mirror.end(&mirror.idle())?,
            End::Refused(Errno::IO),
            "a later job of the context"
        );
        check_eq!(place.read_u64(0), 0, "new memory");
        // Another file of the same process has nothing to do with it.
        let other = Device::open()?;
        other.context_init_compute(1)?;
        let again = Mirror::new(&other, place)?;
        again.coherent_all_over("another context")
    })
}

fn overrun_other_contexts_go_on(env: &Env) -> TestResult {
    let (device, other) = (open(env)?, open(env)?);
    let (place, elsewhere) = (Place::base(SIZE)?, Place::base(SIZE)?);
    let mirror = Mirror::new(&device, &place)?;
    let neighbour = Mirror::new(&other, &elsewhere)?;
    mirror.fill(0)?;
    neighbour.fill(0)?;
    let gate = Gate::new(&other)?;
    let overrunning = mirror.submit(&minute())?;
    let fine = gate.submit(0, &neighbour, 0)?;
    running(&elsewhere, 0)?;
    place.unmap(0, SIZE)?;
    gate.open();
    given_up(&overrunning)?;
    fine.wait(Some(job::LIMIT))?;
    check_eq!(elsewhere.read_u64(8), 2, "the neighbour's job");
    neighbour.coherent_all_over("the neighbour")
}

/// However many contexts overrun, one munmap waits once.
fn overruns_share_the_grace(env: &Env) -> TestResult {
    const COUNT: usize = 8;
    let place = Place::base(COUNT * SIZE)?;
    let devices = (0..COUNT)
        .map(|_| open(env))
        .collect::<TestResult<Vec<_>>>()?;
    let mirrors = devices
        .iter()
        .enumerate()
        .map(|(index, device)| Mirror::part(device, &place, index * SIZE, SIZE, WHOLE))
        .collect::<TestResult<Vec<_>>>()?;
    let mut fences = Vec::new();
    for mirror in &mirrors {
        mirror.fill(0)?;
        fences.push(mirror.submit(&minute())?);
    }
    let start = Instant::now();
    place.unmap(0, place.len())?;
    let time = start.elapsed();
    println!("    # munmap took {:.1} s", time.as_secs_f32());
    // A grace for each would be 16 s.
    check!(time < Duration::from_secs(12), "munmap took {time:?}");
    for fence in &fences {
        given_up(fence)?;
    }
    Ok(())
}

/// A child whose job does not end; `leave` ends it.
fn overrunning_child(env: &Env, leave: bool) -> TestResult {
    drop(open(env)?);
    let flag = Place::shared_page()?;
    let child = child::spawn(|| {
        let device = open(env)?;
        let place = Place::base(SIZE)?;
        let mirror = Mirror::new(&device, &place)?;
        mirror.fill(0)?;
        let fence = mirror.submit(&minute())?;
        flag.write_u64(0, 1);
        if !leave {
            fence.wait(None)?;
        }
        // SAFETY: Ends the child with everything open and mapped.
        unsafe { libc::_exit(0) }
    })?;
    check!(
        eventually(job::LIMIT, || flag.read_u64(0) == 1),
        "the child does not come up"
    );
    let start = Instant::now();
    if leave {
        crate::ktap::reap(child.pid)?;
    } else {
        child.kill()?;
    }
    check!(
        start.elapsed() < Duration::from_secs(40),
        "the child ended after {:?}",
        start.elapsed()
    );
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.coherent_all_over("afterwards")
}

fn overrun_and_exit(env: &Env) -> TestResult {
    overrunning_child(env, true)
}

fn overrun_and_kill(env: &Env) -> TestResult {
    overrunning_child(env, false)
}

/// A job that has to wait before it starts uses what is mapped when it starts.
fn submitted_after_a_fence(env: &Env) -> TestResult {
    let device = open(env)?;
    let (place, free) = (Place::base(SIZE)?, Place::base(SIZE)?);
    let (mirror, first) = (Mirror::new(&device, &place)?, Mirror::new(&device, &free)?);
    first.fill(0)?;
    mirror.fill(3)?;
    let gate = Gate::new(&device)?;
    let fence = gate.submit(1, &first, 0)?;
    running(&free, 0)?;
    let tid = AtomicI32::new(0);
    std::thread::scope(|scope| {
        let submitter = scope.spawn(|| {
            // SAFETY: Takes nothing.
            tid.store(unsafe { libc::gettid() }, Ordering::Release);
            let stream = mirror.reading();
            Exec::new(stream.as_bytes())
                .after(&fence)
                .buffers(&mirror.handles())
                .submit_with_fence(&device)
        });
        eventually(job::LIMIT, || {
            let tid = tid.load(Ordering::Acquire);
            tid != 0 && procfs::asleep(tid)
        });
        place.map(0, SIZE)?;
        place.fill(4);
        gate.open();
        let second = submitter.join().expect("no panic")?;
        second.wait(Some(job::LIMIT))?;
        check_eq!(
            mirror.result(),
            compute::crc32c(0, &[4; SIZE]),
            "CRC32C of what the job has read"
        );
        Ok(())
    })
}

fn busy_while_mapped(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let gate = Gate::new(&device)?;
    mirror.fill(0)?;
    let handle = mirror.userptr.handle();
    device.wait(handle)?;
    check!(!device.is_busy(handle)?, "busy without a job");
    let fence = gate.submit(0, &mirror, 0)?;
    check!(device.is_busy(handle)?, "not busy with a job");
    gate.open();
    fence.wait(Some(job::LIMIT))?;
    device.wait(handle)?;
    check!(!device.is_busy(handle)?, "busy after the job");
    Ok(())
}

/// Submitting never returns what makes a library try for ever, and gets through in the end.
fn storm_of_invalidations(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    let rounds = env.iterations(60);
    let outcomes = Race::storm(
        |_| {
            // Two at a time.
            std::thread::scope(|scope| {
                let other = scope.spawn(|| place.advise(8 * PAGE, 8 * PAGE, libc::MADV_DONTNEED));
                place.advise(0, 8 * PAGE, libc::MADV_DONTNEED)?;
                other.join().expect("no panic")
            })
        },
        |race| {
            race.next_disturbance();
            for _ in 0..rounds {
                race.done("a job", || mirror.end(&mirror.writing(PAGE, 1)))?;
            }
            Ok(())
        },
    )?;
    let retries = mirror.count()?.retries;
    println!(
        "    # {rounds} jobs, {} of them repeated after EBUSY; {retries} repeated lookups",
        outcomes.busy
    );
    mirror.coherent_all_over("after the storm")
}

/// Signals delay what they interrupt, and break nothing.
fn storm_of_signals(env: &Env) -> TestResult {
    extern "C" fn handler(_: i32) {}
    let device = open(env)?;
    let place = Place::base(4 * HUGE)?;
    let whole = Mirror::new(&device, &place)?;
    let sparse = Mirror::with(&device, &place, SPARSE)?;
    // SAFETY: The handler does nothing; the structures are valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(i32) as usize;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
    }
    let timer = |microseconds| {
        let value = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: value,
            it_value: value,
        };
        // SAFETY: A valid structure.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    };
    let work = || -> TestResult {
        for round in 0..env.iterations(30) {
            timer(2000 + (round as i64 % 7) * 500);
            let data = whole.scatter(round);
            check_eq!(
                whole.csum(0, data.len())?,
                compute::crc32c(0, &data),
                "round {round}"
            );
            // Twenty at a time in flight when the memory goes.
            let mut stream = compute::Stream::new();
            stream.delay(500).add_u32(whole.userptr.at(0), 64, 1);
            let fences = (0..20)
                .map(|index| whole.submit_on(index % 4, &stream))
                .collect::<Result<Vec<_>, _>>()?;
            place.unmap(0, HUGE)?;
            for fence in fences {
                check_eq!(fence.status()?, SyncStatus::Signalled, "a job");
            }
            place.map(0, HUGE)?;
            sparse.prefetch(HUGE - PAGE, 2 * PAGE)?;
            sparse.coherent("prefetched", HUGE - PAGE)?;
        }
        Ok(())
    };
    let result = work();
    timer(0);
    result?;
    whole.coherent_all_over("in the end")
}

/// Jobs of one ring run in order, also when their memory moves in between.
fn fences_signal_in_order(env: &Env) -> TestResult {
    let device = open(env)?;
    let place = Place::base(SIZE)?;
    let mirror = Mirror::new(&device, &place)?;
    mirror.fill(0)?;
    for round in 0..20_u64 {
        let fences = (0..10)
            .map(|step| {
                let value = round * 10 + step;
                let fence = mirror.submit_on(2, &mirror.writing(0, value));
                if step == 5 {
                    place.protect(0, PAGE, READ)?;
                    place.protect(0, PAGE, RW)?;
                }
                Ok(fence?)
            })
            .collect::<TestResult<Vec<_>>>()?;
        fences[9].wait(Some(job::LIMIT))?;
        for (step, fence) in fences.iter().enumerate() {
            check_eq!(
                fence.status()?,
                SyncStatus::Signalled,
                "fence {step} when the last one has signalled"
            );
        }
        check_eq!(place.read_u64(0), round * 10 + 9, "the last job's write");
    }
    Ok(())
}
