// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a context with shared virtual memory may not do, so that nothing that others wait for waits
//! for a fault; and what it may. This file has the rules of its jobs, `buffers` those of the
//! buffers that they list.

mod buffers;

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use virtgpu_client::protocol::uapi::{self, svm_reason, svm_state};
use virtgpu_client::{compute, BlobOptions, Bytes, Errno, Exec, Memory, RegisterOptions};

use self::buffers::{
    buffer_closed_in_use, buffer_is_not_busy, buffer_listed_twice, buffer_not_listed,
    failed_job_lists_nothing, pinned_and_mirrored_too, pinned_closed_after_use,
    pinned_closed_in_use, shared_by_name, shared_or_fault_mode,
};
use super::support::{at, device, family, open, others_work, End, Svm, RINGS};
use crate::ktap::{Family, TestResult};
use crate::support::place::Place;
use crate::support::uffd::Uffd;
use crate::support::{eventually, gpu, job, procfs, Env, PAGE};
use crate::{cases, check, check_eq, check_err};

pub(crate) const FAMILY: Family = family(
    "svm_rules",
    cases![
        no_out_fences,
        in_fences_are_waited_for,
        no_command_with_a_blob,
        shared_or_fault_mode,
        failed_job_lists_nothing,
        shared_by_name,
        buffer_is_not_busy,
        buffer_closed_in_use,
        pinned_closed_in_use,
        pinned_closed_after_use,
        buffer_not_listed,
        refused_job,
        buffer_listed_twice,
        fence_job_beside_stall,
        pinned_and_mirrored_too,
        two_files_one_process,
        limit_256,
        unbind_in_fault: 180,
    ],
);

/// A device that drops a space when it is to map something.
pub(crate) const LOST: Family = Family {
    device: "--adversary space-lost --adversary-on MAP",
    ..family("svm_space_lost", cases![its_jobs_end])
};

fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
}

/// No fence depends on a job that may wait for a fault.
fn no_out_fences(env: &Env) -> TestResult {
    let svm = open(env)?;
    let syncobj = svm.device().create_syncobj()?;
    let job = delay(1);
    let exec = Exec::new(job.as_bytes()).ring(0);
    check_err!(
        exec.submit_with_fence(svm.device()).map(drop),
        Errno::OPNOTSUPP,
        "FENCE_FD_OUT"
    );
    for point in [0, 1] {
        let out = [uapi::ExecBufferSyncobj {
            handle: syncobj.handle(),
            flags: 0,
            point,
        }];
        check_err!(
            exec.signal_syncobjs(&out).submit(svm.device()),
            Errno::OPNOTSUPP,
            "out_syncobjs with point {point}"
        );
    }
    check_eq!(svm.count()?.state, svm_state::ACTIVE, "the state");
    svm.run("a job without a fence", &job)
}

/// A job starts only when the fences of others have signalled.
fn in_fences_are_waited_for(env: &Env) -> TestResult {
    let (svm, fenced) = (open(env)?, device(env)?);
    let blob = fenced.create_blob(&BlobOptions::guest(4096))?;
    let map = blob.map()?;
    let word = AtomicU64::new(0);
    let mut later = compute::Stream::new();
    later.delay(300_000).fill(blob.at(0), 8, 5);
    let exec = Exec::new(later.as_bytes()).ring(0);
    let handles = [blob.handle()];
    let job = Svm::writing(word.as_ptr() as u64, 1);
    let after = Exec::new(job.as_bytes()).ring(0);

    let fence = exec.buffers(&handles).submit_with_fence(&fenced)?;
    after.after(&fence).submit(svm.device())?;
    check_eq!(map.read_u64(0), 5, "what the job with the fence writes");
    check_eq!(svm.finish(0)?, End::Done, "the job after it");
    check_eq!(word.load(Ordering::SeqCst), 1, "its write");

    map.write_u64(0, 0);
    let syncobj = svm.device().create_syncobj()?;
    let fence = exec.buffers(&handles).submit_with_fence(&fenced)?;
    syncobj.import_sync_file(&fence)?;
    let wait = [uapi::ExecBufferSyncobj {
        handle: syncobj.handle(),
        flags: uapi::EXECBUF_SYNCOBJ_RESET,
        point: 0,
    }];
    after.wait_syncobjs(&wait).submit(svm.device())?;
    check_eq!(map.read_u64(0), 5, "what the job with the syncobj writes");
    check_eq!(svm.finish(0)?, End::Done, "the job after it");
    check_err!(
        syncobj.export_sync_file().map(drop),
        Errno::INVAL,
        "the syncobj, which was reset"
    );
    Ok(())
}

