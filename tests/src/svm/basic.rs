// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Pointers in jobs: of malloc, of the stack, of lists, of files, first touch by either side; and the
//! ioctls around them.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{
    compute, pointer, AddressSpace, BlobOptions, Bytes, Comparison, Deadline, Device, Errno, Event,
    Exec, Job, Memory, Output, RegisterOptions, SpaceOptions,
};

use super::support::{
    at, bad_address, device, family, on_each_kind, open, open_with, End, Svm, RINGS, USUAL,
};
use crate::ktap::{Family, Outcome, TestResult};
use crate::support::place::{Pages, Place, NONE, READ, RW};
use crate::support::uffd::Uffd;
use crate::support::{child, eventually, ext4, job, procfs, raw, Env, Random, HUGE, PAGE};
use crate::{cases, check, check_eq, check_err};

pub(crate) const FAMILY: Family = family(
    "svm_basic",
    cases![
        modes_and_errors,
        malloc_all_ops,
        lent_slices,
        untouched_malloc,
        untouched_stack_array,
        globals,
        first_touch_of_each_kind,
        chase_list,
        read_then_write,
        file_shared_reaches_disk,
        file_private_stays_private,
        exact_faults_one_page,
        around_stays_in_vma,
        prefetch_partial,
        prefetch_errors,
        prefetch_killed,
        wait_ops,
        wait_errors,
        wait_for_a_value_of_another_ring,
        ring_events,
        jobs_end_in_order,
        buffers_beside_pointers,
    ],
);

/// Calls an ioctl with a structure that the client library would not pass.
fn enable(device: &Device, mut argument: uapi::SvmEnable) -> Result<(), Errno> {
    raw::call(device, uapi::nr::SVM_ENABLE, &mut argument).map(drop)
}

/// An enabling that works, to be made invalid.
fn valid() -> uapi::SvmEnable {
    uapi::SvmEnable::default()
}

fn delay(microseconds: u64) -> compute::Stream {
    let mut stream = compute::Stream::new();
    stream.delay(microseconds);
    stream
}

fn modes_and_errors(env: &Env) -> TestResult {
    drop(device(env)?);
    let without = env.open()?;
    let models = without.getparam(uapi::param::USERPTR_MEMORY_MODELS)?;
    check_eq!(
        (models >> 8) & 0xf,
        uapi::memory_model::DYNAMIC,
        "the memory model of shared virtual memory in {models:#x}"
    );
    check_err!(enable(&without, valid()), Errno::INVAL, "without a context");
    without.context_init_capset(wire::CAPSET_ID, 1)?;
    enable(&without, valid())?;

    let no_rings = env.open()?;
    let params = [uapi::ContextSetParam {
        param: uapi::context_param::CAPSET_ID,
        value: u64::from(wire::CAPSET_ID),
    }];
    // SAFETY: No parameter is an address.
    unsafe { no_rings.context_init(&params)? };
    check_err!(enable(&no_rings, valid()), Errno::INVAL, "without rings");

    let fresh = device(env)?;
    for (what, argument) in [
        (
            "an unknown flag",
            uapi::SvmEnable {
                flags: 4,
                ..valid()
            },
        ),
        (
            "too many workers",
            uapi::SvmEnable {
                workers: uapi::SVM_MAX_WORKERS + 1,
                ..valid()
            },
        ),
        ("padding", uapi::SvmEnable { pad: 1, ..valid() }),
    ] {
        check_err!(enable(&fresh, argument), Errno::INVAL, "{what}");
    }
    check_err!(
        raw::sized(&fresh, uapi::nr::SVM_ENABLE, &mut valid(), 24).map(drop),
        Errno::INVAL,
        "a structure that is too short"
    );
    // Not enabled yet.
    for (what, result) in [
        (
            "QUERY",
            raw::call(&fresh, uapi::nr::SVM_QUERY, &mut uapi::SvmQuery::default()),
        ),
        (
            "WAIT",
            raw::call(&fresh, uapi::nr::SVM_WAIT, &mut uapi::SvmWait::default()),
        ),
        (
            "PREFETCH",
            raw::call(
                &fresh,
                uapi::nr::SVM_PREFETCH,
                &mut uapi::SvmPrefetch {
                    addr: PAGE as u64,
                    length: PAGE as u64,
                    ..Default::default()
                },
            ),
        ),
    ] {
        check_err!(result, Errno::INVAL, "{what} before ENABLE");
    }
    // None of these has left anything behind.
    enable(&fresh, valid())?;
    check_err!(enable(&fresh, valid()), Errno::EXIST, "a second time");

    let busy = device(env)?;
    Exec::new(delay(1).as_bytes()).ring(0).run(&busy)?;
    check_err!(enable(&busy, valid()), Errno::BUSY, "after a job");

    let mirrored = device(env)?;
    let place = Place::base(PAGE)?;
    let userptr = mirrored.register(&place, RegisterOptions::mirrored())?;
    check_err!(
        enable(&mirrored, valid()),
        Errno::BUSY,
        "beside mirrored memory"
    );
    userptr.close()?;
    enable(&mirrored, valid())?;
    check_err!(
        mirrored
            .register(&place, RegisterOptions::mirrored())
            .map(drop),
        Errno::OPNOTSUPP,
        "mirrored memory afterwards"
    );

    let svm = open_with(env, USUAL.workers(uapi::SVM_MAX_WORKERS))?;
    check_eq!(
        svm.space.va_end() & (PAGE as u64 - 1),
        0,
        "the end of addresses, {:#x}",
        svm.space.va_end()
    );
    let local = 0_u8;
    check!(
        svm.space.va_end() > (&raw const local) as u64,
        "the stack is above {:#x}",
        svm.space.va_end()
    );
    check!(svm.space.max_faults() > 0, "faults at once");
    let query = svm.count()?;
    check_eq!(
        (query.state, query.reason, query.access, query.addr),
        (uapi::svm_state::ACTIVE, 0, 0, 0),
        "the state"
    );
    check_eq!(query.va_end, svm.space.va_end(), "va_end");
    check_err!(
        Exec::new(delay(1).as_bytes()).submit(svm.device()),
        Errno::INVAL,
        "a job without a ring"
    );
    check_err!(
        svm.submit(RINGS, &delay(1)),
        Errno::INVAL,
        "a job on a ring that there is not"
    );
    svm.run("a job", &delay(1))
}

