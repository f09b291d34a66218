// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Contexts: what is attached to them, and what their end waits for and ends.

use std::time::{Duration, Instant};

use super::common::*;
use virtgpu_protocol::compute::{op, CAPSET_ID};
use virtgpu_protocol::virtio_gpu::{command, response};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn contexts() {
    let mut vm = Vm::new(options());
    assert_eq!(
        vm.kind(&ctx_create(0, CAPSET_ID)),
        response::ERR_INVALID_CONTEXT_ID
    );
    assert_eq!(vm.kind(&ctx_create(1, 3)), response::ERR_INVALID_PARAMETER);
    assert_eq!(
        vm.kind(&ctx_create(1, 0x100)),
        response::ERR_INVALID_PARAMETER
    );
    vm.context(1);
    assert_eq!(
        vm.kind(&ctx_create(1, CAPSET_ID)),
        response::ERR_INVALID_CONTEXT_ID
    );
    assert_eq!(vm.run(2, &[]), response::ERR_INVALID_CONTEXT_ID);
    assert_eq!(vm.run(1, &[]), response::OK_NODATA);
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert_eq!(
        vm.kind(&plain(command::CTX_DESTROY, 1)),
        response::ERR_INVALID_CONTEXT_ID
    );
    // Without a capability set there are no operations.
    vm.ok(&ctx_create(1, 0));
    assert_eq!(vm.run(1, &[]), response::OK_NODATA);
    assert_eq!(vm.run(1, &[delay(0)]), response::ERR_INVALID_PARAMETER);
    vm.end(false);
}

#[test]
fn attach_while_a_detach_waits() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000)]);
    let first = vm.post(&request);
    let detach = vm.post(&resource_command(command::CTX_DETACH_RESOURCE, 1, 1));
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 1));
    // A later job neither delays the detach nor goes without.
    let request = vm.submit(1, Some(1), &[spin(1, 8, 5, 10_000_000)]);
    let second = vm.post(&request);
    assert!(vm.is_quiet(detach));
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    assert_eq!(kind(&vm.wait(first)), response::OK_NODATA);
    assert_eq!(kind(&vm.wait(detach)), response::OK_NODATA);
    assert!(vm.is_quiet(second));
    vm.memory.write_obj(5u64, GuestAddress(FREE + 8)).unwrap();
    assert_eq!(kind(&vm.wait(second)), response::OK_NODATA);
    vm.end(false);
}

#[test]
fn detach_while_unref_waits() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000)]);
    let job = vm.post(&request);
    let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
    let detach = resource_command(command::CTX_DETACH_RESOURCE, 1, 1);
    assert_eq!(vm.kind(&detach), response::ERR_INVALID_RESOURCE_ID);
    assert!(vm.is_quiet(unref));
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    assert_eq!(kind(&vm.wait(job)), response::OK_NODATA);
    assert_eq!(kind(&vm.wait(unref)), response::OK_NODATA);
    vm.end(false);
}

#[test]
fn a_context_id_is_reused_at_once() {
    let mut vm = Vm::new(options());
    for _ in 0..20 {
        vm.context(1);
        vm.blob(1, 1, &[(FREE, 4096)]);
        let chase = operation(
            op::POINTER_CHASE,
            (1, 8),
            [(1, 0), (0, 0)],
            0,
            [u64::MAX, 0],
        );
        let request = vm.submit(1, Some(0), &[chase]);
        let job = vm.post(&request);
        let destroy = vm.post(&plain(command::CTX_DESTROY, 1));
        let create = vm.post(&ctx_create(1, CAPSET_ID));
        assert_eq!(kind(&vm.wait(job)), response::ERR_UNSPEC);
        assert_eq!(kind(&vm.wait(destroy)), response::OK_NODATA);
        assert_eq!(kind(&vm.wait(create)), response::OK_NODATA);
        vm.ok(&plain(command::CTX_DESTROY, 1));
        vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    }
    vm.end(false);
}

#[test]
fn destroying_a_context_ends_its_jobs() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.context(2);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let start = Instant::now();
    let mut heads = Vec::new();
    for ring in [None, Some(0), Some(1)] {
        for _ in 0..3 {
            let ops = [delay(10_000_000), fill(1, 0, 8, 1)];
            let request = vm.submit(1, ring, &ops);
            heads.push(vm.post(&request));
        }
    }
    let request = vm.submit(2, None, &[]);
    let other = vm.post(&request);
    vm.ok(&plain(command::CTX_DESTROY, 1));
    for head in heads {
        assert_eq!(kind(&vm.wait(head)), response::ERR_UNSPEC);
    }
    assert_eq!(kind(&vm.wait(other)), response::OK_NODATA);
    assert_eq!(vm.memory.read_obj::<u64>(GuestAddress(FREE)).unwrap(), 0);
    assert!(start.elapsed() < Duration::from_secs(5));
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    vm.end(false);
}
