// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Registrations through the life of a process: fork, exec, being killed anywhere, exit with jobs
//! in flight; many threads; many cycles. What is left behind, the harness looks at after each case.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Barrier;
use std::time::Duration;

use virtgpu_client::protocol::{compute::Operand, uapi};
use virtgpu_client::{compute, Bytes, Device, Exec, Memory, RegisterOptions};

use crate::ktap::{reap, Driver, Family, Kernel, TestResult};
use crate::support::memory::small_pages;
use crate::support::{child, cstring, eventually, job, procfs, raced, raw, Env, Random, P, PAGE};
use crate::{cases, check, check_eq};

pub(crate) const FAMILY: Family = Family {
    name: "life",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        fork_both_write,
        fork_child_uses_the_file,
        fork_child_closes,
        memory_unmapped_first,
        file_closed_first,
        exec_with_registration: 60,
        exec_closes: 60,
        killed_anywhere: 900,
        exit_with_jobs_in_flight: 300,
        threads_overlapping: 600,
        ten_thousand_cycles: 1200,
    ],
};

fn fork_both_write(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(32 * PAGE)?;
    memory.fill(1);
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let child = child::spawn(|| {
        for page in 0..32 {
            check_eq!(
                memory.read_u32(page * PAGE),
                0x0101_0101,
                "page {page} in the child"
            );
            memory.write_u32(page * PAGE, 2);
        }
        Ok(())
    })?;
    for page in 0..32 {
        memory.write_u32(page * PAGE + 4, 3);
    }
    job::add(
        &device,
        userptr.at(0),
        memory.len() as u64,
        1,
        userptr.handle(),
    )?;
    child.join()?;
    job::add(
        &device,
        userptr.at(0),
        memory.len() as u64,
        1,
        userptr.handle(),
    )?;
    for page in 0..32 {
        check_eq!(
            memory.read_u32(page * PAGE),
            0x0101_0103,
            "page {page}, not the child's"
        );
        check_eq!(
            memory.read_u32(page * PAGE + 4),
            5,
            "page {page}, own write"
        );
    }
    Ok(())
}