/// Memory as malloc(3) gives it, of which no byte was touched.
struct Block(*mut libc::c_void, usize);

impl Block {
    fn new(length: usize) -> Self {
        // SAFETY: Any size may be asked for.
        let start = unsafe { libc::malloc(length) };
        assert!(!start.is_null());
        Self(start, length)
    }
}

// SAFETY: The block lives until `drop`, and is accessed by copying only.
unsafe impl Memory for Block {
    fn as_ptr(&self) -> *mut u8 {
        self.0.cast()
    }
    fn len(&self) -> usize {
        self.1
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: From malloc, and freed once.
        unsafe { libc::free(self.0) }
    }
}

/// Each operation on malloc'ed memory, against what a CPU computes. What goes in the CPU has written,
/// and what comes out it reads.
fn malloc_all_ops(env: &Env) -> TestResult {
    const LENGTH: usize = 24 * 1024 + 64;
    let svm = open(env)?;
    let mut random = Random(1);
    let from = random.bytes(LENGTH);
    let mut to = vec![0_u8; LENGTH];
    let mut crc = 0_u32;
    let mut sum = 0_u64;
    let mut words: Vec<u32> = (0..5000).collect();
    let counter = Box::new(AtomicU64::new(5));
    let x: Vec<f32> = (0..3000).map(|i| i as f32 / 7.0).collect();
    let mut y: Vec<f32> = (0..3000).map(|i| 100.0 - i as f32).collect();
    let (a, b) = (
        [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0],
        [7.0_f32, 8.0, 9.0, 10.0, 11.0, 12.0],
    );
    let mut c = vec![0.0_f32; 4];
    let mut filled = vec![0_u64; 4096];
    let expected_y: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 2.5_f32 * x + y).collect();
    let mut job = Job::new();
    job.fill((&mut filled[..]).into(), 0x0123_4567_89ab_cdef)
        .copy((&mut to[..]).into(), (&from[..]).into())
        .crc32c((&mut crc).into(), (&from[..]).into())
        .add_u32((&mut words[..]).into(), 3)
        .saxpy((&mut y[..]).into(), (&x[..]).into(), 2.5)
        .gemm((&mut c[..]).into(), [(&a).into(), (&b).into()], [2, 2, 3])
        .atomic_add(&counter, 7, 100)
        .stride_read((&mut sum).into(), (&from[..]).into(), 3)
        .spin_until(&counter, 705, 1_000_000);
    svm.space.run(0, &job)?;
    check!(
        filled.iter().all(|word| *word == 0x0123_4567_89ab_cdef),
        "FILL"
    );
    check!(to == from, "COPY");
    check_eq!(crc, compute::crc32c(0, &from), "CRC32C");
    check!((3..5003).eq(words.iter().copied()), "ADD_U32");
    check_eq!(y, expected_y, "SAXPY_F32");
    check_eq!(c, [58.0, 64.0, 139.0, 154.0], "GEMM_F32");
    check_eq!(counter.load(Ordering::SeqCst), 705, "ATOMIC_ADD_U64");
    let expected: u64 = from.iter().step_by(3).map(|byte| u64::from(*byte)).sum();
    check_eq!(sum, expected, "STRIDE_READ");
    let query = svm.count()?;
    check!(query.faults > 0, "the device had no fault");
    check!(query.pages > 0 && query.maps > 0, "{query:?}");
    check_eq!(query.bad, 0, "faults refused");
    Ok(())
}

