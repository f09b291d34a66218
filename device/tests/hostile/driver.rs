// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Drivers that send nonsense: random requests, commands, descriptors and lives.

use std::time::{Duration, Instant};

use super::common::*;
use super::Random;
use virtgpu_protocol::compute::op;
use virtgpu_protocol::mirror::status;
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

#[test]
fn random_requests() {
    let commands = (0x100..=0x10d).chain(0x200..=0x209).chain([0x300, 0]);
    let commands: Vec<u32> = commands.collect();
    let mut random = Random(1);
    let mut vm = Vm::new(options());
    for _ in 0..3000 {
        let kind = commands[random.below(commands.len() as u64) as usize];
        let mut request = vec![0; random.below(200) as usize];
        for word in request.chunks_mut(4) {
            // Mostly small numbers, which mean something.
            let value = match random.below(8) {
                0 => random.next() as u32,
                1 => u32::MAX,
                2 => 4096,
                _ => random.below(5) as u32,
            };
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
        if request.len() >= 8 {
            request[..4].copy_from_slice(&kind.to_le_bytes());
            // No fences: a fence on a ring would wait for a job that spins.
            request[4] &= 2;
        }
        let response = vm.ask(&request);
        assert!(response.len() >= 24 && (0x1100..0x1206).contains(&header(&response).kind.get()));
    }
    vm.stop();
    vm.start();
    // It works still.
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    assert_eq!(vm.run(1, &[fill(1, 0, 4096, 1)]), response::OK_NODATA);
    vm.end(false);
}

#[test]
fn random_descriptors() {
    let mut random = Random(2);
    let mut vm = Vm::new(options());
    for round in 0..200 {
        let mut table = vec![0; 4096];
        for descriptor in table.chunks_exact_mut(16) {
            let addr = match random.below(4) {
                0 => random.next(),
                1 => RAM - random.below(64),
                _ => FREE + random.below(1 << 20),
            };
            let length = match random.below(4) {
                0 => random.next() as u32,
                _ => random.below(200) as u32,
            };
            descriptor[..8].copy_from_slice(&addr.to_le_bytes());
            descriptor[8..12].copy_from_slice(&length.to_le_bytes());
            descriptor[12] = random.below(8) as u8;
            descriptor[14] = random.below(70) as u8;
        }
        vm.memory.write_slice(&table, GuestAddress(0x1000)).unwrap();
        for _ in 0..8 {
            vm.make_available(random.below(if round % 2 == 0 { 64 } else { 1 << 16 }) as u16);
        }
        if round % 20 == 0 {
            // An index from nowhere.
            vm.memory
                .write_obj(random.next() as u16, GuestAddress(0x2002))
                .unwrap();
        }
        vm.stop();
        vm.start();
    }
    vm.context(1);
    vm.end(false);
}

/// The same on the mirror queue, which has to go on.
#[test]
fn random_commands() {
    let mut random = Random(3);
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, 16 * PAGE);
    for _ in 0..4000 {
        let mut command = vec![0; random.below(120) as usize + 1];
        for word in command.chunks_mut(4) {
            let value = match random.below(8) {
                0 => random.next() as u32,
                1 => u32::MAX,
                2 | 3 => 4096 * random.below(20) as u32,
                4 => FREE as u32,
                _ => random.below(4) as u32,
            };
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
        if command.len() >= 16 {
            let kind = 0x400 + random.below(6) as u32;
            command[..4].copy_from_slice(&kind.to_le_bytes());
            if random.below(8) != 0 {
                command[4..8].fill(0);
                command[12..16].fill(0);
            }
        }
        let room = random.below(3) as usize * 4;
        let head = vm.post_command(&command, room);
        let (used, bytes) = vm.wait_command(head);
        assert!(used == 0 || used == 4 && bytes[0] <= 4 && bytes[1..] == [0; 3]);
    }
    vm.stop();
    vm.start();
    vm.context(1);
    vm.space(1, 1, PAGE);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
    assert_eq!(vm.run(1, &[fill(1, 0, 4096, 1)]), response::OK_NODATA);
    vm.end(false);
}

#[test]
fn random_descriptors_of_the_mirror_queues() {
    let mut random = Random(4);
    let mut vm = Vm::mirrored(options());
    for round in 0..100 {
        let mut table = vec![0; 1024];
        for descriptor in table.chunks_exact_mut(16) {
            let addr = match random.below(4) {
                0 => random.next(),
                1 => RAM - random.below(64),
                _ => FREE + random.below(1 << 20),
            };
            let length = match random.below(4) {
                0 => random.next() as u32,
                _ => random.below(200) as u32,
            };
            descriptor[..8].copy_from_slice(&addr.to_le_bytes());
            descriptor[8..12].copy_from_slice(&length.to_le_bytes());
            descriptor[12] = random.below(8) as u8;
            descriptor[14] = random.below(70) as u8;
        }
        let range = if round % 2 == 0 { 64 } else { 1 << 16 };
        let memory = vm.memory.clone();
        let (commands, events) = vm.mirror.as_mut().unwrap();
        for ring in [commands, events] {
            let at = GuestAddress(ring.layout.descriptors);
            memory.write_slice(&table, at).unwrap();
            for _ in 0..8 {
                ring.make_available(random.below(range) as u16);
            }
            if round % 20 == 0 {
                // An index from nowhere.
                let at = GuestAddress(ring.layout.avail + 2);
                memory.write_obj(random.next() as u16, at).unwrap();
            }
        }
        vm.stop();
        vm.start();
    }
    vm.context(1);
    vm.space(1, 1, PAGE);
    vm.end(false);
}

/// Nothing that a job does keeps a context: not a product either whose sums have no terms.
#[test]
fn products_without_depth() {
    let mut vm = Vm::new(options());
    vm.context(1);
    // 64 GiB, again and again the same 32 MiB.
    vm.blob(1, 1, &[(FREE, 32 << 20); 2048]);
    let side = 1 << 17;
    let gemm = operation(
        op::GEMM_F32,
        (1, 0),
        [(1, 0), (1, 0)],
        side * side * 4,
        [side | (side << 32), 0],
    );
    vm.memory.write_obj(1u64, GuestAddress(FREE)).unwrap();
    let begins = |vm: &Vm| {
        let start = Instant::now();
        while vm.memory.read_obj::<u64>(GuestAddress(FREE)).unwrap() != 0 {
            assert!(start.elapsed() < PATIENCE);
        }
    };
    let request = vm.submit(1, None, &[gemm]);
    let job = vm.post(&request);
    begins(&vm);
    let start = Instant::now();
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(kind(&vm.wait(job)), response::ERR_UNSPEC);
    vm.context(1);
    vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, 1, 1));
    vm.memory.write_obj(1u64, GuestAddress(FREE)).unwrap();
    let request = vm.submit(1, None, &[gemm]);
    vm.post(&request);
    begins(&vm);
    let start = Instant::now();
    vm.stop();
    assert!(start.elapsed() < Duration::from_secs(2));
    vm.finish(false);
}

