// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Pointers of all kinds: of malloc, of the stack, of lists, of the program itself.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, pointer, BlobOptions, Bytes, Errno, Exec, Job, Memory};

use crate::ktap::TestResult;
use crate::support::place::Place;
use crate::support::{procfs, Env, Random, HUGE, PAGE};
use crate::svm::support::{at, bad_address, on_each_kind, open, End, Svm};
use crate::{check, check_eq};

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

/// Each operation on malloc'ed memory, against what a CPU computes. What goes in the CPU has
/// written, and what comes out it reads.
pub(super) fn malloc_all_ops(env: &Env) -> TestResult {
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

/// The client library's scope: jobs on two rings use memory of the caller, and are over when it
/// ends.
pub(super) fn lent_slices(env: &Env) -> TestResult {
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
pub(super) fn untouched_malloc(env: &Env) -> TestResult {
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
pub(super) fn untouched_stack_array(env: &Env) -> TestResult {
    const WORDS: usize = 128 * 1024 / 8;
    let svm = open(env)?;
    let mut array = MaybeUninit::<[u64; WORDS]>::uninit();
    let start = array.as_mut_ptr() as usize;
    let first = start.next_multiple_of(PAGE);
    let pages = (start + WORDS * 8 - first) / PAGE;
    // The compiler touches each page of a frame when it is entered.
    // SAFETY: These pages have nothing but the array, which no one has written.
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

pub(super) fn globals(env: &Env) -> TestResult {
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

pub(super) fn first_touch_of_each_kind(env: &Env) -> TestResult {
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
pub(super) fn chase_list(env: &Env) -> TestResult {
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

/// A job may use buffers of the driver and pointers at once.
pub(super) fn buffers_beside_pointers(env: &Env) -> TestResult {
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
