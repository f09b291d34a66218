// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a context with shared virtual memory may not do, so that nothing that others wait for waits
//! for a fault; and what it may.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use virtgpu_client::protocol::uapi::{self, svm_reason, svm_state};
use virtgpu_client::{
    compute, pointer, AddressSpace, BlobOptions, Bytes, Errno, Exec, Memory, RegisterOptions,
    SpaceOptions,
};

use super::silent::{Silent, SIZE};
use super::support::{at, device, family, open, open_with, others_work, End, Svm, RINGS, USUAL};
use crate::handles::two_masters;
use crate::ktap::{Case, Family, Outcome, TestResult};
use crate::support::place::Place;
use crate::support::stat::Oracle;
use crate::support::uffd::Uffd;
use crate::support::{eventually, gpu, job, procfs, Env, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

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
        fence_job_beside_stall,
        pinned_and_mirrored_too,
        two_files_one_process,
        limit_256,
        unbind_in_fault: 180,
    ],
);

/// A device with room for few runs of pages.
pub(crate) const SCARCE: Family = on_device(
    "svm_scarce",
    "--mirror-mappings 600",
    cases![
        evicts_and_goes_on: 300,
        evicts_at_the_end_of_addresses: 300,
        prefetches_all_the_same: 300,
    ],
);

/// A device with room for fewer pages than there are jobs that need one each.
pub(crate) const SCARCER: Family = on_device(
    "svm_scarcer",
    "--mirror-mappings 16",
    cases![
        jobs_take_from_each_other: 600,
        jobs_ask_for_too_much: 600,
        asks_a_userfaultfd_for_one_page: 300,
    ],
);

/// Pages of [`in_many_runs`].
const PAGES: usize = 2000;

/// A device that drops a space when it is to map something.
pub(crate) const LOST: Family = on_device(
    "svm_space_lost",
    "--adversary space-lost --adversary-on MAP",
    cases![its_jobs_end],
);

const fn on_device(name: &'static str, device: &'static str, cases: &'static [Case]) -> Family {
    Family {
        device,
        ..family(name, cases)
    }
}

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

/// Each job evicts what others have, in the one granule that all use, so that there is nothing left
/// to evict for one that asks at the wrong moment. It is not out of memory for that.
fn jobs_take_from_each_other(env: &Env) -> TestResult {
    take_from_each_other(env, USUAL.exact().workers(4))
}

/// The same where a fault asks for more than there is room for.
fn jobs_ask_for_too_much(env: &Env) -> TestResult {
    take_from_each_other(env, USUAL.workers(4))
}

