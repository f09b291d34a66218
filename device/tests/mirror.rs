// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The mirror queue, through a real vhost-user connection.

mod common;

use std::time::{Duration, Instant};

use common::*;
use virtgpu_device::mirror::Limits;
use virtgpu_device::misbehave::adversary::Adversary;
use virtgpu_device::options::Options;
use virtgpu_protocol::compute::{op, Op};
use virtgpu_protocol::mirror::{self, device_state, status, MirrorConfig};
use virtgpu_protocol::virtio_gpu::{blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

const PAGE: u64 = 4096;

fn word(vm: &Vm, at: u64) -> u64 {
    vm.memory.read_obj(GuestAddress(at)).unwrap()
}

fn with_limits(limits: Limits) -> Options {
    Options {
        mirror: Some(limits),
        ..options()
    }
}

/// The command with the 32-bit word at byte `at` changed.
fn with(mut command: Vec<u8>, at: usize, value: u32) -> Vec<u8> {
    command[at..at + 4].copy_from_slice(&value.to_le_bytes());
    command
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
fn maps_ahead_of_an_invalidation_are_counted() {
    let mut vm = Vm::mirrored(Options {
        adversary: Adversary {
            modes: vec!["slow:2000".parse().unwrap()],
            on: vec![mirror::command::MAP],
            count: 1,
            ..Adversary::default()
        },
        ..options()
    });
    for ctx in 1..=3 {
        vm.context(ctx);
        vm.space(ctx, ctx, 8 * PAGE);
    }
    vm.blob(1, 9, &[(FREE + 64 * PAGE, 8192)]);
    let ahead = |vm: &mut Vm| vm.stat(1, 9, FREE + 64 * PAGE).maps_ahead.get();
    assert_eq!(ahead(&mut vm), 0);
    let map = |space, page| mirror_map(space, page * PAGE, &[(FREE + page * PAGE, 4096, 3)]);
    // The first one keeps the others waiting.
    let maps = [(1, 0), (1, 1), (2, 2), (1, 3), (3, 4)];
    let heads = maps.map(|(space, page)| vm.post_command(&map(space, page), 4));
    let own = vm.post_command(&invalidate(1, 0, PAGE - 1), 0);
    let others = vm.post_command(&invalidate(3, 0, PAGE - 1), 0);
    for head in heads {
        assert_eq!(vm.wait_command(head).0, 4);
    }
    for head in [own, others] {
        assert_eq!(vm.wait_command(head).0, 0);
    }
    let stat = vm.stat(1, 9, FREE + 64 * PAGE);
    // Space 1's, before the INVALIDATE of space 3: the first may have been alone in the queue.
    let most = stat.maps_ahead.get();
    assert!((2..=3).contains(&most), "{most} MAPs");
    assert_ne!(stat.mirror_ring.get(), 0);
    // What is over is not counted again.
    vm.done(&invalidate(3, 0, u64::MAX));
    assert_eq!(ahead(&mut vm), most);
    vm.end(true);
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
fn resources() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    let mut create = |id, memory, size| vm.kind(&create_blob(1, id, memory, size, &[]));
    assert_eq!(create(1, blob_mem::GUEST, PAGE), response::OK_NODATA);
    assert_eq!(create(2, blob_mem::HOST3D_GUEST, PAGE), response::OK_NODATA);
    assert_eq!(
        create(1, blob_mem::GUEST, PAGE),
        response::ERR_INVALID_RESOURCE_ID
    );
    for size in [0, 1, PAGE + 1, 1 << 48, u64::MAX - 4095] {
        let answer = create(3, blob_mem::GUEST, size);
        assert_eq!(answer, response::ERR_INVALID_PARAMETER, "{size}");
    }
    // It cannot be shown in the window.
    assert_eq!(vm.kind(&map_blob(1, 0)), response::ERR_INVALID_PARAMETER);
    // Without a space, nothing can be touched.
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 1));
    assert_eq!(vm.run(1, &[fill(1, 0, 8, 1)]), response::ERR_UNSPEC);
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
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
    let of = |vm: &mut Vm, resource| {
        let stat = vm.stat_of(resource, 1, 2, FREE + 8 * PAGE);
        let counts = [stat.space_pages, stat.space_maps, stat.space_invalidates];
        counts.map(|count| count.get())
    };
    vm.space(1, 4, PAGE);
    assert_eq!(of(&mut vm, 1), [2, 1, 0]);
    vm.done(&invalidate(1, PAGE, 2 * PAGE - 1));
    assert_eq!(of(&mut vm, 1), [1, 1, 1]);
    vm.done(&invalidate(1, 0, u64::MAX));
    let stat = vm.stat(1, 2, FREE + 8 * PAGE);
    assert_eq!((stat.maps.get(), stat.invalidates.get()), (1, 2));
    assert_eq!((stat.spaces.get(), stat.mapped_pages.get()), (2, 0));
    assert_eq!(of(&mut vm, 1), [0, 1, 2]);
    // A space in which nothing happened, a resource without one, and none at all.
    for resource in [4, 2, 0, 99] {
        assert_eq!(of(&mut vm, resource), [0; 3]);
    }
    vm.done(&space_destroy(4));
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 4));
    vm.context(2);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 2, 1));
    assert_eq!(vm.run(2, &job), response::ERR_UNSPEC);
    vm.done(&space_destroy(1));
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    vm.end(false);
}