/// A head that the device has is not taken again, so that it keeps no more than the ring holds.
#[test]
fn one_head_many_times() {
    let mut vm = Vm::new(options());
    vm.context(1);
    let request = vm.submit(1, Some(0), &[delay(120_000_000)]);
    let job = vm.post(&request);
    let mut fenced = wire::Header::new(command::GET_DISPLAY_INFO, 1);
    fenced.flags = (wire::FLAG_FENCE | wire::FLAG_INFO_RING_IDX).into();
    fenced.fence_id = vm.fence.into();
    vm.fence += 1;
    let waiting = vm.post(fenced.as_bytes());
    for round in 0..2000 {
        vm.make_available(waiting);
        if round % 32 == 0 {
            // All of them have been seen then.
            vm.ask(&plain(command::GET_DISPLAY_INFO, 0));
        }
    }
    vm.ask(&plain(command::GET_DISPLAY_INFO, 0));
    assert!(vm.is_quiet(waiting));
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert_eq!(kind(&vm.wait(job)), response::ERR_UNSPEC);
    // A last response, behind all that the ring of this number has.
    vm.context(1);
    let request = vm.submit(1, Some(0), &[]);
    assert_eq!(vm.kind(&request), response::OK_NODATA);
    assert_eq!(vm.control.times_back(waiting), 1);
    // It is taken again when it has come back.
    vm.wait(waiting);
    vm.make_available(waiting);
    vm.wait(waiting);
    assert_eq!(vm.control.times_back(waiting), 2);
    vm.end(false);
}

/// Lives and deaths of everything in any order, without waiting for responses. What must not happen
/// meanwhile is what the log is checked for.
#[test]
fn random_lives() {
    for seed in 1..6 {
        let mut random = Random(seed * 7919);
        let mut vm = Vm::mirrored(options());
        for _ in 0..2500 {
            let ctx = random.below(3) as u32 + 1;
            let id = random.below(5) as u32 + 1;
            let ring = [None, Some(0), Some(1)][random.below(3) as usize];
            let at = FREE + PAGE * random.below(16);
            let space = random.below(3) as u32 + 1;
            let page = PAGE * random.below(4);
            let command = match random.below(16) {
                0 => Some(space_create(space, id, 4 * PAGE, 3)),
                1 => Some(space_destroy(space)),
                2 | 3 => Some(mirror_map(space, page, &[(at, 4096, 3)])),
                4 => Some(mirror_map(space, 0, &[(at, 4096, 3), (at + PAGE, 8192, 1)])),
                5 => Some(invalidate(space, page, page + PAGE * random.below(4))),
                _ => None,
            };
            if let Some(command) = command {
                let has_status = [0, 2].contains(&(command[0] & 3));
                vm.post_command(&command, if has_status { 4 } else { 0 });
                continue;
            }
            let request = match random.below(18) {
                16 | 17 => create_blob(0, id, blob_mem::GUEST, 4 * PAGE, &[]),
                0 => ctx_create(ctx, 29),
                1 if random.below(3) == 0 => plain(command::CTX_DESTROY, ctx),
                2 => create_blob(
                    0,
                    id,
                    blob_mem::GUEST,
                    PAGE,
                    &[(at, 2048), (at + 100, 2048)],
                ),
                3 => create_blob(ctx, id, blob_mem::HOST3D, PAGE, &[]),
                4 => resource_command(command::RESOURCE_UNREF, 0, id),
                5 | 6 => resource_command(command::CTX_ATTACH_RESOURCE, ctx, id),
                7 => resource_command(command::CTX_DETACH_RESOURCE, ctx, id),
                8 => map_blob(id, PAGE * random.below(4)),
                9 => resource_command(command::RESOURCE_UNMAP_BLOB, 0, id),
                10 => submit(
                    ctx,
                    ring,
                    None,
                    &[delay(random.below(300)), fill(id, 0, 64, 1)],
                ),
                _ => {
                    let ops = [delay(random.below(300)), fill(id, 0, 4096, random.next())];
                    vm.submit(ctx, ring, &ops)
                }
            };
            vm.post(&request);
        }
        vm.end(false);
    }
}
