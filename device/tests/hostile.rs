// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Both kinds of hostility: drivers that send nonsense to the device, and a device told to
//! misbehave.

mod common;

use std::time::{Duration, Instant};

use common::*;
use virtgpu_device::misbehave::adversary::{Adversary, Mode};
use virtgpu_device::misbehave::mutant;
use virtgpu_device::options::Options;
use virtgpu_protocol::compute::{op, CAPSET_ID};
use virtgpu_protocol::mirror::{self, status};
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

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
    // A last answer, behind all that the ring of this number has.
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

fn misbehave(modes: &[&str], on: &[u32]) -> Vm {
    let mut options = options();
    options.adversary = Adversary {
        modes: modes.iter().map(|m| m.parse::<Mode>().unwrap()).collect(),
        on: on.to_vec(),
        ..Default::default()
    };
    match on.iter().any(|on| (0x400..0x500).contains(on)) {
        true => Vm::mirrored(options),
        false => Vm::new(options),
    }
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

/// CTX_CREATE with a debug name.
fn named_context(ctx: u32, name: &str) -> Vec<u8> {
    let mut request = ctx_create(ctx, CAPSET_ID);
    request[24] = name.len() as u8;
    request[32..32 + name.len()].copy_from_slice(name.as_bytes());
    request
}

/// Another context gets right results while one is mistreated.
#[test]
fn one_context_is_mistreated() {
    let aimed = |modes: &[&str], on| {
        let mut options = options();
        options.adversary = Adversary {
            modes: modes.iter().map(|m| m.parse::<Mode>().unwrap()).collect(),
            on: vec![on],
            context: Some("silent".into()),
            ..Default::default()
        };
        let mut vm = Vm::new(options);
        vm.context(1);
        vm.ok(&named_context(2, "silent one"));
        vm.blob(1, 1, &[(FREE, 4096)]);
        vm.blob(2, 2, &[(FREE + PAGE, 4096)]);
        vm
    };
    let value = |vm: &Vm, at| vm.memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    for (mode, runs) in [("ignore", 0), ("silence", 7)] {
        let mut vm = aimed(&[mode], command::SUBMIT_3D);
        let mut silent = Vec::new();
        for ring in [None, Some(0), Some(1)] {
            let request = vm.submit(2, ring, &[fill(2, 0, 8, 7)]);
            silent.push(vm.post(&request));
            let request = vm.submit(1, ring, &[fill(1, 0, 8, 5)]);
            assert_eq!(kind(&vm.ask(&request)), response::OK_NODATA);
        }
        assert_eq!(value(&vm, FREE), 5);
        // All of it has ended or will not begin.
        vm.ok(&plain(command::CTX_DESTROY, 2));
        vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 2));
        assert_eq!(value(&vm, FREE + PAGE), runs);
        for head in silent {
            assert!(vm.is_quiet(head));
        }
        assert_eq!(vm.run(1, &[]), response::OK_NODATA);
        vm.end(true);
    }

    // An error that nobody knows, an OK that belongs to another command, one that is too short.
    for (mode, answer) in [
        ("refuse:0x12ff", (0x12ff, 24)),
        ("garbage-type:0x1102", (response::OK_CAPSET_INFO, 40)),
        ("body:8", (response::OK_RESOURCE_UUID, 32)),
        ("body:100", (response::OK_RESOURCE_UUID, 124)),
    ] {
        let mut vm = aimed(&[mode], command::RESOURCE_ASSIGN_UUID);
        let assign = |id| resource_command(command::RESOURCE_ASSIGN_UUID, 0, id);
        let wrong = vm.ask(&assign(2));
        assert_eq!((kind(&wrong), wrong.len()), answer);
        let right = vm.ask(&assign(1));
        assert_eq!(
            (kind(&right), right.len()),
            (response::OK_RESOURCE_UUID, 40)
        );
        vm.end(true);
    }
}

/// One command of a type, and no other.
#[test]
fn one_command_is_not_answered() {
    let mut options = options();
    options.adversary = Adversary {
        modes: vec!["ignore".parse::<Mode>().unwrap()],
        on: vec![command::CTX_CREATE],
        from: 1,
        count: 1,
        ..Default::default()
    };
    let mut vm = Vm::new(options);
    vm.context(1);
    let silent = vm.post(&ctx_create(2, CAPSET_ID));
    vm.context(3);
    assert!(vm.is_quiet(silent));
    // It has not been carried out either.
    assert_eq!(
        vm.kind(&plain(command::CTX_DESTROY, 2)),
        response::ERR_INVALID_CONTEXT_ID
    );
    vm.end(true);
}

