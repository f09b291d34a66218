// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What the driver tells of itself: fdinfo, the files in debugfs, trace events.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use virtgpu_client::protocol::uapi::{self, param};
use virtgpu_client::{compute, BlobOptions, Bytes, Device, Exec, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};
use crate::support::place::Place;
use crate::support::{child, debugfs, eventually, job, mount, Env, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = Family {
    name: "observe",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        fdinfo_identity,
        fdinfo_memory,
        fdinfo_shared_and_active,
        features_file,
        fence_file,
        host_visible_file,
        userptr_file,
        userptr_file_while_files_come_and_go,
        trace_commands,
        trace_user_memory,
    ],
};

/// What `/proc/self/fdinfo` says of a device.
fn fdinfo(device: &Device) -> TestResult<BTreeMap<String, String>> {
    let path = format!("/proc/self/fdinfo/{}", device.as_fd().as_raw_fd());
    let text = fs::read_to_string(path)?;
    let line = |line: &str| {
        let (key, value) = line.split_once(':')?;
        Some((key.to_string(), value.trim().to_string()))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// Bytes that a key stands for.
fn bytes(info: &BTreeMap<String, String>, key: &str) -> TestResult<u64> {
    let bad = || Outcome::Fail(format!("fdinfo: {key} is {:?}", info.get(key)));
    let value = info.get(key).ok_or_else(bad)?;
    let (number, unit) = value.split_once(' ').unwrap_or((value, ""));
    let unit = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return Err(bad()),
    };
    Ok(number.parse::<u64>().map_err(|_| bad())? * unit)
}

fn fdinfo_identity(env: &Env) -> TestResult {
    let (one, other) = (env.open()?, env.open()?);
    let (one, other) = (fdinfo(&one)?, fdinfo(&other)?);
    check_eq!(
        one.get("drm-driver").map(String::as_str),
        Some("virtio_gpu"),
        "drm-driver"
    );
    check!(
        one.contains_key("drm-client-id"),
        "no drm-client-id: {one:?}"
    );
    check!(
        one.get("drm-client-id") != other.get("drm-client-id"),
        "two files are one client"
    );
    check!(one.contains_key("drm-pdev"), "no drm-pdev: {one:?}");
    Ok(())
}

/// Each kind of memory is counted where it belongs, and only there.
fn fdinfo_memory(env: &Env) -> TestResult {
    const KINDS: [&str; 4] = [
        "shmem",
        "host-visible",
        "userptr-pinned",
        "userptr-mirrored",
    ];
    let device = env.compute()?;
    let expect = |what: &str, total: [u64; 4], resident: [u64; 4]| -> TestResult {
        let info = fdinfo(&device)?;
        for (index, kind) in KINDS.iter().enumerate() {
            check_eq!(
                bytes(&info, &format!("drm-total-{kind}"))?,
                total[index],
                "{what}: drm-total-{kind}"
            );
            check_eq!(
                bytes(&info, &format!("drm-resident-{kind}"))?,
                resident[index],
                "{what}: drm-resident-{kind}"
            );
        }
        Ok(())
    };
    let page = PAGE as u64;
    expect("nothing", [0; 4], [0; 4])?;
    let guest = device.create_blob(&BlobOptions::guest(5 * page))?;
    expect("a guest blob", [5 * page, 0, 0, 0], [5 * page, 0, 0, 0])?;
    let host = device.create_blob(&BlobOptions::host3d(3 * page, 0))?;
    expect(
        "a host blob",
        [5 * page, 3 * page, 0, 0],
        [5 * page, 0, 0, 0],
    )?;
    drop((guest, host));
    let (stays, moves) = (Place::base(7 * PAGE)?, Place::base(9 * PAGE)?);
    let pinned = device.register(&stays, RegisterOptions::pinned())?;
    expect("pinned", [0, 0, 7 * page, 0], [0, 0, 7 * page, 0])?;
    if device.userptr_modes()? & uapi::USERPTR_MODE_MIRRORED != 0 {
        let all = [0, 0, 7 * page, 9 * page];
        let mirrored = device.register(&moves, RegisterOptions::mirrored())?;
        expect("mirrored", all, [0, 0, 7 * page, 0])?;
        mirrored.prefetch(2 * page, 4 * page)?;
        expect("prefetched", all, [0, 0, 7 * page, 4 * page])?;
        moves.unmap(3 * PAGE, PAGE)?;
        expect("unmapped", all, [0, 0, 7 * page, 3 * page])?;
        drop(mirrored);
    }
    drop(pinned);
    expect("in the end", [0; 4], [0; 4])
}

fn fdinfo_shared_and_active(env: &Env) -> TestResult {
    let device = env.compute()?;
    let size = PAGE as u64;
    let blob = device.create_blob(&BlobOptions::guest(size))?;
    let map = blob.map()?;
    map.write_u64(0, 0);
    let value = |key: &str| bytes(&fdinfo(&device)?, key);
    check_eq!(value("drm-shared-shmem")?, 0, "shared");
    check_eq!(value("drm-active-shmem")?, 0, "active");
    let exported = device.prime_export(blob.handle())?;
    check_eq!(value("drm-shared-shmem")?, size, "shared when exported");
    drop(exported);

    let mut stream = compute::Stream::new();
    stream.spin_until(blob.at(0), 1, 5_000_000);
    let fence = Exec::new(stream.as_bytes())
        .buffers(&[blob.handle()])
        .submit_with_fence(&device)?;
    check_eq!(value("drm-active-shmem")?, size, "active during a job");
    map.write_u64(0, 1);
    fence.wait(Some(job::LIMIT))?;
    check_eq!(value("drm-active-shmem")?, 0, "active after the job");
    Ok(())
}

fn file(env: &Env, name: &str) -> TestResult<String> {
    Ok(fs::read_to_string(debugfs::folder(env)?.join(name))?)
}

/// The same form as that of the C driver's file.
fn features_file(env: &Env) -> TestResult {
    let device = env.open()?;
    let text = file(env, "virtio-gpu-features")?;
    let value = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.split(" :").next().map(str::trim) == Some(name));
        line.and_then(|line| line.split_once(": "))
            .map(|(_, value)| value)
    };
    for (name, param) in [
        ("virgl", param::THREE_D_FEATURES),
        ("blob resources", param::RESOURCE_BLOB),
        ("context init", param::CONTEXT_INIT),
        ("resource uuid", param::CROSS_DEVICE),
    ] {
        let expected = if device.getparam(param)? != 0 {
            "yes"
        } else {
            "no"
        };
        check_eq!(value(name), Some(expected), "{name} in\n{text}");
    }
    check!(value("indirect").is_some(), "no indirect in\n{text}");
    check!(value("cap sets").is_some(), "no cap sets in\n{text}");
    let window = value("host visible region").is_some();
    check_eq!(
        window,
        device.getparam(param::HOST_VISIBLE)? != 0,
        "a host visible region in\n{text}"
    );
    Ok(())
}

