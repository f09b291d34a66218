// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Each operation of the compute context against the plainest way to compute the same, on memory in
//! pieces of all lengths and alignments.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{delay, fill, operation, spin};
use proptest::prelude::*;
use virtgpu_device::cancel::Cancel;
use virtgpu_device::compute::{check, execute, parse, Environment, Failure, Memory as Operands};
use virtgpu_device::memory::ram::{GuestRam, Memory};
use virtgpu_device::memory::segments::Segments;
use virtgpu_protocol::compute::{op, Op, Operand, Stat, MAX_DELAY_US};
use virtgpu_protocol::virtio_gpu::MemEntry;
use vm_memory::GuestAddress;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const RAM: u64 = 8 << 20;

/// Guest RAM from which resources take pieces with gaps in between.
struct Bed {
    ram: Arc<GuestRam>,
    next: u64,
    resources: Vec<Arc<Segments>>,
    cancel: Cancel,
}

impl Bed {
    fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        Self {
            ram: Arc::new(GuestRam::new(Arc::new(memory), None)),
            next: 0,
            resources: Vec::new(),
            cancel: Cancel::default(),
        }
    }

    /// A resource that holds `bytes`, in pieces of at most these lengths; returns its id.
    fn resource(&mut self, bytes: &[u8], pieces: &[u32]) -> u32 {
        let mut entries = Vec::new();
        let mut left = bytes.len() as u64;
        let mut pieces = pieces.iter().cycle();
        while left > 0 {
            let length = u64::from(*pieces.next().unwrap()).min(left);
            entries.push(MemEntry {
                addr: U64::new(self.next),
                length: U32::new(length as u32),
                padding: U32::ZERO,
            });
            self.next += length + 3;
            left -= length;
        }
        let size = bytes.len() as u64;
        let segments = Segments::from_entries(&self.ram, &entries, size).unwrap();
        segments.write(0, bytes).unwrap();
        self.resources.push(Arc::new(segments));
        self.resources.len() as u32
    }

    fn contents(&self, id: u32) -> Vec<u8> {
        let resource = &self.resources[id as usize - 1];
        let mut bytes = vec![0; resource.size() as usize];
        resource.read(0, &mut bytes).unwrap();
        bytes
    }

    fn run(&self, ops: &[Op]) -> Result<(), Failure> {
        for op in ops {
            assert_eq!(check(op), Ok(()));
        }
        let resource = |id: u32| self.resources.get((id as usize).wrapping_sub(1)).cloned();
        let memory = |id| resource(id).map(Operands::Resource);
        let stat = |resource: u32| Stat {
            resources: U64::new(7),
            space_pages: U64::new(resource.into()),
            ..Default::default()
        };
        let environment = Environment {
            memory: &memory,
            cancel: &self.cancel,
            stat: &stat,
        };
        execute(ops, &environment)
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
    bytes.chunks_exact(4).map(value).collect()
}

fn bytes_of(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|f| f.to_le_bytes()).collect()
}

/// Floats of all magnitudes, but few that are not numbers.
fn float() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1000.0f32..1000.0,
        1 => any::<f32>(),
        1 => Just(0.1f32),
    ]
}

fn pieces() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![1..10u32, 1..5000u32, Just(4096)], 1..6)
}