/// Every operation computes the same on mirrored pages in any order as on a plain blob.
#[test]
fn operations() {
    const SIZE: u64 = 8 * PAGE;
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, SIZE);
    vm.space(1, 2, SIZE);
    let pages = |base: u64| (0..8).map(move |i| (base + PAGE * (i * 5 % 8), 4096));
    let (first, second) = (FREE, FREE + (1 << 20));
    for (space, base) in [(1, first), (2, second)] {
        let pieces: Vec<_> = pages(base).collect();
        assert_eq!(vm.map(space, 0, &pieces), status::OK);
    }
    let plain = [FREE + (2 << 20), FREE + (3 << 20)];
    vm.blob(1, 3, &[(plain[0], SIZE as u32)]);
    vm.blob(1, 4, &[(plain[1], SIZE as u32)]);
    let ops: Vec<fn(u32, u32) -> Op> = vec![
        |a, _| fill(a, 8, 20000, 0x0102_0304_0506_0708),
        |a, b| operation(op::COPY, (b, 3), [(a, 4090), (0, 0)], 9001, [0; 2]),
        |a, b| operation(op::CRC32C, (b, 5), [(a, 1), (0, 0)], 30000, [0; 2]),
        |a, _| operation(op::ADD_U32, (a, 4093), [(0, 0); 2], 8200, [7, 0]),
        |a, b| {
            let half = u64::from(0.5f32.to_bits());
            operation(op::SAXPY_F32, (b, 4), [(a, 2), (0, 0)], 8200, [half, 0])
        },
        |a, b| {
            let (m, n, k) = (20, 30, 40);
            let sources = [(a, 100), (a, 4000)];
            operation(
                op::GEMM_F32,
                (b, 4080),
                sources,
                m * n * 4,
                [m | (n << 32), k],
            )
        },
        |a, _| operation(op::ATOMIC_ADD_U64, (a, 8184), [(0, 0); 2], 80, [3, 0]),
        |a, b| operation(op::STRIDE_READ, (b, 4093), [(a, 0), (0, 0)], SIZE, [97, 0]),
        |a, b| operation(op::POINTER_CHASE, (b, 0), [(a, 16384), (0, 0)], 0, [2, 0]),
        |a, _| spin(a, 16384, 24576, 1_000_000),
    ];
    let mut random = 1u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
        (random >> 56) as u8 & 0x7f
    })
    .take(SIZE as usize)
    .collect();
    for (index, op) in ops.iter().enumerate() {
        let mut bytes = bytes.clone();
        bytes[16384..16392].copy_from_slice(&24576u64.to_le_bytes());
        bytes[24576..24584].copy_from_slice(&8u64.to_le_bytes());
        for base in [first, second] {
            for (part, (at, _)) in bytes.chunks(4096).zip(pages(base)) {
                vm.memory.write_slice(part, GuestAddress(at)).unwrap();
            }
        }
        for base in plain {
            vm.memory.write_slice(&bytes, GuestAddress(base)).unwrap();
        }
        assert_eq!(vm.run(1, &[op(1, 2)]), response::OK_NODATA, "{index}");
        assert_eq!(vm.run(1, &[op(3, 4)]), response::OK_NODATA, "{index}");
        for (base, plain) in [(first, plain[0]), (second, plain[1])] {
            for ((at, _), page) in pages(base).zip(0..) {
                let (mut got, mut want) = ([0; 4096], [0; 4096]);
                vm.memory.read_slice(&mut got, GuestAddress(at)).unwrap();
                let at = GuestAddress(plain + page * PAGE);
                vm.memory.read_slice(&mut want, at).unwrap();
                assert!(got == want, "operation {index}, page {page}");
            }
        }
    }
    vm.end(false);
}