/// Fences sent and signalled.
fn fences(env: &Env) -> TestResult<(u64, u64)> {
    let text = file(env, "virtio-gpu-irq-fence")?;
    let mut words = text.split_whitespace();
    let mut number = || words.next().and_then(|word| word.parse().ok());
    match (text.starts_with("fence "), number(), number(), number()) {
        (true, None, Some(signalled), Some(sent)) => Ok((signalled, sent)),
        _ => Err(Outcome::Fail(format!("virtio-gpu-irq-fence: {text:?}"))),
    }
}

fn fence_file(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let map = blob.map()?;
    map.write_u64(0, 0);
    let mut stream = compute::Stream::new();
    stream.spin_until(blob.at(0), 1, 5_000_000);
    let idle = || fences(env).is_ok_and(|(signalled, sent)| signalled == sent);
    check!(
        eventually(job::LIMIT, idle),
        "not all fences have signalled"
    );
    let (_, before) = fences(env)?;
    let fence = Exec::new(stream.as_bytes())
        .buffers(&[blob.handle()])
        .submit_with_fence(&device)?;
    check_eq!(fences(env)?, (before, before + 1), "fences during a job");
    map.write_u64(0, 1);
    fence.wait(Some(job::LIMIT))?;
    check_eq!(fences(env)?, (before + 1, before + 1), "fences after it");
    Ok(())
}

