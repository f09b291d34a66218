// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Imported dma-bufs whose memory the exporter revokes, as `tests/exporter` can; and what else
//! needs an exporter or an importer of our own.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use virtgpu_client::protocol::compute::Operand;
use virtgpu_client::protocol::uapi;
use virtgpu_client::{
    compute, BlobOptions, Bytes, Device, Errno, Exec, Mapping, Memory, RegisterOptions, SyncStatus,
};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::prime::{resource, used, HALF_SECOND};
use crate::support::exporter::Exporter;
use crate::support::gpu::Gpu;
use crate::support::memory::small_pages;
use crate::support::{eventually, exporter, gpu, job, procfs, Env, PAGE};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "revoked",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        revoked,
        under_a_job,
        in_two_files,
        and_unbound,
        others_beside_a_held_reservation: 120,
        imported_while_the_device_goes,
        attached_without_pages,
        worked_on_without_pages,
        mapped_without_pages,
        mapped_and_unplugged,
    ],
};

/// A buffer of the exporter's that a file has imported, and a job has used.
struct Import {
    exporter: Exporter,
    device: Device,
    fd: OwnedFd,
    memory: Mapping,
    handle: u32,
}

impl Import {
    fn new(env: &Env, pages: usize) -> TestResult<Self> {
        let exporter = exporter::load()?;
        let device = env.compute()?;
        let (fd, memory) = exporter.buffer(pages)?;
        let handle = device.prime_import(&fd)?;
        used(&device, &memory, handle, 1)?;
        Ok(Self {
            exporter,
            device,
            fd,
            memory,
            handle,
        })
    }

    /// Closes all of it. No one has the memory any more, or the exporter could not be unloaded.
    fn end(self) -> TestResult {
        drop((self.device, self.fd, self.memory));
        self.exporter.unload()
    }
}

/// Whether all of the memory is as the exporter has left it.
fn poisoned(memory: &Mapping) -> TestResult {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    let wrong = bytes.iter().filter(|byte| **byte != exporter::POISON);
    check_eq!(
        wrong.count(),
        0,
        "bytes written after the memory was revoked"
    );
    Ok(())
}

/// What remains of an import whose memory was revoked.
fn useless(device: &Device, handle: u32) -> TestResult {
    let query = device.query(handle)?;
    check_eq!(query.state, uapi::bo_state::REVOKED, "state");
    check_eq!(query.resident_bytes, 0, "resident");
    check_eq!(query.mapped_bytes, 0, "mapped");
    let mut stream = compute::Stream::new();
    stream.delay(0);
    let exec = Exec::new(stream.as_bytes());
    check_err!(
        exec.ring(0).buffers(&[handle]).submit(device),
        Errno::IO,
        "a job with it"
    );
    device.wait(handle)?;
    Ok(())
}

fn revoked(env: &Env) -> TestResult {
    let import = Import::new(env, 8)?;
    let Import {
        exporter,
        device,
        fd,
        memory,
        handle,
    } = &import;
    let handle = *handle;
    let query = device.query(handle)?;
    check_eq!(query.state, uapi::bo_state::VALID, "state");
    check_eq!(
        query.memory_model,
        uapi::memory_model::REVOCABLE,
        "memory model"
    );
    // The exporter waits for the jobs that list the buffer.
    let at = Operand::resource(resource(device, handle)?, 8);
    let mut stream = compute::Stream::new();
    stream.delay(HALF_SECOND).fill(at, 8, 78);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[handle])
        .submit_with_fence(device)?;
    exporter.revoke(fd, job::LIMIT)?;
    check_eq!(fence.status()?, SyncStatus::Signalled, "the job");
    poisoned(memory)?;
    useless(device, handle)?;
    // A second time changes nothing.
    exporter.revoke(fd, job::LIMIT)?;
    // Who has the handle has it still, who asks for a new one is refused by the exporter.
    check_eq!(device.prime_import(fd)?, handle, "the same file");
    check_err!(
        env.compute()?.prime_import(fd),
        Errno::NODEV,
        "another file"
    );
    // Other buffers are not concerned.
    let (other, view) = exporter.buffer(2)?;
    let second = device.prime_import(&other)?;
    used(device, &view, second, 2)?;
    device.gem_close(handle)?;
    device.gem_close(second)?;
    // No one imports it any more.
    exporter.revoke(&other, job::LIMIT)?;
    poisoned(&view)?;
    drop((other, view));
    import.end()
}

