// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Commands: their order, their statuses, and those that mean nothing.

use super::common::*;
use super::{with, with_limits, word};
use virtgpu_device::mirror::Limits;
use virtgpu_device::misbehave::adversary::Adversary;
use virtgpu_device::options::Options;
use virtgpu_protocol::compute::op;
use virtgpu_protocol::mirror::{self, status};
use virtgpu_protocol::virtio_gpu::{blob_mem, command, response};

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
