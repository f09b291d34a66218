// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What is mapped can be used, as it is allowed, and nothing else can.

use super::common::*;
use super::{can, can_read, can_write, word};
use virtgpu_protocol::compute::{op, Op};
use virtgpu_protocol::mirror::status;
use virtgpu_protocol::virtio_gpu::{blob_mem, response};
use vm_memory::{Bytes, GuestAddress};

/// Every operation computes the same on mirrored pages in any order as on a plain blob.
#[test]
fn operations() {
    const SIZE: u64 = 8 * PAGE;
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, SIZE);
    vm.space(1, 2, SIZE);
    let pages = |base: u64| (0..8).map(move |i| (base + PAGE * (i * 5 % 8), 4096));
    let (first, second) = (FREE, FREE + (1 << 20));
    for (space, base) in [(1, first), (2, second)] {
        let pieces: Vec<_> = pages(base).collect();
        assert_eq!(vm.map(space, 0, &pieces), status::OK);
    }
    let plain = [FREE + (2 << 20), FREE + (3 << 20)];
    vm.blob(1, 3, &[(plain[0], SIZE as u32)]);
    vm.blob(1, 4, &[(plain[1], SIZE as u32)]);
    let ops: Vec<fn(u32, u32) -> Op> = vec![
        |a, _| fill(a, 8, 20000, 0x0102_0304_0506_0708),
        |a, b| operation(op::COPY, (b, 3), [(a, 4090), (0, 0)], 9001, [0; 2]),
        |a, b| operation(op::CRC32C, (b, 5), [(a, 1), (0, 0)], 30000, [0; 2]),
        |a, _| operation(op::ADD_U32, (a, 4093), [(0, 0); 2], 8200, [7, 0]),
        |a, b| {
            let half = u64::from(0.5f32.to_bits());
            operation(op::SAXPY_F32, (b, 4), [(a, 2), (0, 0)], 8200, [half, 0])
        },
        |a, b| {
            let (m, n, k) = (20, 30, 40);
            let sources = [(a, 100), (a, 4000)];
            operation(
                op::GEMM_F32,
                (b, 4080),
                sources,
                m * n * 4,
                [m | (n << 32), k],
            )
        },
        |a, _| operation(op::ATOMIC_ADD_U64, (a, 8184), [(0, 0); 2], 80, [3, 0]),
        |a, b| operation(op::STRIDE_READ, (b, 4093), [(a, 0), (0, 0)], SIZE, [97, 0]),
        |a, b| operation(op::POINTER_CHASE, (b, 0), [(a, 16384), (0, 0)], 0, [2, 0]),
        |a, _| spin(a, 16384, 24576, 1_000_000),
    ];
    let mut random = 1u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
        (random >> 56) as u8 & 0x7f
    })
    .take(SIZE as usize)
    .collect();
    for (index, op) in ops.iter().enumerate() {
        let mut bytes = bytes.clone();
        bytes[16384..16392].copy_from_slice(&24576u64.to_le_bytes());
        bytes[24576..24584].copy_from_slice(&8u64.to_le_bytes());
        for base in [first, second] {
            for (part, (at, _)) in bytes.chunks(4096).zip(pages(base)) {
                vm.memory.write_slice(part, GuestAddress(at)).unwrap();
            }
        }
        for base in plain {
            vm.memory.write_slice(&bytes, GuestAddress(base)).unwrap();
        }
        assert_eq!(vm.run(1, &[op(1, 2)]), response::OK_NODATA, "{index}");
        assert_eq!(vm.run(1, &[op(3, 4)]), response::OK_NODATA, "{index}");
        for (base, plain) in [(first, plain[0]), (second, plain[1])] {
            for ((at, _), page) in pages(base).zip(0..) {
                let (mut got, mut want) = ([0; 4096], [0; 4096]);
                vm.memory.read_slice(&mut got, GuestAddress(at)).unwrap();
                let at = GuestAddress(plain + page * PAGE);
                vm.memory.read_slice(&mut want, at).unwrap();
                assert!(got == want, "operation {index}, page {page}");
            }
        }
    }
    vm.end(false);
}

#[test]
fn rights() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, 8 * PAGE);
    vm.blob(1, 2, &[(FREE + (1 << 20), 4096)]);
    let entries = [(FREE, 4096, 1), (FREE + PAGE, 4096, 3)];
    assert_eq!(vm.status(&mirror_map(1, PAGE, &entries)), status::OK);
    assert!(!can_read(&mut vm, 0, 1));
    assert!(!can_read(&mut vm, PAGE - 1, 2));
    assert!(can_read(&mut vm, PAGE, 2 * PAGE));
    assert!(!can_write(&mut vm, PAGE, 8));
    assert!(can_write(&mut vm, 2 * PAGE, PAGE));
    assert!(!can_read(&mut vm, 3 * PAGE - 1, 2));
    let add = operation(op::ATOMIC_ADD_U64, (1, PAGE), [(0, 0); 2], 8, [1, 0]);
    assert!(!can(&mut vm, add));
    let add = operation(op::ATOMIC_ADD_U64, (1, 2 * PAGE), [(0, 0); 2], 8, [1, 0]);
    assert!(can(&mut vm, add));
    assert_eq!(word(&vm, FREE), 0);
    assert_eq!(word(&vm, FREE + PAGE), 10);
    // More rights for the same page.
    assert_eq!(vm.map(1, PAGE, &[(FREE, 4096)]), status::OK);
    assert!(can_write(&mut vm, PAGE, 2 * PAGE));
    let stat = vm.stat(1, 2, FREE + (1 << 20));
    assert_eq!((stat.mapped_pages.get(), stat.maps.get()), (2, 2));
    // A space has rights too.
    vm.ok(&create_blob(1, 3, blob_mem::GUEST, PAGE, &[]));
    assert_eq!(vm.status(&space_create(3, 3, PAGE, 1)), status::OK);
    assert_eq!(vm.map(3, 0, &[(FREE, 4096)]), status::INVALID);
    let entry = [(FREE, 4096, 1)];
    assert_eq!(vm.status(&mirror_map(3, 0, &entry)), status::OK);
    vm.end(false);
}