fn host_visible_file(env: &Env) -> TestResult {
    let device = env.compute()?;
    if device.getparam(param::HOST_VISIBLE)? == 0 {
        skip!("the device has no host-visible window");
    }
    // drm_mm's last line: "total: 1, used 2 free 3".
    let used = || -> TestResult<u64> {
        let text = file(env, "virtio-gpu-host-visible-mm")?;
        let word = text
            .lines()
            .last()
            .and_then(|line| line.split("used ").nth(1))
            .and_then(|rest| rest.split(' ').next())
            .and_then(|word| word.parse().ok());
        word.ok_or_else(|| Outcome::Fail(format!("virtio-gpu-host-visible-mm: {text:?}")))
    };
    let before = used()?;
    let blob = device.create_blob(&BlobOptions::host3d(3 * PAGE as u64, 0))?;
    drop(blob.map()?);
    check_eq!(used()?, before + 3 * PAGE as u64, "bytes used with a blob");
    drop(blob);
    let free = eventually(job::LIMIT, || used().is_ok_and(|used| used == before));
    check!(free, "the blob's bytes stay in use");
    Ok(())
}

/// The lines of file `userptr` of process `pid`, as words.
fn registrations(env: &Env, pid: u32) -> TestResult<Vec<Vec<String>>> {
    let text = file(env, "userptr")?;
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().map(str::to_string).collect());
    Ok(lines
        .filter(|words: &Vec<String>| words.first() == Some(&pid.to_string()))
        .collect())
}

/// Who keeps which memory from moving.
fn userptr_file(env: &Env) -> TestResult {
    let pid = std::process::id();
    let device = env.compute()?;
    let (stays, moves) = (Place::base(2 * PAGE)?, Place::base(3 * PAGE)?);
    check_eq!(
        registrations(env, pid)?.len(),
        0,
        "registrations before any"
    );
    let pinned = device.register(&stays, RegisterOptions::pinned())?;
    let line = |words: &[String]| words[2..].join(" ");
    let expected = format!(
        "{} pinned rw {:#x} {} {2} {2}",
        pinned.handle(),
        stays.address(0),
        2 * PAGE
    );
    let lines = registrations(env, pid)?;
    check_eq!(lines.len(), 1, "registrations");
    check_eq!(line(&lines[0]), expected, "the pinned one");
    check_eq!(lines[0][1], "virtgpu-tests", "the process's name");
    if device.userptr_modes()? & uapi::USERPTR_MODE_MIRRORED != 0 {
        let mirrored = device.register(&moves, RegisterOptions::mirrored().read_only())?;
        mirrored.prefetch(0, PAGE as u64)?;
        let expected = format!(
            "{} mirrored r {:#x} {} {PAGE} 0",
            mirrored.handle(),
            moves.address(0),
            3 * PAGE
        );
        let lines = registrations(env, pid)?;
        check!(
            lines.iter().any(|words| line(words) == expected),
            "no line {expected:?} in {lines:?}"
        );
    }
    drop(pinned);
    check_eq!(registrations(env, pid)?.len(), 0, "registrations after all");
    Ok(())
}

/// Reading the list never meets a file or an object that is going.
fn userptr_file_while_files_come_and_go(env: &Env) -> TestResult {
    let rounds = env.iterations(200);
    let child = child::spawn(|| {
        for _ in 0..rounds {
            let device = env.compute()?;
            let place = Place::base(PAGE)?;
            let first = device.register(&place, RegisterOptions::pinned())?;
            let second = device.register(&place, RegisterOptions::pinned())?;
            drop(first);
            // The other one goes with the file.
            std::mem::forget(second);
        }
        Ok(())
    })?;
    let (mut read, mut seen) = (0, 0);
    while !child.is_finished()? {
        seen += usize::from(file(env, "userptr")?.lines().count() > 1);
        read += 1;
    }
    println!("    # read {read} times, {seen} of them with registrations");
    child.join()
}

