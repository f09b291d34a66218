// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Fault injection: each ioctl is called with its first, second, third... allocation or copy to
//! user memory failing, until a call ends before a fault was due. Nothing may leak and nothing may
//! stay half-made. Needs a kernel with FAULT_INJECTION.

mod buffers;
mod device;
mod jobs;
mod memory;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use virtgpu_client::{BlobOptions, Device, Errno};

use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};
use crate::support::{errno, eventually, job, procfs};
use crate::{cases, check};

use self::buffers::{
    attached_later, create_guest_blob, create_host3d_guest_blob, create_host_blob, create_picture,
    gem_close, map, mmap, prime, prime_import, prime_or_fault_mode, resource_info, transfers,
};
use self::device::{context_init, get_caps, getparam, implicit_context, open_and_close, probe};
use self::jobs::{
    execbuffer, execbuffer_fault_mode, execbuffer_fences, execbuffer_long, execbuffer_polled,
    execbuffer_syncobjs, execbuffer_without_large_pages, wait,
};
use self::memory::{prefetch, query, register, register_fragmented, register_memfd, register_rocm};

pub(crate) const FAMILY: Family = Family {
    name: "faults",
    kernel: Kernel::Debug,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        open_and_close: 600,
        getparam: 600,
        get_caps: 600,
        context_init: 600,
        implicit_context: 600,
        create_guest_blob: 600,
        create_host_blob: 600,
        create_host3d_guest_blob: 600,
        create_picture: 600,
        transfers: 600,
        attached_later: 600,
        resource_info: 600,
        map: 600,
        mmap: 600,
        execbuffer: 600,
        execbuffer_long: 600,
        execbuffer_without_large_pages: 600,
        execbuffer_fences: 600,
        execbuffer_syncobjs: 600,
        execbuffer_polled: 600,
        execbuffer_fault_mode: 600,
        wait: 600,
        register: 600,
        register_fragmented: 900,
        register_memfd: 600,
        register_rocm: 600,
        query: 600,
        prefetch: 600,
        gem_close: 600,
        prime: 600,
        prime_or_fault_mode: 600,
        prime_import: 900,
        probe: 900,
    ],
};

/// Faults are silent, and hit allocations that may sleep and single pages too.
pub(super) fn configure() -> TestResult {
    let debug = "/sys/kernel/debug";
    for (file, value) in [
        ("failslab/verbose", "0"),
        ("failslab/ignore-gfp-wait", "N"),
        ("failslab/cache-filter", "N"),
        ("fail_page_alloc/verbose", "0"),
        ("fail_page_alloc/ignore-gfp-wait", "N"),
        ("fail_page_alloc/ignore-gfp-highmem", "N"),
        ("fail_page_alloc/min-order", "0"),
        ("fail_usercopy/verbose", "0"),
    ] {
        // A kernel may have some of the three only.
        let _ = fs::write(format!("{debug}/{file}"), value);
    }
    Ok(())
}

/// The kernel's switch for this thread: which fault from now on happens.
pub(super) struct FailNth(File);

impl FailNth {
    /// Opened before, because opening allocates.
    fn open() -> TestResult<Self> {
        configure()?;
        let path = "/proc/thread-self/fail-nth";
        Ok(Self(File::options().read(true).write(true).open(path)?))
    }

    fn arm(&self, nth: u64) -> TestResult {
        self.0.write_all_at(nth.to_string().as_bytes(), 0)?;
        Ok(())
    }

    /// Ends the injection; how many faults were left until the one that was due.
    fn left(&self) -> TestResult<u64> {
        let mut text = [0; 16];
        let length = self.0.read_at(&mut text, 0)?;
        self.0.write_all_at(b"0", 0)?;
        let number = String::from_utf8_lossy(&text[..length]);
        number
            .trim()
            .parse()
            .map_err(|_| Outcome::Fail(format!("fail-nth says {number}")))
    }

    /// Ends the injection; whether the fault has happened.
    fn disarm(&self) -> bool {
        let mut text = [0; 16];
        // When the fault is due in this very call, it has not happened before.
        let hit = self
            .0
            .read_at(&mut text, 0)
            .is_ok_and(|length| text[..length].trim_ascii() == b"0");
        // And when it is due in this one, it is over with it.
        let _ = self.0.write_all_at(b"0", 0);
        hit
    }
}