/// The client library's scope: jobs on two rings use memory of the caller, and are over when it ends.
fn lent_slices(env: &Env) -> TestResult {
    let svm = open(env)?;
    let from: Vec<u64> = (0..1024).collect();
    let mut to = vec![0_u64; 1024];
    let (low, high) = to.split_at_mut(512);
    svm.space.scope(|scope| {
        for (ring, to, from) in [(0, low, &from[..512]), (1, high, &from[512..])] {
            let mut job = Job::new();
            job.delay(20_000).copy(to.into(), from.into());
            scope.submit(ring, &job)?;
        }
        Ok::<_, Errno>(())
    })??;
    check!(to == from, "what the jobs have copied");
    Ok(())
}

/// No CPU has touched the memory before the device does.
fn untouched_malloc(env: &Env) -> TestResult {
    const LENGTH: usize = 1 << 20;
    let svm = open(env)?;
    let block = Block::new(LENGTH);
    let first = (block.as_ptr() as usize).next_multiple_of(PAGE);
    let touched = procfs::frames(first, 16)?.into_iter().flatten().count();
    check_eq!(touched, 0, "pages that are there at first");
    let mut stream = compute::Stream::new();
    stream
        .fill(pointer(block.as_ptr()), LENGTH as u64, 0)
        .add_u32(pointer(block.as_ptr()), LENGTH as u64, 9);
    svm.run("the first touch", &stream)?;
    for offset in (0..LENGTH).step_by(4) {
        check_eq!(block.read_u32(offset), 9, "the word at {offset:#x}");
    }
    Ok(())
}

/// An array of the calling function, whose pages are not there.
fn untouched_stack_array(env: &Env) -> TestResult {
    const WORDS: usize = 128 * 1024 / 8;
    let svm = open(env)?;
    let mut array = MaybeUninit::<[u64; WORDS]>::uninit();
    let start = array.as_mut_ptr() as usize;
    let first = start.next_multiple_of(PAGE);
    let pages = (start + WORDS * 8 - first) / PAGE;
    // The compiler touches each page of a frame when it is entered.
    // SAFETY: These pages have nothing but the array, which nobody has written.
    let result = unsafe { libc::madvise(first as *mut _, pages * PAGE, libc::MADV_DONTNEED) };
    check_eq!(result, 0, "MADV_DONTNEED");
    let there = procfs::frames(first, pages)?.into_iter().flatten().count();
    check_eq!(there, 0, "pages of the array that are there");
    let mut stream = compute::Stream::new();
    stream.fill(pointer(start as *const u8), WORDS as u64 * 8, 0x57ac);
    svm.run("filling an array of the stack", &stream)?;
    // SAFETY: The device has written all of it.
    let array = unsafe { array.assume_init_mut() };
    check!(array.iter().all(|word| *word == 0x57ac), "the array");
    array[7] = 1;
    check_eq!(svm.peek((&raw const array[7]) as u64)?, 1, "our write");
    Ok(())
}

static WORD: AtomicU64 = AtomicU64::new(0);
static TEXT: &[u8] = b"in the program's own file, which no one may write";

fn globals(env: &Env) -> TestResult {
    let svm = open(env)?;
    let mut job = Job::new();
    job.store(&WORD, 77);
    svm.space.run(0, &job)?;
    check_eq!(WORD.load(Ordering::SeqCst), 77, "a global variable");
    let mut crc = 0_u32;
    let mut job = Job::new();
    job.crc32c((&mut crc).into(), TEXT.into());
    svm.space.run(0, &job)?;
    check_eq!(crc, compute::crc32c(0, TEXT), "a constant");
    Ok(())
}