#[test]
fn invalidate_takes_what_it_names() {
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, 8 * PAGE);
    vm.blob(1, 2, &[(FREE + (1 << 20), 4096)]);
    assert_eq!(vm.map(1, 0, &[(FREE, 8 * 4096)]), status::OK);
    vm.done(&invalidate(1, 2 * PAGE, 4 * PAGE - 1));
    assert!(can_write(&mut vm, 0, 2 * PAGE));
    assert!(!can_write(&mut vm, 2 * PAGE, 8));
    assert!(!can_write(&mut vm, 4 * PAGE - 8, 8));
    assert!(can_write(&mut vm, 4 * PAGE, 4 * PAGE));
    // Again, wider, and a byte of a page.
    vm.done(&invalidate(1, 2 * PAGE, 4 * PAGE - 1));
    vm.done(&invalidate(1, 6 * PAGE + 5, 6 * PAGE + 5));
    assert!(can_write(&mut vm, 4 * PAGE, 2 * PAGE));
    assert!(!can_write(&mut vm, 6 * PAGE, 8));
    assert!(can_write(&mut vm, 7 * PAGE, PAGE));
    // What is mapped anew is there.
    assert_eq!(vm.map(1, 3 * PAGE, &[(FREE + 32 * PAGE, 4096)]), status::OK);
    assert!(can_write(&mut vm, 3 * PAGE, 8));
    assert_eq!(word(&vm, FREE + 32 * PAGE), 9);
    vm.done(&invalidate(1, 7 * PAGE, u64::MAX));
    vm.done(&invalidate(1, 100 * PAGE, u64::MAX));
    assert!(!can_write(&mut vm, 7 * PAGE, 8));
    assert!(can_write(&mut vm, 0, 8));
    vm.done(&invalidate(1, 0, u64::MAX));
    assert!(!can_read(&mut vm, 0, 1));
    vm.end(false);
}

#[test]
fn sparse() {
    const SIZE: u64 = 64 << 30;
    let mut vm = Vm::mirrored(options());
    vm.context(1);
    vm.space(1, 1, SIZE);
    vm.blob(1, 2, &[(FREE + (1 << 20), 4096)]);
    for (index, offset) in [0, (1 << 30) - PAGE, 17 << 30, SIZE - PAGE]
        .iter()
        .enumerate()
    {
        let page = FREE + PAGE * index as u64;
        assert_eq!(vm.map(1, *offset, &[(page, 4096)]), status::OK);
        assert!(can_write(&mut vm, *offset, PAGE));
        assert_eq!(word(&vm, page), 9);
    }
    assert!(!can_write(&mut vm, 1 << 30, 8));
    assert!(!can_read(&mut vm, 40 << 30, 1));
    // Over the border of a window.
    assert_eq!(vm.map(1, (3 << 30) - PAGE, &[(FREE, 8192)]), status::OK);
    assert!(can_write(&mut vm, (3 << 30) - 8, 16));
    let stat = vm.stat(1, 2, FREE + (1 << 20));
    assert_eq!(stat.mapped_pages.get(), 6);
    vm.done(&invalidate(1, 0, u64::MAX));
    let stat = vm.stat(1, 2, FREE + (1 << 20));
    assert_eq!(stat.mapped_pages.get(), 0);
    assert!(!can_write(&mut vm, SIZE - 8, 8));
    vm.end(false);
}

/// What was mapped costs nothing any more: not the host's page tables either.
#[test]
fn page_tables_are_given_back() {
    const WINDOWS: u64 = 512;
    const HUGE: u64 = 2 << 20;
    let mut vm = Vm::with_process(env!("CARGO_BIN_EXE_virtgpu-device"), &[], true);
    vm.context(1);
    vm.space(1, 1, WINDOWS * HUGE);
    // In between, so that not all of it is one gap.
    for at in [PAGE, WINDOWS * HUGE - PAGE] {
        assert_eq!(vm.map(1, at, &[(FREE, 4096)]), status::OK);
        assert_eq!(vm.run(1, &[fill(1, at, 8, 1)]), response::OK_NODATA);
    }
    let before = vm.status_of_process("VmPTE:");
    for at in (0..WINDOWS).map(|window| window * HUGE + 8 * PAGE) {
        assert_eq!(vm.map(1, at, &[(FREE, 4096)]), status::OK);
        assert_eq!(vm.run(1, &[fill(1, at, 8, 1)]), response::OK_NODATA);
        vm.done(&invalidate(1, at, at + PAGE - 1));
    }
    let growth = vm.status_of_process("VmPTE:").saturating_sub(before);
    assert!(growth <= 64 << 10, "{growth} bytes of page tables");
    vm.end(false);
}