#[test]
fn jobs_are_abandoned() {
    let mut vm = misbehave(&["abandon"], &[]);
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let value = |vm: &Vm, at| vm.memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    let begins = |vm: &Vm, at| {
        let start = Instant::now();
        while value(vm, at) == 0 {
            assert!(start.elapsed() < PATIENCE);
        }
    };
    let ops = [
        fill(1, 24, 8, 1),
        spin(1, 0, 5, 120_000_000),
        fill(1, 8, 8, 7),
    ];
    let request = vm.submit(1, Some(0), &ops);
    let running = vm.post(&request);
    begins(&vm, FREE + 24);
    let request = vm.submit(1, Some(0), &[fill(1, 16, 8, 9)]);
    let queued = vm.post(&request);
    let detach = vm.post(&resource_command(command::CTX_DETACH_RESOURCE, 1, 1));
    assert!(vm.is_quiet(detach));
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert_eq!(kind(&vm.wait(detach)), response::OK_NODATA);
    // The next context of that id has nothing to do with it.
    vm.context(1);
    vm.blob(1, 2, &[(FREE + PAGE, 4096)]);
    assert_eq!(vm.run(1, &[fill(2, 0, 8, 1)]), response::OK_NODATA);
    vm.ok(&plain(command::CTX_DESTROY, 1));
    let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
    assert!(vm.is_quiet(unref));
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    assert_eq!(kind(&vm.wait(unref)), response::OK_NODATA);
    assert_eq!([8, 16].map(|at| value(&vm, FREE + at)), [7, 0]);
    assert!(vm.is_quiet(running) && vm.is_quiet(queued));
    // A reset ends such a job.
    let start = Instant::now();
    vm.context(1);
    vm.blob(1, 3, &[(FREE + 2 * PAGE, 4096)]);
    let ops = [fill(3, 0, 8, 1), delay(120_000_000)];
    let request = vm.submit(1, None, &ops);
    let head = vm.post(&request);
    begins(&vm, FREE + 2 * PAGE);
    vm.ok(&plain(command::CTX_DESTROY, 1));
    assert!(vm.is_quiet(head));
    vm.stop();
    vm.start();
    assert!(start.elapsed() < PATIENCE);
    vm.context(1);
    // Without its command line the log looks like that of a good device.
    let violations: Vec<String> = vm
        .end_with_violations()
        .into_iter()
        .map(|(_, what)| what)
        .collect();
    assert_eq!(violations, ["job 1 is abandoned", "job 4 is abandoned"]);
}

/// A job goes on writing whatever the guest asks for, until the device is reset.
#[test]
fn jobs_without_end() {
    let mut vm = misbehave(&["endless", "abandon"], &[]);
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let rewritten = |vm: &Vm| {
        vm.memory.write_obj(0u64, GuestAddress(FREE)).unwrap();
        let start = Instant::now();
        while vm.memory.read_obj::<u64>(GuestAddress(FREE)).unwrap() != 7 {
            assert!(start.elapsed() < PATIENCE);
        }
    };
    let request = vm.submit(1, Some(0), &[fill(1, 0, 8, 7)]);
    let job = vm.post(&request);
    rewritten(&vm);
    vm.ok(&plain(command::CTX_DESTROY, 1));
    let unref = vm.post(&resource_command(command::RESOURCE_UNREF, 0, 1));
    rewritten(&vm);
    assert!(vm.is_quiet(job) && vm.is_quiet(unref));
    vm.stop();
    vm.start();
    vm.memory.write_obj(0u64, GuestAddress(FREE)).unwrap();
    vm.context(1);
    assert_eq!(
        vm.memory.read_obj::<u64>(GuestAddress(FREE)).unwrap(),
        0,
        "after the reset"
    );
    let violations: Vec<String> = vm
        .end_with_violations()
        .into_iter()
        .map(|(_, what)| what)
        .collect();
    assert_eq!(violations, ["job 1 is abandoned"]);
}

/// Without that, until its context is destroyed.
#[test]
fn jobs_end_with_their_context() {
    let mut vm = misbehave(&["endless"], &[]);
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    let request = vm.submit(1, Some(0), &[fill(1, 0, 8, 7)]);
    let job = vm.post(&request);
    assert!(vm.is_quiet(job));
    vm.ok(&plain(command::CTX_DESTROY, 1));
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    assert_eq!(kind(&vm.wait(job)), response::ERR_UNSPEC);
    vm.end(true);
}

/// What is done wrong with a command of the mirror queue: used length and bytes of its answer.
fn wrong_answer(modes: &[&str], on: u32) -> (u32, Vec<u8>) {
    let mut vm = misbehave(modes, &[on]);
    vm.context(1);
    vm.ok(&create_blob(1, 1, blob_mem::GUEST, PAGE, &[]));
    let head = vm.post_command(&space_create(1, 1, PAGE, 3), 4);
    let mut answer = vm.wait_command(head);
    if on == mirror::command::INVALIDATE {
        let head = vm.post_command(&invalidate(1, 0, 0), 0);
        answer = vm.wait_command(head);
    }
    vm.end(true);
    answer
}

