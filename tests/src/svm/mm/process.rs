// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Processes: children, strangers, new programs, and ends at any point.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, Bytes, Deadline, Device, Errno, Memory};

use super::{additions, SIZE};
use crate::ktap::{pidfd, reap, TestResult};
use crate::support::place::{Pages, Place};
use crate::support::procfs;
use crate::support::{bounded, child, eventually, gpu, job, raced, raw, Env, Random, HUGE, PAGE};
use crate::svm::support::{at, device, on_each_kind, open, others_work, Svm};
use crate::{check, check_eq, check_err};

/// Each side's writes are its own, whoever is first.
pub(super) fn fork_both_sides(env: &Env) -> TestResult {
    on_each_kind(env, 2 * HUGE, |svm, place| {
        let data = Svm::scatter(place, 4);
        svm.poke(place.address(8), 1)?;
        place.write(8, &data[8..16]);
        let child = svm.loses("fork", place, place.unit(), || {
            child::hold(|| {
                check!(place.to_vec(0, place.len()) == data, "the child's copy");
                place.fill(0xcc);
                Ok(())
            })
        })?;
        // We are first here, the child is there.
        svm.poke(place.address(HUGE), 0x1234)?;
        child.release()?;
        let mut expected = data;
        expected[HUGE..HUGE + 8].copy_from_slice(&0x1234_u64.to_le_bytes());
        svm.sees("after the child's writes", place, &expected)?;
        check!(place.to_vec(0, place.len()) == expected, "our view");
        svm.coherent_all_over("after the child", place)
    })
}

pub(super) fn forks_while_the_device_writes(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    place.fill(0);
    additions(&svm, &place, env.rounds(60), |_| {
        // SAFETY: The child does nothing but end, which any thread's child may.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: Ends the child.
            unsafe { libc::_exit(0) }
        }
        check!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        reap(pid).map(drop)
    })
}

/// A descriptor for the file that another process has as `fd`.
fn file_of(process: &OwnedFd, fd: i32) -> TestResult<OwnedFd> {
    // SAFETY: Takes integers.
    let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    check!(got >= 0, "pidfd_getfd: {}", std::io::Error::last_os_error());
    // SAFETY: The kernel has just given us this file descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(got as i32) })
}

/// Stops a child, all of its threads.
fn stop(child: &child::Child) -> TestResult {
    // SAFETY: A signal to our own child.
    unsafe { libc::kill(child.pid, libc::SIGSTOP) };
    let stopped = || {
        let file = format!("/proc/{}/stat", child.pid);
        fs::read_to_string(file)
            .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T')))
    };
    check!(eventually(job::LIMIT, stopped), "the child does not stop");
    Ok(())
}

/// Each ioctl that is about the memory is refused to another process, and changes nothing.
fn refused_to_others(device: &Device, address: u64) -> TestResult {
    let mut idle = compute::Stream::new();
    idle.delay(1);
    let job = virtgpu_client::Exec::new(idle.as_bytes())
        .ring(0)
        .submit(device);
    check_err!(job, Errno::ACCESS, "EXECBUFFER");
    for (what, result) in [
        (
            "SVM_QUERY",
            raw::call(device, uapi::nr::SVM_QUERY, &mut uapi::SvmQuery::default()),
        ),
        (
            "SVM_WAIT",
            raw::call(device, uapi::nr::SVM_WAIT, &mut uapi::SvmWait::default()),
        ),
        (
            "SVM_PREFETCH",
            raw::call(
                device,
                uapi::nr::SVM_PREFETCH,
                &mut uapi::SvmPrefetch {
                    addr: address,
                    length: PAGE as u64,
                    ..Default::default()
                },
            ),
        ),
    ] {
        check_err!(result, Errno::ACCESS, "{what}");
    }
    let again = raw::call(
        device,
        uapi::nr::SVM_ENABLE,
        &mut uapi::SvmEnable::default(),
    );
    check!(
        matches!(again, Err(Errno::EXIST | Errno::ACCESS)),
        "SVM_ENABLE: {}",
        crate::support::errno::describe(&again)
    );
    Ok(())
}

