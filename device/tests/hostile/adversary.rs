// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that misbehaves: it does what its options say, and the log knows.

use std::time::{Duration, Instant};

use super::common::*;
use virtgpu_device::misbehave::adversary::{Adversary, Mode};
use virtgpu_protocol::compute::CAPSET_ID;
use virtgpu_protocol::mirror::{self, status};
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};

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
        let response = vm.ask(&plain(info, 0));
        vm.end(true);
        response
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
    let response = vm.ask(&request);
    assert_eq!(header(&response).fence_id.get(), 1001);
    vm.end(true);

    let mut vm = misbehave(&["no-fence"], &[]);
    vm.context(1);
    let request = vm.submit(1, None, &[]);
    let response = vm.ask(&request);
    assert_eq!(
        (
            header(&response).fence_id.get(),
            header(&response).flags.get()
        ),
        (0, 0)
    );
    vm.end(true);

    let mut vm = misbehave(&["map-info:9", "capset-count:70"], &[]);
    assert_eq!(vm.config(12, 4), [70, 0, 0, 0]);
    vm.context(1);
    vm.ok(&create_blob(1, 1, blob_mem::HOST3D, PAGE, &[]));
    let response = vm.ask(&map_blob(1, 0));
    let response: &wire::ResponseMapInfo = prefix(&response);
    assert_eq!(response.map_info.get(), 9);
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

    // An unknown error, an OK that belongs to another command, one that is too short.
    for (mode, response) in [
        ("refuse:0x12ff", (0x12ff, 24)),
        ("garbage-type:0x1102", (response::OK_CAPSET_INFO, 40)),
        ("body:8", (response::OK_RESOURCE_UUID, 32)),
        ("body:100", (response::OK_RESOURCE_UUID, 124)),
    ] {
        let mut vm = aimed(&[mode], command::RESOURCE_ASSIGN_UUID);
        let assign = |id| resource_command(command::RESOURCE_ASSIGN_UUID, 0, id);
        let wrong = vm.ask(&assign(2));
        assert_eq!((kind(&wrong), wrong.len()), response);
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
fn one_command_has_no_response() {
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

/// What is done wrong with a command of the mirror queue: used length and bytes of its response.
fn wrong_response(modes: &[&str], on: u32) -> (u32, Vec<u8>) {
    let mut vm = misbehave(modes, &[on]);
    vm.context(1);
    vm.ok(&create_blob(1, 1, blob_mem::GUEST, PAGE, &[]));
    let head = vm.post_command(&space_create(1, 1, PAGE, 3), 4);
    let mut response = vm.wait_command(head);
    if on == mirror::command::INVALIDATE {
        let head = vm.post_command(&invalidate(1, 0, 0), 0);
        response = vm.wait_command(head);
    }
    vm.end(true);
    response
}

#[test]
fn adversary_on_the_mirror_queue() {
    let (create, unmap) = (mirror::command::SPACE_CREATE, mirror::command::INVALIDATE);
    let word = |value: u32| value.to_le_bytes().to_vec();
    assert_eq!(wrong_response(&["short:1"], create), (1, vec![0]));
    assert!(wrong_response(&["short"], create).0 < 4);
    assert_eq!(wrong_response(&["oversized:8"], create).0, 12);
    assert_eq!(wrong_response(&["oversized:8"], unmap).0, 8);
    assert_eq!(wrong_response(&["garbage-type:77"], create), (4, word(77)));
    assert_ne!(wrong_response(&["garbage"], create).1, word(0));
    for code in 0..5 {
        let refuse = format!("refuse:{code}");
        assert_eq!(wrong_response(&[&refuse], create), (4, word(code)));
    }
    assert_eq!(wrong_response(&["refuse"], create).1, word(3));
    assert_eq!(wrong_response(&["refuse"], unmap), (0, vec![]));
    assert_eq!(wrong_response(&["duplicate:3"], unmap).0, 0);

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

/// What has its response too early on purpose is kept until it may go, and the log says all of it.
#[test]
fn early_responses_are_known_and_take_nothing() {
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
            matches!(&violations[..], [one] if one.ends_with("has its response early")),
            "{on:#x}: {violations:?}"
        );
    }
    // Its end may come before the response.
    let violations = early(command::CTX_DESTROY);
    assert!(
        violations
            .iter()
            .all(|v| v.ends_with("has its response early")),
        "{violations:?}"
    );
    assert!(early(command::GET_CAPSET).is_empty());
}