/// The file is shared with the child; a pinned registration serves both.
fn fork_child_uses_the_file(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(4 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    child::run(|| {
        job::add(&device, userptr.at(0), 4 * P, 7, userptr.handle())?;
        check_eq!(memory.read_u32(0), 0, "the child has a copy");
        Ok(())
    })?;
    check_eq!(
        memory.read_u32(0),
        7,
        "the child's job wrote to the parent's pages"
    );
    check_eq!(procfs::vm_pin()?, 4 * P, "VmPin");
    Ok(())
}

/// The pages are given back to the account of who registered them, whoever closes the handle.
fn fork_child_closes(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(4 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    child::run(|| {
        check_eq!(procfs::vm_pin()?, 0, "VmPin of the child");
        device.gem_close(userptr.handle())?;
        check_eq!(procfs::vm_pin()?, 0, "VmPin of the child after closing");
        Ok(())
    })?;
    check!(
        eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
        "VmPin of the parent goes back to 0"
    );
    Ok(())
}

/// The documented way of going wrong: the device keeps the old pages.
fn memory_unmapped_first(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(4 * PAGE)?;
    memory.write_u64(0, 0x51);
    let register = raw::pinned(memory.as_ptr() as u64, 4 * P);
    let handle = raw::register(&device, register)?;
    let at = Operand::resource(device.resource_info(handle)?.res_handle, 0);
    drop(memory);
    check_eq!(job::peek(&device, at, handle)?, 0x51, "the device's view");
    job::poke(&device, at, 0x52, handle)?;
    check_eq!(
        job::peek(&device, at, handle)?,
        0x52,
        "the device's own write"
    );
    check_eq!(procfs::vm_pin()?, 4 * P, "VmPin");
    device.gem_close(handle)?;
    check!(
        eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
        "VmPin goes back to 0"
    );
    Ok(())
}

fn file_closed_first(env: &Env) -> TestResult {
    let memory = small_pages(64 * PAGE)?;
    for _ in 0..20 {
        let device = env.compute()?;
        for page in 0..16 {
            let addr = memory.as_ptr() as u64 + page * 4 * P;
            raw::register(&device, raw::pinned(addr, 4 * P))?;
        }
        drop(device);
    }
    check!(
        eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
        "VmPin goes back to 0"
    );
    Ok(())
}

/// What `exec_with_registration` runs after execve: the file and its registration live on.
pub(crate) fn after_exec(arguments: &[String]) -> TestResult {
    let number = |index: usize| -> i32 { arguments[index].parse().expect("a number") };
    let (fd, handle) = (number(0), number(1) as u32);
    // SAFETY: The file was inherited, and nothing else here knows its number.
    let device = Device::from_fd(unsafe { OwnedFd::from_raw_fd(fd) });
    let query = device.query(handle)?;
    check_eq!(query.state, uapi::bo_state::VALID, "state after exec");
    check_eq!(query.size, 4 * P, "size after exec");
    check_eq!(procfs::vm_pin()?, 0, "VmPin of the new program");
    let at = Operand::resource(device.resource_info(handle)?.res_handle, 0);
    check_eq!(
        job::peek(&device, at, handle)?,
        0x53,
        "the old program's memory"
    );
    job::add(&device, at, 4 * P, 1, handle)?;
    check_eq!(job::peek(&device, at, handle)? as u32, 0x54, "after a job");
    device.gem_close(handle)?;
    Ok(())
}

fn execute(arguments: &[String]) -> ! {
    let strings: Vec<CString> = arguments.iter().map(|text| cstring(text)).collect();
    let mut pointers: Vec<_> = strings.iter().map(|text| text.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: NUL-terminated strings in an array that NULL ends.
    unsafe {
        libc::execv(c"/proc/self/exe".as_ptr(), pointers.as_ptr());
        libc::_exit(127)
    }
}

fn exec_child(env: &Env, inherit: bool) -> TestResult {
    // SAFETY: This process has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let prepare = || -> TestResult<Vec<String>> {
            let device = env.compute()?;
            let memory = small_pages(4 * PAGE)?;
            memory.write_u64(0, 0x53);
            let handle = raw::register(&device, raw::pinned(memory.as_ptr() as u64, 4 * P))?;
            let fd = device.as_fd().as_raw_fd();
            if inherit {
                // SAFETY: An own file.
                unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
            }
            std::mem::forget((device, memory));
            Ok(if inherit {
                vec!["after-exec".into(), fd.to_string(), handle.to_string()]
            } else {
                vec!["list".into()]
            })
        };
        match prepare() {
            Ok(mut arguments) => {
                arguments.insert(0, "virtgpu-tests".into());
                if !inherit {
                    // `list` writes; it should not write into our report.
                    // SAFETY: Own file descriptors.
                    unsafe { libc::dup2(libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY), 1) };
                }
                execute(&arguments)
            }
            Err(error) => {
                println!("    # {error:?}");
                // SAFETY: Ends the child.
                unsafe { libc::_exit(1) }
            }
        }
    }
    let status = reap(pid)?;
    check!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "the new program's status is {status:#x}"
    );
    Ok(())
}

fn exec_with_registration(env: &Env) -> TestResult {
    exec_child(env, true)
}

/// With close-on-exec, exec ends the registration.
fn exec_closes(env: &Env) -> TestResult {
    exec_child(env, false)
}

/// The endless work of a child that is going to be killed.
fn work(env: &Env, seed: u64) -> TestResult {
    let mut random = Random(seed);
    loop {
        let device = env.compute()?;
        let memory = small_pages(256 * PAGE)?;
        for _ in 0..10 {
            let pages = 1 + random.below(256) as usize;
            let userptr =
                device.register_range(&memory, 0, pages * PAGE, RegisterOptions::pinned())?;
            let mut stream = compute::Stream::new();
            stream
                .add_u32(userptr.at(0), (pages * PAGE) as u64, 1)
                .delay(random.below(2000));
            let fence = Exec::new(stream.as_bytes())
                .ring(random.below(4) as u32)
                .buffers(&[userptr.handle()])
                .submit_with_fence(&device)?;
            if random.below(2) == 0 {
                fence.wait(Some(job::LIMIT))?;
            }
        }
    }
}

/// SIGKILL at random points of register, job, unregister and close.
fn killed_anywhere(env: &Env) -> TestResult {
    let mut random = Random(21);
    let rounds = env.rounds(200);
    for round in 0..rounds {
        let child = child::spawn(|| work(env, round))?;
        // Not synchronisation: the point at which the child dies.
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        child.kill()?;
    }
    raced("processes killed", rounds)
}