#[test]
fn malformed_commands() {
    let mut vm = Vm::mirrored(with_limits(Limits {
        max_entries: 8,
        ..Limits::default()
    }));
    vm.context(1);
    vm.space(1, 1, 16 * PAGE);
    vm.ok(&create_blob(1, 2, blob_mem::GUEST, 16 * PAGE, &[]));
    let create = || space_create(2, 2, 16 * PAGE, 3);
    let map = |pieces: &[(u64, u32, u32)]| mirror_map(1, 0, pieces);
    let good = || map(&[(FREE, 8192, 3), (FREE + 8192, 4096, 1)]);
    let page = |count| vec![(FREE, 4096, 3); count];
    let mut longer = good();
    longer.extend([0; 16]);
    let mut no_entries = good();
    no_entries.truncate(40);
    let commands = [
        ("flags of the header", with(create(), 4, 1)),
        ("padding of the header", with(create(), 12, 1)),
        ("space 0", space_create(0, 2, 16 * PAGE, 3)),
        ("space that exists", space_create(1, 2, 16 * PAGE, 3)),
        ("resource with a space", space_create(2, 1, 16 * PAGE, 3)),
        ("kind 0", with(create(), 16, 0)),
        ("kind context", with(create(), 16, 2)),
        ("kind 3", with(create(), 16, 3)),
        ("no resource", with(create(), 20, 9)),
        ("size 0", space_create(2, 2, 0, 3)),
        ("smaller size", space_create(2, 2, 15 * PAGE, 3)),
        ("larger size", space_create(2, 2, 17 * PAGE, 3)),
        ("no access", with(create(), 32, 0)),
        ("access write", with(create(), 32, 2)),
        ("access atomic", with(create(), 32, 7)),
        ("faults", with(create(), 36, 1)),
        ("flags", with(create(), 36, 2)),
        ("short create", create()[..39].to_vec()),
        ("long create", [create(), vec![0]].concat()),
        ("unknown", with(create(), 0, 0x405)),
        ("type 0", with(create(), 0, 0)),
        ("short header", create()[..15].to_vec()),
        ("empty", vec![0]),
        ("map flags", with(good(), 4, 1)),
        ("map padding", with(good(), 12, 1)),
        ("map space 0", with(good(), 8, 0)),
        ("map second padding", with(good(), 36, 1)),
        ("fewer entries", with(good(), 32, 1)),
        ("more entries", with(good(), 32, 3)),
        ("all entries", with(good(), 32, u32::MAX)),
        ("0 entries", with(no_entries, 32, 0)),
        ("entry too many", longer),
        ("short entry", good()[..71].to_vec()),
        ("too many entries", map(&page(9))),
        ("start", with(good(), 16, 1)),
        ("start at the end", with(good(), 16, 16 * 4096)),
        ("start before the end", with(good(), 16, 14 * 4096)),
        ("start far away", with(good(), 20, u32::MAX)),
        ("sum", with(good(), 24, 4 * 4096)),
        ("length", with(good(), 24, 3 * 4096 + 1)),
        ("length far away", with(good(), 28, 1)),
        ("unaligned address", map(&[(FREE + 8, 4096, 3)])),
        ("unaligned length", map(&[(FREE, 4095, 3), (FREE, 1, 3)])),
        ("empty entry", map(&[(FREE, 4096, 3), (FREE, 0, 3)])),
        ("entry without access", map(&[(FREE, 4096, 0)])),
        ("entry write only", map(&[(FREE, 4096, 2)])),
        ("entry atomic", map(&[(FREE, 4096, 7)])),
        ("not RAM", map(&[(FREE, 4096, 3), (RAM, 4096, 3)])),
        ("partly RAM", map(&[(RAM - PAGE, 8192, 3)])),
        ("nowhere", map(&[(u64::MAX - 4095, 4096, 3)])),
        ("around", map(&[(u64::MAX - 4095, 8192, 3)])),
    ];
    for (what, command) in &commands {
        assert_eq!(vm.status(command), status::INVALID, "{what}");
    }
    assert_eq!(vm.status(&with(good(), 8, 7)), status::NO_SUCH_SPACE);
    // Nothing of that has had an effect.
    vm.blob(1, 3, &[(FREE + (1 << 20), 4096)]);
    let stat = vm.stat(1, 3, FREE + (1 << 20));
    assert_eq!((stat.spaces.get(), stat.mapped_pages.get()), (1, 0));
    assert_eq!(vm.status(&good()), status::OK);
    assert_eq!(vm.status(&map(&page(8))), status::OK);
    assert_eq!(vm.status(&create()), status::OK);
    vm.end(false);
}

