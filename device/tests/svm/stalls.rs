// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Faults: who waits for one, how it is resolved, and who does not wait.

use super::*;
use virtgpu_device::mirror::Limits;
use virtgpu_protocol::virtio_gpu::command;

fn read(address: u64) -> Op {
    addressed(op::CRC32C, VA + 100 * PAGE, [address, 0], 8, [0; 2])
}

/// One fault for a page, and a stronger one for more rights.
#[test]
fn one_fault_a_page() {
    let mut driver = Driver::new();
    driver.map(VA + 100 * PAGE, FREE + 100 * PAGE, 1, 3);
    driver.submit(0, &[read(VA)]);
    let first = driver.expect_fault(VA, access::READ);
    driver.submit(1, &[read(VA + 64)]);
    driver.quiet();
    driver.submit(2, &[fill(0, VA + 8, 8, 1)]);
    let second = driver.expect_fault(VA, access::WRITE);
    // What is to be written can be read then, too.
    driver.submit(3, &[read(VA + 128)]);
    driver.submit(4, &[fill(0, VA + 16, 8, 1)]);
    driver.quiet();
    let stat = driver.stat();
    let counts = [stat.faults, stat.pending_faults, stat.joined_faults].map(|n| n.get());
    assert_eq!(counts, [2, 2, 3]);
    driver.map(VA, FREE, 1, 3);
    driver.resolve(second, resolution::OK);
    let mut rings: Vec<u32> = (0..2).map(|_| driver.ring_done().info.get()).collect();
    rings.sort_unstable();
    // That of ring 3 could have waited for either, and does for the older one.
    assert_eq!(rings, [2, 4]);
    driver.resolve(first, resolution::OK);
    for _ in 0..3 {
        assert_eq!(driver.ring_done().access.get(), job_result::OK);
    }
    assert_eq!(driver.stat().pending_faults.get(), 0);
    driver.vm.end(false);
}

/// An id that is not in use means nothing.
#[test]
fn resolutions_of_nothing() {
    let mut driver = Driver::new();
    driver.submit(0, &[fill(0, VA, 8, 1)]);
    let fault = driver.expect_fault(VA, access::WRITE);
    driver.resolve(fault + 1, resolution::BAD_ADDRESS);
    driver.resolve(0, resolution::BAD_ADDRESS);
    driver
        .vm
        .done(&fault_resolve(9, fault, resolution::BAD_ADDRESS));
    // Not well-formed.
    driver.vm.done(&fault_resolve(1, fault, 4));
    let mut long = fault_resolve(1, fault, resolution::BAD_ADDRESS);
    long[28] = 1;
    driver.vm.done(&long);
    driver.quiet();
    driver.map(VA, FREE, 1, 3);
    driver.resolve(fault, resolution::OK);
    assert_eq!(driver.result().0, job_result::OK);
    driver.resolve(fault, resolution::BAD_ADDRESS);
    driver.submit(0, &[fill(0, VA, 8, 2)]);
    assert_eq!(driver.result().0, job_result::OK);
    // Each of those that were well-formed and named the space.
    assert_eq!(driver.vm.end_with_violations().len(), 3);
}

/// OK promises nothing: the access faults again, with another id.
#[test]
fn again_and_again() {
    let mut driver = Driver::new();
    driver.submit(0, &[fill(0, VA, 8, 1)]);
    let mut before = 0;
    for round in 0..20 {
        let fault = driver.expect_fault(VA, access::WRITE);
        assert!(fault > before);
        before = fault;
        if round % 2 == 0 {
            // Mapped, and taken at once: it holds nothing.
            driver.map(VA, FREE, 1, 3);
            driver.vm.done(&invalidate(1, VA, VA + PAGE - 1));
        }
        driver.resolve(fault, resolution::OK);
    }
    let fault = driver.expect_fault(VA, access::WRITE);
    assert_eq!(driver.word(FREE), 0);
    driver.map(VA, FREE, 1, 3);
    driver.resolve(fault, resolution::OK);
    assert_eq!(driver.result().0, job_result::OK);
    driver.vm.end(false);
}