/// A job that does not list the buffer, and names it all the same: no one waits for it but the
/// host, which lets go of the memory when the job is over, and the exporter waits for the host.
fn under_a_job(env: &Env) -> TestResult {
    let import = Import::new(env, 4)?;
    let Import {
        exporter,
        device,
        fd,
        memory,
        handle,
    } = &import;
    let handle = *handle;
    let at = Operand::resource(resource(device, handle)?, PAGE as u64);
    let mut stream = compute::Stream::new();
    stream.delay(2 * HALF_SECOND).fill(at, 8, 78);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .submit_with_fence(device)?;
    check_err!(
        exporter.revoke(fd, Duration::from_millis(100)),
        Errno::TIME,
        "while the job runs"
    );
    exporter.revoke(fd, job::LIMIT)?;
    check_eq!(fence.status()?, SyncStatus::Signalled, "the job");
    poisoned(memory)?;
    // From now on the host finds nothing there.
    let mut stream = compute::Stream::new();
    stream.fill(at, 8, 79);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .submit_with_fence(device)?;
    check!(fence.wait(Some(job::LIMIT)).is_err(), "a job on it");
    poisoned(memory)?;
    import.end()
}

fn in_two_files(env: &Env) -> TestResult {
    let exporter = exporter::load()?;
    for _ in 0..env.iterations(20) {
        let (first, second) = (env.compute()?, env.compute()?);
        let (fd, memory) = exporter.buffer(3)?;
        let (one, two) = (first.prime_import(&fd)?, second.prime_import(&fd)?);
        used(&first, &memory, one, 1)?;
        used(&second, &memory, two, 2)?;
        exporter.revoke(&fd, job::LIMIT)?;
        poisoned(&memory)?;
        useless(&first, one)?;
        useless(&second, two)?;
        // At the same time as an import: either it is refused, or it loses the memory at once.
        let (fd, memory) = exporter.buffer(2)?;
        let imported = std::thread::scope(|scope| {
            let revoking = scope.spawn(|| exporter.revoke(&fd, job::LIMIT));
            let imported = first.prime_import(&fd);
            revoking.join().map(|revoked| (imported, revoked))
        });
        let Ok((imported, revoked)) = imported else {
            return Err(crate::ktap::Outcome::Fail("a thread panicked".into()));
        };
        revoked?;
        match imported {
            Ok(handle) => useless(&first, handle)?,
            Err(errno) => check_eq!(errno, Errno::NODEV, "an import that came too late"),
        }
        poisoned(&memory)?;
    }
    exporter.unload()
}

/// The driver goes, and with it all that the device could reach.
fn and_unbound(env: &Env) -> TestResult {
    let import = Import::new(env, 4)?;
    let Import {
        exporter,
        device,
        fd,
        memory,
        handle,
    } = &import;
    let handle = *handle;
    let gpu = gpu::find()?;
    gpu.unbind()?;
    exporter.revoke(fd, job::LIMIT)?;
    poisoned(memory)?;
    check_err!(device.query(handle), Errno::NODEV, "BO_QUERY");
    gpu.bind()?;
    gpu::wait_for_node(env)?;
    import.end()
}