#[test]
fn malformed_commands_without_a_status_have_no_effect() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, 2 * PAGE);
    assert_eq!(vm.map(1, 0, &[(FREE, 8192)]), status::OK);
    let whole = || invalidate(1, 0, u64::MAX);
    let resolve = mirror::Header::new(mirror::command::FAULT_RESOLVE, 1);
    for command in [
        with(whole(), 4, 1),
        with(whole(), 12, 1),
        with(whole(), 8, 0),
        whole()[..31].to_vec(),
        [whole(), vec![0]].concat(),
        invalidate(1, 1, 0),
        invalidate(7, 0, u64::MAX),
        with(space_destroy(1), 4, 1),
        with(space_destroy(1), 12, 1),
        space_destroy(1)[..15].to_vec(),
        [space_destroy(1), vec![0]].concat(),
        space_destroy(7),
        zerocopy::IntoBytes::as_bytes(&resolve).to_vec(),
        [zerocopy::IntoBytes::as_bytes(&resolve), &[9; 16]].concat(),
    ] {
        vm.done(&command);
        assert_eq!(vm.run(1, &[fill(1, 0, 8192, 1)]), response::OK_NODATA);
    }
    // A status is written where there is room for one, and no further.
    let head = vm.post_command(&space_create(1, 1, PAGE, 3), 2);
    assert_eq!(vm.wait_command(head).0, 2);
    let head = vm.post_command(&space_create(1, 1, PAGE, 3), 0);
    assert_eq!(vm.wait_command(head).0, 0);
    let head = vm.post_command(&invalidate(1, 0, 0), 64);
    assert_eq!(vm.wait_command(head).0, 0);
    vm.end(false);
}

/// Whether a new context can do this with resource 1.
fn can(vm: &mut Vm, job: Op) -> bool {
    let ctx = 100 + vm.fence as u32;
    vm.context(ctx);
    for id in 1..=2 {
        vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, ctx, id));
    }
    vm.run(ctx, &[job]) == response::OK_NODATA
}

fn can_write(vm: &mut Vm, offset: u64, length: u64) -> bool {
    can(vm, fill(1, offset, length, 9))
}