fn take_from_each_other(env: &Env, options: SpaceOptions) -> TestResult {
    const ADDITIONS: usize = 64;
    let svm = open_with(env, options)?;
    let place = Place::scattered(16)?;
    let word = |ring: u32| 64 + ring as usize * 8;
    for round in 1..=env.iterations(10) {
        for ring in 0..RINGS {
            let mut stream = compute::Stream::new();
            for number in 0..ADDITIONS {
                let page = (number * 7 + ring as usize * 5) % 16;
                let address = place.address(page * PAGE + word(ring));
                stream.atomic_add(at(address), 1, 1);
            }
            svm.submit(ring, &stream)?;
        }
        for ring in 0..RINGS {
            check_eq!(
                svm.finish(ring)?,
                End::Done,
                "round {round}: ring {ring}, {:?}",
                svm.count()
            );
            let sum: u64 = (0..16)
                .map(|page| place.read_u64(page * PAGE + word(ring)))
                .sum();
            check_eq!(sum, round * ADDITIONS as u64, "the sum of ring {ring}");
        }
    }
    let count = svm.count()?;
    println!(
        "    # {} faults, {} evictions",
        count.faults, count.evictions
    );
    check!(count.evictions > 0, "nothing was evicted");
    drop(svm);
    others_work(env, "jobs that had no room")
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

fn listing(svm: &Svm, handle: u32) -> Result<(), Errno> {
    Exec::new(delay(1).as_bytes())
        .ring(0)
        .buffers(&[handle])
        .submit(svm.device())
}

/// Others could wait for a buffer that they share: it is for jobs with fences, or for those
/// without.
fn shared_or_fault_mode(env: &Env) -> TestResult {
    let svm = open(env)?;
    let own = svm.device();
    let used = own.create_blob(&BlobOptions::guest(4096))?;
    listing(&svm, used.handle())?;
    check_err!(
        own.prime_export(used.handle()).map(drop),
        Errno::OPNOTSUPP,
        "exporting what a job has listed"
    );
    let shared = own.create_blob(&BlobOptions::guest(4096))?;
    let fd = own.prime_export(shared.handle())?;
    check_err!(
        listing(&svm, shared.handle()),
        Errno::OPNOTSUPP,
        "listing what was exported"
    );
    // For ever, also when the other side has closed it.
    drop(fd);
    check_err!(
        listing(&svm, shared.handle()),
        Errno::OPNOTSUPP,
        "listing what had been exported"
    );
    let other = device(env)?;
    let others = other.create_blob(&BlobOptions::guest(4096))?;
    let imported = own.prime_import(&other.prime_export(others.handle())?)?;
    check_err!(
        listing(&svm, imported),
        Errno::OPNOTSUPP,
        "listing what was imported"
    );
    own.gem_close(imported)?;
    listing(&svm, used.handle())?;
    check_eq!(svm.finish(0)?, End::Done, "the jobs");
    // Among several, one is enough, and nothing has happened to the others.
    let fresh = own.create_blob(&BlobOptions::guest(4096))?;
    let result = Exec::new(delay(1).as_bytes())
        .ring(0)
        .buffers(&[fresh.handle(), shared.handle()])
        .submit(own);
    check_err!(result, Errno::OPNOTSUPP, "listing both kinds");
    drop(own.prime_export(fresh.handle())?);
    Ok(())
}

/// A buffer whose name another file has opened is shared, too.
fn shared_by_name(_: &Env) -> TestResult {
    let Some([first, second]) = two_masters()? else {
        skip!("no primary node, or no way to stop being its master")
    };
    if first.userptr_modes()? & uapi::USERPTR_MODE_SVM == 0 {
        skip!("there is no shared virtual memory here");
    }
    first.context_init_compute(RINGS)?;
    second.context_init_compute(RINGS)?;
    let svm = Svm::new(AddressSpace::enable(first, USUAL)?)?;
    let own = svm.device();
    let used = own.create_blob(&BlobOptions::guest(4096))?;
    let name = own.gem_flink(used.handle())?;
    // A name alone shares nothing, and neither does a second handle of the same file.
    let again = own.gem_open(name)?;
    listing(&svm, used.handle())?;
    own.gem_close(again)?;
    for _ in 0..2 {
        check_err!(
            second.gem_open(name).map(drop),
            Errno::OPNOTSUPP,
            "GEM_OPEN of what a job has listed"
        );
    }
    listing(&svm, used.handle())?;
    check_eq!(svm.finish(0)?, End::Done, "the jobs");
    let shared = own.create_blob(&BlobOptions::guest(4096))?;
    let opened = second.gem_open(own.gem_flink(shared.handle())?)?;
    check_err!(
        listing(&svm, shared.handle()),
        Errno::OPNOTSUPP,
        "listing what another file has opened"
    );
    second.gem_close(opened)?;
    check_err!(
        listing(&svm, shared.handle()),
        Errno::OPNOTSUPP,
        "listing what another file had opened"
    );
    Ok(())
}

/// A job that was waiting for others when its context was lost was never sent, and a buffer that it
/// has listed can be shared.
fn failed_job_lists_nothing(env: &Env) -> TestResult {
    const LIMIT: u32 = 256;
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    let mut failing = compute::Stream::new();
    failing
        .spin_until(at(place.address(0)), 1, 100_000_000)
        .fill(at(0), 8, 1);
    let (sent, unsent) = (
        svm.device().create_blob(&BlobOptions::guest(4096))?,
        svm.device().create_blob(&BlobOptions::guest(4096))?,
    );
    svm.submit(0, &failing)?;
    for _ in 1..LIMIT {
        listing(&svm, sent.handle())?;
    }
    let tid = AtomicI32::new(0);
    let result = std::thread::scope(|scope| {
        let submitter = scope.spawn(|| {
            // SAFETY: Takes nothing.
            tid.store(unsafe { libc::gettid() }, Ordering::SeqCst);
            listing(&svm, unsent.handle())
        });
        // At several looks, as it also sleeps for a moment elsewhere.
        let mut looks = 0;
        let waits = eventually(job::LIMIT, || {
            let asleep = procfs::asleep(tid.load(Ordering::SeqCst));
            looks = if asleep { looks + 1 } else { 0 };
            submitter.is_finished() || looks == 10
        });
        place.write_u64(0, 1);
        (submitter.join().expect("no panic"), waits)
    });
    check_eq!(result, (Err(Errno::IO), true), "the job that waits");
    drop(svm.device().prime_export(unsent.handle())?);
    check_err!(
        svm.device().prime_export(sent.handle()).map(drop),
        Errno::OPNOTSUPP,
        "exporting what a job has listed"
    );
    Ok(())
}

/// WAIT of a buffer tells of its creation only.
fn buffer_is_not_busy(env: &Env) -> TestResult {
    let svm = open(env)?;
    let blob = svm.device().create_blob(&BlobOptions::guest(4096))?;
    svm.device().wait(blob.handle())?;
    let place = Place::base(PAGE)?;
    let mut stream = compute::Stream::new();
    stream.spin_until(at(place.address(0)), 1, 60_000_000);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[blob.handle()])
        .submit(svm.device())?;
    check!(
        !svm.device().is_busy(blob.handle())?,
        "a buffer in a job without fence is busy"
    );
    place.write_u64(0, 1);
    check_eq!(svm.finish(0)?, End::Done, "the job");
    Ok(())
}

