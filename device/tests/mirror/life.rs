// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What ends spaces.

use std::time::Instant;

use super::common::*;
use super::{holes, with_limits, word};
use virtgpu_device::mirror::Limits;
use virtgpu_protocol::compute::op;
use virtgpu_protocol::mirror::{self, status};
use virtgpu_protocol::virtio_gpu::{blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

#[test]
fn spaces_end_with_their_resources() {
    let mut vm = Vm::mirrored(with_limits(Limits {
        max_spaces: 2,
        ..Limits::default()
    }));
    vm.context(1);
    vm.blob(1, 9, &[(FREE + (1 << 20), 4096)]);
    let spaces = |vm: &mut Vm| vm.stat(1, 9, FREE + (1 << 20)).spaces.get();
    vm.space(1, 1, PAGE);
    vm.space(1, 2, PAGE);
    vm.ok(&create_blob(1, 3, blob_mem::GUEST, PAGE, &[]));
    assert_eq!(vm.status(&space_create(3, 3, PAGE, 3)), status::LIMIT);
    for space in [1, 2] {
        assert_eq!(vm.map(space, 0, &[(FREE, 4096)]), status::OK);
    }
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    assert_eq!(spaces(&mut vm), 1);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::NO_SUCH_SPACE);
    vm.done(&invalidate(1, 0, u64::MAX));
    vm.done(&space_destroy(1));
    vm.ok(&resource_command(command::CTX_DETACH_RESOURCE, 1, 2));
    assert_eq!(spaces(&mut vm), 0);
    // The resource is still there, and can have another space.
    assert_eq!(vm.status(&space_create(1, 2, PAGE, 3)), status::OK);
    vm.done(&space_destroy(1));
    assert_eq!(vm.status(&space_create(1, 2, PAGE, 3)), status::OK);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 2));
    vm.context(2);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 2, 2));
    assert_eq!(vm.run(2, &[fill(2, 0, 8, 1)]), response::ERR_UNSPEC);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
    assert_eq!(vm.run(1, &[fill(2, 0, 8, 1)]), response::OK_NODATA);
    vm.end(false);
}

/// An event that waits for a buffer is forgotten when no one should hear of the space any more.
#[test]
fn no_event_names_a_space_that_has_ended() {
    let mut vm = Vm::mirrored(with_limits(Limits {
        mappings: 8,
        ..Limits::default()
    }));
    vm.context(1);
    let ends = [
        space_destroy(1),
        resource_command(command::RESOURCE_UNREF, 0, 2),
        Vec::new(),
    ];
    for (id, end) in (1..).zip(&ends) {
        vm.space(1, id, 16 * PAGE);
        assert_eq!(vm.map(id, 0, &[(FREE, 16 * 4096)]), status::OK);
        for hole in holes(id, 1).take(3) {
            vm.done(&hole);
        }
        let outcome = vm.map(id, 0, &[(FREE, 4096)]);
        assert_eq!(outcome, status::NO_SUCH_SPACE);
        match id {
            1 => vm.done(end),
            2 => vm.ok(end),
            _ => {}
        }
    }
    let head = vm.post_event_buffer(32);
    let (_, bytes) = vm.wait_event(head);
    let event = mirror::Event::ref_from_bytes(&bytes[..32]).unwrap();
    assert_eq!(event.space_id.get(), 3);
    vm.end(false);
}

#[test]
fn a_reset_revokes_everything() {
    let mut vm = Vm::mirrored(options());
    let forever = operation(
        op::ATOMIC_ADD_U64,
        (1, 0),
        [(0, 0); 2],
        u64::MAX - 7,
        [1, 0],
    );
    for round in 0..6 {
        vm.context(1);
        vm.space(1, 1, 1 << 30);
        assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
        let request = vm.submit(1, Some(0), &[forever]);
        let head = vm.post(&request);
        let start = Instant::now();
        while word(&vm, FREE) == 0 {
            assert!(start.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        if round % 2 == 0 {
            vm.stop();
        } else {
            // The mirror queue alone; then the device goes on without jobs and spaces.
            vm.stop_mirror();
            assert_eq!(kind(&vm.wait(head)), response::ERR_UNSPEC);
        }
        vm.memory.write_obj(0u64, GuestAddress(FREE)).unwrap();
        for _ in 0..100 {
            assert_eq!(word(&vm, FREE), 0);
            std::thread::yield_now();
        }
        if round % 2 != 0 {
            vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
            vm.stop_control();
        }
        vm.start();
        // A space is not there any more.
        assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::NO_SUCH_SPACE);
        assert_eq!(vm.status(&space_create(1, 1, 1 << 30, 3)), status::INVALID);
    }
    vm.end(false);
}

#[test]
fn hanging_up_revokes_everything() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, PAGE);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
    vm.finish(false);
}
