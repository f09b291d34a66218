// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The control queue, through a real vhost-user connection.

mod common;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::*;
use virtgpu_device::options::capset::Capset;
use virtgpu_protocol::compute::{self, op, CAPSET_ID};
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, response, Config, Header};
use virtgpu_protocol::virtio_gpu_2d as wire2d;
use virtgpu_protocol::virtio_gpu_image as image;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: u64 = 4096;

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
    let answer = vm.ask(info(0).as_bytes());
    let answer: &wire::ResponseCapsetInfo = prefix(&answer);
    assert_eq!(answer.hdr.kind.get(), response::OK_CAPSET_INFO);
    assert_eq!(
        (answer.capset_id.get(), answer.capset_max_size.get()),
        (29, 24)
    );
    assert_eq!(vm.kind(info(2).as_bytes()), response::ERR_INVALID_PARAMETER);
    let get = |id, version| wire::GetCapset {
        hdr: Header::new(command::GET_CAPSET, 0),
        capset_id: U32::new(id),
        capset_version: U32::new(version),
    };
    let answer = vm.ask(get(29, 1).as_bytes());
    let capset = compute::Capset::ref_from_bytes(&answer[24..]).unwrap();
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
    let answer = vm.ask(&plain(command::GET_DISPLAY_INFO, 0));
    assert_eq!(answer.len(), 408);
    assert_eq!(kind(&answer), response::OK_DISPLAY_INFO);
    let create = |id, side| image::ResourceCreate2d {
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
    let request = image::TransferHost3d {
        hdr: Header::new(command, ctx),
        region: image::Cuboid {
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

#[test]
fn images() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let create = |id, format| image::ResourceCreate3d {
        hdr: Header::new(command::RESOURCE_CREATE_3D, 0),
        resource_id: U32::new(id),
        target: U32::new(image::target::TEXTURE_2D),
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
    vm.ok(create(1, image::format::R8G8B8A8_UNORM).as_bytes());
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

/// The command that creates an image of bytes.
fn create_image(id: u32, target: u32, sides: [u32; 3], layers: u32) -> Vec<u8> {
    let [width, height, depth] = sides.map(U32::new);
    image::ResourceCreate3d {
        hdr: Header::new(command::RESOURCE_CREATE_3D, 0),
        resource_id: U32::new(id),
        target: U32::new(target),
        format: U32::new(image::format::R8_UNORM),
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
    create_image(1, image::target::TEXTURE_2D_ARRAY, [2, height, 1], layers)
}

/// Copies to all rows of that image, in a context or in none.
fn longest_copy(ctx: u32) -> Vec<u8> {
    let [height, layers] = LONGEST;
    image::TransferHost3d {
        hdr: Header::new(command::TRANSFER_TO_HOST_3D, ctx),
        region: image::Cuboid {
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
    assert!(vm.is_quiet(head));
    (vm, head)
}

/// A copy between guest memory and an image of as many rows as there can be holds nobody up.
#[test]
fn long_transfers() {
    let mut vm = Vm::new(options());
    let deep = create_image(1, image::target::TEXTURE_3D, [1, 1 << 14, 1 << 14], 1);
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
    vm.ok(&attach_backing(1, &[(FREE, 1 << 16)]));
    vm.post(&copy);
    let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
    assert!(vm.is_quiet(unref));
    let start = Instant::now();
    vm.stop();
    assert!(start.elapsed() < whole / 4, "{whole:?}");
    vm.start();
    // Nor does it keep its context.
    vm.context(1);
    vm.ok(&longest_image());
    vm.ok(&attach_backing(1, &[(FREE, 1 << 16)]));
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 1));
    let head = vm.post(&longest_copy(1));
    let start = Instant::now();
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert!(start.elapsed() < whole / 4, "{whole:?}");
    assert_eq!(kind(&vm.wait(head)), response::ERR_UNSPEC);
    vm.end(false);
}

/// A copy that waits for another one of the same image ends with its context.
#[test]
fn copies_wait_no_longer_than_their_context() {
    let (mut vm, running) = with_longest_copy();
    let waiting = vm.post(&longest_copy(2));
    assert!(vm.is_quiet(waiting));
    vm.ok(&plain(command::CTX_DESTROY, 2));
    assert_eq!(kind(&vm.wait(waiting)), response::ERR_UNSPEC);
    assert!(vm.is_quiet(running), "it has waited for the other copy");
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert_eq!(kind(&vm.wait(running)), response::ERR_UNSPEC);
    vm.end(false);
}

/// Other memory can be attached at once; the old one is the guest's when the copies that use it are
/// over, whatever uses the new one.
#[test]
fn backing_of_an_image_is_exchanged() {
    let (mut vm, old) = with_longest_copy();
    let detach = vm.post(&resource_command(command::RESOURCE_DETACH_BACKING, 0, 1));
    assert!(vm.is_quiet(detach));
    vm.ok(&attach_backing(1, &[(FREE, 1 << 16)]));
    let new = vm.post(&longest_copy(2));
    assert!(vm.is_quiet(new));
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert_eq!(kind(&vm.wait(old)), response::ERR_UNSPEC);
    assert_eq!(kind(&vm.wait(detach)), response::OK_NODATA);
    assert!(vm.is_quiet(new), "the answer has waited for the new memory");
    vm.ok(&plain(command::CTX_DESTROY, 2));
    assert_eq!(kind(&vm.wait(new)), response::ERR_UNSPEC);
    vm.end(false);
}

/// Long jobs of some contexts leave workers to the others.
#[test]
fn many_long_jobs() {
    let mut vm = Vm::new(options());
    for ctx in 1..=5 {
        vm.context(ctx);
        for ring in 0..64 {
            vm.ok(&submit(ctx, Some(ring), None, &[delay(120_000_000)]));
        }
    }
    vm.context(6);
    let request = vm.submit(6, Some(0), &[delay(0)]);
    assert_eq!(vm.kind(&request), response::OK_NODATA);
    for ctx in 1..=5 {
        vm.ok(&plain(command::CTX_DESTROY, ctx));
    }
    vm.end(false);
}

/// However much a context submits, others can.
#[test]
fn operations_are_shared() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.context(2);
    vm.ok(&submit(1, Some(0), None, &[delay(120_000_000)]));
    let request = submit(1, Some(0), None, &[delay(0); 4096]);
    let mut count = 0;
    while vm.kind(&request) == response::OK_NODATA {
        count += 1;
        assert!(count < 2048, "no limit");
    }
    assert!(count >= 128, "{count}");
    let other = submit(2, Some(0), None, &[delay(0); 4096]);
    assert_eq!(vm.kind(&other), response::OK_NODATA);
    vm.ok(&plain(command::CTX_DESTROY, 1));
    // What is over does not count any more.
    vm.context(1);
    for _ in 0..count {
        vm.ok(&request);
    }
    vm.end(false);
}

/// A blob that could not be taken out of the window is there still.
#[test]
fn unmap_that_fails() {
    let mut vm = Vm::with_process(env!("CARGO_BIN_EXE_virtgpu-device"), &[], false);
    vm.context(1);
    vm.ok(&create_blob(1, 1, blob_mem::HOST3D, HOSTMEM, &[]));
    assert_eq!(kind(&vm.ask(&map_blob(1, 0))), response::OK_MAP_INFO);
    let limit = |vm: &Vm, bytes: u64| {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: libc::RLIM_INFINITY,
        };
        let pid = vm.pid() as libc::pid_t;
        // SAFETY: The limit is read; nothing is written.
        let result = unsafe { libc::prlimit(pid, libc::RLIMIT_AS, &limit, std::ptr::null_mut()) };
        assert_eq!(result, 0);
    };
    // A little more, but no second blob.
    let size = vm.status_of_process("VmSize:");
    limit(&vm, size + HOSTMEM / 2);
    let unmap = resource_command(command::RESOURCE_UNMAP_BLOB, 0, 1);
    assert_eq!(vm.kind(&unmap), response::ERR_OUT_OF_MEMORY);
    assert_eq!(vm.kind(&map_blob(1, 0)), response::ERR_INVALID_PARAMETER);
    limit(&vm, libc::RLIM_INFINITY);
    vm.ok(&unmap);
    assert_eq!(vm.kind(&unmap), response::ERR_INVALID_PARAMETER);
    vm.end(false);
}

#[test]
fn memory_of_a_blob_is_taken_away() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    vm.blob(1, 2, &[(FREE + 4096, 4096)]);
    // A job that uses it comes to its end first.
    let fence = vm.fence;
    vm.fence += 1;
    let ops = [delay(200_000), fill(1, 0, 8, 7)];
    let job = vm.post(&submit(1, None, Some(fence), &ops));
    vm.ok(&resource_command(command::RESOURCE_DETACH_BACKING, 0, 1));
    assert_eq!(kind(&vm.wait(job)), response::OK_NODATA);
    let seven: u64 = vm.memory.read_obj(GuestAddress(FREE)).unwrap();
    assert_eq!(seven, 7);
    assert_eq!(vm.stat(1, 2, FREE + 4096).guest_bytes.get(), 4096);
    assert_eq!(
        vm.kind(&resource_command(command::RESOURCE_DETACH_BACKING, 0, 1)),
        response::ERR_INVALID_PARAMETER
    );
    // A job after it finds nothing.
    assert_eq!(vm.run(1, &[fill(1, 0, 8, 8)]), response::ERR_UNSPEC);
    let seven: u64 = vm.memory.read_obj(GuestAddress(FREE)).unwrap();
    assert_eq!(seven, 7);
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

#[test]
fn contexts() {
    let mut vm = Vm::new(options());
    assert_eq!(
        vm.kind(&ctx_create(0, CAPSET_ID)),
        response::ERR_INVALID_CONTEXT_ID
    );
    assert_eq!(vm.kind(&ctx_create(1, 3)), response::ERR_INVALID_PARAMETER);
    assert_eq!(
        vm.kind(&ctx_create(1, 0x100)),
        response::ERR_INVALID_PARAMETER
    );
    vm.context(1);
    assert_eq!(
        vm.kind(&ctx_create(1, CAPSET_ID)),
        response::ERR_INVALID_CONTEXT_ID
    );
    assert_eq!(vm.run(2, &[]), response::ERR_INVALID_CONTEXT_ID);
    assert_eq!(vm.run(1, &[]), response::OK_NODATA);
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert_eq!(
        vm.kind(&plain(command::CTX_DESTROY, 1)),
        response::ERR_INVALID_CONTEXT_ID
    );
    // Without a capability set there are no operations.
    vm.ok(&ctx_create(1, 0));
    assert_eq!(vm.run(1, &[]), response::OK_NODATA);
    assert_eq!(vm.run(1, &[delay(0)]), response::ERR_INVALID_PARAMETER);
    vm.end(false);
}

#[test]
fn blobs_are_checked() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let page = [(FREE, 4096)];
    let mut blob = |ctx, id, mem, size, pieces: &[(u64, u32)]| {
        vm.kind(&create_blob(ctx, id, mem, size, pieces))
    };
    use response::{ERR_INVALID_PARAMETER, ERR_INVALID_RESOURCE_ID, OK_NODATA};
    let guest = blob_mem::GUEST;
    assert_eq!(blob(0, 0, guest, PAGE, &page), ERR_INVALID_RESOURCE_ID);
    assert_eq!(blob(0, 1, guest, 0, &page), ERR_INVALID_PARAMETER);
    assert_eq!(blob(0, 1, guest, PAGE, &[]), ERR_INVALID_PARAMETER);
    assert_eq!(blob(0, 1, guest, PAGE + 1, &page), ERR_INVALID_PARAMETER);
    assert_eq!(
        blob(0, 1, guest, PAGE, &[(RAM - 4095, 4096)]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(0, 1, guest, PAGE, &[(RAM, 4096)]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(0, 1, guest, PAGE, &[(u64::MAX - 9, 4096)]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(0, 1, guest, PAGE, &[(FREE, 0), (FREE, 4096)]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(blob(0, 1, 9, PAGE, &page), ERR_INVALID_PARAMETER);
    assert_eq!(
        blob(7, 1, guest, PAGE, &page),
        response::ERR_INVALID_CONTEXT_ID
    );
    assert_eq!(
        blob(1, 1, blob_mem::HOST3D, PAGE, &page),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(1, 1, blob_mem::HOST3D, 100, &[]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(0, 1, blob_mem::HOST3D, PAGE, &[]),
        ERR_INVALID_PARAMETER
    );
    assert_eq!(
        blob(1, 1, blob_mem::HOST3D, 1 << 40, &[]),
        response::ERR_OUT_OF_MEMORY
    );
    assert_eq!(blob(0, 1, guest, PAGE, &page), OK_NODATA);
    assert_eq!(blob(0, 1, guest, PAGE, &page), ERR_INVALID_RESOURCE_ID);
    // More entries announced than sent.
    let mut short = create_blob(0, 2, guest, PAGE, &page);
    short[36] = 2;
    assert_eq!(vm.kind(&short), ERR_INVALID_PARAMETER);
    short[36..40].fill(0xff);
    assert_eq!(vm.kind(&short), ERR_INVALID_PARAMETER);
    assert_eq!(vm.kind(&short[..40]), ERR_INVALID_PARAMETER);
    assert_eq!(vm.kind(&short[..3]), ERR_INVALID_PARAMETER);
    assert_eq!(vm.kind(&short[..1]), response::ERR_UNSPEC);
    assert_eq!(vm.kind(&plain(0x9999, 0)), response::ERR_UNSPEC);
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    let unref = resource_command(command::RESOURCE_UNREF, 0, 1);
    assert_eq!(vm.kind(&unref), ERR_INVALID_RESOURCE_ID);
    vm.end(false);
}

#[test]
fn uuids() {
    let mut vm = Vm::new(options());
    let assign = |id| resource_command(command::RESOURCE_ASSIGN_UUID, 0, id);
    assert_eq!(vm.kind(&assign(1)), response::ERR_INVALID_RESOURCE_ID);
    for id in [1, 2] {
        vm.ok(&create_blob(0, id, blob_mem::GUEST, PAGE, &[(FREE, 4096)]));
    }
    let (first, second) = (vm.ask(&assign(1)), vm.ask(&assign(2)));
    assert_eq!(kind(&first), response::OK_RESOURCE_UUID);
    assert_eq!(first.len(), 40);
    assert_ne!(first, second);
    assert_eq!(vm.ask(&assign(1)), first);
    vm.end(false);
}

#[test]
fn long_entry_lists() {
    let mut vm = Vm::new(options());
    vm.context(1);
    // Every other 64 bytes of 1 MiB, backwards: nothing can be merged.
    let pieces: Vec<(u64, u32)> = (0..8192).rev().map(|i| (FREE + i * 128, 64)).collect();
    vm.blob(1, 1, &pieces);
    let length = 8192 * 64;
    assert_eq!(
        vm.run(1, &[fill(1, 0, length, 0x0101_0101_0101_0101)]),
        response::OK_NODATA
    );
    let mut memory = vec![0; 1 << 20];
    vm.memory
        .read_slice(&mut memory, GuestAddress(FREE))
        .unwrap();
    for part in memory.chunks(128) {
        assert!(part[..64].iter().all(|b| *b == 1) && part[64..].iter().all(|b| *b == 0));
    }
    vm.blob(1, 2, &[(FREE + (2 << 20), 4096)]);
    let stat = vm.stat(1, 2, FREE + (2 << 20));
    assert_eq!((stat.resources.get(), stat.contexts.get()), (2, 1));
    assert_eq!(stat.guest_entries.get(), 8193);
    assert_eq!(stat.guest_bytes.get(), length + 4096);
    assert!(stat.create_blob_ns.get() > 0);
    vm.end(false);
}

#[test]
fn host_blobs_in_the_window() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let attach = |id| resource_command(command::CTX_ATTACH_RESOURCE, 1, id);
    for id in [1, 2] {
        vm.ok(&create_blob(1, id, blob_mem::HOST3D, 2 * PAGE, &[]));
        vm.ok(&attach(id));
    }
    assert_eq!(
        vm.run(1, &[fill(1, 8, 8, 0x1122_3344)]),
        response::OK_NODATA
    );
    let answer = vm.ask(&map_blob(1, PAGE));
    let answer: &wire::ResponseMapInfo = prefix(&answer);
    assert_eq!(answer.hdr.kind.get(), response::OK_MAP_INFO);
    assert_eq!(answer.map_info.get(), wire::map_cache::CACHED);
    let window = vm.window();
    let mut word = [0; 8];
    window.read_exact_at(&mut word, PAGE + 8).unwrap();
    assert_eq!(u64::from_le_bytes(word), 0x1122_3344);
    for (id, offset) in [
        (1, 4 * PAGE),
        (2, 2 * PAGE),
        (2, 1),
        (2, HOSTMEM - PAGE),
        (2, u64::MAX),
    ] {
        assert_eq!(
            vm.kind(&map_blob(id, offset)),
            response::ERR_INVALID_PARAMETER
        );
    }
    assert_eq!(vm.kind(&map_blob(3, 0)), response::ERR_INVALID_RESOURCE_ID);
    assert_eq!(vm.kind(&map_blob(2, 3 * PAGE)), response::OK_MAP_INFO);
    // What the guest writes the device sees, and the other way round.
    window.write_all_at(&7u64.to_le_bytes(), 3 * PAGE).unwrap();
    let copy = operation(op::COPY, (1, 0), [(2, 0), (0, 0)], 8, [0; 2]);
    assert_eq!(vm.run(1, &[copy]), response::OK_NODATA);
    window.read_exact_at(&mut word, PAGE).unwrap();
    assert_eq!(u64::from_le_bytes(word), 7);
    // A job that waits for the guest's write does not keep the guest from mapping.
    vm.ok(&create_blob(1, 3, blob_mem::HOST3D, PAGE, &[]));
    vm.ok(&attach(3));
    let request = vm.submit(1, None, &[spin(3, 0, 9, 10_000_000)]);
    let head = vm.post(&request);
    assert_eq!(vm.kind(&map_blob(3, 8 * PAGE)), response::OK_MAP_INFO);
    window.write_all_at(&9u64.to_le_bytes(), 8 * PAGE).unwrap();
    assert_eq!(kind(&vm.wait(head)), response::OK_NODATA);
    // Unmapped it keeps what is in it, and the window is zero again.
    let unmap = resource_command(command::RESOURCE_UNMAP_BLOB, 0, 1);
    vm.ok(&unmap);
    assert_eq!(vm.kind(&unmap), response::ERR_INVALID_PARAMETER);
    window.read_exact_at(&mut word, PAGE).unwrap();
    assert_eq!(word, [0; 8]);
    assert_eq!(vm.kind(&map_blob(1, 0)), response::OK_MAP_INFO);
    window.read_exact_at(&mut word, 0).unwrap();
    assert_eq!(u64::from_le_bytes(word), 7);
    for id in [1, 2, 3] {
        vm.ok(&resource_command(command::RESOURCE_UNREF, 0, id));
    }
    window.read_exact_at(&mut word, 0).unwrap();
    assert_eq!(word, [0; 8]);
    vm.end(false);
}

#[test]
fn what_follows_a_mapping_waits_for_it() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    vm.ok(&create_blob(1, 2, blob_mem::HOST3D, PAGE, &[]));
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 2));
    // As long as this job can write it, it cannot be mapped.
    let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000), fill(2, 0, 8, 1)]);
    let job = vm.post(&request);
    let command = |command| resource_command(command, 0, 2);
    let map = vm.post(&map_blob(2, 0));
    assert_eq!(vm.kind(&map_blob(2, PAGE)), response::ERR_INVALID_PARAMETER);
    let unmap = vm.post(&command(command::RESOURCE_UNMAP_BLOB));
    assert_eq!(
        vm.kind(&command(command::RESOURCE_UNMAP_BLOB)),
        response::ERR_INVALID_PARAMETER
    );
    let again = vm.post(&map_blob(2, PAGE));
    let unref = vm.post(&command(command::RESOURCE_UNREF));
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    assert_eq!(kind(&vm.wait(job)), response::OK_NODATA);
    assert_eq!(kind(&vm.wait(map)), response::OK_MAP_INFO);
    assert_eq!(kind(&vm.wait(unmap)), response::OK_NODATA);
    assert_eq!(kind(&vm.wait(again)), response::OK_MAP_INFO);
    assert_eq!(kind(&vm.wait(unref)), response::OK_NODATA);
    let mut word = [0; 8];
    vm.window().read_exact_at(&mut word, PAGE).unwrap();
    assert_eq!(word, [0; 8]);
    vm.end(false);
}

#[test]
fn fences_are_in_order_on_a_ring() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let mut heads = Vec::new();
    for step in 1..8 {
        // Each waits for what the one before it wrote.
        let ops = [
            spin(1, 0, step - 1, 10_000_000),
            delay(1000),
            fill(1, 0, 8, step),
        ];
        let request = vm.submit(1, Some(3), &ops);
        heads.push(vm.post(&request));
    }
    for (index, head) in heads.into_iter().enumerate() {
        let answer = vm.wait(head);
        let header = header(&answer);
        assert_eq!(header.kind.get(), response::OK_NODATA);
        assert_eq!(
            header.flags.get(),
            wire::FLAG_FENCE | wire::FLAG_INFO_RING_IDX
        );
        assert_eq!(
            (header.fence_id.get(), header.ring_idx),
            (index as u64 + 1, 3)
        );
        assert_eq!(header.ctx_id.get(), 1);
    }
    vm.end(false);
}