fn can_read(vm: &mut Vm, offset: u64, length: u64) -> bool {
    let read = operation(op::CRC32C, (2, 0), [(1, offset), (0, 0)], length, [0; 2]);
    can(vm, read)
}

#[test]
fn rights() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, 8 * PAGE);
    vm.blob(1, 2, &[(FREE + (1 << 20), 4096)]);
    let entries = [(FREE, 4096, 1), (FREE + PAGE, 4096, 3)];
    assert_eq!(vm.status(&mirror_map(1, PAGE, &entries)), status::OK);
    assert!(!can_read(&mut vm, 0, 1));
    assert!(!can_read(&mut vm, PAGE - 1, 2));
    assert!(can_read(&mut vm, PAGE, 2 * PAGE));
    assert!(!can_write(&mut vm, PAGE, 8));
    assert!(can_write(&mut vm, 2 * PAGE, PAGE));
    assert!(!can_read(&mut vm, 3 * PAGE - 1, 2));
    let add = operation(op::ATOMIC_ADD_U64, (1, PAGE), [(0, 0); 2], 8, [1, 0]);
    assert!(!can(&mut vm, add));
    let add = operation(op::ATOMIC_ADD_U64, (1, 2 * PAGE), [(0, 0); 2], 8, [1, 0]);
    assert!(can(&mut vm, add));
    assert_eq!(word(&vm, FREE), 0);
    assert_eq!(word(&vm, FREE + PAGE), 10);
    // More rights for the same page.
    assert_eq!(vm.map(1, PAGE, &[(FREE, 4096)]), status::OK);
    assert!(can_write(&mut vm, PAGE, 2 * PAGE));
    let stat = vm.stat(1, 2, FREE + (1 << 20));
    assert_eq!((stat.mapped_pages.get(), stat.maps.get()), (2, 2));
    // A space has rights too.
    vm.ok(&create_blob(1, 3, blob_mem::GUEST, PAGE, &[]));
    assert_eq!(vm.status(&space_create(3, 3, PAGE, 1)), status::OK);
    assert_eq!(vm.map(3, 0, &[(FREE, 4096)]), status::INVALID);
    let entry = [(FREE, 4096, 1)];
    assert_eq!(vm.status(&mirror_map(3, 0, &entry)), status::OK);
    vm.end(false);
}

#[test]
fn invalidate_takes_what_it_names() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, 8 * PAGE);
    vm.blob(1, 2, &[(FREE + (1 << 20), 4096)]);
    assert_eq!(vm.map(1, 0, &[(FREE, 8 * 4096)]), status::OK);
    vm.done(&invalidate(1, 2 * PAGE, 4 * PAGE - 1));
    assert!(can_write(&mut vm, 0, 2 * PAGE));
    assert!(!can_write(&mut vm, 2 * PAGE, 8));
    assert!(!can_write(&mut vm, 4 * PAGE - 8, 8));
    assert!(can_write(&mut vm, 4 * PAGE, 4 * PAGE));
    // Again, wider, and a byte of a page.
    vm.done(&invalidate(1, 2 * PAGE, 4 * PAGE - 1));
    vm.done(&invalidate(1, 6 * PAGE + 5, 6 * PAGE + 5));
    assert!(can_write(&mut vm, 4 * PAGE, 2 * PAGE));
    assert!(!can_write(&mut vm, 6 * PAGE, 8));
    assert!(can_write(&mut vm, 7 * PAGE, PAGE));
    // What is mapped anew is there.
    assert_eq!(vm.map(1, 3 * PAGE, &[(FREE + 32 * PAGE, 4096)]), status::OK);
    assert!(can_write(&mut vm, 3 * PAGE, 8));
    assert_eq!(word(&vm, FREE + 32 * PAGE), 9);
    vm.done(&invalidate(1, 7 * PAGE, u64::MAX));
    vm.done(&invalidate(1, 100 * PAGE, u64::MAX));
    assert!(!can_write(&mut vm, 7 * PAGE, 8));
    assert!(can_write(&mut vm, 0, 8));
    vm.done(&invalidate(1, 0, u64::MAX));
    assert!(!can_read(&mut vm, 0, 1));
    vm.end(false);
}

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

