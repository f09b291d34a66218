// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Transfers that take long.

use std::time::Instant;

use super::common::*;
use super::{attach_backing, create_image, longest_copy, longest_image, with_longest_copy};
use virtgpu_protocol::virtio_gpu::{command, response};
use virtgpu_protocol::virtio_gpu_image as wire_image;

/// A copy between guest memory and an image of as many rows as there can be holds no one up.
#[test]
fn long_transfers() {
    let mut vm = Vm::new(options());
    let deep = create_image(1, wire_image::target::TEXTURE_3D, [1, 1 << 14, 1 << 14], 1);
    assert_eq!(vm.kind(&deep), response::ERR_INVALID_PARAMETER);
    vm.ok(&longest_image());
    vm.ok(&attach_backing(1, &[(FREE, 1 << 16)]));
    let copy = longest_copy(0);
    let start = Instant::now();
    let head = vm.post(&copy);
    vm.ask(&plain(command::GET_DISPLAY_INFO, 0));
    assert!(vm.is_quiet(head), "the queue stood still until it was done");
    // The memory is the guest's again when it is over.
    let detach = vm.post(&resource_command(command::RESOURCE_DETACH_BACKING, 0, 1));
    assert_eq!(kind(&vm.wait(detach)), response::OK_NODATA);
    assert_eq!(vm.poll(head).map(|a| kind(&a)), Some(response::OK_NODATA));
    let whole = start.elapsed();
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    // Of several times, as the machine may stand still.
    let mut shortest = whole;
    for _ in 0..5 {
        vm.ok(&longest_image());
        vm.ok(&attach_backing(1, &[(FREE, 1 << 16)]));
        let head = vm.post(&copy);
        let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
        assert!(vm.poll(head).is_none() && vm.poll(unref).is_none());
        let start = Instant::now();
        vm.stop();
        shortest = shortest.min(start.elapsed());
        vm.start();
    }
    assert!(shortest < whole / 4, "{shortest:?} of {whole:?}");
    // Nor does it keep its context.
    let (mut vm, head) = with_longest_copy();
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert_eq!(kind(&vm.wait(head)), response::ERR_UNSPEC);
    vm.end(false);
}

/// A copy that waits for another one of the same image ends with its context.
#[test]
fn copies_wait_no_longer_than_their_context() {
    let (mut vm, running) = with_longest_copy();
    let waiting = vm.post(&longest_copy(2));
    vm.ok(&plain(command::CTX_DESTROY, 2));
    assert_eq!(kind(&vm.wait(waiting)), response::ERR_UNSPEC);
    let running_ends = vm.poll(running);
    assert_eq!(running_ends, None, "it has waited for the other copy");
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert_eq!(kind(&vm.wait(running)), response::ERR_UNSPEC);
    vm.end(false);
}