fn first_touch_of_each_kind(env: &Env) -> TestResult {
    on_each_kind(env, 2 * HUGE, |svm, place| {
        check_eq!(svm.peek(place.address(HUGE))?, 0, "what no one has written");
        svm.fill(place, 0xaaaa)?;
        for offset in (0..place.len()).step_by(PAGE) {
            check_eq!(place.read_u64(offset), 0xaaaa, "the word at {offset:#x}");
        }
        Svm::scatter(place, 3);
        svm.agrees("what we have written", place)?;
        svm.coherent_all_over("in the end", place)
    })
}

/// A node of a list. The device follows the first word.
#[repr(C)]
struct Node {
    next: *const Node,
    payload: [u64; 9],
}

/// Nodes that the allocator has put anywhere, in an order that is none.
fn chase_list(env: &Env) -> TestResult {
    const NODES: usize = 2000;
    let svm = open(env)?;
    let mut nodes: Vec<Box<Node>> = (0..NODES)
        .map(|index| {
            Box::new(Node {
                next: std::ptr::null(),
                payload: [index as u64; 9],
            })
        })
        .collect();
    let mut random = Random(11);
    for at in (1..NODES).rev() {
        nodes.swap(at, random.below(at as u64 + 1) as usize);
    }
    let addresses: Vec<*const Node> = nodes.iter().map(|node| &raw const **node).collect();
    for (node, next) in nodes.iter_mut().zip(&addresses[1..]) {
        node.next = *next;
    }
    let mut found = 0_u64;
    for steps in [1, 2, NODES - 1] {
        let mut job = Job::new();
        job.pointer_chase((&mut found).into(), addresses[0], steps as u64);
        svm.space.run(0, &job)?;
        check_eq!(found, addresses[steps] as u64, "the node after {steps}");
    }
    // The last node's next is null; one step more reads that, and yet another one reads address 0.
    let mut stream = compute::Stream::new();
    stream.pointer_chase(
        pointer(&raw const found),
        pointer(addresses[0]),
        NODES as u64,
    );
    svm.run("to the end of the list", &stream)?;
    // SAFETY: A plain local; volatile because the device wrote it through its address.
    check_eq!(unsafe { (&raw const found).read_volatile() }, 0, "the end");
    let mut stream = compute::Stream::new();
    stream.pointer_chase(
        pointer(&raw const found),
        pointer(addresses[0]),
        NODES as u64 + 1,
    );
    let cause = bad_address(uapi::svm_access::READ, 0);
    svm.fails("beyond the end of the list", &stream, cause)?;
    let sum: u64 = nodes.iter().map(|node| node.payload[8]).sum();
    check_eq!(sum, (0..NODES as u64).sum(), "what the nodes carry");
    Ok(())
}

/// Reading does not make a page writable: the zero page stays what it is.
fn read_then_write(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(8 * PAGE)?;
    for offset in (0..place.len()).step_by(PAGE) {
        check_eq!(svm.peek(place.address(offset))?, 0, "at first");
    }
    let other = Place::base(8 * PAGE)?;
    for offset in (0..place.len()).step_by(PAGE) {
        svm.poke(place.address(offset), offset as u64 + 1)?;
        check_eq!(place.read_u64(offset), offset as u64 + 1, "our view");
        check_eq!(svm.peek(place.address(offset))?, offset as u64 + 1, "its");
    }
    for offset in (0..other.len()).step_by(PAGE) {
        check_eq!(other.read_u64(offset), 0, "other memory without content");
    }
    Ok(())
}

