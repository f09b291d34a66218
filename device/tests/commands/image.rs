// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Images, and the guest memory behind them.

use super::common::*;
use super::{attach_backing, longest_copy, transfer, with_longest_copy};
use virtgpu_protocol::virtio_gpu::{command, response, Header};
use virtgpu_protocol::virtio_gpu_image as wire_image;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::little_endian::U32;
use zerocopy::IntoBytes;

#[test]
fn images() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let create = |id, format| wire_image::ResourceCreate3d {
        hdr: Header::new(command::RESOURCE_CREATE_3D, 0),
        resource_id: U32::new(id),
        target: U32::new(wire_image::target::TEXTURE_2D),
        format: U32::new(format),
        width: U32::new(64),
        height: U32::new(1),
        depth: U32::new(1),
        array_size: U32::new(1),
        ..Default::default()
    };
    assert_eq!(
        vm.kind(create(1, 0).as_bytes()),
        response::ERR_INVALID_PARAMETER
    );
    vm.ok(create(1, wire_image::format::R8G8B8A8_UNORM).as_bytes());
    let to_host =
        |ctx, offset, width| transfer(command::TRANSFER_TO_HOST_3D, ctx, 1, offset, width);
    let from_host =
        |ctx, offset, width| transfer(command::TRANSFER_FROM_HOST_3D, ctx, 1, offset, width);
    // There is no memory yet.
    assert_eq!(vm.kind(&to_host(0, 0, 1)), response::ERR_UNSPEC);
    // Two pieces, of which the second comes first in RAM.
    vm.ok(&attach_backing(1, &[(FREE + 4096, 100), (FREE, 200)]));
    assert_eq!(
        vm.kind(&attach_backing(1, &[(FREE, 100)])),
        response::ERR_UNSPEC
    );
    assert_eq!(
        vm.kind(&attach_backing(9, &[(FREE, 100)])),
        response::ERR_INVALID_RESOURCE_ID
    );
    // A context sees what is attached to it.
    assert_eq!(
        vm.kind(&to_host(1, 0, 1)),
        response::ERR_INVALID_RESOURCE_ID
    );
    assert_eq!(vm.kind(&to_host(2, 0, 1)), response::ERR_INVALID_CONTEXT_ID);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 1));
    let data: Vec<u8> = (0..=255).collect();
    vm.memory
        .write_slice(&data[..100], GuestAddress(FREE + 4096))
        .unwrap();
    vm.memory
        .write_slice(&data[100..], GuestAddress(FREE))
        .unwrap();
    vm.ok(&to_host(1, 0, 64));
    vm.memory
        .write_slice(&[0; 8192], GuestAddress(FREE))
        .unwrap();
    vm.ok(&from_host(1, 40, 64));
    let mut got = vec![0; 256];
    vm.memory
        .read_slice(&mut got[..60], GuestAddress(FREE + 4096 + 40))
        .unwrap();
    vm.memory
        .read_slice(&mut got[60..], GuestAddress(FREE))
        .unwrap();
    assert_eq!(got, data);
    for (offset, width) in [(45, 64), (0, 65), (0, 0), (u64::MAX, 1)] {
        assert_eq!(
            vm.kind(&from_host(1, offset, width)),
            response::ERR_INVALID_PARAMETER
        );
    }
    vm.blob(1, 2, &[(FREE + 8192, 4096)]);
    assert_eq!(vm.stat(1, 2, FREE + 8192).guest_bytes.get(), 300 + 4096);
    vm.ok(&resource_command(command::RESOURCE_DETACH_BACKING, 0, 1));
    assert_eq!(vm.kind(&from_host(1, 0, 1)), response::ERR_UNSPEC);
    vm.end(false);
}

/// Other memory can be attached at once; the old one is the guest's when the copies that use it are
/// over, whatever uses the new one.
#[test]
fn backing_of_an_image_is_exchanged() {
    let (mut vm, old) = with_longest_copy();
    let detach = vm.post(&resource_command(command::RESOURCE_DETACH_BACKING, 0, 1));
    vm.ok(&attach_backing(1, &[(FREE, 1 << 16)]));
    assert_eq!(vm.poll(detach), None, "a copy uses the memory");
    let new = vm.post(&longest_copy(2));
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert_eq!(kind(&vm.wait(old)), response::ERR_UNSPEC);
    assert_eq!(kind(&vm.wait(detach)), response::OK_NODATA);
    let new_ends = vm.poll(new);
    assert_eq!(new_ends, None, "the response has waited for the new memory");
    vm.ok(&plain(command::CTX_DESTROY, 2));
    assert_eq!(kind(&vm.wait(new)), response::ERR_UNSPEC);
    vm.end(false);
}