/// The same bits, or both not a number.
fn same(a: &[f32], b: &[f32]) -> bool {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    a.len() == b.len() && a.iter().zip(b).all(same)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn fill_copy_add(
        data in prop::collection::vec(any::<u8>(), 1..40_000),
        pieces in (pieces(), pieces()),
        value in any::<u64>(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut bed = Bed::new();
        let a = bed.resource(&data, &pieces.0);
        let b = bed.resource(&vec![0; data.len()], &pieces.1);
        let offset = at.index(data.len());
        let length = (data.len() - offset) as u64;
        let copy = operation(op::COPY, (b, 0), [(a, offset as u64), (0, 0)], length, [0; 2]);
        bed.run(&[copy]).unwrap();
        let mut want = data.clone();
        want.rotate_left(offset);
        want[length as usize..].fill(0);
        prop_assert!(bed.contents(b) == want);

        bed.run(&[fill(a, offset as u64, length / 8 * 8, value)]).unwrap();
        let mut want = data.clone();
        for word in want[offset..].chunks_exact_mut(8) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        prop_assert!(bed.contents(a) == want);

        let add = operation(
            op::ADD_U32, (a, offset as u64), [(0, 0); 2], length / 4 * 4, [value >> 32, 0],
        );
        bed.run(&[add]).unwrap();
        for word in want[offset..].chunks_exact_mut(4) {
            let old = u32::from_le_bytes(word.try_into().unwrap());
            word.copy_from_slice(&old.wrapping_add((value >> 32) as u32).to_le_bytes());
        }
        prop_assert!(bed.contents(a) == want);
    }

    #[test]
    fn checksums(
        data in prop::collection::vec(any::<u8>(), 1..40_000),
        pieces in pieces(),
        stride in 1..5000u64,
    ) {
        let mut bed = Bed::new();
        let a = bed.resource(&data, &pieces);
        let out = bed.resource(&[0xee; 24], &[5]);
        let length = data.len() as u64;
        bed.run(&[
            operation(op::CRC32C, (out, 0), [(a, 0), (0, 0)], length, [0; 2]),
            operation(op::STRIDE_READ, (out, 8), [(a, 0), (0, 0)], length, [stride, 0]),
        ]).unwrap();
        let mut crc = !0u32;
        for byte in &data {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
            }
        }
        let sum: u64 = data.iter().step_by(stride as usize).map(|b| u64::from(*b)).sum();
        let got = bed.contents(out);
        prop_assert_eq!(&got[..4], (!crc).to_le_bytes());
        prop_assert_eq!(&got[4..8], [0xee; 4]);
        prop_assert_eq!(&got[8..16], sum.to_le_bytes());
        prop_assert_eq!(&got[16..], [0xee; 8]);
    }

    #[test]
    fn saxpy(
        values in prop::collection::vec((float(), float()), 1..6000),
        pieces in (pieces(), pieces()),
        a in float(),
    ) {
        let (x, y): (Vec<f32>, Vec<f32>) = values.into_iter().unzip();
        let mut bed = Bed::new();
        let from = bed.resource(&bytes_of(&x), &pieces.0);
        let to = bed.resource(&bytes_of(&y), &pieces.1);
        let imm = [u64::from(a.to_bits()), 0];
        let length = 4 * x.len() as u64;
        bed.run(&[operation(op::SAXPY_F32, (to, 0), [(from, 0), (0, 0)], length, imm)]).unwrap();
        let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| { let p = a * x; p + y }).collect();
        prop_assert!(same(&floats(&bed.contents(to)), &want));
    }

    #[test]
    fn chase(order in Just((1..200u64).collect::<Vec<_>>()).prop_shuffle(), steps in 0..500u64) {
        // A ring of pointers through all words.
        let mut words = vec![0u64; 200];
        let mut at = 0;
        for next in order {
            words[at as usize] = next * 8;
            at = next;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut bed = Bed::new();
        let a = bed.resource(&bytes, &[13, 100]);
        let out = bed.resource(&[0; 8], &[8]);
        bed.run(&[operation(op::POINTER_CHASE, (out, 0), [(a, 0), (0, 0)], 0, [steps, 0])]).unwrap();
        let want = (0..steps).fold(0u64, |offset, _| words[offset as usize / 8]);
        prop_assert_eq!(bed.contents(out), want.to_le_bytes());
    }
}

#[test]
fn gemm() {
    for (m, n, k) in [
        (1, 1, 1),
        (3, 5, 7),
        (65, 1, 300),
        (1, 257, 2),
        (70, 300, 520),
        (2, 3, 0),
    ] {
        let value = |i: u64| ((i * 7919) % 1013) as f32 / 37.0 - 13.0;
        let a: Vec<f32> = (0..m * k).map(value).collect();
        let b: Vec<f32> = (0..k * n).map(|i| value(i + 5)).collect();
        let mut bed = Bed::new();
        let first = bed.resource(&[&[0xff][..], &bytes_of(&a)].concat(), &[4096, 77]);
        let second = bed.resource(&[&[0xff; 2][..], &bytes_of(&b)].concat(), &[4096]);
        let out = bed.resource(&vec![0xee; (m * n * 4) as usize + 8], &[1000, 3]);
        let imm = [m | (n << 32), k];
        let op = operation(
            op::GEMM_F32,
            (out, 4),
            [(first, 1), (second, 2)],
            m * n * 4,
            imm,
        );
        bed.run(&[op]).unwrap();
        let mut want = Vec::new();
        for row in 0..m {
            for column in 0..n {
                let mut sum = 0f32;
                for i in 0..k {
                    let product = a[(row * k + i) as usize] * b[(i * n + column) as usize];
                    sum += product;
                }
                want.push(sum);
            }
        }
        let got = bed.contents(out);
        assert_eq!(
            (&got[..4], &got[got.len() - 4..]),
            (&[0xee; 4][..], &[0xee; 4][..])
        );
        assert!(same(&floats(&got[4..got.len() - 4]), &want), "{m} {n} {k}");
    }
}