/// Forgets what is in memory of files that no one uses.
fn drop_caches() -> TestResult {
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

fn file(name: &str, content: &[u8]) -> TestResult<(std::path::PathBuf, File)> {
    let path = ext4::folder()?.join(name);
    fs::write(&path, content)?;
    let file = File::options().read(true).write(true).open(&path)?;
    file.sync_all()?;
    Ok((path, file))
}

fn file_shared_reaches_disk(env: &Env) -> TestResult {
    const SIZE: usize = 32 * PAGE;
    let svm = open(env)?;
    let (path, file) = file("svm-shared", &Random(4).bytes(SIZE))?;
    drop_caches()?;
    let mut data = Vec::new();
    {
        let place = Place::reserve(Pages::Base, SIZE)?;
        place.map_file(0, SIZE, &file, 0, [RW, libc::MAP_SHARED])?;
        // Read from the disk by the device's own fault.
        svm.sees("the file", &place, &Random(4).bytes(SIZE))?;
        for round in 5..8 {
            data = Random(round).bytes(SIZE);
            svm.write(place.address(0), &data)?;
            // A page that is being written back may be written again only after another fault.
            file.sync_all()?;
            svm.agrees("written back", &place)?;
        }
        data[..PAGE].fill(0x77);
        svm.write(place.address(0), &data[..PAGE])?;
    }
    file.sync_all()?;
    drop(file);
    drop_caches()?;
    check!(fs::read(&path)? == data, "the file on the disk");
    fs::remove_file(path)?;
    Ok(())
}

fn file_private_stays_private(env: &Env) -> TestResult {
    const SIZE: usize = 8 * PAGE;
    let svm = open(env)?;
    let data = Random(6).bytes(SIZE);
    let (path, file) = file("svm-private", &data)?;
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &file, 0, [RW, libc::MAP_PRIVATE])?;
    svm.sees("the file", &place, &data)?;
    svm.fill(&place, 0x11)?;
    check_eq!(place.read_u64(SIZE - 8), 0x11, "our view");
    file.sync_all()?;
    drop_caches()?;
    check!(
        fs::read(&path)? == data,
        "the file after the device's writes"
    );
    svm.coherent_all_over("in the end", &place)?;
    fs::remove_file(path)?;
    Ok(())
}

fn exact_faults_one_page(env: &Env) -> TestResult {
    let svm = open_with(env, USUAL.exact())?;
    let place = Place::base(16 * PAGE)?;
    place.fill(1);
    for (count, page) in [5, 6, 4, 15, 0].into_iter().enumerate() {
        svm.run("a write", &Svm::writing(place.address(page * PAGE), 2))?;
        let (query, count) = (svm.count()?, count as u64 + 1);
        check_eq!(query.mapped_bytes, count * PAGE as u64, "bytes mapped");
        check_eq!(query.faults, count, "faults");
    }
    // Without it, a fault makes more usable than its own page.
    let svm = open(env)?;
    svm.run("a write", &Svm::writing(place.address(0), 3))?;
    check_eq!(
        svm.count()?.mapped_bytes,
        place.len() as u64,
        "bytes mapped around a fault"
    );
    Ok(())
}

/// What is mapped beside a fault has the same mapping; other rights are never given away.
fn around_stays_in_vma(env: &Env) -> TestResult {
    const PART: usize = 4 * PAGE;
    let svm = open(env)?;
    let place = Place::base(3 * PART)?;
    place.fill(1);
    place.protect(PART, PART, READ)?;
    svm.run("a write", &Svm::writing(place.address(0), 2))?;
    check_eq!(
        svm.count()?.mapped_bytes,
        PART as u64,
        "bytes mapped around a write"
    );
    svm.run(
        "a write behind",
        &Svm::writing(place.address(3 * PART - 8), 2),
    )?;
    check_eq!(
        svm.count()?.mapped_bytes,
        2 * PART as u64,
        "bytes mapped around two writes"
    );
    check_eq!(
        svm.peek(place.address(PART))?,
        0x0101_0101_0101_0101,
        "read"
    );
    let cause = super::support::bad_access(uapi::svm_access::WRITE, place.address(PART));
    svm.fails(
        "a write to the middle",
        &Svm::writing(place.address(PART), 2),
        cause,
    )?;
    check_eq!(place.read_u64(PART), 0x0101_0101_0101_0101, "the middle");
    Ok(())
}