#[test]
fn adversary_on_the_mirror_queue() {
    let (create, unmap) = (mirror::command::SPACE_CREATE, mirror::command::INVALIDATE);
    let word = |value: u32| value.to_le_bytes().to_vec();
    assert_eq!(wrong_answer(&["short:1"], create), (1, vec![0]));
    assert!(wrong_answer(&["short"], create).0 < 4);
    assert_eq!(wrong_answer(&["oversized:8"], create).0, 12);
    assert_eq!(wrong_answer(&["oversized:8"], unmap).0, 8);
    assert_eq!(wrong_answer(&["garbage-type:77"], create), (4, word(77)));
    assert_ne!(wrong_answer(&["garbage"], create).1, word(0));
    for code in 0..5 {
        let refuse = format!("refuse:{code}");
        assert_eq!(wrong_answer(&[&refuse], create), (4, word(code)));
    }
    assert_eq!(wrong_answer(&["refuse"], create).1, word(3));
    assert_eq!(wrong_answer(&["refuse"], unmap), (0, vec![]));
    assert_eq!(wrong_answer(&["duplicate:3"], unmap).0, 0);

    for mode in ["silence", "ignore", "unknown-head:5000"] {
        let mut vm = misbehave(&[mode], &[unmap]);
        vm.context(1);
        vm.space(1, 1, PAGE);
        let head = vm.post_command(&invalidate(1, 0, 0), 0);
        assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
        assert!(!vm.mirror.as_mut().unwrap().0.is_back(head));
        vm.end(true);
    }

    let mut vm = misbehave(&["delay:80"], &[unmap]);
    vm.context(1);
    vm.space(1, 1, PAGE);
    let start = Instant::now();
    vm.done(&invalidate(1, 0, 0));
    assert!(start.elapsed() >= Duration::from_millis(80));
    // One that is still to come when the driver goes.
    vm.post_command(&invalidate(1, 0, 0), 0);
    vm.stop();
    vm.start();
    vm.context(1);
    vm.end(true);
}

#[test]
fn unwanted_events() {
    let destroy = mirror::command::SPACE_DESTROY;
    let map = mirror::command::MAP;
    let event = |bytes: &[u8]| *prefix::<mirror::Event>(bytes);

    let mut vm = misbehave(&["space-lost"], &[map]);
    vm.context(1);
    vm.space(1, 1, PAGE);
    let short = vm.post_event_buffer(31);
    let head = vm.post_event_buffer(32);
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
    assert_eq!(vm.wait_event(short).0, 0);
    let (used, bytes) = vm.wait_event(head);
    let lost = event(&bytes);
    let what = (lost.kind.get(), lost.space_id.get());
    assert_eq!((used, what), (32, (mirror::event::SPACE_LOST, 1)));
    assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::NO_SUCH_SPACE);
    assert_eq!(vm.run(1, &[fill(1, 0, 8, 1)]), response::ERR_UNSPEC);
    vm.end(false);

    // More than there are buffers; the rest comes later.
    let mut vm = misbehave(&["stale-event:3"], &[destroy]);
    vm.context(1);
    vm.space(1, 7, PAGE);
    let head = vm.post_event_buffer(64);
    vm.done(&space_destroy(7));
    assert_eq!(event(&vm.wait_event(head).1).space_id.get(), 7);
    for _ in 0..2 {
        let head = vm.post_event_buffer(64);
        assert_eq!(event(&vm.wait_event(head).1).space_id.get(), 7);
    }
    vm.end(false);

    let mut vm = misbehave(&["garbage-event:20"], &[map]);
    vm.context(1);
    vm.space(1, 7, PAGE);
    let heads: Vec<_> = (0..20).map(|_| vm.post_event_buffer(32)).collect();
    vm.map(7, 0, &[(FREE, 4096)]);
    let mut used: Vec<u32> = heads.iter().map(|head| vm.wait_event(*head).0).collect();
    used.sort();
    assert!(used[0] < 32 && used[19] > 32);
    vm.end(false);
}

