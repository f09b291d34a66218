// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Fault injection: each ioctl is called with its first, second, third... allocation or copy to user
//! memory failing, until a call ends before a fault was due. Nothing may leak and nothing may stay
//! half-made. Needs a kernel with FAULT_INJECTION.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;

use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{
    compute, BlobOptions, Bytes, Device, Errno, Exec, Memfd, Memory, Region, RegisterOptions,
};

use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};
use crate::probe::interrupts;
use crate::support::gpu;
use crate::support::memory::small_pages;
use crate::support::{errno, eventually, job, procfs, raw, udmabuf, Env, PAGE};
use crate::{cases, check, check_eq};

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
        wait: 600,
        register: 600,
        register_fragmented: 900,
        register_memfd: 600,
        register_rocm: 600,
        query: 600,
        prefetch: 600,
        gem_close: 600,
        prime: 600,
        prime_foreign: 900,
        probe: 900,
    ],
};

/// Faults are silent, and hit allocations that may sleep and single pages too.
fn configure() -> TestResult {
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
struct FailNth(File);

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

/// Calls `attempt` with each of its faults; `undo` takes back what it did.
pub(crate) fn each_fault<T>(
    what: &str,
    attempt: impl FnMut() -> Result<T, Errno>,
    undo: impl FnMut(T) -> TestResult,
) -> TestResult {
    each_fault_but_the_last(what, attempt, undo, || false)
}

/// The same for an ioctl that returns something new. The DRM core copies results out after the
/// driver is done; if just this copy fails, the thing exists and the caller has not been told. Then
/// `forgotten` takes it back, and says whether there was one.
fn each_fault_but_the_last<T>(
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

/// Calls `attempt`, which returns a new file, with each of its faults.
fn each_fault_of_a_file<T>(what: &str, attempt: impl FnMut() -> Result<T, Errno>) -> TestResult {
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

fn nothing<T>(_: T) -> TestResult {
    Ok(())
}

fn open_and_close(env: &Env) -> TestResult {
    let node = env.node().unwrap_or_default();
    each_fault("open", || Device::open_path(&node), nothing)
}

fn getparam(env: &Env) -> TestResult {
    let device = env.open()?;
    each_fault("GETPARAM", || device.userptr_modes(), nothing)
}

fn get_caps(env: &Env) -> TestResult {
    // Both a capability set that is asked for the first time and one that is known.
    for _ in 0..2 {
        let device = env.open()?;
        each_fault("GET_CAPS", || device.compute_caps(), nothing)?;
    }
    Ok(())
}

fn context_init(env: &Env) -> TestResult {
    let mut device = env.open()?;
    let switch = FailNth::open()?;
    // A failed call must leave the file usable; each success needs a new one. So does a call of
    // which only the end failed: the DRM core copies the arguments back when the driver is done.
    let mut used = false;
    let mut untold = 0;
    for nth in 1..3000 {
        if used {
            device = env.open()?;
        }
        switch.arm(nth)?;
        let result = device.context_init_compute(2);
        let hit = switch.disarm();
        used = result.is_ok();
        if let Err(error) = result {
            check!(
                hit,
                "CONTEXT_INIT fails without a fault: {}",
                errno::name(error)
            );
            if error == Errno::FAULT {
                let again = device.context_init_compute(2);
                check!(
                    matches!(again, Ok(()) | Err(Errno::EXIST)),
                    "CONTEXT_INIT after fault {nth}: {}",
                    errno::describe(&again)
                );
                untold += u32::from(again.is_err());
                used = true;
            }
            check!(
                untold <= 4,
                "CONTEXT_INIT, fault {nth}: has an effect, and yet fails"
            );
        }
        if !hit {
            return Ok(());
        }
    }
    check!(false, "CONTEXT_INIT still meets faults");
    Ok(())
}

fn implicit_context(env: &Env) -> TestResult {
    let node = env.node().unwrap_or_default();
    each_fault(
        "open and CREATE_BLOB",
        || {
            let device = Device::open_path(&node)?;
            device.create_blob(&BlobOptions::guest(4096)).map(drop)
        },
        nothing,
    )
}

fn create(env: &Env, what: &str, options: &BlobOptions<'_>) -> TestResult {
    let device = env.compute()?;
    each_fault_of_a_handle(what, &device, || {
        device
            .create_blob(options)
            .map(virtgpu_client::Blob::into_handle)
    })
}

fn create_guest_blob(env: &Env) -> TestResult {
    create(env, "a guest blob", &BlobOptions::guest(64 << 10))
}

fn create_host_blob(env: &Env) -> TestResult {
    create(env, "a host blob", &BlobOptions::host3d(64 << 10, 1))
}

fn create_host3d_guest_blob(env: &Env) -> TestResult {
    create(
        env,
        "a blob of both",
        &BlobOptions::host3d_guest(64 << 10, 1),
    )
}

fn create_picture(env: &Env) -> TestResult {
    let device = env.compute()?;
    each_fault_of_a_handle("RESOURCE_CREATE", &device, || {
        device
            .create_picture(128, 128)
            .map(virtgpu_client::Image::into_handle)
    })
}

fn transfers(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(64, 64)?;
    let region = Region::picture(64, 64);
    each_fault("TRANSFER_TO_HOST", || image.to_host(&region), nothing)?;
    each_fault("TRANSFER_FROM_HOST", || image.from_host(&region), nothing)
}

/// A handle that is there before the context: making the context attaches it, or fails.
fn attached_later(env: &Env) -> TestResult {
    let first = env.compute()?;
    let image = first.create_picture(16, 16)?;
    image.to_host(&Region::picture(16, 16))?;
    let dmabuf = first.prime_export(image.handle())?;
    let node = env.node().unwrap_or_default();
    each_fault(
        "a transfer that makes the context",
        || {
            let device = Device::open_path(&node)?;
            let handle = device.prime_import(&dmabuf)?;
            device.transfer_from_host(handle, &Region::picture(16, 16))?;
            device.wait(handle)
        },
        nothing,
    )
}

fn resource_info(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    each_fault("RESOURCE_INFO", || blob.info(), nothing)
}

fn map(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    each_fault("MAP", || blob.map_offset(), nothing)
}

fn mmap(env: &Env) -> TestResult {
    let device = env.compute()?;
    let guest = device.create_blob(&BlobOptions::guest(4096))?;
    each_fault("mmap of a guest blob", || guest.map(), nothing)?;
    let host = device.create_blob(&BlobOptions::host3d(4096, 1))?;
    each_fault("mmap of a host blob", || host.map(), nothing)
}

fn execbuffer(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blobs = (0..3)
        .map(|_| device.create_blob(&BlobOptions::guest(4096)))
        .collect::<Result<Vec<_>, _>>()?;
    let handles: Vec<_> = blobs.iter().map(virtgpu_client::Blob::handle).collect();
    let mut stream = compute::Stream::new();
    stream.add_u32(blobs[0].at(0), 4096, 1);
    let exec = Exec::new(stream.as_bytes()).ring(1).buffers(&handles);
    each_fault("EXECBUFFER", || exec.submit(&device), nothing)
}

fn execbuffer_long(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    let mut stream = compute::Stream::new();
    let count = device.compute_caps()?.max_ops.get().min(500);
    for _ in 0..count {
        stream.add_u32(blob.at(0), 4, 1);
    }
    let handles = [blob.handle()];
    let exec = Exec::new(stream.as_bytes()).buffers(&handles);
    each_fault("a long EXECBUFFER", || exec.submit(&device), nothing)
}

/// As long as this is there, the kernel gives this thread two pages at most: as many as 4 KiB of
/// kmalloc() take where there are zones around them for KASAN.
struct SmallPages;

impl SmallPages {
    /// Allocations of more that are refused before there are some again: more than there will be.
    const TIMES: u64 = 1 << 20;

    fn configure(settings: &[(&str, &str)]) -> std::io::Result<()> {
        for (file, value) in settings {
            fs::write(format!("/sys/kernel/debug/fail_page_alloc/{file}"), value)?;
        }
        Ok(())
    }

    fn begin() -> TestResult<Self> {
        configure()?;
        let times = Self::TIMES.to_string();
        Self::configure(&[
            ("min-order", "2"),
            ("times", &times),
            ("task-filter", "Y"),
            ("probability", "100"),
        ])?;
        fs::write("/proc/thread-self/make-it-fail", "1")?;
        Ok(Self)
    }

    /// How many were refused.
    fn refused() -> TestResult<u64> {
        let left = fs::read_to_string("/sys/kernel/debug/fail_page_alloc/times")?;
        let left: u64 = left
            .trim()
            .parse()
            .map_err(|_| Outcome::Fail(format!("fail_page_alloc says that {left} are left")))?;
        Ok(Self::TIMES - left)
    }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        let _ = fs::write("/proc/thread-self/make-it-fail", "0");
        let _ = Self::configure(&[
            ("probability", "0"),
            ("task-filter", "N"),
            ("min-order", "0"),
        ]);
    }
}

/// A command of many pages is sent in pieces where there are no large ones.
fn execbuffer_without_large_pages(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    let mut stream = compute::Stream::new();
    let count = device.compute_caps()?.max_ops.get();
    for _ in 0..count {
        stream.add_u32(blob.at(0), 4, 1);
    }
    let length = stream.as_bytes().len();
    check!(length > 16 * PAGE, "the command has {length} bytes only");
    let handles = [blob.handle()];
    let exec = Exec::new(stream.as_bytes()).buffers(&handles);
    let (sender, receiver) = UnixDatagram::pair()?;
    let submitted = {
        let _small = SmallPages::begin()?;
        let submitted = exec.submit_with_fence(&device);
        // Not of this driver: it wants large pages, and is refused without.
        let sent = sender.send(&[1; 8 * PAGE]);
        check!(sent.is_err(), "there are large pages");
        let refused = SmallPages::refused()?;
        check!(refused > 0, "no allocation was refused");
        submitted
    };
    drop(receiver);
    submitted?.wait(Some(job::LIMIT))?;
    check_eq!(
        blob.map()?.read_u32(0),
        count,
        "additions of {length} bytes"
    );
    Ok(())
}

fn execbuffer_fences(env: &Env) -> TestResult {
    let device = env.compute()?;
    let mut stream = compute::Stream::new();
    stream.delay(1);
    let before = Exec::new(stream.as_bytes())
        .ring(0)
        .submit_with_fence(&device)?;
    let exec = Exec::new(stream.as_bytes()).ring(1).after(&before);
    each_fault_of_a_file("EXECBUFFER with fences", || exec.submit_with_fence(&device))
}

fn execbuffer_syncobjs(env: &Env) -> TestResult {
    let device = env.compute()?;
    let (first, second) = (device.create_syncobj()?, device.create_syncobj()?);
    let point = |handle, point| uapi::ExecBufferSyncobj {
        handle,
        flags: 0,
        point,
    };
    let mut stream = compute::Stream::new();
    stream.delay(1);
    let prepare = [point(first.handle(), 0)];
    Exec::new(stream.as_bytes())
        .signal_syncobjs(&prepare)
        .run(&device)?;
    let mut value = 0;
    each_fault(
        "EXECBUFFER with syncobjs",
        || {
            value += 1;
            let (input, output) = ([point(first.handle(), 0)], [point(second.handle(), value)]);
            Exec::new(stream.as_bytes())
                .wait_syncobjs(&input)
                .signal_syncobjs(&output)
                .submit(&device)
        },
        nothing,
    )
}

fn execbuffer_polled(env: &Env) -> TestResult {
    let device = env.open()?;
    let params = [(1, u64::from(wire::CAPSET_ID)), (2, 1), (3, 1)]
        .map(|(param, value)| uapi::ContextSetParam { param, value });
    // SAFETY: No parameter is an address.
    unsafe { device.context_init(&params)? };
    let mut stream = compute::Stream::new();
    stream.delay(1);
    let exec = Exec::new(stream.as_bytes()).ring(0);
    let mut queued = 0;
    each_fault(
        "EXECBUFFER on a polled ring",
        || {
            let result = exec.submit(&device);
            // The last fault is that of copying the result.
            queued += u64::from(matches!(result, Ok(()) | Err(Errno::FAULT)));
            result
        },
        nothing,
    )?;
    let mut ended = 0;
    while device.wait_for_event(std::time::Duration::from_secs(1))? {
        ended += device.events(job::LIMIT)?.len() as u64;
    }
    check!(
        ended <= queued && ended > 0,
        "{ended} events for {queued} jobs"
    );
    Ok(())
}

fn wait(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    each_fault("WAIT", || device.wait(blob.handle()), nothing)
}

fn registration(env: &Env, what: &str, memory: &impl Memory) -> TestResult {
    let device = env.compute()?;
    for flags in [0, uapi::USERPTR_RDONLY] {
        let mut register = raw::pinned(memory.as_ptr() as u64, memory.len() as u64);
        register.flags |= flags;
        each_fault_of_a_handle(what, &device, || raw::register(&device, register))?;
    }
    Ok(())
}

fn register(env: &Env) -> TestResult {
    registration(env, "REGISTER", &small_pages(16 * PAGE)?)
}

fn register_fragmented(env: &Env) -> TestResult {
    registration(env, "REGISTER of 3000 pages", &small_pages(3000 * PAGE)?)
}

fn register_memfd(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memfd = Memfd::new(64 * PAGE as u64)?;
    memfd.map()?;
    let register = uapi::UserptrRegister {
        flags: uapi::USERPTR_PINNED | uapi::USERPTR_FD,
        fd: std::os::fd::AsRawFd::as_raw_fd(&memfd.as_fd()),
        ..raw::pinned(0, 64 * PAGE as u64)
    };
    each_fault_of_a_handle("REGISTER of a memfd", &device, || {
        raw::register(&device, register)
    })
}

fn register_rocm(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(16 * PAGE)?;
    let addr = memory.as_ptr() as u64;
    each_fault_of_a_handle("CREATE_BLOB of user memory", &device, || {
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: 3,
            blob_flags: 0x8,
            size: memory.len() as u64,
            blob_id: 1,
            blob_hints: addr as u32,
            pad2: (addr >> 32) as u32,
            ..Default::default()
        };
        raw::call(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob)?;
        Ok(blob.bo_handle)
    })
}

fn query(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    each_fault("BO_QUERY", || userptr.query(), nothing)
}

fn prefetch(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    each_fault(
        "USERPTR_PREFETCH",
        || userptr.prefetch(0, PAGE as u64),
        nothing,
    )
}

/// Giving memory back cannot fail, whatever it would like to allocate.
fn gem_close(env: &Env) -> TestResult {
    let switch = FailNth::open()?;
    let device = env.compute()?;
    let memory = small_pages(64 * PAGE)?;
    for nth in 1..1000 {
        let addr = memory.as_ptr() as u64;
        let handle = raw::register(&device, raw::pinned(addr, 64 * PAGE as u64))?;
        switch.arm(nth)?;
        let result = device.gem_close(handle);
        let hit = switch.disarm();
        if result.is_err() {
            // The copy of the arguments was what failed.
            device.gem_close(handle)?;
        }
        check!(
            eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
            "GEM_CLOSE, fault {nth}: VmPin is {:?}",
            procfs::vm_pin()
        );
        if !hit {
            return Ok(());
        }
    }
    check!(false, "GEM_CLOSE still meets faults");
    Ok(())
}

fn prime(env: &Env) -> TestResult {
    let (first, second) = (env.compute()?, env.compute()?);
    let blob = first.create_blob(&BlobOptions {
        flags: 3,
        ..BlobOptions::guest(4096)
    })?;
    each_fault_of_a_file("PRIME_HANDLE_TO_FD", || first.prime_export(blob.handle()))?;
    let dmabuf = first.prime_export(blob.handle())?;
    each_fault_of_a_handle("PRIME_FD_TO_HANDLE", &second, || {
        second.prime_import(&dmabuf)
    })?;
    // What is left works.
    let at = wire::Operand::resource(blob.resource(), 0);
    job::add(&first, at, 4096, 1, blob.handle())
}

fn prime_foreign(env: &Env) -> TestResult {
    let device = env.compute()?;
    let buf = udmabuf::new(64)?;
    each_fault_of_a_handle("PRIME_FD_TO_HANDLE of a udmabuf", &device, || {
        device.prime_import(&buf.fd)
    })
}

/// A probe that fails leaves nothing: no queue, no interrupt, and the next one works. Binding takes
/// its time, so only some of its faults are tried, from the first to the last.
fn probe(env: &Env) -> TestResult {
    let gpu = gpu::find()?;
    gpu.unbind()?;
    let switch = FailNth::open()?;
    const NEVER: u64 = 1_000_000;
    switch.arm(NEVER)?;
    gpu.bind()?;
    let faults = NEVER - switch.left()?;
    gpu.unbind()?;
    let tries = env.iterations(24);
    let mut failed = 0;
    for nth in (0..tries).map(|i| 1 + i * faults / tries) {
        switch.arm(nth)?;
        let error = gpu.bind_error();
        check!(switch.disarm(), "fault {nth} of {faults} has not happened");
        match error? {
            None => gpu.unbind()?,
            Some(error) => {
                failed += 1;
                let left = interrupts(&gpu)?;
                check_eq!(
                    left,
                    Vec::<String>::new(),
                    "interrupts after fault {nth} of {faults} ({})",
                    errno::name(error)
                );
            }
        }
    }
    println!("    # binding: {faults} faults, {tries} tried, {failed} failed it");
    check!(failed > 0, "no fault has failed a probe");
    gpu.bind()?;
    gpu::wait_for_node(env)?;
    let device = env.compute()?;
    let memory = small_pages(PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    job::add(&device, userptr.at(0), PAGE as u64, 1, userptr.handle())?;
    Ok(())
}