#[test]
fn rings_run_at_the_same_time() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    // Ring n waits for ring n + 1, posted later; and none blocks other commands.
    let heads: Vec<u16> = (0..8u8)
        .map(|ring| {
            let at = u64::from(ring) * 8;
            let ops = [spin(1, at + 8, 1, 10_000_000), fill(1, at, 8, 1)];
            let request = vm.submit(1, Some(ring), &ops);
            vm.post(&request)
        })
        .collect();
    assert!(vm.is_quiet(heads[0]));
    vm.ok(&create_blob(0, 2, blob_mem::GUEST, PAGE, &[(FREE, 4096)]));
    let start = submit(1, Some(8), None, &[fill(1, 64, 8, 1)]);
    vm.ok(&start);
    for head in heads {
        assert_eq!(kind(&vm.wait(head)), response::OK_NODATA);
    }
    assert_eq!(
        vm.kind(&submit(1, Some(64), None, &[])),
        response::ERR_INVALID_PARAMETER
    );
    assert_eq!(
        vm.kind(&submit(0, Some(0), None, &[])),
        response::ERR_INVALID_CONTEXT_ID
    );
    vm.end(false);
}

#[test]
fn other_fenced_commands_wait_for_the_jobs_before_them() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let request = vm.submit(1, None, &[delay(100_000)]);
    let job = vm.post(&request);
    let mut request = plain(command::GET_DISPLAY_INFO, 0);
    request[4] = wire::FLAG_FENCE as u8;
    request[8] = 77;
    let other = vm.post(&request);
    assert!(vm.is_quiet(other));
    vm.wait(job);
    let answer = vm.wait(other);
    assert_eq!(header(&answer).fence_id.get(), 77);
    vm.end(false);
}