/// Calls `attempt` with each of its faults; `undo` undoes what it did.
pub(crate) fn each_fault<T>(
    what: &str,
    attempt: impl FnMut() -> Result<T, Errno>,
    undo: impl FnMut(T) -> TestResult,
) -> TestResult {
    each_fault_but_the_last(what, attempt, undo, || false)
}

/// The same for an ioctl that returns something new. The DRM core copies results out after the
/// driver is done; if just this copy fails, the thing exists and the caller has not been told. Then
/// `forgotten` undoes it, and says whether there was one.
pub(super) fn each_fault_but_the_last<T>(
    what: &str,
    mut attempt: impl FnMut() -> Result<T, Errno>,
    mut undo: impl FnMut(T) -> TestResult,
    mut forgotten: impl FnMut() -> bool,
) -> TestResult {
    const MOST: u64 = 3000;
    const MOST_UNTOLD: u64 = 4;
    let switch = FailNth::open()?;
    let pinned = procfs::vm_pin()?;
    let (mut failed, mut survived, mut untold) = (0, 0, 0);
    for nth in 1..=MOST {
        switch.arm(nth)?;
        let result = attempt();
        let hit = switch.disarm();
        match result {
            Ok(value) => {
                undo(value)?;
                survived += u64::from(hit);
            }
            Err(error) => {
                check!(hit, "{what} fails without a fault: {}", errno::name(error));
                check!(error != Errno::AGAIN, "{what}, fault {nth}: EAGAIN");
                failed += 1;
                untold += u64::from(error == Errno::FAULT && forgotten());
            }
        }
        // From call to call there may be a fault more or less before that copy.
        check!(
            untold <= MOST_UNTOLD,
            "{what}, fault {nth}: has an effect, and yet fails"
        );
        check!(
            eventually(job::LIMIT, || procfs::vm_pin() == Ok(pinned)),
            "{what}, fault {nth}: VmPin was {pinned}, is {:?}",
            procfs::vm_pin()
        );
        if !hit {
            println!("    # {what}: {failed} faults failed it, {survived} did not");
            return Ok(());
        }
    }
    check!(false, "{what} still meets faults after {MOST} calls");
    Ok(())
}

/// Calls `attempt`, which returns a new handle of `device`, with each of its faults.
pub(crate) fn each_fault_of_a_handle(
    what: &str,
    device: &Device,
    mut attempt: impl FnMut() -> Result<u32, Errno>,
) -> TestResult {
    // Handles are given from the lowest on.
    let pinned = procfs::vm_pin()?;
    let next = attempt()?;
    device.gem_close(next)?;
    eventually(job::LIMIT, || procfs::vm_pin() == Ok(pinned));
    each_fault_but_the_last(
        what,
        attempt,
        |handle| Ok(device.gem_close(handle)?),
        || device.gem_close(next).is_ok(),
    )
}

/// Calls `attempt` with a new buffer for each of its faults, and then `look` with the buffer and
/// the result.
pub(super) fn each_fault_on_a_buffer<T>(
    device: &Device,
    mut look: impl FnMut(u32, Result<T, Errno>) -> TestResult,
    attempt: impl Fn(u32) -> Result<T, Errno>,
) -> TestResult {
    let switch = FailNth::open()?;
    for nth in 1..1000 {
        let blob = device.create_blob(&BlobOptions::guest(4096))?;
        switch.arm(nth)?;
        let result = attempt(blob.handle());
        let hit = switch.disarm();
        look(blob.handle(), result)?;
        if !hit {
            return Ok(());
        }
    }
    check!(false, "there are faults after 1000 calls");
    Ok(())
}

/// Calls `attempt`, which returns a new file, with each of its faults.
pub(super) fn each_fault_of_a_file<T>(
    what: &str,
    attempt: impl FnMut() -> Result<T, Errno>,
) -> TestResult {
    let open = fs::read_dir("/proc/self/fd")?.count();
    // Files are given from the lowest on too: the first goes to the switch, the second is new.
    let (first, second) = (File::open("/dev/null")?, File::open("/dev/null")?);
    let next = second.as_raw_fd();
    drop((first, second));
    // SAFETY: If that file is open, it is the one of which no one was told.
    each_fault_but_the_last(what, attempt, nothing, || unsafe { libc::close(next) == 0 })?;
    check!(
        fs::read_dir("/proc/self/fd")?.count() == open,
        "{what}: files have leaked"
    );
    Ok(())
}

pub(super) fn nothing<T>(_: T) -> TestResult {
    Ok(())
}
