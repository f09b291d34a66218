// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that breaks the contract unnoticed: the check of the event log finds it.

use std::time::Instant;

use super::common::*;
use virtgpu_device::misbehave::mutant;
use virtgpu_device::options::Options;
use virtgpu_protocol::compute::op;
use virtgpu_protocol::mirror::status;
use virtgpu_protocol::virtio_gpu::{command, response};
use vm_memory::{Bytes, GuestAddress};

/// What a driver could do with the device while it has this mutation; the violations in the log.
fn mutant_violations(name: &str) -> Vec<(u64, String)> {
    let mut vm = Vm::mirrored(Options {
        mutants: vec![name.parse().unwrap()],
        ..options()
    });
    vm.context(1);
    vm.space(1, 1, 4 * PAGE);
    vm.blob(1, 2, &[(FREE + (1 << 20), 4096)]);
    let event = vm.post_event_buffer(32);
    let value = |vm: &Vm, at| vm.memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    let fits = |vm: &mut Vm, ctx, offset| {
        vm.context(ctx);
        vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, ctx, 1));
        vm.run(ctx, &[fill(1, offset, 8, 3)]) == response::OK_NODATA
    };
    assert_eq!(vm.map(1, 0, &[(FREE, 3 * 4096)]), status::OK);
    let read_only = [(FREE + 3 * PAGE, 4096, 1)];
    assert_eq!(vm.status(&mirror_map(1, 3 * PAGE, &read_only)), status::OK);
    match name {
        "ignore-read-only" => assert!(fits(&mut vm, 2, 3 * PAGE)),
        "drop-map-tail" => assert!(!fits(&mut vm, 2, 2 * PAGE)),
        "respond-before-last-write" => {
            let job = [fill(1, 0, 8, 3), fill(1, 8, 8, 4)];
            assert_eq!(vm.run(1, &job), response::OK_NODATA);
            let start = Instant::now();
            while value(&vm, FREE + 8) != 4 {
                assert!(start.elapsed() < PATIENCE);
            }
        }
        "no-revoke-on-unref" => {
            vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
            assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
            return vm.end_with_violations();
        }
        _ => {}
    }
    vm.memory.write_obj(1u64, GuestAddress(FREE)).unwrap();
    vm.done(&invalidate(1, 0, 3 * PAGE - 1));
    match name {
        "write-after-ack" => {
            vm.memory.write_obj(2u64, GuestAddress(FREE)).unwrap();
            let start = Instant::now();
            while value(&vm, FREE) != 1 {
                assert!(start.elapsed() < PATIENCE);
            }
        }
        "skip-page" => assert!(fits(&mut vm, 3, 2 * PAGE) && !fits(&mut vm, 4, PAGE)),
        _ => {}
    }
    vm.done(&space_destroy(1));
    match name {
        "map-after-destroy" => {
            assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
            assert!(fits(&mut vm, 5, 0));
        }
        "event-for-dead-space" => {
            let (used, _) = vm.wait_event(event);
            assert_eq!(used, 32);
        }
        _ => {}
    }
    let add = operation(op::ATOMIC_ADD_U64, (2, 0), [(0, 0); 2], 8, [1, 0]);
    assert_eq!(vm.run(1, &[add]), response::OK_NODATA);
    vm.end_with_violations()
}

#[test]
fn mirror_mutants_are_found() {
    // What is about faults is in the tests of contexts in fault mode.
    for name in mutant::names().take_while(|name| *name != "stall-delays-ack") {
        let violations = mutant_violations(name);
        match name {
            // It goes past all that the log is about; guests notice.
            "write-after-ack" => assert_eq!(violations, [], "{name}"),
            _ => assert_ne!(violations, [], "{name}"),
        }
    }
}
