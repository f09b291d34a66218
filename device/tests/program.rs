// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The program itself: its command line, its output, its exit status.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};

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
fn wrong_command_lines() {
    for args in [
        &[][..],
        &["--socket"],
        &["--socket", "x", "--hostmem", "1"],
        &["--socket", "x", "--adversary", "kindness"],
        &["--socket", "x", "--adversary-on", "NOTHING"],
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
    assert!(text.ends_with("0 violations\n"), "{text}");
    std::fs::write(log, "nonsense\n").unwrap();
    assert_eq!(run(&["check-log", log]).0, Some(1));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(run(&["check-log", log]).0, Some(1));
}
