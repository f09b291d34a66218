// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs: how many there may be, in which order they are done, and what they may touch.

use super::common::*;
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};

/// Long jobs of some contexts leave workers to the others.
#[test]
fn many_long_jobs() {
    let mut vm = Vm::new(options());
    for ctx in 1..=5 {
        vm.context(ctx);
        for ring in 0..64 {
            vm.ok(&submit(ctx, Some(ring), None, &[delay(120_000_000)]));
        }
    }
    vm.context(6);
    let request = vm.submit(6, Some(0), &[delay(0)]);
    assert_eq!(vm.kind(&request), response::OK_NODATA);
    for ctx in 1..=5 {
        vm.ok(&plain(command::CTX_DESTROY, ctx));
    }
    vm.end(false);
}

/// However much a context submits, others can.
#[test]
fn operations_are_shared() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.context(2);
    vm.ok(&submit(1, Some(0), None, &[delay(120_000_000)]));
    let request = submit(1, Some(0), None, &[delay(0); 4096]);
    let mut count = 0;
    while vm.kind(&request) == response::OK_NODATA {
        count += 1;
        assert!(count < 2048, "no limit");
    }
    assert!(count >= 128, "{count}");
    let other = submit(2, Some(0), None, &[delay(0); 4096]);
    assert_eq!(vm.kind(&other), response::OK_NODATA);
    vm.ok(&plain(command::CTX_DESTROY, 1));
    // What is over does not count any more.
    vm.context(1);
    for _ in 0..count {
        vm.ok(&request);
    }
    vm.end(false);
}

#[test]
fn fences_are_in_order_on_a_ring() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let mut heads = Vec::new();
    for step in 1..8 {
        // Each waits for what the one before it wrote.
        let ops = [
            spin(1, 0, step - 1, 10_000_000),
            delay(1000),
            fill(1, 0, 8, step),
        ];
        let request = vm.submit(1, Some(3), &ops);
        heads.push(vm.post(&request));
    }
    for (index, head) in heads.into_iter().enumerate() {
        let response = vm.wait(head);
        let header = header(&response);
        assert_eq!(header.kind.get(), response::OK_NODATA);
        assert_eq!(
            header.flags.get(),
            wire::FLAG_FENCE | wire::FLAG_INFO_RING_IDX
        );
        assert_eq!(
            (header.fence_id.get(), header.ring_idx),
            (index as u64 + 1, 3)
        );
        assert_eq!(header.ctx_id.get(), 1);
    }
    vm.end(false);
}

#[test]
fn rings_run_at_the_same_time() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    // Ring n waits for ring n + 1, posted later; and none blocks other commands.
    let heads: Vec<u16> = (0..8u8)
        .map(|ring| {
            let at = u64::from(ring) * 8;
            let ops = [spin(1, at + 8, 1, 10_000_000), fill(1, at, 8, 1)];
            let request = vm.submit(1, Some(ring), &ops);
            vm.post(&request)
        })
        .collect();
    assert!(vm.is_quiet(heads[0]));
    vm.ok(&create_blob(0, 2, blob_mem::GUEST, PAGE, &[(FREE, 4096)]));
    let start = submit(1, Some(8), None, &[fill(1, 64, 8, 1)]);
    vm.ok(&start);
    for head in heads {
        assert_eq!(kind(&vm.wait(head)), response::OK_NODATA);
    }
    assert_eq!(
        vm.kind(&submit(1, Some(64), None, &[])),
        response::ERR_INVALID_PARAMETER
    );
    assert_eq!(
        vm.kind(&submit(0, Some(0), None, &[])),
        response::ERR_INVALID_CONTEXT_ID
    );
    vm.end(false);
}

#[test]
fn other_fenced_commands_wait_for_the_jobs_before_them() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let request = vm.submit(1, None, &[delay(100_000)]);
    let job = vm.post(&request);
    let mut request = plain(command::GET_DISPLAY_INFO, 0);
    request[4] = wire::FLAG_FENCE as u8;
    request[8] = 77;
    let other = vm.post(&request);
    assert!(vm.is_quiet(other));
    vm.wait(job);
    let response = vm.wait(other);
    assert_eq!(header(&response).fence_id.get(), 77);
    vm.end(false);
}

#[test]
fn a_stray_access_loses_the_context() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.context(2);
    vm.blob(1, 1, &[(FREE, 4096)]);
    assert_eq!(vm.run(1, &[fill(1, 4096, 8, 1)]), response::ERR_UNSPEC);
    assert_eq!(vm.run(1, &[]), response::ERR_UNSPEC);
    // Not attached to context 2.
    assert_eq!(vm.run(2, &[fill(1, 0, 8, 1)]), response::ERR_UNSPEC);
    // A malformed job is only refused.
    vm.context(3);
    assert_eq!(
        vm.run(3, &[fill(1, 0, 7, 1)]),
        response::ERR_INVALID_PARAMETER
    );
    assert_eq!(vm.run(3, &[]), response::OK_NODATA);
    assert_eq!(vm.memory.read_obj::<u64>(GuestAddress(FREE)).unwrap(), 0);
    vm.end(false);
}