/// After RETRY the device waits before it faults again, longer each time.
#[test]
fn retry() {
    let mut driver = Driver::new();
    driver.submit(0, &[fill(0, VA, 8, 1)]);
    let start = Instant::now();
    for _ in 0..8 {
        let fault = driver.expect_fault(VA, access::WRITE);
        driver.resolve(fault, resolution::RETRY);
    }
    let fault = driver.expect_fault(VA, access::WRITE);
    // 1, 2, 4 to 64 and 100 milliseconds.
    assert!(start.elapsed() >= Duration::from_millis(227));
    driver.map(VA, FREE, 1, 3);
    driver.resolve(fault, resolution::OK);
    assert_eq!(driver.result().0, job_result::OK);
    driver.vm.end(false);
}

/// A fault that cannot be resolved fails the job and its context, and no other.
#[test]
fn bad() {
    for status in [resolution::BAD_ADDRESS, resolution::BAD_ACCESS] {
        let mut driver = Driver::new();
        driver.vm.context(3);
        assert_eq!(driver.vm.status(&context_space(3, 3, TASK_SIZE)), 0);
        driver.map(VA, FREE, 1, 3);
        let job = [fill(0, VA + PAGE - 8, 16, 9), fill(0, VA, 8, 9)];
        let bad = driver.submit(0, &job);
        let fault = driver.expect_fault(VA + PAGE, access::WRITE);
        // Behind it, stalled beside it, and of another context.
        let behind = driver.submit(0, &[fill(0, VA, 8, 9)]);
        driver.submit(1, &[fill(0, VA + 8 * PAGE, 8, 9)]);
        let beside = driver.expect_fault(VA + 8 * PAGE, access::WRITE);
        let other = submit(3, Some(0), Some(500), &[fill(0, VA, 8, 4)]);
        driver.vm.ok(&other);
        let others = driver.fault();
        driver.resolve(fault, status);
        let mut ends: Vec<_> = (0..3).map(|_| driver.ring_done()).collect();
        ends.sort_by_key(|done| (done.info.get(), done.id.get()));
        let ends: Vec<_> = ends
            .iter()
            .map(|e| (e.access.get(), e.id.get(), e.address.get()))
            .collect();
        assert_eq!(ends[0], (job_result::FAULTED, bad, VA + PAGE));
        assert_eq!(ends[1], (job_result::CANCELLED, behind, 0));
        assert_eq!(ends[2].0, job_result::CANCELLED);
        assert_eq!((driver.word(FREE + PAGE - 8), driver.word(FREE)), (9, 0));
        driver.resolve(beside, resolution::OK);
        let request = driver.vm.submit(1, Some(0), &[]);
        assert_eq!(driver.vm.kind(&request), response::ERR_UNSPEC);
        assert_eq!(others.space_id.get(), 3);
        let map = mirror_map(3, VA, &[(FREE + PAGE, 4096, 3)]);
        assert_eq!(driver.vm.status(&map), 0);
        driver
            .vm
            .done(&fault_resolve(3, others.id.get(), resolution::OK));
        let done = driver.ring_done();
        assert_eq!((done.space_id.get(), done.id.get()), (3, 500));
        assert_eq!(done.access.get(), job_result::OK);
        assert_eq!(driver.word(FREE + PAGE), 4);
        driver.vm.end(false);
    }
}