#[test]
fn atomic_adds_from_many_threads() {
    let mut bed = Bed::new();
    let a = bed.resource(&[0; 16], &[16]);
    let add = operation(op::ATOMIC_ADD_U64, (a, 8), [(0, 0); 2], 8 * 1000, [3, 0]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| bed.run(&[add]).unwrap());
        }
    });
    assert_eq!(bed.contents(a)[8..], 12_000u64.to_le_bytes());
}

#[test]
fn waiting() {
    let mut bed = Bed::new();
    let a = bed.resource(&[0; 8], &[8]);
    let start = Instant::now();
    bed.run(&[delay(20_000)]).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(
        bed.run(&[delay(0), spin(a, 0, 1, 1000)]),
        Err(Failure::TimedOut(1))
    );
    bed.run(&[spin(a, 0, 0, 0)]).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| bed.run(&[spin(a, 0, 2, MAX_DELAY_US)]));
        bed.run(&[delay(5000), fill(a, 0, 8, 2)]).unwrap();
        waiter.join().unwrap().unwrap();
        let waiters: Vec<_> = [delay(MAX_DELAY_US), spin(a, 0, 3, MAX_DELAY_US)]
            .into_iter()
            .map(|op| {
                let bed = &bed;
                scope.spawn(move || bed.run(&[op]))
            })
            .collect();
        bed.cancel.set();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Err(Failure::Cancelled));
        }
    });
    assert!(start.elapsed() < Duration::from_secs(8));
}

#[test]
fn stat_is_cut_off() {
    let mut bed = Bed::new();
    let a = bed.resource(&[0xee; 200], &[100]);
    bed.run(&[operation(op::STAT, (a, 0), [(0, 0); 2], 9, [0; 2])])
        .unwrap();
    let mut want = [0xee; 200];
    want[..9].copy_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bed.contents(a), want);
    bed.run(&[operation(op::STAT, (a, 0), [(0, 0); 2], 190, [0; 2])])
        .unwrap();
    let after = size_of::<Stat>();
    assert!(bed.contents(a)[after..].iter().all(|b| *b == 0xee));
}

/// Also one that the job has nothing to do with.
#[test]
fn stat_of_a_resource() {
    let mut bed = Bed::new();
    let a = bed.resource(&[0; 200], &[100]);
    let length = size_of::<Stat>() as u64;
    bed.run(&[operation(
        op::STAT,
        (a, 0),
        [(77, 1 << 60), (0, 0)],
        length,
        [0; 2],
    )])
    .unwrap();
    let bytes = bed.contents(a);
    let stat = Stat::ref_from_prefix(&bytes).unwrap().0;
    assert_eq!(stat.space_pages.get(), 77);
}

