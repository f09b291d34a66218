// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Both kinds of hostility: drivers that send nonsense to the device, and a device told to
//! misbehave.

mod common;

use std::time::{Duration, Instant};

use common::*;
use virtgpu_device::adversary::{Adversary, Mode};
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;

/// A small generator of random numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

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
        let answer = vm.ask(&request);
        assert!(answer.len() >= 24 && (0x1100..0x1206).contains(&kind_of(&answer)));
    }
    vm.stop();
    vm.start();
    // It works still.
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    assert_eq!(vm.run(1, &[fill(1, 0, 4096, 1)]), response::OK_NODATA);
    vm.end(false);
}

fn kind_of(answer: &[u8]) -> u32 {
    kind(answer)
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

fn misbehave(modes: &[&str], on: &[u32]) -> Vm {
    let mut options = options();
    options.adversary = Adversary {
        modes: modes.iter().map(|m| m.parse::<Mode>().unwrap()).collect(),
        on: on.to_vec(),
        ..Default::default()
    };
    Vm::new(options)
}

#[test]
fn adversary() {
    let info = command::GET_DISPLAY_INFO;
    let ask = |modes: &[&str]| {
        let mut vm = misbehave(modes, &[info]);
        vm.context(1);
        let answer = vm.ask(&plain(info, 0));
        vm.end(true);
        answer
    };
    assert_eq!(ask(&["short:7"]).len(), 7);
    assert_eq!(ask(&["short:0"]).len(), 0);
    // The used length is beyond the buffer; the tests' driver cuts it off there.
    assert_eq!(ask(&["oversized:100000"]).len(), 4096);
    assert_eq!(kind(&ask(&["garbage-type:5"])), 5);
    assert_ne!(kind(&ask(&["garbage"])), response::OK_DISPLAY_INFO);
    assert_eq!(kind(&ask(&["refuse:0x1200"])), response::ERR_UNSPEC);
    assert_eq!(kind(&ask(&["duplicate:3"])), response::OK_DISPLAY_INFO);

    let mut vm = misbehave(&["silence"], &[info]);
    let head = vm.post(&plain(info, 0));
    vm.context(1);
    assert!(vm.is_quiet(head));
    vm.end(true);

    let mut vm = misbehave(&["unknown-head:5000"], &[info]);
    let head = vm.post(&plain(info, 0));
    vm.context(1);
    assert!(vm.is_quiet(head));
    vm.end(true);

    let mut vm = misbehave(&["delay:80"], &[info]);
    let start = Instant::now();
    vm.ask(&plain(info, 0));
    assert!(start.elapsed() >= Duration::from_millis(80));
    // One that is still to come when the driver goes.
    vm.post(&plain(info, 0));
    vm.stop();
    vm.start();
    vm.context(1);
    vm.end(true);

    let mut vm = misbehave(&["refuse"], &[]);
    let blob = create_blob(0, 1, blob_mem::GUEST, PAGE, &[(FREE, 4096)]);
    assert_eq!(vm.kind(&blob), response::ERR_OUT_OF_MEMORY);
    let unref = resource_command(command::RESOURCE_UNREF, 0, 1);
    assert_eq!(vm.kind(&unref), response::ERR_INVALID_RESOURCE_ID);
    vm.end(true);

    let mut vm = misbehave(&["wrong-fence:1000"], &[]);
    vm.context(1);
    let request = vm.submit(1, None, &[]);
    let answer = vm.ask(&request);
    assert_eq!(header(&answer).fence_id.get(), 1001);
    vm.end(true);

    let mut vm = misbehave(&["no-fence"], &[]);
    vm.context(1);
    let request = vm.submit(1, None, &[]);
    let answer = vm.ask(&request);
    assert_eq!(
        (header(&answer).fence_id.get(), header(&answer).flags.get()),
        (0, 0)
    );
    vm.end(true);

    let mut vm = misbehave(&["map-info:9", "capset-count:70"], &[]);
    assert_eq!(vm.config(12, 4), [70, 0, 0, 0]);
    vm.context(1);
    vm.ok(&create_blob(1, 1, blob_mem::HOST3D, PAGE, &[]));
    let answer = vm.ask(&map_blob(1, 0));
    let answer: &wire::ResponseMapInfo = prefix(&answer);
    assert_eq!(answer.map_info.get(), 9);
    vm.end(true);
}

/// A device that breaks the contract does not get past the checker.
#[test]
fn mutants_are_found() {
    let early = |on: u32| {
        let mut vm = misbehave(&["early"], &[on]);
        vm.context(1);
        vm.blob(1, 1, &[(FREE, 4096)]);
        let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000)]);
        let job = vm.post(&request);
        match on {
            command::CTX_DETACH_RESOURCE | command::RESOURCE_UNREF => {
                vm.ok(&resource_command(on, 1, 1));
            }
            _ => {}
        }
        vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
        vm.wait(job);
        vm.stop();
        vm.violations()
    };
    for on in [
        command::SUBMIT_3D,
        command::CTX_DETACH_RESOURCE,
        command::RESOURCE_UNREF,
    ] {
        assert_ne!(early(on), [], "{on:#x}");
    }
    assert_eq!(early(command::GET_CAPSET), []);
}

/// Lives and deaths of everything in any order, without waiting for answers. What must not happen
/// meanwhile is what the log is checked for.
#[test]
fn random_lives() {
    for seed in 1..6 {
        let mut random = Random(seed * 7919);
        let mut vm = Vm::new(options());
        for _ in 0..1500 {
            let ctx = random.below(3) as u32 + 1;
            let id = random.below(5) as u32 + 1;
            let ring = [None, Some(0), Some(1)][random.below(3) as usize];
            let at = FREE + PAGE * random.below(16);
            let request = match random.below(16) {
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