fn prefetch_partial(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(8 * PAGE)?;
    place.unmap(4 * PAGE, PAGE)?;
    let start = place.address(0);
    let mut argument = uapi::SvmPrefetch {
        addr: start,
        length: 8 * PAGE as u64,
        flags: uapi::SVM_PREFETCH_WRITE,
        ..Default::default()
    };
    check_err!(
        raw::call(svm.device(), uapi::nr::SVM_PREFETCH, &mut argument),
        Errno::FAULT,
        "a range with a hole"
    );
    check_eq!(argument.done, 4 * PAGE as u64, "bytes before the hole");
    check_eq!(
        svm.count()?.mapped_bytes,
        4 * PAGE as u64,
        "bytes mapped by it"
    );
    let behind = place.address(5 * PAGE);
    check_eq!(
        svm.space.prefetch_for_writing(behind, 3 * PAGE as u64)?,
        3 * PAGE as u64,
        "bytes behind the hole"
    );
    // What is there has no fault any more.
    let before = svm.count()?.faults;
    let mut stream = compute::Stream::new();
    stream
        .fill(at(start), 4 * PAGE as u64, 5)
        .fill(at(behind), 3 * PAGE as u64, 6);
    svm.run("writing what was prefetched", &stream)?;
    check_eq!(svm.count()?.faults, before, "faults after it");
    check_eq!(place.read_u64(3 * PAGE), 5, "before the hole");
    check_eq!(place.read_u64(7 * PAGE), 6, "behind it");

    // For reading, no page of its own is made.
    let untouched = Place::base(4 * PAGE)?;
    check_eq!(
        svm.space.prefetch(untouched.address(0), 4 * PAGE as u64)?,
        4 * PAGE as u64,
        "bytes prefetched for reading"
    );
    let before = svm.count()?.faults;
    check_eq!(
        svm.csum(untouched.address(0), 4 * PAGE)?,
        compute::crc32c(0, &[0; 4 * PAGE]),
        "zeros"
    );
    // That of the staging memory may be one.
    let faults = svm.count()?.faults - before;
    check!(faults <= 1, "{faults} faults on what was prefetched");
    svm.coherent_all_over("written after that", &untouched)
}

fn prefetch_errors(env: &Env) -> TestResult {
    let svm = open(env)?;
    let place = Place::base(4 * PAGE)?;
    let call = |addr: u64, length: u64, flags: u32, pad: u32| {
        let mut argument = uapi::SvmPrefetch {
            addr,
            length,
            flags,
            pad,
            done: 0,
        };
        raw::call(svm.device(), uapi::nr::SVM_PREFETCH, &mut argument).map(drop)
    };
    let (start, page) = (place.address(0), PAGE as u64);
    for (what, addr, length, flags, pad) in [
        ("an odd address", start + 8, page, 0, 0),
        ("an odd length", start, page + 8, 0, 0),
        ("no length", start, 0, 0, 0),
        ("a wrap", start, u64::MAX - page + 1, 0, 0),
        (
            "addresses that there are not",
            svm.space.va_end(),
            page,
            0,
            0,
        ),
        ("an unknown flag", start, page, 2, 0),
        ("padding", start, page, 0, 1),
    ] {
        check_err!(call(addr, length, flags, pad), Errno::INVAL, "{what}");
    }
    place.protect(0, PAGE, READ)?;
    check_err!(
        call(start, page, uapi::SVM_PREFETCH_WRITE, 0),
        Errno::PERM,
        "what may not be written"
    );
    call(start, page, 0, 0)?;
    place.protect(0, PAGE, NONE)?;
    check_err!(call(start, page, 0, 0), Errno::PERM, "PROT_NONE");
    // A hint that fails costs nothing.
    check_eq!(svm.count()?.state, uapi::svm_state::ACTIVE, "the state");
    svm.coherent("afterwards", &place, PAGE)
}

fn prefetch_killed(env: &Env) -> TestResult {
    drop(device(env)?);
    let child = child::spawn(|| {
        let svm = open(env)?;
        let place = Place::base(4 * PAGE)?;
        // Nobody ever answers.
        let uffd = Uffd::missing(&place)?;
        svm.space.prefetch(place.address(0), place.len() as u64)?;
        Err(Outcome::Fail("it has come to its end".into()))
    })?;
    let waits = || fs::read_to_string(format!("/proc/{}/stack", child.pid)).unwrap_or_default();
    let stuck = eventually(job::LIMIT, || {
        waits().contains("handle_userfault") || child.is_finished() == Ok(true)
    });
    if child.is_finished()? {
        return child.join();
    }
    check!(stuck, "it is in {}", waits());
    let since = Instant::now();
    child.kill()?;
    check!(
        since.elapsed() < Duration::from_secs(5),
        "a killed process has lived for {:?}",
        since.elapsed()
    );
    Ok(())
}

