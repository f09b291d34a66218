// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the device offers: its configuration space, its capability sets, its displays, of which
//! there are none.

use super::common::*;
use virtgpu_device::options::capset::Capset;
use virtgpu_protocol::compute::{self, op};
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, response, Config, Header};
use virtgpu_protocol::virtio_gpu_2d as wire2d;
use virtgpu_protocol::virtio_gpu_image as wire_image;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

#[test]
fn capsets_and_config() {
    let mut options = options();
    options.capsets.push("8:24".parse::<Capset>().unwrap());
    let mut vm = Vm::new(options);
    let config = vm.config(0, size_of::<Config>());
    let config = Config::ref_from_bytes(&config).unwrap();
    assert_eq!(
        (config.num_scanouts.get(), config.num_capsets.get()),
        (0, 2)
    );
    assert_eq!(vm.config(20, 12), [0; 12]);
    let info = |index| wire::GetCapsetInfo {
        hdr: Header::new(command::GET_CAPSET_INFO, 0),
        capset_index: U32::new(index),
        padding: U32::ZERO,
    };
    let response = vm.ask(info(0).as_bytes());
    let response: &wire::ResponseCapsetInfo = prefix(&response);
    assert_eq!(response.hdr.kind.get(), response::OK_CAPSET_INFO);
    assert_eq!(
        (response.capset_id.get(), response.capset_max_size.get()),
        (29, 24)
    );
    assert_eq!(vm.kind(info(2).as_bytes()), response::ERR_INVALID_PARAMETER);
    let get = |id, version| wire::GetCapset {
        hdr: Header::new(command::GET_CAPSET, 0),
        capset_id: U32::new(id),
        capset_version: U32::new(version),
    };
    let response = vm.ask(get(29, 1).as_bytes());
    let capset = compute::Capset::ref_from_bytes(&response[24..]).unwrap();
    assert_eq!(capset.ops.get(), (1 << op::END) - 2);
    assert_eq!(vm.ask(get(8, 1).as_bytes()).len(), 48);
    assert_eq!(
        vm.kind(get(29, 2).as_bytes()),
        response::ERR_INVALID_PARAMETER
    );
    assert_eq!(
        vm.kind(get(7, 1).as_bytes()),
        response::ERR_INVALID_PARAMETER
    );
    // The flag of AMD's user pointers means something in AMD's contexts only.
    vm.context(1);
    vm.ok(&ctx_create(2, 8));
    for (ctx, good) in [(1, false), (2, true)] {
        let mut request = create_blob(ctx, 1, blob_mem::HOST3D_GUEST, PAGE, &[(FREE, 4096)]);
        request[32..36].copy_from_slice(&9u32.to_le_bytes());
        assert_eq!(vm.kind(&request) == response::OK_NODATA, good);
    }
    vm.end(false);
}

#[test]
fn display_commands() {
    let mut vm = Vm::new(options());
    let response = vm.ask(&plain(command::GET_DISPLAY_INFO, 0));
    assert_eq!(response.len(), 408);
    assert_eq!(kind(&response), response::OK_DISPLAY_INFO);
    let create = |id, side| wire_image::ResourceCreate2d {
        hdr: Header::new(command::RESOURCE_CREATE_2D, 0),
        resource_id: U32::new(id),
        format: U32::new(2),
        width: U32::new(side),
        height: U32::new(side),
    };
    vm.ok(create(1, 16).as_bytes());
    assert_eq!(
        vm.kind(create(1, 16).as_bytes()),
        response::ERR_INVALID_RESOURCE_ID
    );
    assert_eq!(
        vm.kind(create(2, 0).as_bytes()),
        response::ERR_INVALID_PARAMETER
    );
    assert_eq!(
        vm.kind(create(2, u32::MAX).as_bytes()),
        response::ERR_INVALID_PARAMETER
    );
    let attach = |length: u32| {
        let request = wire::ResourceAttachBacking {
            hdr: Header::new(command::RESOURCE_ATTACH_BACKING, 0),
            resource_id: U32::new(1),
            nr_entries: U32::new(1),
        };
        let entry = wire::MemEntry {
            addr: U64::new(FREE),
            length: U32::new(length),
            padding: U32::ZERO,
        };
        [request.as_bytes(), entry.as_bytes()].concat()
    };
    assert_eq!(vm.kind(&attach(0)), response::ERR_INVALID_PARAMETER);
    vm.ok(&attach(1024));
    assert_eq!(vm.kind(&attach(1024)), response::ERR_UNSPEC);
    let flush = wire2d::ResourceFlush {
        hdr: Header::new(command::RESOURCE_FLUSH, 0),
        resource_id: U32::new(1),
        ..Default::default()
    };
    vm.ok(flush.as_bytes());
    let scanout = wire2d::SetScanout {
        hdr: Header::new(command::SET_SCANOUT, 0),
        ..Default::default()
    };
    assert_eq!(
        vm.kind(scanout.as_bytes()),
        response::ERR_INVALID_SCANOUT_ID
    );
    vm.ok(&resource_command(command::RESOURCE_DETACH_BACKING, 0, 1));
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    vm.end(false);
}

#[test]
fn without_contexts() {
    let mut options = options();
    options.virgl = false;
    options.capsets.clear();
    let mut vm = Vm::new(options);
    for kind in command::CTX_CREATE..=command::SUBMIT_3D {
        assert_eq!(vm.kind(&plain(kind, 1)), response::ERR_UNSPEC);
    }
    vm.end(false);
}