#[test]
fn unref_waits_for_jobs() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.context(2);
    vm.blob(1, 1, &[(FREE, 4096)]);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 2, 1));
    let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000)]);
    let job = vm.post(&request);
    // Another context does not use it.
    vm.ok(&resource_command(command::CTX_DETACH_RESOURCE, 2, 1));
    let detach = vm.post(&resource_command(command::CTX_DETACH_RESOURCE, 1, 1));
    let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
    assert!(vm.is_quiet(unref));
    assert!(vm.is_quiet(detach));
    // It is as good as gone.
    let again = resource_command(command::RESOURCE_UNREF, 0, 1);
    assert_eq!(vm.kind(&again), response::ERR_INVALID_RESOURCE_ID);
    let create = create_blob(0, 1, blob_mem::GUEST, PAGE, &[(FREE, 4096)]);
    assert_eq!(vm.kind(&create), response::ERR_INVALID_RESOURCE_ID);
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    for head in [job, detach, unref] {
        assert_eq!(kind(&vm.wait(head)), response::OK_NODATA);
    }
    vm.ok(&create);
    vm.end(false);
}

#[test]
fn attach_while_a_detach_waits() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000)]);
    let first = vm.post(&request);
    let detach = vm.post(&resource_command(command::CTX_DETACH_RESOURCE, 1, 1));
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 1));
    // A later job neither delays the detach nor goes without.
    let request = vm.submit(1, Some(1), &[spin(1, 8, 5, 10_000_000)]);
    let second = vm.post(&request);
    assert!(vm.is_quiet(detach));
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    assert_eq!(kind(&vm.wait(first)), response::OK_NODATA);
    assert_eq!(kind(&vm.wait(detach)), response::OK_NODATA);
    assert!(vm.is_quiet(second));
    vm.memory.write_obj(5u64, GuestAddress(FREE + 8)).unwrap();
    assert_eq!(kind(&vm.wait(second)), response::OK_NODATA);
    vm.end(false);
}