/// Others close and register memory while somebody holds the reservation of an imported buffer that
/// is revoked, and then closed.
fn others_beside_a_held_reservation(env: &Env) -> TestResult {
    const LIMIT: Duration = Duration::from_secs(5);

    let exporter = exporter::load()?;
    let device = env.compute()?;
    let (fd, memory) = exporter.buffer(4)?;
    let handle = device.prime_import(&fd)?;
    used(&device, &memory, handle, 1)?;
    // The exporter waits for the fence, with the reservation locked.
    let working = exporter.import(&fd, true)?;
    working.behave(true, false)?;
    let other = env.compute()?;
    let own = small_pages(16 * PAGE)?;
    let (revoking, outcome) = std::thread::scope(|scope| {
        let revoking = scope.spawn(|| exporter.revoke(&fd, gpu::LIMIT));
        let others = || -> TestResult<Duration> {
            let revoked = eventually(
                job::LIMIT,
                || matches!(device.query(handle), Ok(query) if query.state == uapi::bo_state::REVOKED),
            );
            check!(revoked, "the buffer is not revoked");
            let begun = Instant::now();
            device.gem_close(handle)?;
            for round in 0..3 {
                let registration = other.register(&own, RegisterOptions::pinned())?;
                registration.close()?;
                check_eq!(procfs::vm_pin()?, 0, "VmPin after close {round}");
            }
            Ok(begun.elapsed())
        };
        let outcome = others();
        let holds = !revoking.is_finished();
        let ended = working.behave(false, false);
        let revoking = revoking.join().expect("no panic");
        (revoking, outcome.and_then(|took| Ok((took, holds, ended?))))
    });
    let (took, holds, ()) = outcome?;
    println!("    # closing, and three registrations of another: {took:?}");
    check!(took < LIMIT, "others took {took:?}");
    check!(holds, "the reservation was held meanwhile");
    revoking?;
    drop((working, device, other, fd, memory));
    exporter.unload()
}

/// The memory is mapped for the device before the device goes, or not at all.
fn imported_while_the_device_goes(env: &Env) -> TestResult {
    let exporter = exporter::load()?;
    let gpu = gpu::find()?;
    let device = env.compute()?;
    let (fd, memory) = exporter.buffer(4)?;
    exporter.hold(&fd, true)?;
    let imported = std::thread::scope(|scope| {
        let importing = scope.spawn(|| device.prime_import(&fd));
        let waits = eventually(
            gpu::LIMIT,
            || matches!(exporter.hold(&fd, true), Ok(held) if held.waiting),
        );
        let removing = scope.spawn(|| std::fs::write(gpu.pci.join("remove"), "1"));
        let removed = eventually(MOMENT, || removing.is_finished());
        let released = exporter.hold(&fd, false);
        let (imported, result) = (importing.join(), removing.join());
        released?;
        check!(waits, "the import does not wait for the exporter");
        check!(!removed, "the device goes while memory is mapped for it");
        result.expect("no panic")?;
        TestResult::Ok(imported.expect("no panic"))
    })?;
    check_err!(imported, Errno::NODEV, "the import");
    check!(
        !exporter.hold(&fd, false)?.unbound,
        "a device without driver had the memory"
    );
    exporter.revoke(&fd, job::LIMIT)?;
    poisoned(&memory)?;
    std::fs::write("/sys/bus/pci/rescan", "1")?;
    gpu::wait_for_node(env)?;
    drop((device, fd, memory));
    exporter.unload()
}

/// Host memory has no pages, so who needs them does not get it.
fn attached_without_pages(env: &Env) -> TestResult {
    let exporter = exporter::load()?;
    let device = env.compute()?;
    let guest = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let guest = device.prime_export(guest.handle())?;
    for peer2peer in [false, true] {
        exporter.attach(&guest, peer2peer)?;
    }
    if device.getparam(uapi::param::HOST_VISIBLE)? != 0 {
        let host = device.create_blob(&BlobOptions::host3d(PAGE as u64, 1))?;
        let host = device.prime_export(host.handle())?;
        check_err!(
            exporter.attach(&host, false),
            Errno::OPNOTSUPP,
            "a device that needs pages"
        );
        exporter.attach(&host, true)?;
        check_err!(
            exporter.import(&host, false).map(drop),
            Errno::OPNOTSUPP,
            "a device that would never let go of it"
        );
        let gpu = gpu::find()?;
        gpu.unbind()?;
        check_err!(
            exporter.attach(&host, true),
            Errno::NODEV,
            "when the device is gone"
        );
        gpu.bind()?;
        gpu::wait_for_node(env)?;
    }
    drop(guest);
    exporter.unload()
}

