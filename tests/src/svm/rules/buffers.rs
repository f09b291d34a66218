// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Buffers that jobs of a context with shared virtual memory list: no other process may wait for
//! one, it lives as long as such a job, and memory may be registered beside it.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use virtgpu_client::protocol::uapi::{self, svm_state};
use virtgpu_client::{
    compute, pointer, AddressSpace, BlobOptions, Bytes, Errno, Exec, Memory, RegisterOptions,
};

use super::super::support::{at, device, open, others_work, End, Svm, RINGS, USUAL};
use super::delay;
use crate::handles::two_masters;
use crate::ktap::TestResult;
use crate::support::place::Place;
use crate::support::stat::Oracle;
use crate::support::uffd::Uffd;
use crate::support::{eventually, job, procfs, Env, PAGE};
use crate::{check, check_eq, check_err, skip};

fn listing(svm: &Svm, handle: u32) -> Result<(), Errno> {
    Exec::new(delay(1).as_bytes())
        .ring(0)
        .buffers(&[handle])
        .submit(svm.device())
}

/// Others could wait for a buffer that they share: it is for jobs with fences, or for those
/// without.
pub(super) fn shared_or_fault_mode(env: &Env) -> TestResult {
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
pub(super) fn shared_by_name(_: &Env) -> TestResult {
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
pub(super) fn failed_job_lists_nothing(env: &Env) -> TestResult {
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
pub(super) fn buffer_is_not_busy(env: &Env) -> TestResult {
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
pub(super) fn buffer_closed_in_use(env: &Env) -> TestResult {
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
pub(super) fn pinned_closed_in_use(env: &Env) -> TestResult {
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
pub(super) fn pinned_closed_after_use(env: &Env) -> TestResult {
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
pub(super) fn buffer_not_listed(env: &Env) -> TestResult {
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

/// Pinned memory may be registered on the same file; mirrored memory on another one.
pub(super) fn pinned_and_mirrored_too(env: &Env) -> TestResult {
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

/// As for jobs with fences: a buffer is in the list once, or not at all.
pub(super) fn buffer_listed_twice(env: &Env) -> TestResult {
    let svm = open(env)?;
    let blobs = (0..3)
        .map(|_| svm.device().create_blob(&BlobOptions::guest(4096)))
        .collect::<Result<Vec<_>, _>>()?;
    let [one, two, three] = [0, 1, 2].map(|index| blobs[index].handle());
    let job = delay(1);
    let exec = Exec::new(job.as_bytes()).ring(0);
    for list in [
        &[one, one][..],
        &[one, two, one],
        &[three, two, two],
        &[two, one, three, two],
    ] {
        check_err!(
            exec.buffers(list).submit(svm.device()),
            Errno::ALREADY,
            "a job with the buffers {list:?}"
        );
    }
    // None of them was listed by a job that the driver took.
    drop(svm.device().prime_export(one)?);
    exec.buffers(&[three, two]).submit(svm.device())?;
    check_eq!(svm.finish(0)?, End::Done, "a job that lists each once");
    Ok(())
}
