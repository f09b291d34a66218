// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Devices that break the contract of contexts in fault mode, and those that a driver must survive.

use super::exclusive::{alone, count};
use super::*;
use virtgpu_device::misbehave::adversary::{Adversary, Mode};
use virtgpu_device::misbehave::mutant;
use virtgpu_protocol::mirror::command;
use virtgpu_protocol::virtio_gpu::command as control;

fn mutated(name: &str) -> Driver {
    Driver::with(Options {
        mutants: vec![name.parse().unwrap()],
        ..alone()
    })
}

/// Shows a mutant; returns the violations in the log.
fn violations(name: &str) -> Vec<(u64, String)> {
    let mut driver = mutated(name);
    let write = |at| fill(0, VA + at, 8, 7);
    match name {
        "stall-delays-ack" => {
            driver.submit(0, &[write(0)]);
            driver.fault();
            let head = driver.vm.post_command(&invalidate(1, 0, u64::MAX), 0);
            std::thread::sleep(Duration::from_millis(100));
            assert!(!driver.vm.mirror.as_mut().unwrap().0.is_back(head));
            driver.vm.ok(&plain(control::CTX_DESTROY, 1));
            assert_eq!(driver.vm.wait_command(head).0, 0);
        }
        "stall-keeps-translation" => {
            driver.submit(0, &[write(0)]);
            let fault = driver.fault().id.get();
            driver.map(VA, FREE, 1, 3);
            driver.resolve(fault, resolution::OK);
            driver.vm.done(&invalidate(1, 0, u64::MAX));
            assert_eq!(driver.word(FREE), 0);
            assert_eq!(driver.result().0, job_result::OK);
            assert_eq!(driver.word(FREE), 7);
        }
        "bad-as-zero" => {
            driver.map(VA, FREE, 1, 3);
            let read = addressed(op::CRC32C, VA, [VA + PAGE, 0], PAGE, [0; 2]);
            driver.submit(0, &[read]);
            let fault = driver.fault().id.get();
            driver.resolve(fault, resolution::BAD_ADDRESS);
            assert_eq!(driver.result().0, job_result::OK);
        }
        "read-grants-write" => {
            driver.map(VA, FREE, 1, 1);
            driver.submit(0, &[write(0)]);
            assert_eq!(driver.result().0, job_result::OK);
        }
        "done-before-last-write" => {
            driver.map(VA, FREE, 1, 3);
            driver.submit(0, &[write(0), write(8)]);
            assert_eq!(driver.result().0, job_result::OK);
            assert_eq!(driver.word(FREE + 8), 0);
            driver.wait(|driver| (driver.word(FREE + 8) == 7).then_some(()));
        }
        "done-twice" => {
            let fence = driver.submit(0, &[]);
            for _ in 0..2 {
                assert_eq!(driver.result(), (job_result::OK, fence, 0));
            }
        }
        "fault-after-destroy" => {
            driver.vm.done(&space_destroy(1));
            assert_eq!(driver.fault().space_id.get(), 1);
        }
        "accept-at-end" => {
            let request = driver.vm.submit(1, Some(0), &[write(0)]);
            let head = driver.vm.post(&request);
            let fault = driver.fault().id.get();
            assert!(driver.vm.is_quiet(head));
            driver.map(VA, FREE, 1, 3);
            driver.resolve(fault, resolution::OK);
            assert_eq!(kind(&driver.vm.wait(head)), response::OK_NODATA);
            driver.result();
        }
        "atomic-without-exclusive" => {
            driver.submit(0, &[count(1)]);
            let fault = driver.expect_fault(VA, access::WRITE);
            driver.map(VA, FREE, 1, 3);
            driver.resolve(fault, resolution::OK);
            assert_eq!(driver.result().0, job_result::OK);
        }
        "exclusive-after-invalidate" => {
            driver.map(VA, FREE, 1, access::EXCLUSIVE);
            driver.submit(0, &[count(1)]);
            assert_eq!(driver.result().0, job_result::OK);
            driver.vm.done(&invalidate(1, 0, u64::MAX));
            driver.map(VA, FREE, 1, 3);
            driver.submit(0, &[count(1)]);
            assert_eq!(driver.result().0, job_result::OK);
        }
        "replay-stores" => {
            driver.map(VA, FREE, 1, 3);
            driver.submit(0, &[fill(0, VA + PAGE - 8, 16, 7)]);
            let fault = driver.fault().id.get();
            driver.set(FREE + PAGE - 8, 1);
            driver.map(VA + PAGE, FREE + PAGE, 1, 3);
            driver.resolve(fault, resolution::OK);
            assert_eq!(driver.result().0, job_result::OK);
            assert_eq!(driver.word(FREE + PAGE - 8), 7);
        }
        "unref-waits" => {
            driver.vm.blob(1, 1, &[(FREE + (1 << 20), 4096)]);
            driver.submit(0, &[write(0), fill(1, 0, 8, 1)]);
            driver.fault();
            let unref = resource_command(control::RESOURCE_UNREF, 0, 1);
            let head = driver.vm.post(&unref);
            assert!(driver.vm.is_quiet(head));
        }
        _ => panic!("{name} is shown nowhere"),
    }
    driver.vm.end_with_violations()
}

