// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What stops everything.

use std::time::{Duration, Instant};

use super::common::*;
use virtgpu_protocol::compute::op;
use virtgpu_protocol::virtio_gpu::{blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_reset_stops_everything() {
    let mut vm = Vm::new(options());
    for round in 0..3 {
        let start = Instant::now();
        vm.context(1);
        vm.blob(1, 1, &[(FREE, 4096)]);
        vm.ok(&create_blob(1, 2, blob_mem::HOST3D, PAGE, &[]));
        assert_eq!(vm.kind(&map_blob(2, 0)), response::OK_MAP_INFO);
        for ring in 0..4 {
            let forever = operation(
                op::POINTER_CHASE,
                (1, 8),
                [(1, 0), (0, 0)],
                0,
                [u64::MAX, 0],
            );
            let request = vm.submit(1, Some(ring), &[forever]);
            vm.post(&request);
            let request = vm.submit(1, Some(ring), &[fill(1, 0, 8, 1)]);
            vm.post(&request);
        }
        vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
        vm.stop();
        assert!(start.elapsed() < Duration::from_secs(10), "round {round}");
        vm.memory
            .write_slice(&[0; 4096], GuestAddress(FREE))
            .unwrap();
        let used: u16 = vm.memory.read_obj(GuestAddress(0x3002)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(
            used,
            vm.memory.read_obj::<u16>(GuestAddress(0x3002)).unwrap()
        );
        vm.start();
    }
    vm.context(1);
    vm.end(false);
}

#[test]
fn hanging_up_stops_everything() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let request = vm.submit(1, None, &[delay(10_000_000)]);
    vm.post(&request);
    let start = Instant::now();
    vm.finish(false);
    assert!(start.elapsed() < Duration::from_secs(5));
}