fn wait_ops(env: &Env) -> TestResult {
    use Comparison::*;
    let svm = open(env)?;
    let word = AtomicU64::new(5);
    let wait = |comparison, value, mask| {
        svm.space
            .wait_value(&word, comparison, value, mask, Deadline::Now)
    };
    for (comparison, value, holds) in [
        (Equal, 5, true),
        (Equal, 4, false),
        (NotEqual, 4, true),
        (NotEqual, 5, false),
        (Greater, 4, true),
        (Greater, 5, false),
        (GreaterOrEqual, 5, true),
        (GreaterOrEqual, 6, false),
        (Less, 6, true),
        (Less, 5, false),
        (LessOrEqual, 5, true),
        (LessOrEqual, 4, false),
        // Unsigned.
        (Less, 1 << 63, true),
    ] {
        let expected = if holds { Ok(()) } else { Err(Errno::TIME) };
        check_eq!(
            wait(comparison, value, u64::MAX),
            expected,
            "5 {comparison:?} {value:#x}"
        );
    }
    word.store(0xff05, Ordering::SeqCst);
    check_eq!(wait(Equal, 5, 0xff), Ok(()), "the low bits of 0xff05");
    check_eq!(wait(Equal, 5, u64::MAX), Err(Errno::TIME), "all of them");

    // Jobs write it: each wait ends, and not before.
    word.store(0, Ordering::SeqCst);
    svm.space.scope(|scope| {
        for round in 1..=3 {
            let mut job = Job::new();
            job.delay(50_000).store(&word, round);
            scope.submit(0, &job)?;
        }
        for round in 1..=3 {
            let deadline = Deadline::after(job::LIMIT);
            svm.space
                .wait_value(&word, GreaterOrEqual, round, u64::MAX, deadline)?;
            if word.load(Ordering::SeqCst) < round {
                return Err(Errno::PROTO);
            }
        }
        Ok(())
    })??;

    // Deadlines.
    svm.run("a job", &delay(1))?;
    check_eq!(
        svm.space.wait_ring(0, Deadline::Now),
        Ok(()),
        "a ring that is idle"
    );
    check_eq!(
        svm.space.wait_ring(3, Deadline::Never),
        Ok(()),
        "a ring that was never used"
    );
    svm.submit(1, &delay(2_000_000))?;
    check_eq!(
        svm.space.wait_ring(1, Deadline::Now),
        Err(Errno::TIME),
        "a ring with a job"
    );
    let (since, time) = (Instant::now(), Duration::from_millis(200));
    check_eq!(
        svm.space.wait_ring(1, Deadline::after(time)),
        Err(Errno::TIME),
        "a ring with a job, for a while"
    );
    check!(
        since.elapsed() >= time,
        "a deadline after {time:?} has come after {:?}",
        since.elapsed()
    );
    svm.space.wait_ring(1, Deadline::Never)?;
    Ok(())
}

fn wait_errors(env: &Env) -> TestResult {
    let svm = open(env)?;
    let word = AtomicU64::new(1);
    let good = uapi::SvmWait {
        addr: word.as_ptr() as u64,
        value: 1,
        mask: u64::MAX,
        op: uapi::svm_wait::EQ,
        ..Default::default()
    };
    let call = |argument: uapi::SvmWait| {
        let mut argument = argument;
        raw::call(svm.device(), uapi::nr::SVM_WAIT, &mut argument).map(drop)
    };
    call(good)?;
    let of_ring = uapi::SvmWait::default();
    call(of_ring)?;
    for (what, argument) in [
        ("an unknown operation", uapi::SvmWait { op: 7, ..good }),
        ("flags", uapi::SvmWait { flags: 1, ..good }),
        ("padding", uapi::SvmWait { pad: 1, ..good }),
        (
            "an odd address",
            uapi::SvmWait {
                addr: good.addr + 4,
                ..good
            },
        ),
        (
            "a comparison with a ring",
            uapi::SvmWait { ring: 1, ..good },
        ),
        (
            "a ring that there is not",
            uapi::SvmWait {
                ring: RINGS,
                ..of_ring
            },
        ),
        (
            "a ring with an address",
            uapi::SvmWait {
                addr: good.addr,
                ..of_ring
            },
        ),
    ] {
        check_err!(call(argument), Errno::INVAL, "{what}");
    }
    let place = Place::reserve(Pages::Base, PAGE)?;
    check_err!(
        call(uapi::SvmWait {
            addr: place.address(0),
            ..good
        }),
        Errno::FAULT,
        "an address without memory"
    );
    Ok(())
}

/// A job queue as userspace drivers have it: rings order each other by values that jobs write.
fn wait_for_a_value_of_another_ring(env: &Env) -> TestResult {
    const ROUNDS: u64 = 20;
    let svm = open(env)?;
    let fence = AtomicU64::new(0);
    let mut numbers = vec![0_u32; 5000];
    let to = Output::from(&mut numbers[..]);
    svm.space.scope(|scope| {
        for round in 0..ROUNDS {
            let ring = round as u32 % 2;
            let mut job = Job::new();
            job.spin_until(&fence, round, 60_000_000)
                .add_u32(to, 1)
                .store(&fence, round + 1);
            scope.submit(ring, &job)?;
        }
        let deadline = Deadline::after(job::LIMIT);
        svm.space
            .wait_value(&fence, Comparison::Equal, ROUNDS, u64::MAX, deadline)
    })??;
    check!(
        numbers.iter().all(|number| u64::from(*number) == ROUNDS),
        "additions by {ROUNDS} jobs of two rings"
    );
    Ok(())
}

