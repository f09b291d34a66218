// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The mappings of the host are limited: who gets none, and who loses a space.

use super::common::*;
use super::{can_read, can_write, holes, with_limits};
use virtgpu_device::mirror::Limits;
use virtgpu_protocol::mirror::{self, status};
use virtgpu_protocol::virtio_gpu::response;
use zerocopy::FromBytes;

/// Where mappings run out, what was there stays.
#[test]
fn no_memory() {
    let mut vm = Vm::mirrored(with_limits(Limits {
        mappings: 24,
        ..Limits::default()
    }));
    vm.context(1);
    vm.space(1, 1, 64 * PAGE);
    vm.blob(1, 2, &[(FREE + (1 << 20), 4096)]);
    let scattered = |count: u64| -> Vec<(u64, u32)> {
        (0..count).map(|i| (FREE + 2 * i * PAGE, 4096)).collect()
    };
    assert_eq!(vm.map(1, 0, &scattered(11)), status::NO_MEMORY);
    assert!(!can_read(&mut vm, 0, 1));
    assert_eq!(vm.map(1, 0, &scattered(8)), status::OK);
    assert_eq!(vm.map(1, 16 * PAGE, &scattered(3)), status::NO_MEMORY);
    assert!(!can_read(&mut vm, 16 * PAGE, 1));
    assert_eq!(vm.map(1, 4 * PAGE, &scattered(7)), status::NO_MEMORY);
    assert!(can_write(&mut vm, 0, 8 * PAGE));
    assert!(!can_read(&mut vm, 8 * PAGE, 1));
    // Neighbours are one.
    let neighbours: Vec<_> = (0..20).map(|i| (FREE + i * PAGE, 4096)).collect();
    assert_eq!(vm.map(1, 32 * PAGE, &neighbours), status::OK);
    vm.done(&invalidate(1, 0, 8 * PAGE - 1));
    assert_eq!(vm.map(1, 0, &scattered(9)), status::NO_MEMORY);
    assert_eq!(vm.map(1, 0, &scattered(8)), status::OK);
    let stat = vm.stat(1, 2, FREE + (1 << 20));
    assert_eq!(stat.mapped_pages.get(), 28);
    vm.end(false);
}

/// INVALIDATE cannot be refused. Where it would take too many mappings the space is lost, and what
/// others have and may have is not touched.
#[test]
fn a_space_that_falls_into_pieces_is_lost() {
    let mut vm = Vm::mirrored(with_limits(Limits {
        mappings: 90,
        ..Limits::default()
    }));
    for id in 1..=2 {
        vm.context(id);
        vm.space(id, id, 256 * PAGE);
    }
    vm.blob(2, 9, &[(FREE + (1 << 20), 4096)]);
    assert_eq!(vm.map(1, 0, &[(FREE, 256 * 4096)]), status::OK);
    let scattered: Vec<_> = (0..6)
        .map(|i| (FREE + (2 + 2 * i) * (1 << 20), 4096))
        .collect();
    assert_eq!(vm.map(2, 0, &scattered), status::OK);
    // A window, a run and a gap, and two more for each hole, up to 8/9 of 82.
    let mut holes = holes(1, 1);
    for hole in holes.by_ref().take(34) {
        vm.done(&hole);
    }
    assert_eq!(vm.run(1, &[fill(1, 2 * PAGE, 8, 1)]), response::OK_NODATA);
    let other = [fill(2, 0, 6 * PAGE, 2)];
    assert_eq!(vm.run(2, &other), response::OK_NODATA);
    vm.done(&holes.next().unwrap());
    // It is acknowledged like any other, and then nothing is there any more.
    assert_eq!(vm.run(1, &[fill(1, 2 * PAGE, 8, 1)]), response::ERR_UNSPEC);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::NO_SUCH_SPACE);
    vm.done(&holes.next().unwrap());
    let head = vm.post_event_buffer(32);
    let (used, bytes) = vm.wait_event(head);
    let event = mirror::Event::ref_from_bytes(&bytes[..32]).unwrap();
    let what = (event.kind.get(), event.space_id.get());
    assert_eq!((used, what), (32, (mirror::event::SPACE_LOST, 1)));
    // The other client has noticed nothing, and there is room again.
    assert_eq!(vm.run(2, &other), response::OK_NODATA);
    let stat = vm.stat(2, 9, FREE + (1 << 20));
    assert_eq!((stat.spaces.get(), stat.mapped_pages.get()), (1, 6));
    vm.done(&space_destroy(1));
    assert_eq!(vm.status(&space_create(3, 1, 256 * PAGE, 3)), status::OK);
    assert_eq!(vm.map(3, 0, &[(FREE, 8192)]), status::OK);
    vm.end(false);
}

/// What a client has left of the mappings is shared by the others, however much that one wants.
#[test]
fn a_client_cannot_have_all_mappings() {
    let mut vm = Vm::mirrored(with_limits(Limits {
        mappings: 64,
        ..Limits::default()
    }));
    for id in 1..=3 {
        vm.context(id);
    }
    let scattered = |count: u64| -> Vec<(u64, u32)> {
        (0..count).map(|i| (FREE + 2 * i * PAGE, 4096)).collect()
    };
    // In as many spaces as it likes.
    let mut most = 0;
    for id in 1..20 {
        vm.space(1, id, 64 * PAGE);
        for page in 0..8 {
            let outcome = vm.map(id, page * 2 * PAGE, &scattered(1));
            most += u32::from(outcome == status::OK);
        }
    }
    assert!((10..=16).contains(&most), "{most}");
    for (ctx, id) in [(2, 101), (3, 102)] {
        vm.space(ctx, id, 64 * PAGE);
        assert_eq!(vm.map(id, 0, &scattered(4)), status::OK);
    }
    vm.end(false);
}