pub(super) fn child_and_passed_fd_refused(env: &Env) -> TestResult {
    drop(device(env)?);
    let number = Place::shared_page()?;
    // One that gets the file from us, and was there before it.
    let (parent, number) = (std::process::id() as i32, &number);
    let stranger = child::hold(|| {
        let pid = pidfd(parent)?;
        let fd = number.read_u64(0) as i32;
        let device = Device::from_fd(file_of(&pid, fd)?);
        refused_to_others(&device, number.address(0))
    })?;
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    let data = Svm::scatter(&place, 5);
    svm.agrees("before", &place)?;
    number.write_u64(0, svm.fd().as_raw_fd() as u64);
    stranger.release()?;
    svm.sees("after the stranger", &place, &data)?;
    child::run(|| refused_to_others(svm.device(), place.address(0)))?;
    svm.sees("after the child", &place, &data)?;
    check_eq!(svm.count()?.state, uapi::svm_state::ACTIVE, "the state");
    svm.coherent_all_over("in the end", &place)
}

/// A child opens the device for itself, and uses the same addresses, which are other memory there.
pub(super) fn child_has_its_own(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(SIZE)?;
    let data = Svm::scatter(&place, 6);
    svm.agrees("before", &place)?;
    child::run(|| {
        let own = open(env)?;
        own.sees("the child's copy", &place, &data)?;
        own.fill(&place, 0x6666)?;
        check_eq!(place.read_u64(PAGE), 0x6666, "the child's view");
        Ok(())
    })?;
    svm.sees("after the child", &place, &data)?;
    check!(place.to_vec(0, SIZE) == data, "our view");
    Ok(())
}

/// A job that does not end by itself in the time of a test.
fn endless(place: &Place) -> compute::Stream {
    let mut stream = compute::Stream::new();
    for _ in 0..3000 {
        stream.add_u32(at(place.address(0)), place.len() as u64, 1);
    }
    stream
}

/// The new program has the file, and the old one's memory is gone with its threads.
pub(super) fn exec(env: &Env) -> TestResult {
    drop(device(env)?);
    for inherit in [false, true] {
        let child = child::spawn(|| {
            let svm = open(env)?;
            let place = Place::base(HUGE)?;
            svm.coherent_all_over("in the child", &place)?;
            svm.submit(0, &endless(&place))?;
            if inherit {
                // SAFETY: An own file.
                unsafe { libc::fcntl(svm.fd().as_raw_fd(), libc::F_SETFD, 0) };
            }
            child::exec()
        })?;
        bounded("the new program", || child.exits_with(0))?;
        crate::svm::support::others_work(env, "a program that is gone")?;
    }
    Ok(())
}

pub(super) fn exit_with_jobs(env: &Env) -> TestResult {
    drop(device(env)?);
    let rounds = env.rounds(60).next_multiple_of(3);
    for round in 0..rounds {
        child::run(|| {
            let svm = open(env)?;
            let place = Place::base(HUGE)?;
            for ring in 0..4 {
                svm.submit(ring, &endless(&place))?;
            }
            match round % 3 {
                // The memory first, the file first, or both by the exit.
                0 => place.unmap(0, HUGE)?,
                1 => drop(svm),
                _ => std::mem::forget(svm),
            }
            Ok(())
        })?;
    }
    raced("exits, in three orders", rounds)
}

/// The endless work of a child that is going to be killed.
fn work(env: &Env, seed: u64) -> TestResult {
    let mut random = Random(seed);
    loop {
        let svm = open(env)?;
        let pages = match random.below(2) {
            0 => Pages::Base,
            _ => Pages::Huge,
        };
        let place = Place::new(pages, HUGE)?;
        for _ in 0..10 {
            place.map(0, HUGE)?;
            for ring in 0..1 + random.below(4) as u32 {
                svm.submit(ring, &Svm::adding(&place))?;
            }
            match random.below(6) {
                0 => place.advise(0, HUGE, libc::MADV_DONTNEED)?,
                1 => place.map(0, HUGE / 2)?,
                2 => child::run(|| Ok(()))?,
                3 => drop(
                    svm.space
                        .prefetch_for_writing(place.address(0), HUGE as u64)?,
                ),
                _ => {}
            }
            let _ = svm.space.wait_ring(0, Deadline::after(job::LIMIT));
        }
        if random.below(4) == 0 {
            // Lost by a bad address, which is as good a state to be killed in as any.
            let _ = svm.end(&Svm::writing(0, 1));
        }
    }
}