#[test]
fn nothing_is_touched_outside() {
    let mut bed = Bed::new();
    let a = bed.resource(&[0xee; 64], &[10]);
    let b = bed.resource(&[0xdd; 64], &[10]);
    let max = u64::MAX;
    let stray = [
        fill(a, 0, 72, 0),
        fill(a, 8, max - 7, 0),
        fill(a, max - 7, 8, 0),
        fill(3, 0, 8, 0),
        fill(0, 0, 8, 0),
        operation(op::COPY, (a, 0), [(b, 32), (0, 0)], 33, [0; 2]),
        operation(op::COPY, (a, 32), [(b, 0), (0, 0)], 33, [0; 2]),
        operation(op::CRC32C, (a, 61), [(b, 0), (0, 0)], 64, [0; 2]),
        operation(op::CRC32C, (a, 0), [(b, 0), (0, 0)], 65, [0; 2]),
        operation(op::ADD_U32, (a, 4), [(0, 0); 2], 64, [1, 0]),
        operation(op::SAXPY_F32, (a, 0), [(b, 4), (0, 0)], 64, [0; 2]),
        operation(
            op::GEMM_F32,
            (a, 0),
            [(b, 0), (b, 0)],
            64,
            [4 | (4 << 32), 5],
        ),
        operation(
            op::GEMM_F32,
            (a, 0),
            [(b, 0), (b, 4)],
            64,
            [4 | (4 << 32), 4],
        ),
        operation(op::ATOMIC_ADD_U64, (a, 64), [(0, 0); 2], 8, [1, 0]),
        // In two pieces.
        operation(op::ATOMIC_ADD_U64, (a, 8), [(0, 0); 2], 8, [1, 0]),
        operation(op::STRIDE_READ, (a, 57), [(b, 0), (0, 0)], 64, [1, 0]),
        operation(op::POINTER_CHASE, (a, 0), [(b, 0), (0, 0)], 0, [2, 0]),
        operation(op::POINTER_CHASE, (a, 0), [(b, 57), (0, 0)], 0, [1, 0]),
        spin(b, 60, 0, 10),
        operation(op::STAT, (a, 60), [(0, 0); 2], 64, [0; 2]),
    ];
    for op in stray {
        assert_eq!(bed.run(&[delay(0), op]), Err(Failure::Fault(1)), "{op:?}");
        assert_eq!(bed.contents(a), [0xee; 64], "{op:?}");
    }
    assert_eq!(bed.contents(b), [0xdd; 64]);
}

#[test]
fn malformed_operations() {
    let place = (1, 0);
    let with = |change: &dyn Fn(&mut Op)| {
        let mut op = operation(op::COPY, (1, 64), [(1, 0), (0, 0)], 64, [0; 2]);
        assert_eq!(check(&op), Ok(()));
        change(&mut op);
        op
    };
    let malformed = [
        with(&|op| op.op = U32::ZERO),
        with(&|op| op.op = U32::new(op::END)),
        with(&|op| op.op = U32::new(u32::MAX)),
        with(&|op| op.flags = U32::new(1)),
        with(&|op| op.dst.padding = U32::new(1)),
        with(&|op| op.src[0].padding = U32::new(1)),
        with(&|op| op.src[1].padding = U32::new(1)),
        with(&|op| op.length = U64::new(65)),
        with(&|op| op.src[0].offset = U64::new(127)),
        with(&|op| op.src[0] = Operand::resource(1, 1)),
        fill(1, 0, 7, 0),
        operation(op::ADD_U32, place, [(0, 0); 2], 6, [1, 0]),
        operation(op::ADD_U32, place, [(0, 0); 2], 8, [1 << 32, 0]),
        operation(op::SAXPY_F32, place, [place; 2], 2, [0; 2]),
        operation(op::GEMM_F32, place, [place; 2], 4, [0; 2]),
        operation(op::GEMM_F32, place, [place; 2], 4, [1 | (1 << 32), 1 << 32]),
        operation(op::GEMM_F32, place, [place; 2], 4, [u64::MAX, u64::MAX]),
        operation(op::ATOMIC_ADD_U64, place, [(0, 0); 2], 12, [1, 0]),
        operation(op::ATOMIC_ADD_U64, (1, 4), [(0, 0); 2], 8, [1, 0]),
        operation(op::STRIDE_READ, place, [place; 2], 8, [0, 0]),
        delay(MAX_DELAY_US + 1),
        spin(1, 0, 0, MAX_DELAY_US + 1),
    ];
    for op in malformed {
        assert!(check(&op).is_err(), "{op:?}");
        assert!(parse([delay(0), op].as_bytes()).is_err());
    }
    assert_eq!(parse(&[]).unwrap(), []);
    assert!(parse(&[0; 81]).is_err());
    assert!(parse(vec![delay(0); 4097].as_bytes()).is_err());
}

/// Arithmetic that goes wrong does not go on, in the profile of the programs that guests get.
#[test]
#[should_panic(expected = "overflow")]
fn overflow_is_noticed() {
    let most = std::hint::black_box(u32::MAX);
    std::hint::black_box(most + 1);
}
