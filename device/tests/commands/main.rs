// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The commands of the control queue, through a real vhost-user connection: a file each family.

#[path = "../common/mod.rs"]
mod common;

mod blob;
mod config;
mod context;
mod image;
mod life;
mod submit;
mod transfer;

use common::*;
use virtgpu_protocol::virtio_gpu::{self as wire, command, Header};
use virtgpu_protocol::virtio_gpu_image as wire_image;
use zerocopy::little_endian::{U32, U64};
use zerocopy::IntoBytes;

fn attach_backing(id: u32, pieces: &[(u64, u32)]) -> Vec<u8> {
    let request = wire::ResourceAttachBacking {
        hdr: Header::new(command::RESOURCE_ATTACH_BACKING, 0),
        resource_id: U32::new(id),
        nr_entries: U32::new(pieces.len() as u32),
    };
    let mut bytes = request.as_bytes().to_vec();
    for (addr, length) in pieces {
        let entry = wire::MemEntry {
            addr: U64::new(*addr),
            length: U32::new(*length),
            padding: U32::ZERO,
        };
        bytes.extend_from_slice(entry.as_bytes());
    }
    bytes
}

/// A transfer of a row of `width` pixels.
fn transfer(command: u32, ctx: u32, id: u32, offset: u64, width: u32) -> Vec<u8> {
    let request = wire_image::TransferHost3d {
        hdr: Header::new(command, ctx),
        region: wire_image::Cuboid {
            width: U32::new(width),
            height: U32::new(1),
            depth: U32::new(1),
            ..Default::default()
        },
        offset: U64::new(offset),
        resource_id: U32::new(id),
        ..Default::default()
    };
    request.as_bytes().to_vec()
}

/// The command that creates an image of bytes.
fn create_image(id: u32, target: u32, sides: [u32; 3], layers: u32) -> Vec<u8> {
    let [width, height, depth] = sides.map(U32::new);
    wire_image::ResourceCreate3d {
        hdr: Header::new(command::RESOURCE_CREATE_3D, 0),
        resource_id: U32::new(id),
        target: U32::new(target),
        format: U32::new(wire_image::format::R8_UNORM),
        width,
        height,
        depth,
        array_size: U32::new(layers),
        ..Default::default()
    }
    .as_bytes()
    .to_vec()
}

/// Rows of a layer, and layers, of the image that takes longest to copy.
const LONGEST: [u32; 2] = [1 << 14, 1 << 11];

/// The command that creates that image as resource 1.
fn longest_image() -> Vec<u8> {
    let [height, layers] = LONGEST;
    create_image(
        1,
        wire_image::target::TEXTURE_2D_ARRAY,
        [2, height, 1],
        layers,
    )
}

/// Copies to all rows of that image, in a context, on its first ring, or in none.
fn longest_copy(ctx: u32) -> Vec<u8> {
    let [height, layers] = LONGEST;
    let mut hdr = Header::new(command::TRANSFER_TO_HOST_3D, ctx);
    if ctx != 0 {
        // On a ring, where nothing waits for other contexts.
        hdr.flags = U32::new(wire::FLAG_FENCE | wire::FLAG_INFO_RING_IDX);
    }
    wire_image::TransferHost3d {
        hdr,
        region: wire_image::Cuboid {
            // Not all of a row, so that no row follows another.
            width: U32::new(1),
            height: U32::new(height),
            depth: U32::new(layers),
            ..Default::default()
        },
        resource_id: U32::new(1),
        stride: U32::new(1),
        layer_stride: U32::new(1),
        ..Default::default()
    }
    .as_bytes()
    .to_vec()
}

/// A machine with that image, attached to contexts 1 and 2, in the first of which a copy runs.
fn with_longest_copy() -> (Vm, u16) {
    let mut vm = Vm::new(options());
    vm.ok(&longest_image());
    vm.ok(&attach_backing(1, &[(FREE, 1 << 16)]));
    for ctx in [1, 2] {
        vm.context(ctx);
        vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, ctx, 1));
    }
    let head = vm.post(&longest_copy(1));
    (vm, head)
}