#[test]
fn detach_while_unref_waits() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000)]);
    let job = vm.post(&request);
    let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
    let detach = resource_command(command::CTX_DETACH_RESOURCE, 1, 1);
    assert_eq!(vm.kind(&detach), response::ERR_INVALID_RESOURCE_ID);
    assert!(vm.is_quiet(unref));
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    assert_eq!(kind(&vm.wait(job)), response::OK_NODATA);
    assert_eq!(kind(&vm.wait(unref)), response::OK_NODATA);
    vm.end(false);
}

#[test]
fn a_context_id_is_reused_at_once() {
    let mut vm = Vm::new(options());
    for _ in 0..20 {
        vm.context(1);
        vm.blob(1, 1, &[(FREE, 4096)]);
        let chase = operation(
            op::POINTER_CHASE,
            (1, 8),
            [(1, 0), (0, 0)],
            0,
            [u64::MAX, 0],
        );
        let request = vm.submit(1, Some(0), &[chase]);
        let job = vm.post(&request);
        let destroy = vm.post(&plain(command::CTX_DESTROY, 1));
        let create = vm.post(&ctx_create(1, CAPSET_ID));
        assert_eq!(kind(&vm.wait(job)), response::ERR_UNSPEC);
        assert_eq!(kind(&vm.wait(destroy)), response::OK_NODATA);
        assert_eq!(kind(&vm.wait(create)), response::OK_NODATA);
        vm.ok(&plain(command::CTX_DESTROY, 1));
        vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    }
    vm.end(false);
}