/// The buffer lives as long as the job.
fn buffer_closed_in_use(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    let go = AtomicU64::new(0);
    let blob = svm.device().create_blob(&BlobOptions::guest(4096))?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    stream
        .spin_until(pointer(go.as_ptr()), 1, 60_000_000)
        .fill(blob.at(0), 4096, 0x77)
        .copy(at(place.address(0)), blob.at(0), 4096);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[blob.handle()])
        .submit(svm.device())?;
    drop(blob);
    go.store(1, Ordering::SeqCst);
    check_eq!(svm.finish(0)?, End::Done, "the job");
    check_eq!(map.read_u64(8), 0x77, "our mapping of it");
    check_eq!(place.read_u64(PAGE - 8), 0x77, "what the job has copied");
    Ok(())
}

/// So does pinned memory, and the pages stay where they are until then.
fn pinned_closed_in_use(env: &Env) -> TestResult {
    const SIZE: usize = 16 * PAGE;
    let svm = open(env)?;
    let go = AtomicU64::new(0);
    let (written, read) = (Place::base(SIZE)?, Place::base(SIZE)?);
    read.fill(0x5a);
    let to = svm.device().register(&written, RegisterOptions::pinned())?;
    // The device reaches this one through a space.
    let from = svm
        .device()
        .register(&read, RegisterOptions::pinned().read_only())?;
    let mut stream = compute::Stream::new();
    stream
        .spin_until(pointer(go.as_ptr()), 1, 60_000_000)
        .fill(to.at(0), SIZE as u64, 0x77)
        .copy(to.at(PAGE as u64), from.at(0), PAGE as u64);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[to.handle(), from.handle()])
        .submit(svm.device())?;
    to.close()?;
    from.close()?;
    // The device has read all that it was sent before.
    let blob = svm.device().create_blob(&BlobOptions::guest(4096))?;
    svm.device().wait(blob.handle())?;
    check_eq!(procfs::vm_pin()?, 2 * SIZE as u64, "VmPin during the job");
    go.store(1, Ordering::SeqCst);
    check_eq!(svm.finish(0)?, End::Done, "the job");
    check_eq!(written.read_u64(SIZE - 8), 0x77, "what the job has written");
    check_eq!(
        written.read_u64(PAGE),
        0x5a5a_5a5a_5a5a_5a5a,
        "what the job has copied"
    );
    check!(
        eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
        "VmPin is {:?} after the job",
        procfs::vm_pin()
    );
    svm.run("another job", &delay(1))
}