/// What a driver could do with the device while it has this mutation; the violations in the log.
fn mutant_violations(name: &str) -> Vec<(u64, String)> {
    let mut vm = Vm::mirrored(Options {
        mutants: vec![name.parse().unwrap()],
        ..options()
    });
    vm.context(1);
    vm.space(1, 1, 4 * PAGE);
    vm.blob(1, 2, &[(FREE + (1 << 20), 4096)]);
    let event = vm.post_event_buffer(32);
    let value = |vm: &Vm, at| vm.memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    let fits = |vm: &mut Vm, ctx, offset| {
        vm.context(ctx);
        vm.ok(&resource_command(command::CTX_ATTACH_RESOURCE, ctx, 1));
        vm.run(ctx, &[fill(1, offset, 8, 3)]) == response::OK_NODATA
    };
    assert_eq!(vm.map(1, 0, &[(FREE, 3 * 4096)]), status::OK);
    let read_only = [(FREE + 3 * PAGE, 4096, 1)];
    assert_eq!(vm.status(&mirror_map(1, 3 * PAGE, &read_only)), status::OK);
    match name {
        "ignore-read-only" => assert!(fits(&mut vm, 2, 3 * PAGE)),
        "drop-map-tail" => assert!(!fits(&mut vm, 2, 2 * PAGE)),
        "answer-before-last-write" => {
            let job = [fill(1, 0, 8, 3), fill(1, 8, 8, 4)];
            assert_eq!(vm.run(1, &job), response::OK_NODATA);
            let start = Instant::now();
            while value(&vm, FREE + 8) != 4 {
                assert!(start.elapsed() < PATIENCE);
            }
        }
        "no-revoke-on-unref" => {
            vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
            assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
            return vm.end_with_violations();
        }
        _ => {}
    }
    vm.memory.write_obj(1u64, GuestAddress(FREE)).unwrap();
    vm.done(&invalidate(1, 0, 3 * PAGE - 1));
    match name {
        "write-after-ack" => {
            vm.memory.write_obj(2u64, GuestAddress(FREE)).unwrap();
            let start = Instant::now();
            while value(&vm, FREE) != 1 {
                assert!(start.elapsed() < PATIENCE);
            }
        }
        "skip-page" => assert!(fits(&mut vm, 3, 2 * PAGE) && !fits(&mut vm, 4, PAGE)),
        _ => {}
    }
    vm.done(&space_destroy(1));
    match name {
        "map-after-destroy" => {
            assert_eq!(vm.map(1, 0, &[(FREE, 4096)]), status::OK);
            assert!(fits(&mut vm, 5, 0));
        }
        "event-for-dead-space" => {
            let (used, _) = vm.wait_event(event);
            assert_eq!(used, 32);
        }
        _ => {}
    }
    let add = operation(op::ATOMIC_ADD_U64, (2, 0), [(0, 0); 2], 8, [1, 0]);
    assert_eq!(vm.run(1, &[add]), response::OK_NODATA);
    vm.end_with_violations()
}

#[test]
fn mirror_mutants_are_found() {
    for name in mutant::names() {
        let violations = mutant_violations(name);
        match name {
            // It goes past all that the log is about; guests notice.
            "write-after-ack" => assert_eq!(violations, [], "{name}"),
            _ => assert_ne!(violations, [], "{name}"),
        }
    }
}

/// What is answered too early on purpose is kept until it may go, and the log says all of it.
#[test]
fn early_answers_are_known_and_take_nothing() {
    let early = |on: u32| {
        let mut vm = misbehave(&["early"], &[on]);
        vm.context(1);
        vm.blob(1, 1, &[(FREE, 4096)]);
        let request = vm.submit(1, Some(0), &[spin(1, 0, 5, 10_000_000), fill(1, 8, 8, 7)]);
        let job = vm.post(&request);
        match on {
            command::CTX_DETACH_RESOURCE | command::RESOURCE_UNREF => {
                vm.ok(&resource_command(on, 1, 1));
                // It is not taken twice, and its id is in use.
                let again = resource_command(on, 1, 1);
                let create = create_blob(0, 1, blob_mem::GUEST, 4096, &[(FREE, 4096)]);
                for request in [again, create] {
                    assert_eq!(vm.kind(&request), response::ERR_INVALID_RESOURCE_ID);
                }
            }
            command::CTX_DESTROY => vm.ok(&plain(on, 1)),
            // Before the job has had any reason to end.
            command::SUBMIT_3D => assert_eq!(kind(&vm.wait(job)), response::OK_NODATA),
            _ => {}
        }
        vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
        if on != command::SUBMIT_3D {
            vm.wait(job);
        }
        let violations: Vec<String> = vm
            .end_with_violations()
            .into_iter()
            .map(|(_, what)| what)
            .collect();
        violations
    };
    for on in [
        command::SUBMIT_3D,
        command::CTX_DETACH_RESOURCE,
        command::RESOURCE_UNREF,
    ] {
        // The log lacks the command line that would allow it.
        let violations = early(on);
        assert!(
            matches!(&violations[..], [one] if one.ends_with("is answered early")),
            "{on:#x}: {violations:?}"
        );
    }
    // Its end may come before the answer.
    let violations = early(command::CTX_DESTROY);
    assert!(
        violations.iter().all(|v| v.ends_with("is answered early")),
        "{violations:?}"
    );
    assert!(early(command::GET_CAPSET).is_empty());
}

/// Lives and deaths of everything in any order, without waiting for answers. What must not happen
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
