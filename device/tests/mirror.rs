// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The mirror queue, through a real vhost-user connection.

mod common;

use common::*;
use virtgpu_device::device::Options;
use virtgpu_protocol::compute::op;
use virtgpu_protocol::mirror::{self, device_state, status, MirrorConfig};
use virtgpu_protocol::virtio_gpu::{blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

const PAGE: u64 = 4096;

fn word(vm: &Vm, at: u64) -> u64 {
    vm.memory.read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn configuration() {
    let mut vm = Vm::mirrored(options());
    let config = vm.config(32, size_of::<MirrorConfig>());
    let config = MirrorConfig::ref_from_bytes(&config).unwrap();
    assert_eq!(config.mirror_version.get(), mirror::VERSION);
    assert_eq!(config.granularity.get(), 4096);
    assert_eq!(config.device_state.get(), device_state::OK);
    assert!(config.max_entries.get() >= 512 && config.max_spaces.get() >= 1024);
    vm.end(false);
    let mut vm = Vm::new(Options {
        mirror: None,
        ..options()
    });
    assert_eq!(vm.config(32, 32), [0; 32]);
    vm.end(false);
}

#[test]
fn without_the_extension() {
    let mut vm = Vm::new(options());
    vm.context(1);
    for memory in [blob_mem::GUEST, blob_mem::HOST3D_GUEST] {
        let create = create_blob(1, 1, memory, PAGE, &[]);
        assert_eq!(vm.kind(&create), response::ERR_INVALID_PARAMETER);
    }
    vm.end(false);
}

#[test]
fn a_life() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, 4 * PAGE);
    // Two pages, the other way around.
    let pieces = [(FREE + PAGE, 4096), (FREE, 4096)];
    assert_eq!(vm.map(1, PAGE, &pieces), status::OK);
    let job = [fill(1, 2 * PAGE - 8, 16, 7)];
    assert_eq!(vm.run(1, &job), response::OK_NODATA);
    assert_eq!(word(&vm, FREE + 2 * PAGE - 8), 7);
    assert_eq!(word(&vm, FREE), 7);
    // A blob of each other kind.
    vm.blob(1, 2, &[(FREE + 8 * PAGE, 8192)]);
    vm.ok(&create_blob(1, 3, blob_mem::HOST3D, 2 * PAGE, &[]));
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 3));
    let copy = |dst, src, at| operation(op::COPY, (dst, 0), [(src, at), (0, 0)], 8192, [0; 2]);
    let jobs = [copy(3, 1, PAGE), copy(2, 3, 0)];
    assert_eq!(vm.run(1, &jobs), response::OK_NODATA);
    assert_eq!(word(&vm, FREE + 9 * PAGE - 8), 7);
    let stat = vm.stat(1, 2, FREE + 8 * PAGE);
    assert_eq!((stat.spaces.get(), stat.mapped_pages.get()), (1, 2));
    vm.done(&invalidate(1, PAGE, 3 * PAGE - 1));
    vm.done(&invalidate(1, 0, u64::MAX));
    let stat = vm.stat(1, 2, FREE + 8 * PAGE);
    assert_eq!((stat.maps.get(), stat.invalidates.get()), (1, 2));
    assert_eq!((stat.spaces.get(), stat.mapped_pages.get()), (1, 0));
    vm.context(2);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 2, 1));
    assert_eq!(vm.run(2, &job), response::ERR_UNSPEC);
    vm.done(&space_destroy(1));
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    vm.end(false);
}