/// An instance of the tracer, with all events of this driver.
struct Tracer(PathBuf);

impl Tracer {
    fn new() -> TestResult<Self> {
        mount("tracefs", "/sys/kernel/tracing");
        let root = Path::new("/sys/kernel/tracing");
        if !root.join("events/virtgpu_userptr").exists() {
            skip!("the kernel has no trace events");
        }
        let instance = root.join(format!("instances/virtgpu-{}", std::process::id()));
        fs::create_dir(&instance)?;
        let tracer = Self(instance);
        fs::write(tracer.0.join("events/virtgpu_userptr/enable"), "1")?;
        Ok(tracer)
    }

    /// The events so far, each from its name on.
    fn events(&self) -> TestResult<Vec<String>> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        let event = |line: &str| {
            let at = line.find("virtgpu_userptr_")?;
            Some(line[at + "virtgpu_userptr_".len()..].to_string())
        };
        Ok(text.lines().filter_map(event).collect())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("events/virtgpu_userptr/enable"), "0");
        let _ = fs::remove_dir(&self.0);
    }
}

/// Where an event is that begins and ends so.
fn position(events: &[String], name: &str, parts: &[&str]) -> TestResult<usize> {
    let found = events.iter().position(|event| {
        event.starts_with(&format!("{name}: ")) && parts.iter().all(|part| event.contains(part))
    });
    found.ok_or_else(|| Outcome::Fail(format!("no {name} with {parts:?} in {events:#?}")))
}

fn trace_commands(env: &Env) -> TestResult {
    let tracer = Tracer::new()?;
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let mut stream = compute::Stream::new();
    stream.fill(blob.at(0), 8, 1);
    job::run(&device, &stream, &[blob.handle()])?;
    let events = tracer.events()?;
    // CTX_CREATE and SUBMIT_3D, and OK_NODATA, as in linux/virtio_gpu.h.
    let created = position(&events, "command", &["type=0x200 "])?;
    position(&events, "response", &["type=0x200 ", "response=0x1100"])?;
    let submitted = position(&events, "command", &["type=0x207 "])?;
    let fence = events[submitted]
        .split_whitespace()
        .find(|word| word.starts_with("fence="))
        .unwrap_or_default();
    check!(
        fence != "fence=0",
        "a job without fence: {}",
        events[submitted]
    );
    let fence = format!("{fence} ");
    let responded = position(
        &events,
        "response",
        &["type=0x207 ", &fence, "response=0x1100"],
    )?;
    check!(
        created < submitted && submitted < responded,
        "order in {events:#?}"
    );
    Ok(())
}

fn trace_user_memory(env: &Env) -> TestResult {
    let device = env.compute()?;
    if device.userptr_modes()? & uapi::USERPTR_MODE_MIRRORED == 0 {
        skip!("the device does not mirror user memory");
    }
    let tracer = Tracer::new()?;
    let place = Place::base(8 * PAGE)?;
    let mirrored = device.register(&place, RegisterOptions::mirrored())?;
    mirrored.prefetch(PAGE as u64, 4 * PAGE as u64)?;
    place.unmap(2 * PAGE, 2 * PAGE)?;
    let events = tracer.events()?;
    let address = format!("address={:#x} ", place.address(0));
    let registered = position(&events, "register", &[&address, "flags=0x2"])?;
    let mapped = position(&events, "map", &["pages=1-4 "])?;
    let invalidated = position(&events, "invalidate", &["pages=2-3 unmap"])?;
    let done = position(&events, "invalidated", &["pages=2-3 acknowledged"])?;
    check!(
        registered < mapped && mapped < invalidated && invalidated < done,
        "order in {events:#?}"
    );
    Ok(())
}