fn no_command_with_a_blob(env: &Env) -> TestResult {
    let svm = open(env)?;
    let job = delay(1);
    let options = BlobOptions {
        command: job.as_bytes(),
        ..BlobOptions::host3d_guest(PAGE as u64, 0)
    };
    check_err!(
        svm.device().create_blob(&options).map(drop),
        Errno::OPNOTSUPP,
        "RESOURCE_CREATE_BLOB with a command"
    );
    svm.run("a job", &job)
}

/// Jobs with fences, on rings of the same number and with memory of the same process, wait for
/// no one.
fn fence_job_beside_stall(env: &Env) -> TestResult {
    let (svm, fenced) = (open(env)?, device(env)?);
    let (stalled, place) = (Place::base(4 * PAGE)?, Place::base(4 * PAGE)?);
    let uffd = Uffd::missing(&stalled)?;
    for ring in 0..RINGS {
        let page = ring as usize * PAGE;
        svm.submit(ring, &Svm::writing(stalled.address(page), 1))?;
    }
    uffd.asked()?;
    let userptr = fenced.register(&place, RegisterOptions::mirrored())?;
    let mut adding = compute::Stream::new();
    adding.add_u32(userptr.at(0), place.len() as u64, 1);
    for round in 1..20_u32 {
        Exec::new(adding.as_bytes())
            .ring(round % RINGS)
            .buffers(&[userptr.handle()])
            .submit_with_fence(&fenced)?
            .wait(Some(job::LIMIT))?;
        check_eq!(place.read_u32(4), round, "additions");
        place.advise(PAGE, PAGE, libc::MADV_DONTNEED)?;
    }
    userptr.close()?;
    drop(fenced);
    uffd.unregister(stalled.address(0), stalled.len())?;
    for ring in 0..RINGS {
        check_eq!(svm.finish(ring)?, End::Done, "ring {ring}");
        check_eq!(stalled.read_u64(ring as usize * PAGE), 1, "its write");
    }
    Ok(())
}

fn two_files_one_process(env: &Env) -> TestResult {
    let (one, two) = (open(env)?, open(env)?);
    let place = Place::base(16 * PAGE)?;
    let mut counter = compute::Stream::new();
    counter.atomic_add(at(place.address(0)), 1, 1000);
    for round in 1..=10 {
        one.submit(0, &counter)?;
        two.submit(0, &counter)?;
        check_eq!(one.finish(0)?, End::Done, "the first");
        check_eq!(two.finish(0)?, End::Done, "the second");
        check_eq!(place.read_u64(0), 2000 * round, "additions of both");
    }
    // The end of one is nothing to the other.
    let cause = super::support::bad_address(uapi::svm_access::WRITE, 0);
    one.fails("address 0", &Svm::writing(0, 1), cause)?;
    drop(one);
    two.coherent_all_over("afterwards", &place)
}