/// SIGKILL at random points of enabling, faults, invalidations, waits and the end.
pub(super) fn kill_at_random(env: &Env) -> TestResult {
    drop(device(env)?);
    let mut random = Random(31);
    let rounds = env.rounds(1000);
    for round in 0..rounds {
        let child = child::spawn(|| work(env, round))?;
        // Not synchronisation: the point at which the child dies.
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        bounded("the end of a killed process", || child.kill())?;
    }
    raced("processes killed", rounds)
}

/// A stopped process serves no faults, and no one but its own jobs waits for that.
pub(super) fn stop_and_continue(env: &Env) -> TestResult {
    let svm = open(env)?;
    let flag = Place::shared_page()?;
    let child = child::spawn(|| {
        let own = open(env)?;
        loop {
            // A fault each.
            let place = Place::base(PAGE)?;
            own.poke(place.address(0), 5)?;
            check_eq!(place.read_u64(0), 5, "the child's view");
            flag.write_u64(0, flag.read_u64(0) + 1);
        }
    })?;
    let test = || -> TestResult {
        for round in 0..5 {
            let before = flag.read_u64(0);
            check!(
                eventually(job::LIMIT, || flag.read_u64(0) > before),
                "no progress in round {round}"
            );
            stop(&child)?;
            let place = Place::base(SIZE)?;
            bounded("another process", || {
                svm.coherent_all_over("beside a stopped process", &place)?;
                place.unmap(0, SIZE)
            })?;
            // SAFETY: A signal to our own child.
            unsafe { libc::kill(child.pid, libc::SIGCONT) };
        }
        Ok(())
    };
    let result = test();
    child.kill()?;
    result
}

/// The file of a process that is stopped is closed by another: its address space ends, and no
/// thread of the kernel waits until the process goes on.
pub(super) fn stopped_and_closed(env: &Env) -> TestResult {
    let svm = open(env)?;
    let number = Place::shared_page()?;
    let before = svm.stat()?.spaces.get();
    let users = gpu::module_users()?;
    let child = child::spawn(|| {
        let own = open(env)?;
        let place = Place::base(PAGE)?;
        own.poke(place.address(0), 5)?;
        number.write_u64(0, own.fd().as_raw_fd() as u64);
        // Until another has it.
        check!(
            eventually(job::LIMIT, || number.read_u64(0) == 0),
            "the file is not taken"
        );
        drop(own);
        number.write_u64(8, 1);
        check!(
            eventually(job::LIMIT, || number.read_u64(8) == 3),
            "the parent does not look at the threads"
        );
        Ok(())
    })?;
    let test = || -> TestResult {
        check!(
            eventually(job::LIMIT, || number.read_u64(0) != 0),
            "the child has no file"
        );
        let file = file_of(&pidfd(child.pid)?, number.read_u64(0) as i32)?;
        number.write_u64(0, 0);
        check!(
            eventually(job::LIMIT, || number.read_u64(8) == 1),
            "the child has not closed its file"
        );
        stop(&child)?;
        check_eq!(svm.stat()?.spaces.get(), before + 1, "spaces of the device");
        drop(file);
        let ended = || svm.stat().is_ok_and(|stat| stat.spaces.get() == before);
        check!(eventually(job::LIMIT, ended), "the space does not end");
        // What ends it does more, but nothing that takes time.
        others_work(env, "beside a stopped process")?;
        // So that unloading it fails, and does not wait for the process.
        let used = || gpu::module_users().is_ok_and(|now| now == users + 2);
        check!(eventually(job::LIMIT, used), "users of the module");
        check_eq!(
            procfs::tasks_in("vhost_task_stop")?,
            Vec::<String>::new(),
            "tasks that wait for the stopped process"
        );
        Ok(())
    };
    let result = test();
    if result.is_err() {
        child.kill()?;
        return result;
    }
    // Its threads end as soon as it goes on.
    let threads = || fs::read_dir(format!("/proc/{}/task", child.pid)).map_or(0, Iterator::count);
    check_eq!(threads(), 3, "threads of the stopped process");
    // SAFETY: A signal to our own child.
    unsafe { libc::kill(child.pid, libc::SIGCONT) };
    let ended = eventually(job::LIMIT, || threads() == 1);
    number.write_u64(8, 3);
    child.join()?;
    check!(ended, "the threads of the process do not end");
    let unused = || gpu::module_users().is_ok_and(|now| now == users);
    check!(eventually(job::LIMIT, unused), "the module stays in use");
    Ok(())
}