#[test]
fn destroying_a_context_ends_its_jobs() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.context(2);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let start = Instant::now();
    let mut heads = Vec::new();
    for ring in [None, Some(0), Some(1)] {
        for _ in 0..3 {
            let ops = [delay(10_000_000), fill(1, 0, 8, 1)];
            let request = vm.submit(1, ring, &ops);
            heads.push(vm.post(&request));
        }
    }
    let request = vm.submit(2, None, &[]);
    let other = vm.post(&request);
    vm.ok(&plain(command::CTX_DESTROY, 1));
    for head in heads {
        assert_eq!(kind(&vm.wait(head)), response::ERR_UNSPEC);
    }
    assert_eq!(kind(&vm.wait(other)), response::OK_NODATA);
    assert_eq!(vm.memory.read_obj::<u64>(GuestAddress(FREE)).unwrap(), 0);
    assert!(start.elapsed() < Duration::from_secs(5));
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    vm.end(false);
}

#[test]
fn a_stray_access_loses_the_context() {
    let mut vm = Vm::new(options());
    vm.context(1);
    vm.context(2);
    vm.blob(1, 1, &[(FREE, 4096)]);
    assert_eq!(vm.run(1, &[fill(1, 4096, 8, 1)]), response::ERR_UNSPEC);
    assert_eq!(vm.run(1, &[]), response::ERR_UNSPEC);
    // Not attached to context 2.
    assert_eq!(vm.run(2, &[fill(1, 0, 8, 1)]), response::ERR_UNSPEC);
    // A malformed job is only refused.
    vm.context(3);
    assert_eq!(
        vm.run(3, &[fill(1, 0, 7, 1)]),
        response::ERR_INVALID_PARAMETER
    );
    assert_eq!(vm.run(3, &[]), response::OK_NODATA);
    assert_eq!(vm.memory.read_obj::<u64>(GuestAddress(FREE)).unwrap(), 0);
    vm.end(false);
}

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