/// No more than so many faults at a time; the others have their turn.
#[test]
fn limit() {
    let mut driver = Driver::with(Options {
        mirror: Some(Limits {
            max_faults: 2,
            ..Limits::default()
        }),
        ..options()
    });
    for ring in 0..6 {
        driver.submit(ring, &[fill(0, VA + u64::from(ring) * PAGE, 8, 1)]);
    }
    let mut pending: VecDeque<Event> = (0..2).map(|_| driver.fault()).collect();
    for left in (0..6).rev() {
        driver.quiet();
        assert_eq!(driver.stat().pending_faults.get(), pending.len() as u64);
        let fault = pending.pop_front().unwrap();
        let at = fault.address.get() - VA;
        driver.map(VA + at, FREE + at, 1, 3);
        driver.resolve(fault.id.get(), resolution::OK);
        assert_eq!(driver.result().0, job_result::OK);
        if left >= 2 {
            pending.push_back(driver.fault());
        }
    }
    assert_eq!(driver.stat().faults.get(), 6);
    driver.vm.end(false);
}

/// A job that stalls delays neither queue, nor jobs and commands of others, nor what takes the
/// resource that it names.
#[test]
fn no_one_waits_for_a_stall() {
    let mut driver = Driver::new();
    for id in [1, 2] {
        driver.vm.blob(1, id, &[(FREE + (1 << 20), 4096)]);
    }
    driver.vm.blob(2, 3, &[(FREE + (2 << 20), 4096)]);
    // More than a context has workers.
    for ring in 0..20 {
        let copy = operation(op::COPY, (1, 0), [(0, VA), (0, 0)], 8, [0; 2]);
        let second = operation(op::COPY, (2, 0), [(0, VA), (0, 0)], 8, [0; 2]);
        driver.submit(ring, &[copy, second]);
    }
    let fault = driver.expect_fault(VA, access::READ);
    driver.quiet();
    // Others go on.
    assert_eq!(driver.vm.run(2, &[fill(3, 0, 8, 8)]), response::OK_NODATA);
    driver.vm.context(4);
    assert_eq!(driver.vm.status(&context_space(4, 4, TASK_SIZE)), 0);
    assert_eq!(driver.vm.status(&mirror_map(4, VA, &[(FREE, 4096, 3)])), 0);
    let request = submit(4, Some(0), Some(600), &[fill(0, VA + 8, 8, 5)]);
    driver.vm.ok(&request);
    let done = driver.ring_done();
    assert_eq!(
        (done.space_id.get(), done.access.get()),
        (4, job_result::OK)
    );
    // So do commands, of the same ring, too.
    let mut fenced = resource_command(command::RESOURCE_ASSIGN_UUID, 1, 1);
    fenced[4..8].copy_from_slice(&3u32.to_le_bytes());
    assert_eq!(driver.vm.kind(&fenced), response::OK_RESOURCE_UUID);
    driver.vm.done(&invalidate(1, 0, u64::MAX));
    driver
        .vm
        .ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    driver
        .vm
        .ok(&resource_command(command::CTX_DETACH_RESOURCE, 1, 2));
    // What it finds then is that the first is gone.
    driver.map(VA, FREE, 1, 1);
    driver.set(FREE, 1234);
    driver.resolve(fault, resolution::OK);
    let done = driver.ring_done();
    assert_eq!(done.access.get(), job_result::FAILED);
    assert_eq!(driver.word(FREE + (1 << 20)), 0);
    driver.vm.ok(&plain(command::CTX_DESTROY, 1));
    driver.vm.end(false);
}

