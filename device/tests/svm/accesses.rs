// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Operations on addresses, of which nothing is mapped when they begin.

use super::*;

#[test]
fn first_touch() {
    let mut driver = Driver::new();
    // From the middle of a page to the middle of the fourth, with unaligned ends, across a GiB.
    let (start, length) = (VA + 100, 3 * PAGE + 8);
    let fence = driver.submit(0, &[fill(0, start, length, 0x0101_0101_0101_0101)]);
    for page in 0..4 {
        let fault = driver.fault();
        assert_eq!(fault.address.get(), VA + page * PAGE);
        assert_eq!((fault.access.get(), fault.info.get()), (access::WRITE, 1));
        assert_eq!(driver.word(FREE + page * PAGE + 104), 0);
        driver.map(VA + page * PAGE, FREE + page * PAGE, 1, 3);
        driver.resolve(fault.id.get(), resolution::OK);
    }
    assert_eq!(driver.result(), (job_result::OK, fence, 0));
    let mut bytes = vec![0; 4 * PAGE as usize];
    driver
        .vm
        .memory
        .read_slice(&mut bytes, GuestAddress(FREE))
        .unwrap();
    for (at, byte) in (VA..).zip(&bytes) {
        let inside = (start..start + length).contains(&at);
        assert_eq!(*byte, u8::from(inside), "{at:#x}");
    }
    let stat = driver.stat();
    assert_eq!((stat.faults.get(), stat.pending_faults.get()), (4, 0));
    driver.vm.end(false);
}

/// Every operation on addresses gives what it gives on a resource.
#[test]
fn all_operations() {
    let mut driver = Driver::new();
    let places = [VA, VA + 2 * PAGE - 16, VA + 4 * PAGE];
    let size = 6 * PAGE;
    let bytes: Vec<u8> = (0..size).map(|i| (i * 7 % 61) as u8).collect();
    let twin = FREE + (1 << 20);
    for place in [FREE, twin] {
        driver
            .vm
            .memory
            .write_slice(&bytes, GuestAddress(place))
            .unwrap();
    }
    driver.vm.blob(2, 1, &[(twin, size as u32)]);
    let [a, b, c] = places;
    let length = PAGE + 24;
    let jobs = |at: &dyn Fn(u64) -> (u32, u64)| {
        let op = |op, dst, first, second, length, imm| {
            operation(op, at(dst), [at(first), at(second)], length, imm)
        };
        vec![
            op(op::FILL, a + 8, a, a, length, [0x1234_5678_9abc_def0, 0]),
            op(op::COPY, c + 1, a + 3, a, length, [0; 2]),
            op(op::CRC32C, b, a, a, length, [0; 2]),
            op(op::ADD_U32, a + 4, a, a, length, [77, 0]),
            op(op::SAXPY_F32, c, a, a, length, [1, 0]),
            op(op::GEMM_F32, c, a, b, 64, [4 | (4 << 32), 4]),
            op(op::ATOMIC_ADD_U64, b & !7, a, a, 800, [3, 0]),
            op(op::STRIDE_READ, b, a, a, 4 * PAGE, [100, 0]),
        ]
    };
    for (on_addresses, on_resource) in jobs(&|at| (0, at)).iter().zip(jobs(&|at| (1, at - VA))) {
        driver.submit(0, &[*on_addresses]);
        let (result, _) = driver.serve();
        assert_eq!(result, job_result::OK);
        assert_eq!(driver.vm.run(2, &[on_resource]), response::OK_NODATA);
        let mut both = [bytes.clone(), bytes.clone()];
        for (bytes, place) in both.iter_mut().zip([FREE, twin]) {
            driver
                .vm
                .memory
                .read_slice(bytes, GuestAddress(place))
                .unwrap();
        }
        let name = on_addresses.op.get();
        assert!(both[0] == both[1], "operation {name}");
        // The next one finds nothing mapped.
        driver.vm.done(&invalidate(1, 0, u64::MAX));
    }
    driver.vm.end(false);
}