/// Shared virtual memory with events of some rings.
fn polled(env: &Env, mask: u64) -> TestResult<Svm> {
    use uapi::context_param::*;
    drop(device(env)?);
    let device = env.open()?;
    let params = [
        (CAPSET_ID, u64::from(wire::CAPSET_ID)),
        (NUM_RINGS, u64::from(RINGS)),
        (POLL_RINGS_MASK, mask),
    ]
    .map(|(param, value)| uapi::ContextSetParam { param, value });
    // SAFETY: No parameter is an address.
    unsafe { device.context_init(&params)? };
    Svm::new(AddressSpace::enable(device, SpaceOptions::new())?)
}

fn ring_events(env: &Env) -> TestResult {
    let svm = polled(env, 0b0101)?;
    svm.quiet("at first")?;
    for count in [1, 5, 30] {
        for _ in 0..count {
            svm.submit(2, &delay(100))?;
            svm.run_on(1, "a job of a ring without events", &delay(1))?;
        }
        let mut seen = 0;
        while seen < count {
            for event in svm.space.events(job::LIMIT)? {
                check!(
                    matches!(event, Event::FenceSignaled),
                    "event {seen} is {event:?}"
                );
                seen += 1;
            }
        }
        check_eq!(seen, count, "events");
        check_eq!(svm.finish(2)?, End::Done, "the ring");
        svm.quiet("after the last")?;
    }
    // Not before the end of the job, and its writes are there.
    let word = AtomicU64::new(0);
    svm.space.scope(|scope| {
        let mut job = Job::new();
        job.delay(200_000).store(&word, 3);
        scope.submit(0, &job)?;
        if svm.space.wait_for_event(Duration::ZERO)? {
            return Err(Errno::PROTO);
        }
        svm.space.events(job::LIMIT)?;
        match word.load(Ordering::SeqCst) {
            3 => Ok(()),
            _ => Err(Errno::STALE),
        }
    })??;
    Ok(())
}

fn jobs_end_in_order(env: &Env) -> TestResult {
    const JOBS: u64 = 50;
    let svm = open(env)?;
    let words: Vec<AtomicU64> = (0..JOBS).map(|_| AtomicU64::new(0)).collect();
    let last = AtomicU64::new(0);
    svm.space.scope(|scope| {
        for (index, word) in words.iter().enumerate() {
            let mut job = Job::new();
            // The first ones take longest.
            job.delay(5000 / (index as u64 + 1))
                .atomic_add(&last, 1, 1)
                .store(word, index as u64 + 1);
            scope.submit(0, &job)?;
        }
        for (index, word) in words.iter().enumerate().step_by(7) {
            let deadline = Deadline::after(job::LIMIT);
            svm.space
                .wait_value(word, Comparison::NotEqual, 0, u64::MAX, deadline)?;
            if last.load(Ordering::SeqCst) <= index as u64 {
                return Err(Errno::PROTO);
            }
        }
        Ok(())
    })??;
    check_eq!(last.load(Ordering::SeqCst), JOBS, "jobs");
    Ok(())
}

/// A job may use buffers of the driver and pointers at once.
fn buffers_beside_pointers(env: &Env) -> TestResult {
    let svm = open(env)?;
    let blob = svm.device().create_blob(&BlobOptions::guest(4096))?;
    let map = blob.map()?;
    let place = Place::base(PAGE)?;
    place.fill(0x21);
    let mut stream = compute::Stream::new();
    stream
        .copy(blob.at(0), at(place.address(0)), PAGE as u64)
        .add_u32(blob.at(0), PAGE as u64, 1)
        .copy(at(place.address(0)), blob.at(0), 8);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[blob.handle()])
        .submit(svm.device())?;
    check_eq!(svm.finish(0)?, End::Done, "the job");
    check_eq!(map.read_u32(PAGE - 4), 0x2121_2122, "the buffer");
    check_eq!(place.read_u32(4), 0x2121_2122, "our memory");
    Ok(())
}