#[test]
fn sparse() {
    const SIZE: u64 = 64 << 30;
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, SIZE);
    vm.blob(1, 2, &[(FREE + (1 << 20), 4096)]);
    for (index, offset) in [0, (1 << 30) - PAGE, 17 << 30, SIZE - PAGE]
        .iter()
        .enumerate()
    {
        let page = FREE + PAGE * index as u64;
        assert_eq!(vm.map(1, *offset, &[(page, 4096)]), status::OK);
        assert!(can_write(&mut vm, *offset, PAGE));
        assert_eq!(word(&vm, page), 9);
    }
    assert!(!can_write(&mut vm, 1 << 30, 8));
    assert!(!can_read(&mut vm, 40 << 30, 1));
    // Over the border of a window.
    assert_eq!(vm.map(1, (3 << 30) - PAGE, &[(FREE, 8192)]), status::OK);
    assert!(can_write(&mut vm, (3 << 30) - 8, 16));
    let stat = vm.stat(1, 2, FREE + (1 << 20));
    assert_eq!(stat.mapped_pages.get(), 6);
    vm.done(&invalidate(1, 0, u64::MAX));
    let stat = vm.stat(1, 2, FREE + (1 << 20));
    assert_eq!(stat.mapped_pages.get(), 0);
    assert!(!can_write(&mut vm, SIZE - 8, 8));
    vm.end(false);
}

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

/// Every other page of a space, from page `from` on: each INVALIDATE splits a run.
fn holes(space: u32, from: u64) -> impl Iterator<Item = Vec<u8>> {
    let pages = (from..).step_by(2);
    pages.map(move |page| invalidate(space, page * PAGE, (page + 1) * PAGE - 1))
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

/// An event that waits for a buffer is forgotten when nobody should hear of the space any more.
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
fn a_hole_fails_the_job_and_nobody_else() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.context(2);
    vm.space(1, 1, 4 * PAGE);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 2, 1));
    vm.blob(2, 2, &[(FREE + (1 << 20), 4096)]);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
    assert_eq!(vm.map(1, 2 * PAGE, &[(FREE + PAGE, 4096)]), status::OK);
    let request = vm.submit(2, Some(0), &[spin(1, 0, 5, 10_000_000), fill(2, 0, 8, 3)]);
    let other = vm.post(&request);
    let job = [
        fill(1, 2 * PAGE, 8, 1),
        fill(1, PAGE - 8, 16, 2),
        fill(1, 0, 8, 3),
    ];
    assert_eq!(vm.run(1, &job), response::ERR_UNSPEC);
    // Up to the hole.
    assert_eq!(word(&vm, FREE + PAGE), 1);
    assert_eq!(word(&vm, FREE), 0);
    assert_eq!(vm.run(1, &[]), response::ERR_UNSPEC);
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    assert_eq!(kind(&vm.wait(other)), response::OK_NODATA);
    assert_eq!(word(&vm, FREE + (1 << 20)), 3);
    vm.end(false);
}