/// A list of nodes, one in each page.
#[test]
fn pointer_chase() {
    let mut driver = Driver::new();
    let node = |i: u64| VA + i * 3 % 16 * PAGE + 8 * i;
    for i in 0..16 {
        driver.set(FREE + node(i) - VA, node(i + 1));
    }
    let chase = |steps| {
        addressed(
            op::POINTER_CHASE,
            VA + 17 * PAGE,
            [node(0), 0],
            0,
            [steps, 0],
        )
    };
    driver.submit(0, &[chase(16)]);
    assert_eq!(driver.serve(), (job_result::OK, 17));
    assert_eq!(driver.word(FREE + 17 * PAGE), node(16));
    driver.submit(0, &[chase(16)]);
    assert_eq!(driver.serve(), (job_result::OK, 0));
    driver.vm.end(false);
}

/// What may be read is asked for again when it is to be written.
#[test]
fn read_then_write() {
    let mut driver = Driver::new();
    driver.set(FREE, 40);
    let fence = driver.submit(0, &[addressed(op::ADD_U32, VA, [0; 2], 8, [2, 0])]);
    let read = driver.expect_fault(VA, access::READ);
    driver.map(VA, FREE, 1, 1);
    driver.resolve(read, resolution::OK);
    let write = driver.expect_fault(VA, access::WRITE);
    assert!(write > read);
    driver.map(VA, FREE, 1, 3);
    driver.resolve(write, resolution::OK);
    assert_eq!(driver.result(), (job_result::OK, fence, 0));
    assert_eq!(driver.word(FREE), 42 + (2 << 32));
    driver.vm.end(false);
}

/// A store that is done is not done again: what others write to its place meanwhile stays.
#[test]
fn no_store_is_repeated() {
    let mut driver = Driver::new();
    driver.map(VA, FREE, 1, 3);
    let fence = driver.submit(0, &[fill(0, VA + PAGE - 64, 128, 7)]);
    let fault = driver.expect_fault(VA + PAGE, access::WRITE);
    for word in 0..8 {
        assert_eq!(driver.word(FREE + PAGE - 64 + 8 * word), 7);
        driver.set(FREE + PAGE - 64 + 8 * word, 100 + word);
    }
    driver.map(VA + PAGE, FREE + PAGE, 1, 3);
    driver.resolve(fault, resolution::OK);
    assert_eq!(driver.result(), (job_result::OK, fence, 0));
    for word in 0..8 {
        assert_eq!(driver.word(FREE + PAGE - 64 + 8 * word), 100 + word);
        assert_eq!(driver.word(FREE + PAGE + 8 * word), 7);
    }
    driver.vm.end(false);
}

/// Bytes outside of the space are no one's to map.
#[test]
fn outside() {
    for (address, length, first) in [
        (TASK_SIZE - 8, 16, TASK_SIZE),
        (TASK_SIZE, 8, TASK_SIZE),
        (1 << 47, 8, 1 << 47),
        (u64::MAX - 7, 8, u64::MAX - 7),
        (0xffff_8000_0000_0000, 8, 0xffff_8000_0000_0000),
    ] {
        let mut driver = Driver::new();
        let fence = driver.submit(0, &[fill(0, address, length, 1)]);
        assert_eq!(driver.result(), (job_result::FAULTED, fence, first));
        driver.quiet();
        assert_eq!(driver.stat().faults.get(), 0);
        driver.vm.end(false);
    }
    // A pointer that leads there is found out on the way.
    let mut driver = Driver::new();
    driver.map(VA, FREE, 1, 3);
    driver.set(FREE, 1 << 60);
    let chase = addressed(op::POINTER_CHASE, VA + 8, [VA, 0], 0, [5, 0]);
    let fence = driver.submit(0, &[chase]);
    assert_eq!(driver.result(), (job_result::FAULTED, fence, 1 << 60));
    driver.vm.end(false);
}

/// The counts of the address space of a job's own context, written to an address.
#[test]
fn own_counts() {
    let mut driver = Driver::new();
    driver.map(VA + PAGE, FREE + PAGE, 2, 1);
    let length = size_of::<virtgpu_protocol::compute::Stat>() as u64;
    driver.submit(0, &[addressed(op::STAT, VA, [0; 2], length, [0; 2])]);
    assert_eq!(driver.serve(), (job_result::OK, 1));
    // As of before the fault.
    let seen: Vec<u64> = (14..21).map(|i| driver.word(FREE + 8 * i)).collect();
    assert_eq!(seen, [2, 1, 0, 0, 0, 0, 0]);
    driver.vm.end(false);
}