/// A file has so many jobs that are accepted and not done, and then waits.
fn limit_256(env: &Env) -> TestResult {
    const LIMIT: u32 = 256;
    const ALL: u32 = 400;
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    let mut spinning = compute::Stream::new();
    spinning.spin_until(at(place.address(0)), 1, 100_000_000);
    let mut adding = compute::Stream::new();
    adding.atomic_add(at(place.address(8)), 1, 1);
    let (accepted, tid) = (AtomicU32::new(0), AtomicI32::new(0));
    std::thread::scope(|scope| {
        let submitter = scope.spawn(|| -> TestResult {
            // SAFETY: Takes nothing.
            tid.store(unsafe { libc::gettid() }, Ordering::SeqCst);
            svm.submit(0, &spinning)?;
            for _ in 1..ALL {
                accepted.fetch_add(1, Ordering::SeqCst);
                svm.submit(0, &adding)?;
            }
            accepted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let full = eventually(job::LIMIT, || {
            submitter.is_finished()
                || (accepted.load(Ordering::SeqCst) >= LIMIT
                    && procfs::asleep(tid.load(Ordering::SeqCst)))
        });
        let (count, finished) = (accepted.load(Ordering::SeqCst), submitter.is_finished());
        let others = others_work(env, "a file that is full");
        place.write_u64(0, 1);
        let result = submitter.join().expect("no panic");
        check!(
            !finished,
            "all jobs were accepted, or one refused: {result:?}"
        );
        check!(full, "{count} jobs were accepted");
        check_eq!(count, LIMIT, "jobs on their way");
        result?;
        others
    })?;
    check_eq!(svm.finish(0)?, End::Done, "the jobs");
    check_eq!(
        place.read_u64(8),
        u64::from(ALL) - 1,
        "additions of all jobs"
    );
    Ok(())
}

/// Unbinding ends whoever waits, in a fault or for a job.
fn unbind_in_fault(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    let svm = open(env)?;
    let place = Place::base(4 * PAGE)?;
    let uffd = Uffd::missing(&place)?;
    svm.submit(0, &Svm::writing(place.address(0), 1))?;
    uffd.asked()?;
    let result = std::thread::scope(|scope| -> TestResult<Result<(), Errno>> {
        let waiter = scope.spawn(|| {
            let never = virtgpu_client::Deadline::Never;
            svm.space.wait_ring(0, never)
        });
        gpu.unbind()?;
        Ok(waiter.join().expect("no panic"))
    })?;
    check!(
        matches!(result, Err(Errno::NODEV | Errno::IO)),
        "SVM_WAIT: {}",
        crate::support::errno::describe(&result)
    );
    check!(env.node().is_none(), "the render node is gone");
    check_eq!(
        svm.submit(0, &delay(1)),
        Err(Errno::NODEV),
        "a job afterwards"
    );
    check_eq!(
        svm.space.query().map(drop),
        Err(Errno::NODEV),
        "QUERY afterwards"
    );
    place.unmap(0, place.len())?;
    drop(svm);
    gpu.bind()?;
    gpu::wait_for_node(env)?;
    others_work(env, "the device, bound again")
}

/// What the host does not take as a job has no other end than that of the context.
fn refused_job(env: &Env) -> TestResult {
    let svm = open(env)?;
    svm.run("a good job", &delay(1))?;
    Exec::new(&[0xff; 80]).ring(1).submit(svm.device())?;
    check_eq!(svm.finish(1)?, End::Lost, "the job that makes no sense");
    let query = svm.count()?;
    check_eq!(query.state, svm_state::LOST, "the state");
    check_eq!(query.reason, svm_reason::LOST, "the reason");
    check_eq!(query.ring, 1, "the ring");
    check_eq!(svm.end(&delay(1))?, End::Refused(Errno::IO), "the next job");
    others_work(env, "a job that made no sense")
}

/// The device says nothing more of what was in the space, so the driver ends its jobs.
fn its_jobs_end(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    svm.submit(1, &delay(1))?;
    check_eq!(
        svm.end(&Svm::writing(place.address(0), 1))?,
        End::Lost,
        "the job"
    );
    check_eq!(svm.finish(1)?, End::Lost, "that of another ring");
    let query = svm.count()?;
    check_eq!(query.state, svm_state::LOST, "the state");
    check_eq!(query.reason, svm_reason::LOST, "the reason");
    svm.device().create_blob(&BlobOptions::guest(4096))?;
    Ok(())
}