/// An acknowledgement waits for nothing, and a job fails at its next access.
#[test]
fn invalidate_meets_a_job() {
    let mut vm = Vm::mirrored(options());
    vm.context(9);
    vm.blob(9, 9, &[(FREE + (1 << 20), 4096)]);
    let jobs: Vec<Op> = vec![
        spin(1, 0, 5, 10_000_000),
        operation(
            op::POINTER_CHASE,
            (9, 0),
            [(1, 8), (0, 0)],
            0,
            [u64::MAX, 0],
        ),
        operation(
            op::ATOMIC_ADD_U64,
            (1, 16),
            [(0, 0); 2],
            u64::MAX - 7,
            [1, 0],
        ),
    ];
    for (ctx, job) in (1..).zip(jobs) {
        vm.context(ctx);
        vm.space(ctx, 1, PAGE);
        vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, ctx, 9));
        vm.memory
            .write_slice(&[0; 4096], GuestAddress(FREE))
            .unwrap();
        vm.memory.write_obj(8u64, GuestAddress(FREE + 8)).unwrap();
        assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
        let request = vm.submit(ctx, Some(0), &[fill(1, 24, 8, 1), job]);
        let start = Instant::now();
        let head = vm.post(&request);
        while word(&vm, FREE + 24) == 0 {
            assert!(start.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        // The control queue waits meanwhile.
        let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
        vm.done(&invalidate(1, 0, PAGE - 1));
        let after: Vec<u64> = (0..4).map(|i| word(&vm, FREE + 8 * i)).collect();
        assert_eq!(kind(&vm.wait(head)), response::ERR_UNSPEC);
        let now: Vec<u64> = (0..4).map(|i| word(&vm, FREE + 8 * i)).collect();
        assert_eq!(after, now);
        assert_eq!(kind(&vm.wait(unref)), response::OK_NODATA);
        assert!(start.elapsed() < Duration::from_secs(9));
    }
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

/// Commands are carried out in order, many at a time.
#[test]
fn order() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, 64 * PAGE);
    for round in 0..50 {
        let page = FREE + PAGE * round;
        let entries = [(page, 4096, 3)];
        let mut heads = Vec::new();
        for at in 0..10 {
            heads.push(vm.post_command(&mirror_map(1, at * PAGE, &entries), 4));
            heads.push(vm.post_command(&invalidate(1, at * PAGE, (at + 1) * PAGE - 1), 0));
        }
        heads.push(vm.post_command(&mirror_map(1, 0, &entries), 4));
        for head in &heads {
            vm.wait_command(*head);
        }
        let order = &vm.mirror.as_ref().unwrap().0.order;
        assert_eq!(order[order.len() - heads.len()..], heads);
        assert_eq!(vm.run(1, &[fill(1, 0, 4096, round)]), response::OK_NODATA);
        assert_eq!(word(&vm, page), round);
    }
    vm.end(false);
}

#[test]
fn granularity() {
    let mut vm = Vm::mirrored(with_limits(Limits {
        granularity: 65536,
        ..Limits::default()
    }));
    vm.context(1);
    let create = create_blob(1, 1, blob_mem::GUEST, PAGE, &[]);
    assert_eq!(vm.kind(&create), response::ERR_INVALID_PARAMETER);
    vm.space(1, 1, 2 << 16);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::INVALID);
    assert_eq!(vm.map(1, 0, &[(FREE + PAGE, 65536)]), status::INVALID);
    assert_eq!(vm.map(1, PAGE, &[(FREE, 65536)]), status::INVALID);
    assert_eq!(vm.map(1, 65536, &[(FREE, 65536)]), status::OK);
    vm.end(false);
}

/// What is in huge pages is mapped in huge pages.
#[test]
fn huge_pages() {
    const HUGE: u64 = 2 << 20;
    let Some(mut vm) = Vm::huge(options()) else {
        println!("skipped: there are no 4 free huge pages of 2 MiB (vm.nr_hugepages)");
        return;
    };
    let config = vm.config(32, size_of::<MirrorConfig>());
    let config = MirrorConfig::ref_from_bytes(&config).unwrap();
    assert_eq!(u64::from(config.granularity.get()), HUGE);
    vm.context(1);
    let create = create_blob(1, 1, blob_mem::GUEST, PAGE, &[]);
    assert_eq!(vm.kind(&create), response::ERR_INVALID_PARAMETER);
    vm.space(1, 1, 2 * HUGE);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::INVALID);
    assert_eq!(vm.map(1, HUGE, &[(FREE, HUGE as u32)]), status::OK);
    let job = [fill(1, 2 * HUGE - 8, 8, 5)];
    assert_eq!(vm.run(1, &job), response::OK_NODATA);
    assert_eq!(word(&vm, FREE + HUGE - 8), 5);
    vm.done(&invalidate(1, HUGE, 2 * HUGE - 1));
    assert_eq!(vm.run(1, &job), response::ERR_UNSPEC);
    vm.end(false);
}