/// Long enough for a driver that leaves the device and does not wait.
const MOMENT: Duration = Duration::from_secs(1);

/// A blob of the host's, as a dma-buf; a skip if the device shows no memory of the host.
fn exported_host_memory(device: &Device) -> TestResult<OwnedFd> {
    if device.getparam(uapi::param::HOST_VISIBLE)? == 0 {
        skip!("the device shows no memory of the host");
    }
    let blob = device.create_blob(&BlobOptions::host3d(PAGE as u64, 1))?;
    Ok(device.prime_export(blob.handle())?)
}

/// The driver does not leave the device before others have ended what they do with its memory.
fn worked_on_without_pages(env: &Env) -> TestResult {
    let exporter = exporter::load()?;
    let device = env.compute()?;
    let shared = exported_host_memory(&device)?;
    let working = exporter.import(&shared, true)?;
    working.behave(true, false)?;
    let gpu = gpu::find()?;
    std::thread::scope(|scope| {
        let unbinding = scope.spawn(|| gpu.unbind());
        let early = eventually(MOMENT, || unbinding.is_finished());
        let state = working.state();
        let result = unbinding.join();
        check!(
            !early,
            "the driver leaves while another works on the memory"
        );
        let (_, told) = state?;
        check!(told, "one that works on the memory was not told");
        result.expect("no panic")
    })?;
    check_eq!(working.state()?, (false, true), "the importer in the end");
    gpu.bind()?;
    gpu::wait_for_node(env)?;
    drop((device, shared, working));
    exporter.unload()
}

/// The driver leaves the device, as `leave` has it do, not before all others have let go of its
/// memory; `back` gives it the device again.
fn not_left_while_mapped(
    env: &Env,
    leave: impl Fn(&Gpu) -> TestResult + Sync,
    back: impl FnOnce(&Gpu) -> TestResult,
) -> TestResult {
    let exporter = exporter::load()?;
    let device = env.compute()?;
    let (shared, other) = (
        exported_host_memory(&device)?,
        exported_host_memory(&device)?,
    );
    let working = exporter.import(&shared, true)?;
    let holding = exporter.import(&shared, true)?;
    let third = exporter.import(&other, true)?;
    // Who has let go of it before is not waited for.
    drop(exporter.import(&other, true)?);
    working.behave(true, false)?;
    holding.behave(false, true)?;
    let gpu = gpu::find()?;
    std::thread::scope(|scope| {
        let leaving = scope.spawn(|| leave(&gpu));
        let leaves = || eventually(MOMENT, || leaving.is_finished());
        let early = leaves();
        let worked = working.behave(false, false);
        let soon = leaves();
        let held = holding.state();
        let result = leaving.join();
        worked?;
        let (_, told) = held?;
        check!(
            !early,
            "the driver leaves while another works on the memory"
        );
        check!(
            !soon,
            "the driver leaves while another has mapped the memory"
        );
        check!(told, "one that has mapped the memory was not told");
        result.expect("no panic")
    })?;
    for (what, importer) in [("one", &working), ("two", &holding), ("three", &third)] {
        check_eq!(importer.state()?, (false, true), "importer {what}");
    }
    check_err!(
        exporter.import(&other, true).map(drop),
        Errno::NODEV,
        "when the device is gone"
    );
    back(&gpu)?;
    gpu::wait_for_node(env)?;
    drop((device, shared, other, working, holding, third));
    exporter.unload()
}

fn mapped_without_pages(env: &Env) -> TestResult {
    not_left_while_mapped(env, Gpu::unbind, Gpu::bind)
}

/// The device goes, with the window that the memory was in.
fn mapped_and_unplugged(env: &Env) -> TestResult {
    not_left_while_mapped(
        env,
        |gpu| Ok(std::fs::write(gpu.pci.join("remove"), "1")?),
        |_| Ok(std::fs::write("/sys/bus/pci/rescan", "1")?),
    )
}
