// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What makes a context one in fault mode, and what is different there.

use super::*;
use virtgpu_device::mirror::Limits;
use virtgpu_protocol::mirror::MirrorConfig;

#[test]
fn configuration() {
    let mut driver = Driver::new();
    let config = driver.vm.config(32, size_of::<MirrorConfig>());
    let config = MirrorConfig::read_from_bytes(&config).unwrap();
    assert_eq!((config.max_faults.get(), config.padding.get()), (64, 0));
    driver.vm.end(false);
    let limits = Limits {
        max_faults: 0,
        ..Limits::default()
    };
    let mut vm = Vm::mirrored(Options {
        mirror: Some(limits),
        ..options()
    });
    let config = vm.config(56, 4);
    assert_eq!(config, [0; 4]);
    vm.context(1);
    assert_eq!(vm.status(&context_space(1, 1, TASK_SIZE)), status::INVALID);
    vm.end(false);
}

/// A driver that has not accepted faults gets none.
#[test]
fn not_accepted() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    assert_eq!(vm.status(&context_space(1, 1, TASK_SIZE)), status::INVALID);
    vm.space(1, 1, PAGE);
    let exclusive = mirror_map(1, 0, &[(FREE, 4096, access::EXCLUSIVE)]);
    assert_eq!(vm.status(&exclusive), status::INVALID);
    vm.end(false);
}

#[test]
fn spaces_of_contexts() {
    let mut driver = Driver::new();
    let vm = &mut driver.vm;
    let word = |mut command: Vec<u8>, at: usize, value: u32| {
        command[at..at + 4].copy_from_slice(&value.to_le_bytes());
        command
    };
    vm.context(3);
    let good = context_space(3, 3, 1 << 47);
    let bad = [
        // No such context, one with a space, one that has had a job; the id of a space.
        context_space(3, 9, TASK_SIZE),
        context_space(3, 1, TASK_SIZE),
        context_space(1, 3, TASK_SIZE),
        // Too large, empty, not whole pages.
        context_space(3, 3, (1 << 47) + PAGE),
        context_space(3, 3, 0),
        context_space(3, 3, 100),
        // A context without faults, a resource with faults, unknown flags, no kind, no access.
        word(good.clone(), 36, 0),
        word(good.clone(), 16, 1),
        word(good.clone(), 36, 3),
        word(good.clone(), 16, 3),
        word(good.clone(), 32, 0),
    ];
    for command in bad {
        assert_eq!(vm.status(&command), status::INVALID, "{command:?}");
    }
    assert_eq!(vm.run(2, &[]), response::OK_NODATA);
    assert_eq!(vm.status(&context_space(3, 2, 1 << 47)), status::INVALID);
    assert_eq!(vm.status(&good), status::OK);
    // What can be read only is not exclusive either.
    vm.context(4);
    let readable = word(context_space(4, 4, TASK_SIZE), 32, 1);
    assert_eq!(vm.status(&readable), status::OK);
    for (access, want) in [(1, status::OK), (3, status::INVALID), (7, status::INVALID)] {
        let map = mirror_map(4, VA, &[(FREE, 4096, access)]);
        assert_eq!(vm.status(&map), want);
    }
    for (access, want) in [(2, status::INVALID), (4, status::INVALID), (7, status::OK)] {
        let map = mirror_map(3, VA, &[(FREE, 4096, access)]);
        assert_eq!(vm.status(&map), want);
    }
    // The space of a resource is not exclusive.
    vm.space(2, 10, PAGE);
    let map = mirror_map(10, 0, &[(FREE, 4096, access::EXCLUSIVE)]);
    assert_eq!(vm.status(&map), status::INVALID);
    driver.vm.end(false);
}

/// Another capability set, even with the same operations, has no addresses.
#[test]
fn other_capability_sets() {
    let mut driver = Driver::with(Options {
        capsets: vec![
            virtgpu_device::options::capset::Capset::compute(),
            "8:24".parse().unwrap(),
        ],
        ..options()
    });
    driver.vm.ok(&ctx_create(3, 8));
    assert_eq!(
        driver.vm.status(&context_space(3, 3, TASK_SIZE)),
        status::INVALID
    );
    driver.vm.end(false);
}

#[test]
fn jobs_need_a_ring_and_a_fence() {
    let mut driver = Driver::new();
    let vm = &mut driver.vm;
    let refused = [
        submit(1, None, Some(1), &[]),
        submit(1, Some(0), None, &[]),
        submit(1, None, None, &[]),
        submit(1, Some(64), Some(1), &[]),
        submit(1, Some(0), Some(1), &[delay(u64::MAX)]),
    ];
    for request in refused {
        assert_eq!(vm.kind(&request), response::ERR_INVALID_PARAMETER);
    }
    let request = submit(1, Some(5), Some(77), &[]);
    let response = vm.ask(&request);
    assert_eq!(kind(&response), response::OK_NODATA);
    assert_eq!(header(&response).fence_id.get(), 77);
    let done = driver.ring_done();
    let seen = (done.id.get(), done.info.get(), done.access.get());
    assert_eq!(seen, (77, 5, job_result::OK));
    // In a context without addresses resource 0 is none.
    let job = fill(0, VA, 8, 1);
    assert_eq!(driver.vm.run(2, &[job]), response::ERR_UNSPEC);
    driver.vm.end(false);
}

/// Jobs of a ring one after the other, those of different rings at the same time; RING_DONE in the
/// order of the ring, and when there is a buffer.
#[test]
fn rings() {
    let mut driver = Driver::new();
    driver.map(VA, FREE, 1, 3);
    let waits = driver.submit(
        0,
        &[addressed(op::SPIN_UNTIL, 0, [VA, 0], 0, [1, 60_000_000])],
    );
    let behind = driver.submit(0, &[fill(0, VA + 8, 8, 2)]);
    let beside = driver.submit(1, &[fill(0, VA + 16, 8, 3)]);
    assert_eq!(driver.result(), (job_result::OK, beside, 0));
    driver.quiet();
    assert_eq!((driver.word(FREE + 8), driver.word(FREE + 16)), (0, 3));
    driver.set(FREE, 1);
    assert_eq!(driver.result(), (job_result::OK, waits, 0));
    assert_eq!(driver.result(), (job_result::OK, behind, 0));
    assert_eq!(driver.word(FREE + 8), 2);
    // A hundred events for eight buffers that the driver does not look at for a while.
    let fences: Vec<u64> = (0..100).map(|_| driver.submit(3, &[])).collect();
    for fence in fences {
        assert_eq!(driver.result(), (job_result::OK, fence, 0));
    }
    driver.vm.end(false);
}

/// A time-out fails the job, and nothing else.
#[test]
fn failures() {
    let mut driver = Driver::new();
    driver.map(VA, FREE, 1, 3);
    let late = driver.submit(0, &[addressed(op::SPIN_UNTIL, 0, [VA, 0], 0, [1, 1])]);
    assert_eq!(driver.result(), (job_result::FAILED, late, 0));
    // A resource that is not attached: the context is lost.
    let job = [fill(0, VA, 8, 5), fill(COUNTS, 0, 8, 1), fill(0, VA, 8, 6)];
    let wrong = driver.submit(0, &job);
    assert_eq!(driver.result(), (job_result::FAILED, wrong, 0));
    assert_eq!(driver.word(FREE), 5);
    let request = driver.vm.submit(1, Some(0), &[]);
    assert_eq!(driver.vm.kind(&request), response::ERR_UNSPEC);
    driver.vm.end(false);
}