/// Pages of a marked resource keep their contents until they are taken.
#[test]
fn hammer() {
    let mut vm = Vm::mirrored(Options {
        hammer: true,
        ..options()
    });
    vm.context(1);
    for (id, mark) in [(1, 1u64 << 63), (2, 0)] {
        let mut create = create_blob(1, id, blob_mem::HOST3D_GUEST, 4 * PAGE, &[]);
        create[40..48].copy_from_slice(&mark.to_le_bytes());
        vm.ok(&create);
        assert_eq!(vm.status(&space_create(id, id, 4 * PAGE, 3)), status::OK);
    }
    let rewritten = |vm: &Vm, at: u64, value: u64, end: Duration| {
        vm.memory.write_obj(!value, GuestAddress(at)).unwrap();
        let start = Instant::now();
        while start.elapsed() < end {
            if word(vm, at) == value {
                return true;
            }
            std::thread::yield_now();
        }
        false
    };
    let short = Duration::from_millis(30);
    for round in 1..4 {
        for page in 0..4 {
            let at = GuestAddress(FREE + page * PAGE);
            vm.memory.write_obj(round * 10 + page, at).unwrap();
        }
        let entries = [(FREE, 8192, 3), (FREE + 2 * PAGE, 4096, 1)];
        assert_eq!(vm.status(&mirror_map(1, 0, &entries)), status::OK);
        assert_eq!(vm.map(2, 0, &[(FREE + 3 * PAGE, 4096)]), status::OK);
        for page in 0..2 {
            assert!(rewritten(
                &vm,
                FREE + page * PAGE,
                round * 10 + page,
                PATIENCE
            ));
        }
        // Read-only, and not marked.
        assert!(!rewritten(&vm, FREE + 2 * PAGE, round * 10 + 2, short));
        assert!(!rewritten(&vm, FREE + 3 * PAGE, round * 10 + 3, short));
        vm.done(&invalidate(1, 0, PAGE - 1));
        assert!(!rewritten(&vm, FREE, round * 10, short));
        assert!(rewritten(&vm, FREE + PAGE, round * 10 + 1, PATIENCE));
        vm.done(&invalidate(1, 0, u64::MAX));
        assert!(!rewritten(&vm, FREE + PAGE, round * 10 + 1, short));
        vm.done(&invalidate(2, 0, u64::MAX));
    }
    vm.end(false);
}

/// What was mapped costs nothing any more: not the host's page tables either.
#[test]
fn page_tables_are_given_back() {
    const WINDOWS: u64 = 512;
    const HUGE: u64 = 2 << 20;
    let mut vm = Vm::with_process(env!("CARGO_BIN_EXE_virtgpu-device"), &[], true);
    vm.context(1);
    vm.space(1, 1, WINDOWS * HUGE);
    // In between, so that not all of it is one gap.
    for at in [PAGE, WINDOWS * HUGE - PAGE] {
        assert_eq!(vm.map(1, at, &[(FREE, 4096)]), status::OK);
        assert_eq!(vm.run(1, &[fill(1, at, 8, 1)]), response::OK_NODATA);
    }
    let before = vm.status_of_process("VmPTE:");
    for at in (0..WINDOWS).map(|window| window * HUGE + 8 * PAGE) {
        assert_eq!(vm.map(1, at, &[(FREE, 4096)]), status::OK);
        assert_eq!(vm.run(1, &[fill(1, at, 8, 1)]), response::OK_NODATA);
        vm.done(&invalidate(1, at, at + PAGE - 1));
    }
    let growth = vm.status_of_process("VmPTE:").saturating_sub(before);
    assert!(growth <= 64 << 10, "{growth} bytes of page tables");
    vm.end(false);
}
