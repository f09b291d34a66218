// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The program itself: its command line, its output, its exit status.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{
    create_blob, ctx_create, fill, invalidate, map_blob, plain, resource_command, spin, Vm, FREE,
    PAGE, PATIENCE, RAM,
};
use virtgpu_protocol::compute::CAPSET_ID;
use virtgpu_protocol::mirror::status;
use virtgpu_protocol::virtio_gpu::{blob_mem, command, response};
use vm_memory::{Bytes, GuestAddress};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_virtgpu-device"))
}

fn run(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, .. } = program().args(args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

#[test]
fn help_explains_every_option() {
    let (status, text) = run(&["--help"]);
    assert_eq!(status, Some(0));
    for option in [
        "--socket",
        "--hostmem",
        "--blob-alignment",
        "--access-platform",
        "--capset",
        "--adversary",
        "--adversary-on",
        "--adversary-context",
        "--no-mirror",
        "--mirror-mappings",
        "--hammer",
        "--mutant",
        "--seed",
        "--event-log",
        "check-log",
    ] {
        assert!(text.contains(option), "{option}");
    }
    let (status, text) = run(&["--list-adversary"]);
    assert_eq!(status, Some(0));
    assert!(text.lines().count() >= 16 && text.contains("silence"));
}

#[test]
fn lists_mutants() {
    let (status, text) = run(&["--list-mutants"]);
    assert_eq!(status, Some(0));
    assert!(text.lines().count() >= 8 && text.contains("skip-page"));
}

#[test]
fn announces_its_loss() {
    let mut vm = Vm::with_process(
        env!("CARGO_BIN_EXE_virtgpu-device"),
        &[
            "--adversary",
            "device-lost",
            "--adversary-on",
            "INVALIDATE",
            "--adversary-from",
            "1",
        ],
        true,
    );
    vm.done(&invalidate(1, 0, 0));
    assert_eq!(vm.config_changes(), 0);
    vm.done(&invalidate(1, 0, 0));
    let start = Instant::now();
    while vm.config_changes() == 0 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(vm.config(52, 4), [1, 0, 0, 0]);
    // No display event.
    assert_eq!(vm.config(0, 4), [0; 4]);
    vm.stop();
    vm.start();
    assert_eq!(vm.config(52, 4), [0; 4]);
    vm.end(true);
}

/// The log of a device that forgets jobs is right where the driver is.
#[test]
fn abandoned_jobs_are_logged() {
    let args = ["--adversary", "abandon"];
    let mut vm = Vm::with_process(env!("CARGO_BIN_EXE_virtgpu-device"), &args, false);
    vm.context(1);
    vm.blob(1, 1, &[(FREE, 4096)]);
    for ring in [None, Some(0)] {
        let request = vm.submit(1, ring, &[spin(1, 0, 5, 120_000_000)]);
        vm.post(&request);
    }
    vm.ok(&plain(command::CTX_DESTROY, 1));
    vm.memory.write_obj(5u64, GuestAddress(FREE)).unwrap();
    vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
    vm.end(false);
}

#[test]
fn wrong_command_lines() {
    for args in [
        &[][..],
        &["--socket"],
        &["--socket", "x", "--hostmem", "1"],
        &["--socket", "x", "--adversary", "kindness"],
        &["--socket", "x", "--adversary-on", "NOTHING"],
        &["--socket", "x", "--mutant", "NOTHING"],
        &["--socket", "x", "--mirror-granularity", "1"],
        &["--socket", "x", "--nonsense"],
    ] {
        assert_eq!(run(args).0, Some(2), "{args:?}");
    }
    assert_eq!(run(&["--socket", "/nowhere/at/all"]).0, Some(1));
    assert_eq!(
        run(&["--socket", "x", "--capset", "5:1", "--capset", "5:1"]).0,
        Some(1)
    );
}

#[test]
fn ends_when_told_to() {
    let mut vm = Vm::with_process(
        env!("CARGO_BIN_EXE_virtgpu-device"),
        &[
            "--adversary",
            "exit:7",
            "--adversary-on",
            "CTX_CREATE",
            "--adversary-from",
            "1",
        ],
        false,
    );
    vm.context(1);
    vm.post(&ctx_create(2, CAPSET_ID));
    assert_eq!(vm.exit_status(), Some(7));
}

#[test]
fn announces_changes_of_the_configuration() {
    let mut vm = Vm::with_process(
        env!("CARGO_BIN_EXE_virtgpu-device"),
        &[
            "--adversary",
            "config-change:3",
            "--adversary-on",
            "CTX_CREATE",
        ],
        false,
    );
    assert_eq!(vm.config(0, 4), [0; 4]);
    vm.context(1);
    let start = Instant::now();
    while vm.config_changes() < 3 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(vm.config(0, 4), [1, 0, 0, 0]);
    // The other messages still go both ways.
    vm.ok(&create_blob(1, 1, blob_mem::HOST3D, 4096, &[]));
    assert_eq!(vm.kind(&map_blob(1, 0)), response::OK_MAP_INFO);
    vm.end(true);
}

#[test]
fn serves_one_connection_and_checks_its_log() {
    let folder = std::env::temp_dir().join(format!("virtgpu-program-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let (socket, log) = (folder.join("socket"), folder.join("log"));
    let mut device = program()
        .arg("--socket")
        .arg(&socket)
        .arg("--event-log")
        .arg(&log)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(device.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    drop(UnixStream::connect(&socket).unwrap());
    assert_eq!(device.wait().unwrap().code(), Some(0));
    let log = log.to_str().unwrap();
    let (status, text) = run(&["check-log", log]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.ends_with("0 mistreated, 0 violations\n"), "{text}");
    // A log without an end is one of a device that was killed.
    let whole = std::fs::read_to_string(log).unwrap();
    let cut: Vec<&str> = whole.lines().take(whole.lines().count() - 1).collect();
    std::fs::write(log, cut.join("\n")).unwrap();
    assert_eq!(run(&["check-log", log]).0, Some(1));
    assert_eq!(run(&["check-log", "--unfinished", log]).0, Some(0));
    std::fs::write(log, "nonsense\n").unwrap();
    assert_eq!(run(&["check-log", log]).0, Some(1));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(run(&["check-log", log]).0, Some(1));
}

/// A guest that makes holes in memory until there are no more mappings loses that space, whether
/// the device counts or the kernel: never the device, which serves others as if nothing happened.
#[test]
fn mappings_run_out_and_the_process_lives() {
    // Six times the memory that is free.
    const PAGES: u64 = 6 * (RAM - FREE) / PAGE;
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let most: u64 = most.trim().parse().unwrap();
    if most + 1000 > PAGES {
        println!("skipped: vm.max_map_count of {most} is more than the test uses up");
        return;
    }
    // Its own limit, and none.
    for limit in ["0", "100000000"] {
        let arguments = ["--mirror-mappings", limit];
        let mut vm = Vm::with_process(env!("CARGO_BIN_EXE_virtgpu-device"), &arguments, true);
        for id in 1..=2 {
            vm.context(id);
            vm.space(id, id, PAGES * PAGE);
        }
        let other = [fill(2, 0, PAGE, 1)];
        assert_eq!(vm.map(2, 0, &[(FREE, 4096)]), status::OK);
        // The same memory again and again, so that each is a run.
        let part = (RAM - FREE) as u32;
        let pieces = vec![(FREE, part); (PAGES * PAGE / u64::from(part)) as usize];
        assert_eq!(vm.map(1, 0, &pieces), status::OK);
        for (count, pages) in (0..PAGES / 64).enumerate() {
            let heads: Vec<u16> = (0..32)
                .map(|i| {
                    let page = pages * 64 + 2 * i + 1;
                    let hole = invalidate(1, page * PAGE, (page + 1) * PAGE - 1);
                    vm.post_command(&hole, 0)
                })
                .collect();
            for head in heads {
                assert_eq!(vm.wait_command(head).0, 0);
            }
            if count % 64 == 0 {
                assert_eq!(vm.run(2, &other), response::OK_NODATA);
            }
        }
        let outcome = vm.map(1, 0, &[(FREE, 4096)]);
        assert_eq!(outcome, status::NO_SUCH_SPACE, "limit {limit}");
        assert_eq!(vm.run(2, &other), response::OK_NODATA);
        // With the resource its addresses go, and with these what the kernel has counted.
        vm.ok(&resource_command(command::RESOURCE_UNREF, 0, 1));
        assert_eq!(vm.map(2, PAGE, &[(FREE, 4096)]), status::OK);
        vm.end(false);
    }
}