/// Jobs that are over keep nothing: whoever closes the handle then finds the pages unpinned.
fn pinned_closed_after_use(env: &Env) -> TestResult {
    const JOBS: usize = 200;
    let svm = open(env)?;
    let place = Place::base(PAGE)?;
    // Many, so that a job takes long to be dropped.
    let blobs = (0..100)
        .map(|_| svm.device().create_blob(&BlobOptions::guest(4096)))
        .collect::<Result<Vec<_>, _>>()?;
    let job = delay(1);
    for round in 0..5 {
        let userptr = svm.device().register(&place, RegisterOptions::pinned())?;
        let mut handles: Vec<_> = blobs.iter().map(virtgpu_client::Blob::handle).collect();
        handles.push(userptr.handle());
        let exec = Exec::new(job.as_bytes()).ring(0).buffers(&handles);
        for _ in 0..JOBS {
            exec.submit(svm.device())?;
        }
        check_eq!(svm.finish(0)?, End::Done, "the jobs");
        userptr.close()?;
        check_eq!(procfs::vm_pin()?, 0, "round {round}: VmPin");
    }
    Ok(())
}

/// A buffer that no job has listed goes when it is closed, whatever the job may still want of it.
fn buffer_not_listed(env: &Env) -> TestResult {
    let (svm, observer) = (open(env)?, device(env)?);
    let oracle = Oracle::new(&observer)?;
    let blobs = || -> TestResult<u64> { Ok(oracle.read()?.resources.get()) };
    let stalled = Place::base(PAGE)?;
    let uffd = Uffd::missing(&stalled)?;
    let before = blobs()?;
    let blob = svm.device().create_blob(&BlobOptions::guest(4096))?;
    check_eq!(blobs()?, before + 1, "resources with the buffer");
    let mut stream = compute::Stream::new();
    stream
        .fill(at(stalled.address(0)), 8, 7)
        .fill(blob.at(0), 4096, 7);
    svm.submit(0, &stream)?;
    uffd.asked()?;
    drop(blob);
    check!(
        eventually(job::LIMIT, || blobs() == Ok(before)),
        "{:?} resources while the job waits, not {before}",
        blobs()
    );
    check_eq!(svm.count()?.state, svm_state::ACTIVE, "the state");
    uffd.zero(stalled.address(0), PAGE)?;
    check_eq!(svm.finish(0)?, End::Lost, "a job whose buffer is gone");
    check_eq!(stalled.read_u64(0), 7, "what it has written before");
    others_work(env, "a buffer that was not listed")
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

/// Pinned memory may be registered on the same file; mirrored memory on another one.
fn pinned_and_mirrored_too(env: &Env) -> TestResult {
    let (svm, other) = (open(env)?, device(env)?);
    let place = Place::base(4 * PAGE)?;
    place.fill(0);
    let pinned = svm.device().register(&place, RegisterOptions::pinned())?;
    check_err!(
        svm.device()
            .register(&place, RegisterOptions::mirrored())
            .map(drop),
        Errno::OPNOTSUPP,
        "mirrored memory on the same file"
    );
    let mirrored = other.register(&place, RegisterOptions::mirrored())?;
    let mut adding = compute::Stream::new();
    adding.add_u32(pinned.at(0), place.len() as u64, 1).add_u32(
        at(place.address(0)),
        place.len() as u64,
        10,
    );
    Exec::new(adding.as_bytes())
        .ring(0)
        .buffers(&[pinned.handle()])
        .submit(svm.device())?;
    check_eq!(svm.finish(0)?, End::Done, "the job");
    let mut adding = compute::Stream::new();
    adding.add_u32(mirrored.at(0), place.len() as u64, 100);
    job::run(&other, &adding, &[mirrored.handle()])?;
    for offset in (0..place.len()).step_by(4) {
        check_eq!(place.read_u32(offset), 111, "the word at {offset:#x}");
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

/// More runs of pages than the device has mappings for: it makes room, and no job fails.
fn evicts_and_goes_on(env: &Env) -> TestResult {
    more_than_it_has_room_for(env, &open(env)?)
}

/// The same with the last page that there can be: going round begins anew behind it.
fn evicts_at_the_end_of_addresses(env: &Env) -> TestResult {
    let svm = open(env)?;
    let last = svm.space.va_end() - PAGE as u64;
    // SAFETY: New memory, if nothing is there; otherwise it is the stack's, and stays.
    let new = unsafe {
        libc::mmap(
            last as *mut libc::c_void,
            PAGE,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if new as u64 != last {
        let error = std::io::Error::last_os_error();
        check_eq!(
            error.raw_os_error(),
            Some(libc::EEXIST),
            "mapping the last page"
        );
    }
    svm.peek(last)?;
    more_than_it_has_room_for(env, &svm)?;
    svm.peek(last)?;
    if new as u64 == last {
        // SAFETY: It was mapped above, and nothing is in it.
        unsafe { libc::munmap(new, PAGE) };
    }
    Ok(())
}

/// PREFETCH of more than there is room for: MAPs that fail while others are on their way.
fn prefetches_all_the_same(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = in_many_runs()?;
    let length = place.len() as u64;
    let done = svm.space.prefetch_for_writing(place.address(0), length)?;
    check_eq!(done, length, "bytes prefetched");
    let query = svm.count()?;
    check!(query.evictions > 0, "nothing was evicted: {query:?}");
    // What has been evicted is no error, and what has not is there.
    let last = place.address(place.len() - PAGE);
    svm.poke(last, 9)?;
    check_eq!(svm.count()?.faults, query.faults, "faults on the last page");
    place.write_u64(place.len() - PAGE, 0);
    svm.run("adding to all of it", &Svm::adding(&place))?;
    for offset in (0..place.len()).step_by(PAGE) {
        check_eq!(place.read_u32(offset), 1, "what was added at {offset:#x}");
    }
    others_work(env, "a device that is full")
}

/// Memory in more runs of pages than the device has room for.
fn in_many_runs() -> TestResult<Place> {
    let place = Place::scattered(PAGES)?;
    let runs = procfs::minimal_runs(place.as_ptr() as usize, place.len())?;
    if runs < 1200 {
        return Err(Outcome::Skip(format!("memory in {runs} runs only")));
    }
    for offset in (0..place.len()).step_by(PAGE) {
        place.write_u64(offset, 0);
    }
    Ok(place)
}

/// A job that adds 1 to the first word of each page, by an operation of its own.
fn adding_to_each(place: &Place) -> compute::Stream {
    let mut adding = compute::Stream::new();
    for offset in (0..place.len()).step_by(PAGE) {
        adding.add_u32(at(place.address(offset)), 8, 1);
    }
    adding
}

/// A device without room for more is no reason to ask a userfaultfd for what was not touched.
fn asks_a_userfaultfd_for_one_page(env: &Env) -> TestResult {
    let svm = open(env)?;
    let runs = in_many_runs()?;
    let mut adding = compute::Stream::new();
    for offset in (0..64 * PAGE).step_by(PAGE) {
        adding.add_u32(at(runs.address(offset)), 4, 1);
    }
    svm.run("more than there is room for", &adding)?;
    let query = svm.count()?;
    check!(query.evictions > 0, "nothing was evicted: {query:?}");
    let silent = Silent::new()?;
    silent.stall(&svm, 1, 0)?;
    silent.uffd.zero(silent.place.address(0), PAGE)?;
    let end = svm.finish(1);
    // Whoever waits in vain does so no longer.
    let asked = silent.uffd.next(Duration::ZERO)?;
    silent.uffd.unregister(silent.place.address(0), SIZE)?;
    check_eq!(end?, End::Done, "the job");
    check_eq!(asked.map(|fault| fault.address), None, "the next page");
    Ok(())
}

fn more_than_it_has_room_for(env: &Env, svm: &Svm) -> TestResult {
    let place = in_many_runs()?;
    let adding = adding_to_each(&place);
    for _ in 0..3 {
        svm.run("adding to all of it", &adding)?;
    }
    for offset in (0..place.len()).step_by(PAGE) {
        check_eq!(place.read_u32(offset), 3, "additions at {offset:#x}");
    }
    let query = svm.count()?;
    check!(query.evictions > 0, "nothing was evicted: {query:?}");
    check_eq!(query.state, svm_state::ACTIVE, "the state");
    others_work(env, "a device that is full")
}
