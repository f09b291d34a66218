// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs, and the hammer, while pages come and go.

use std::time::{Duration, Instant};

use super::common::*;
use super::word;
use virtgpu_device::options::Options;
use virtgpu_protocol::compute::{op, Op};
use virtgpu_protocol::mirror::status;
use virtgpu_protocol::virtio_gpu::{blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_hole_fails_the_job_and_no_other() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.context(2);
    vm.space(1, 1, 4 * PAGE);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 2, 1));
    vm.blob(2, 2, &[(FREE + (1 << 20), 4096)]);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
    assert_eq!(vm.map(1, 2 * PAGE, &[(FREE + PAGE, 4096)]), status::OK);
    let request = vm.submit(2, Some(0), &[spin(1, 0, 5, 10_000_000), fill(2, 0, 8, 3)]);
    let other = vm.post(&request);
    let job = [
        fill(1, 2 * PAGE, 8, 1),
        fill(1, PAGE - 8, 16, 2),
        fill(1, 0, 8, 3),
    ];
    assert_eq!(vm.run(1, &job), response::ERR_UNSPEC);
    // Up to the hole.
    assert_eq!(word(&vm, FREE + PAGE), 1);
    assert_eq!(word(&vm, FREE), 0);
    assert_eq!(vm.run(1, &[]), response::ERR_UNSPEC);
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    assert_eq!(kind(&vm.wait(other)), response::OK_NODATA);
    assert_eq!(word(&vm, FREE + (1 << 20)), 3);
    vm.end(false);
}

/// An acknowledgement waits for nothing, and a job fails at its next access.
#[test]
fn invalidate_meets_a_job() {
    let mut vm = Vm::mirrored(options());
    vm.context(9);
    vm.blob(9, 9, &[(FREE + (1 << 20), 4096)]);
    let jobs: Vec<Op> = vec![
        spin(1, 0, 5, 10_000_000),
        operation(
            op::POINTER_CHASE,
            (9, 0),
            [(1, 8), (0, 0)],
            0,
            [u64::MAX, 0],
        ),
        operation(
            op::ATOMIC_ADD_U64,
            (1, 16),
            [(0, 0); 2],
            u64::MAX - 7,
            [1, 0],
        ),
    ];
    for (ctx, job) in (1..).zip(jobs) {
        vm.context(ctx);
        vm.space(ctx, 1, PAGE);
        vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, ctx, 9));
        vm.memory
            .write_slice(&[0; 4096], GuestAddress(FREE))
            .unwrap();
        vm.memory.write_obj(8u64, GuestAddress(FREE + 8)).unwrap();
        assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
        let request = vm.submit(ctx, Some(0), &[fill(1, 24, 8, 1), job]);
        let start = Instant::now();
        let head = vm.post(&request);
        while word(&vm, FREE + 24) == 0 {
            assert!(start.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        // The control queue waits meanwhile.
        let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
        vm.done(&invalidate(1, 0, PAGE - 1));
        let after: Vec<u64> = (0..4).map(|i| word(&vm, FREE + 8 * i)).collect();
        assert_eq!(kind(&vm.wait(head)), response::ERR_UNSPEC);
        let now: Vec<u64> = (0..4).map(|i| word(&vm, FREE + 8 * i)).collect();
        assert_eq!(after, now);
        assert_eq!(kind(&vm.wait(unref)), response::OK_NODATA);
        assert!(start.elapsed() < Duration::from_secs(9));
    }
    vm.end(false);
}

/// Pages of a marked resource keep their contents until they are taken.
#[test]
fn hammer() {
    let mut vm = Vm::mirrored(Options {
        hammer: true,
        ..options()
    });
    vm.context(1);
    for (id, mark) in [(1, 1u64 << 63), (2, 0)] {
        let mut create = create_blob(1, id, blob_mem::HOST3D_GUEST, 4 * PAGE, &[]);
        create[40..48].copy_from_slice(&mark.to_le_bytes());
        vm.ok(&create);
        assert_eq!(vm.status(&space_create(id, id, 4 * PAGE, 3)), status::OK);
    }
    let rewritten = |vm: &Vm, at: u64, value: u64, end: Duration| {
        vm.memory.write_obj(!value, GuestAddress(at)).unwrap();
        let start = Instant::now();
        while start.elapsed() < end {
            if word(vm, at) == value {
                return true;
            }
            std::thread::yield_now();
        }
        false
    };
    let short = Duration::from_millis(30);
    for round in 1..4 {
        for page in 0..4 {
            let at = GuestAddress(FREE + page * PAGE);
            vm.memory.write_obj(round * 10 + page, at).unwrap();
        }
        let entries = [(FREE, 8192, 3), (FREE + 2 * PAGE, 4096, 1)];
        assert_eq!(vm.status(&mirror_map(1, 0, &entries)), status::OK);
        assert_eq!(vm.map(2, 0, &[(FREE + 3 * PAGE, 4096)]), status::OK);
        for page in 0..2 {
            assert!(rewritten(
                &vm,
                FREE + page * PAGE,
                round * 10 + page,
                PATIENCE
            ));
        }
        // Read-only, and not marked.
        assert!(!rewritten(&vm, FREE + 2 * PAGE, round * 10 + 2, short));
        assert!(!rewritten(&vm, FREE + 3 * PAGE, round * 10 + 3, short));
        vm.done(&invalidate(1, 0, PAGE - 1));
        assert!(!rewritten(&vm, FREE, round * 10, short));
        assert!(rewritten(&vm, FREE + PAGE, round * 10 + 1, PATIENCE));
        vm.done(&invalidate(1, 0, u64::MAX));
        assert!(!rewritten(&vm, FREE + PAGE, round * 10 + 1, short));
        vm.done(&invalidate(2, 0, u64::MAX));
    }
    vm.end(false);
}