#[test]
fn mutants_are_found() {
    for name in mutant::names().skip_while(|name| *name != "stall-delays-ack") {
        let violations = violations(name);
        match name {
            // Nothing that the log is about; guests notice.
            "stall-delays-ack" | "stall-keeps-translation" | "replay-stores" | "unref-waits" => {
                assert_eq!(violations, [], "{name}");
            }
            _ => assert_ne!(violations, [], "{name}"),
        }
    }
}

fn hostile(mode: &str, on: u32) -> Driver {
    Driver::with(Options {
        adversary: Adversary {
            modes: vec![mode.parse::<Mode>().unwrap()],
            on: vec![on],
            ..Adversary::default()
        },
        ..options()
    })
}

#[test]
fn faults_that_cannot_be() {
    for number in 0..8 {
        let mut driver = hostile(&format!("bad-fault:{number}"), command::MAP);
        driver.map(VA, FREE, 1, 3);
        let first = driver.fault();
        let access = match number {
            2 => 0,
            3 => 7,
            _ => access::READ,
        };
        assert_eq!((first.space_id.get(), first.access.get()), (1, access));
        let address = first.address.get();
        assert_eq!(address % PAGE != 0, number == 4);
        assert_eq!(address >= TASK_SIZE, number == 5);
        assert_eq!(first.info.get() > 64, number == 7);
        match number {
            1 => assert_eq!(driver.fault().id, first.id),
            6 => {
                let mut ids: Vec<u64> = (0..64).map(|_| driver.fault().id.get()).collect();
                ids.push(first.id.get());
                ids.sort_unstable();
                ids.dedup();
                assert_eq!(ids.len(), 65);
            }
            _ => {}
        }
        driver.quiet();
        // It serves on.
        driver.submit(0, &[fill(0, VA, 8, 1)]);
        assert_eq!(driver.result().0, job_result::OK);
        driver.vm.end(true);
    }
}

#[test]
fn ends_of_jobs() {
    let mut driver = hostile("bad-done", command::MAP);
    driver.map(VA, FREE, 1, 3);
    assert!(driver.ring_done().id.get() > 1 << 62);
    driver.vm.end(true);
    let mut driver = hostile("done-again:2", control::SUBMIT_3D);
    let fence = driver.submit(0, &[]);
    for _ in 0..3 {
        assert_eq!(driver.result(), (job_result::OK, fence, 0));
    }
    driver.quiet();
    driver.vm.end(false);
    let mut driver = hostile("done-never", control::SUBMIT_3D);
    driver.submit(0, &[]);
    driver.quiet();
    driver.vm.end(false);
    let mut driver = Driver::with(Options {
        adversary: Adversary {
            modes: vec!["done-swapped".parse::<Mode>().unwrap()],
            on: vec![control::SUBMIT_3D],
            count: 1,
            ..Adversary::default()
        },
        ..options()
    });
    let first = driver.submit(0, &[]);
    driver.quiet();
    let second = driver.submit(0, &[]);
    assert_eq!(driver.result().1, second);
    assert_eq!(driver.result().1, first);
    driver.vm.end(false);
}

/// An access faults again although it was resolved, until the adversary has had enough.
#[test]
fn again_for_ever() {
    let mut driver = Driver::with(Options {
        adversary: Adversary {
            modes: vec!["refault".parse::<Mode>().unwrap()],
            on: vec![command::FAULT_RESOLVE],
            count: 10,
            ..Adversary::default()
        },
        ..options()
    });
    driver.submit(0, &[fill(0, VA, 8, 1)]);
    assert_eq!(driver.serve(), (job_result::OK, 11));
    driver.vm.end(false);
}