/// However many jobs of however many contexts stall, a context has one that runs.
#[test]
fn each_context_has_a_job() {
    // More in all than the device runs, and more of each context.
    const CONTEXTS: u32 = 100;
    const RINGS: u8 = 9;
    const NEWCOMER: u32 = 1000;
    let mut driver = Driver::new();
    let open = |driver: &mut Driver, ctx| {
        driver.vm.context(ctx);
        assert_eq!(driver.vm.status(&context_space(ctx, ctx, TASK_SIZE)), 0);
    };
    let contexts = 10..10 + CONTEXTS;
    for ctx in contexts.clone() {
        open(&mut driver, ctx);
        for ring in 0..RINGS {
            let request = driver.vm.submit(ctx, Some(ring), &[fill(0, VA, 8, 1)]);
            driver.vm.ok(&request);
        }
    }
    let faults: Vec<Event> = contexts.clone().map(|_| driver.fault()).collect();
    let mut spaces: Vec<u32> = faults.iter().map(|fault| fault.space_id.get()).collect();
    spaces.sort_unstable();
    assert!(spaces.into_iter().eq(contexts), "one fault of each space");
    // One of each context, and 512 more.
    driver.wait(|driver| {
        let stat = driver.stat();
        let stalled = stat.faults.get() + stat.joined_faults.get();
        (stalled == u64::from(CONTEXTS) + 512).then_some(())
    });
    driver.quiet();
    open(&mut driver, NEWCOMER);
    let map = |space, offset| mirror_map(space, VA, &[(FREE + offset, 4096, 3)]);
    assert_eq!(driver.vm.status(&map(NEWCOMER, PAGE)), 0);
    for ring in 0..2 {
        let request = driver.vm.submit(NEWCOMER, Some(ring), &[fill(0, VA, 8, 5)]);
        driver.vm.ok(&request);
    }
    // What was the second is the first when that is over.
    for _ in 0..2 {
        let done = driver.ring_done();
        let seen = (done.space_id.get(), done.access.get());
        assert_eq!(seen, (NEWCOMER, job_result::OK));
    }
    assert_eq!(driver.word(FREE + PAGE), 5);
    // All have their turns when they can go on.
    for fault in faults {
        let space = fault.space_id.get();
        assert_eq!(driver.vm.status(&map(space, 0)), 0);
        let resolve = fault_resolve(space, fault.id.get(), resolution::OK);
        driver.vm.done(&resolve);
    }
    for _ in 0..CONTEXTS * u32::from(RINGS) {
        assert_eq!(driver.ring_done().access.get(), job_result::OK);
    }
    driver.vm.end(false);
}

/// A resource that is detached and attached again is not the one that the job was given.
#[test]
fn detached_and_attached_again() {
    let mut driver = Driver::new();
    driver.vm.blob(1, 1, &[(FREE + (1 << 20), 4096)]);
    let copy = operation(op::COPY, (1, 0), [(0, VA), (0, 0)], 8, [0; 2]);
    driver.submit(0, &[copy]);
    let fault = driver.expect_fault(VA, access::READ);
    driver
        .vm
        .ok(&resource_command(command::CTX_DETACH_RESOURCE, 1, 1));
    driver
        .vm
        .ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 1));
    let again = driver.submit(1, &[fill(1, 8, 8, 3)]);
    assert_eq!(driver.result(), (job_result::OK, again, 0));
    driver.set(FREE, 99);
    driver.map(VA, FREE, 1, 1);
    driver.resolve(fault, resolution::OK);
    assert_eq!(driver.result().0, job_result::FAILED);
    assert_eq!(
        (
            driver.word(FREE + (1 << 20)),
            driver.word(FREE + (1 << 20) + 8)
        ),
        (0, 3)
    );
    driver.vm.end(false);
}

/// What is taken under a job that runs is gone for it, and comes back with what is there then.
#[test]
fn invalidate_under_a_job() {
    let mut driver = Driver::new();
    driver.map(VA, FREE, 1, 3);
    let count = addressed(op::ATOMIC_ADD_U64, VA, [0; 2], 80_000_000, [1, 0]);
    driver.submit(0, &[count]);
    let mut place = FREE;
    for round in 1..20 {
        let before = driver.word(place);
        driver
            .wait(|driver| (driver.word(place) != before || !driver.done.is_empty()).then_some(()));
        driver.vm.done(&invalidate(1, VA, VA + PAGE - 1));
        let counted = driver.word(place);
        let fault = driver.expect_fault(VA, access::WRITE);
        assert_eq!(driver.word(place), counted);
        place = FREE + round * PAGE;
        driver.set(place, counted);
        driver.map(VA, place, 1, 3);
        driver.resolve(fault, resolution::OK);
    }
    assert_eq!(driver.result().0, job_result::OK);
    assert_eq!(driver.word(place), 10_000_000);
    driver.vm.end(false);
}