fn exit_with_jobs_in_flight(env: &Env) -> TestResult {
    let rounds = env.rounds(50);
    for round in 0..rounds {
        child::run(|| {
            let device = env.compute()?;
            let memory = small_pages(64 * PAGE)?;
            let handle = raw::register(&device, raw::pinned(memory.as_ptr() as u64, 64 * P))?;
            let at = Operand::resource(device.resource_info(handle)?.res_handle, 0);
            let mut stream = compute::Stream::new();
            stream.delay(30_000).add_u32(at, 64 * P, 1);
            for ring in 0..4 {
                Exec::new(stream.as_bytes())
                    .ring(ring)
                    .buffers(&[handle])
                    .submit(&device)?;
            }
            if round % 2 == 0 {
                // Before the file: its jobs then write to pages that no process has.
                drop(memory);
            } else {
                std::mem::forget(memory);
            }
            std::mem::forget(device);
            Ok(())
        })?;
    }
    raced("exits, in two orders", rounds)
}

/// 64 threads, one file, ranges that overlap in every way.
fn threads_overlapping(env: &Env) -> TestResult {
    const THREADS: u64 = 64;
    let rounds = env.iterations(30);
    let device = env.compute()?;
    let memory = small_pages(128 * PAGE)?;
    let barrier = Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (device, memory, barrier) = (&device, &memory, &barrier);
                scope.spawn(move || -> TestResult {
                    let mut random = Random(thread);
                    barrier.wait();
                    for _ in 0..rounds {
                        // Every range has page 64 in it.
                        let first = random.below(65) as usize;
                        let last = 65 + random.below(64) as usize;
                        let userptr = device.register_range(
                            memory,
                            first * PAGE,
                            (last - first) * PAGE,
                            RegisterOptions::pinned(),
                        )?;
                        let mut stream = compute::Stream::new();
                        stream.atomic_add(userptr.at(((64 - first) * PAGE) as u64), 1, 10);
                        Exec::new(stream.as_bytes())
                            .ring(thread as u32 % 4)
                            .buffers(&[userptr.handle()])
                            .submit_with_fence(device)?
                            .wait(Some(job::LIMIT))?;
                    }
                    Ok(())
                })
            })
            .collect();
        let mut result = Ok(());
        for thread in threads {
            result = result.and(thread.join().expect("no panic"));
        }
        result
    })?;
    check_eq!(
        memory.read_u64(64 * PAGE),
        THREADS * rounds * 10,
        "additions of all threads"
    );
    check!(
        eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
        "VmPin goes back to 0"
    );
    Ok(())
}

/// Objects in use in each slab cache.
fn slabs() -> BTreeMap<String, i64> {
    let text = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_string(), words.next()?.parse().ok()?))
        })
        .collect()
}

fn cycles(device: &Device, memory: &impl Memory, count: u64) -> TestResult {
    for cycle in 0..count {
        let mut register = raw::pinned(memory.as_ptr() as u64, memory.len() as u64);
        if cycle % 3 == 0 {
            register.flags |= uapi::USERPTR_RDONLY;
        }
        let handle = raw::register(device, register)?;
        device.gem_close(handle)?;
    }
    Ok(())
}

fn ten_thousand_cycles(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(4 * PAGE)?;
    let system = procfs::pinned_pages()?;
    // The caches are filled first.
    cycles(&device, &memory, env.iterations(1000))?;
    let idle = || procfs::vm_pin() == Ok(0) && procfs::pinned_pages() == Ok(system);
    check!(
        eventually(job::LIMIT, idle),
        "all is unpinned after the warm-up"
    );
    let (slab, unreclaimable) = (slabs(), procfs::meminfo("SUnreclaim:")?);
    let count = env.iterations(10_000);
    cycles(&device, &memory, count)?;
    check!(
        eventually(job::LIMIT, idle),
        "as many pages are unpinned as were pinned"
    );
    if std::env::var("VIRTGPU_KERNEL").as_deref() == Ok("debug") {
        // KASAN keeps freed objects in quarantine, where they count as in use. What leaks is found
        // by kmemleak, which looks at the end of every run.
        println!("    # slab counts mean nothing with KASAN, kmemleak looks for leaks");
        return Ok(());
    }
    // Something that leaks in each cycle of one kind grows by a third of `count`; what RCU has not
    // freed yet, and the part-filled slabs of each processor, come and go.
    let allowed = count as i64 / 10;
    let mut grown = String::new();
    let stable = eventually(Duration::from_secs(30), || {
        grown = slabs()
            .iter()
            .filter_map(|(name, after)| {
                let growth = after - slab.get(name)?;
                (growth > allowed).then(|| format!(" {name} +{growth}"))
            })
            .collect();
        grown.is_empty()
    });
    check!(stable, "slab caches that have grown:{grown}");
    let growth = procfs::meminfo("SUnreclaim:")?.saturating_sub(unreclaimable);
    println!("    # SUnreclaim has grown by {growth} kB in {count} cycles");
    check!(growth < 8192, "SUnreclaim has grown by {growth} kB");
    Ok(())
}
