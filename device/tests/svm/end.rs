// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The end of a space, a context, a queue and the device while a job stalls.

use super::*;
use virtgpu_protocol::virtio_gpu::command;

/// A driver with a job that stalls and one behind it.
fn stalled() -> (Driver, u64) {
    let mut driver = Driver::new();
    driver.submit(0, &[fill(0, VA, 8, 1)]);
    driver.submit(0, &[fill(0, VA, 8, 1)]);
    let fault = driver.expect_fault(VA, access::WRITE);
    (driver, fault)
}

#[test]
fn destroyed() {
    let (mut driver, fault) = stalled();
    driver.vm.done(&space_destroy(1));
    driver.quiet();
    driver.resolve(fault, resolution::OK);
    let map = mirror_map(1, VA, &[(FREE, 4096, 3)]);
    assert_eq!(driver.vm.status(&map), status::NO_SUCH_SPACE);
    // The context cannot do anything any more, nor get another space.
    let request = driver.vm.submit(1, Some(0), &[]);
    assert_eq!(driver.vm.kind(&request), response::ERR_UNSPEC);
    let again = context_space(2, 1, TASK_SIZE);
    assert_eq!(driver.vm.status(&again), status::INVALID);
    driver.vm.ok(&plain(command::CTX_DESTROY, 1));
    driver.vm.context(1);
    assert_eq!(driver.vm.status(&again), status::OK);
    driver.quiet();
    assert_eq!(driver.stat().pending_faults.get(), 0);
    driver.vm.end(false);
}

#[test]
fn context_destroyed() {
    let (mut driver, fault) = stalled();
    driver.vm.ok(&plain(command::CTX_DESTROY, 1));
    driver.done.clear();
    driver.look();
    driver.done.clear();
    driver.quiet();
    driver.resolve(fault, resolution::OK);
    driver.vm.done(&space_destroy(1));
    assert_eq!(driver.stat().spaces.get(), 0);
    driver.vm.end(false);
}

/// Of an event that waits for a buffer nothing is left when its space is gone.
#[test]
fn no_events_afterwards() {
    let mut driver = Driver::new();
    // One buffer that is used up.
    let fences: Vec<u64> = (0..40).map(|_| driver.submit(0, &[])).collect();
    let heads = std::mem::take(&mut driver.buffers);
    for (head, fence) in heads.into_iter().zip(fences) {
        let (_, bytes) = driver.vm.wait_event(head);
        assert_eq!(Event::read_from_bytes(&bytes).unwrap().id.get(), fence);
    }
    driver.vm.done(&space_destroy(1));
    driver.give_buffers(8);
    driver.quiet();
    driver.vm.end(false);
}

#[test]
fn reset_and_a_new_driver() {
    let (mut driver, first) = stalled();
    driver.vm.stop_control();
    driver.vm.stop_mirror();
    driver.vm.start();
    driver.buffers.clear();
    driver.give_buffers(4);
    driver.vm.context(1);
    assert_eq!(
        driver.vm.status(&context_space(1, 1, TASK_SIZE)),
        status::OK
    );
    driver.quiet();
    driver.submit(0, &[fill(0, VA, 8, 7)]);
    let second = driver.expect_fault(VA, access::WRITE);
    assert!(second > first);
    driver.map(VA, FREE, 1, 3);
    driver.resolve(second, resolution::OK);
    assert_eq!(driver.result().0, job_result::OK);
    driver.vm.end(false);
}

#[test]
fn the_mirror_queue_stops() {
    let (mut driver, _) = stalled();
    driver.vm.stop_mirror();
    let request = driver.vm.submit(1, Some(0), &[]);
    assert_eq!(driver.vm.kind(&request), response::ERR_UNSPEC);
    driver.vm.stop_control();
    driver.vm.finish(false);
}

#[test]
fn hanging_up() {
    let (driver, _) = stalled();
    driver.vm.finish(false);
}
