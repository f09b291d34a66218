// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Jobs on pinned memory of the program, without a copy.

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, Bytes, Exec, Mapping, Memory, RegisterOptions};

use super::exercise;
use crate::ktap::TestResult;
use crate::support::memory::{small_pages, Malloc};
use crate::support::{job, procfs, Env, Random, HUGE, PAGE};
use crate::{check, check_eq};

pub(super) fn malloc_crc(env: &Env) -> TestResult {
    let device = env.compute()?;
    for pages in [1, 2, 255, 1025] {
        let memory = Malloc::new(pages * PAGE);
        let data = Random(pages as u64).bytes(memory.len());
        memory.write(0, &data);
        let userptr = device.register(&memory, RegisterOptions::pinned().read_only())?;
        let crc = job::crc(&device, userptr.at(0), data.len() as u64, userptr.handle())?;
        check_eq!(crc, compute::crc32c(0, &data), "CRC32C of {pages} pages");
        check_eq!(
            userptr.memory_model(),
            uapi::memory_model::PERMANENT,
            "memory model"
        );
        let part = job::crc(&device, userptr.at(100), 999, userptr.handle())?;
        check_eq!(
            part,
            compute::crc32c(0, &data[100..1099]),
            "CRC32C of a part"
        );
    }
    Ok(())
}

pub(super) fn malloc_add(env: &Env) -> TestResult {
    let device = env.compute()?;
    for pages in [1, 3, 513] {
        exercise(
            &device,
            &Malloc::new(pages * PAGE),
            RegisterOptions::pinned(),
        )?;
    }
    Ok(())
}

/// No copy anywhere: each side sees the other's writes while the registration lives, and the pages
/// are the same ones afterwards.
pub(super) fn cpu_and_device_see_the_same(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(64 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let before = procfs::frames(memory.as_ptr() as usize, 64)?;
    for round in 0..200_u64 {
        let offset = (round * 5000 % memory.len() as u64) & !7;
        memory.write_u64(offset as usize, round | (1 << 40));
        let seen = job::peek(&device, userptr.at(offset), userptr.handle())?;
        check_eq!(seen, round | (1 << 40), "the device's view at {offset}");
        job::poke(
            &device,
            userptr.at(offset),
            round | (1 << 41),
            userptr.handle(),
        )?;
        check_eq!(
            memory.read_u64(offset as usize),
            round | (1 << 41),
            "the CPU's view at {offset}"
        );
    }
    // The two meet in the middle of a job.
    let mut stream = compute::Stream::new();
    stream
        .fill(userptr.at(0), 8, 1)
        .spin_until(userptr.at(8), 2, 10_000_000)
        .fill(userptr.at(16), 8, 3);
    memory.write_u64(0, 0);
    memory.write_u64(8, 0);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .submit_with_fence(&device)?;
    check!(
        crate::support::eventually(job::LIMIT, || memory.read_u64(0) == 1),
        "the CPU sees the running job's write"
    );
    memory.write_u64(8, 2);
    fence.wait(Some(job::LIMIT))?;
    check_eq!(memory.read_u64(16), 3, "the job saw the CPU's write");
    drop(userptr);
    let after = procfs::frames(memory.as_ptr() as usize, 64)?;
    check_eq!(before, after, "page frames");
    Ok(())
}

pub(super) fn saxpy(env: &Env) -> TestResult {
    let device = env.compute()?;
    let (x, y) = (Malloc::new(1 << 20), Malloc::new(1 << 20));
    let mut random = Random(3);
    let mut expected = Vec::new();
    for offset in (0..1 << 20).step_by(4) {
        let a = random.below(1000) as f32 / 7.0;
        let b = random.below(1000) as f32 / 3.0;
        x.write_u32(offset, a.to_bits());
        y.write_u32(offset, b.to_bits());
        expected.push(2.5_f32 * a + b);
    }
    let ux = device.register(&x, RegisterOptions::pinned().read_only())?;
    let uy = device.register(&y, RegisterOptions::pinned())?;
    let mut stream = compute::Stream::new();
    stream.saxpy(uy.at(0), ux.at(0), 1 << 20, 2.5);
    job::run(&device, &stream, &[ux.handle(), uy.handle()])?;
    for (index, expected) in expected.iter().enumerate() {
        let value = f32::from_bits(y.read_u32(4 * index));
        check_eq!(value, *expected, "element {index}");
    }
    Ok(())
}

pub(super) fn gemm(env: &Env) -> TestResult {
    const M: usize = 61;
    const N: usize = 67;
    const K: usize = 59;
    let device = env.compute()?;
    let memory = Malloc::new(16 * PAGE);
    let (a, b, c) = (0, 4 * PAGE, 8 * PAGE);
    let mut random = Random(4);
    let mut matrix = |at: usize, count: usize| -> Vec<f32> {
        (0..count)
            .map(|index| {
                let value = random.below(2000) as f32 / 999.0 - 1.0;
                memory.write_u32(at + 4 * index, value.to_bits());
                value
            })
            .collect()
    };
    let left = matrix(a, M * K);
    let right = matrix(b, K * N);
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let mut stream = compute::Stream::new();
    stream.gemm(
        userptr.at(c as u64),
        [userptr.at(a as u64), userptr.at(b as u64)],
        [M as u32, N as u32, K as u32],
    );
    job::run(&device, &stream, &[userptr.handle()])?;
    for row in 0..M {
        for column in 0..N {
            let mut sum = 0.0_f32;
            for k in 0..K {
                sum += left[row * K + k] * right[k * N + column];
            }
            let value = f32::from_bits(memory.read_u32(c + 4 * (row * N + column)));
            check_eq!(value.to_bits(), sum.to_bits(), "element {row},{column}");
        }
    }
    Ok(())
}

/// Memory that no one has touched becomes resident by registration.
pub(super) fn untouched_memory(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Mapping::anonymous(100 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    job::add(
        &device,
        userptr.at(0),
        memory.len() as u64,
        9,
        userptr.handle(),
    )?;
    for offset in (0..memory.len()).step_by(4) {
        check_eq!(memory.read_u32(offset), 9, "word at {offset}");
    }
    // Read-only, the zero page would be wrong: later writes of the CPU must be seen.
    let memory = Mapping::anonymous(100 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned().read_only())?;
    memory.write_u64(8 * PAGE, 77);
    let seen = job::peek(&device, userptr.at(8 * PAGE as u64), userptr.handle())?;
    check_eq!(seen, 77, "the device's view of a later write");
    Ok(())
}

pub(super) fn large(env: &Env) -> TestResult {
    let device = env.compute()?;
    let available = procfs::meminfo("MemAvailable:")? << 10;
    let length = (256_usize << 20).min(available as usize / 3) & !(HUGE - 1);
    let memory = Malloc::new(length);
    for page in (0..length).step_by(PAGE) {
        memory.write_u64(page, page as u64);
    }
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    check_eq!(procfs::vm_pin()?, length as u64, "VmPin");
    let mut random = Random(14);
    for _ in 0..100 {
        let page = random.below((length / PAGE) as u64) * PAGE as u64;
        let seen = job::peek(&device, userptr.at(page), userptr.handle())?;
        check_eq!(
            seen,
            page,
            "the device's view of page {}",
            page / PAGE as u64
        );
    }
    let blob = device.create_blob(&virtgpu_client::BlobOptions::guest(4096))?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    stream.stride_read(blob.at(0), userptr.at(1), length as u64 - 1, PAGE as u64);
    job::run(&device, &stream, &[blob.handle(), userptr.handle()])?;
    let expected: u64 = (0..length)
        .step_by(PAGE)
        .map(|page| (page >> 8) as u64 & 0xff)
        .sum();
    check_eq!(map.read_u64(0), expected, "sum over all pages");
    Ok(())
}

/// Closing the handle lets a running job finish, and only then are the pages free.
pub(super) fn closed_while_busy(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(64 * PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let mut stream = compute::Stream::new();
    stream
        .delay(300_000)
        .add_u32(userptr.at(0), memory.len() as u64, 1);
    let fence = Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[userptr.handle()])
        .submit_with_fence(&device)?;
    userptr.close()?;
    fence.wait(Some(job::LIMIT))?;
    for page in 0..64 {
        check_eq!(memory.read_u32(page * PAGE), 1, "page {page}");
    }
    check!(
        crate::support::eventually(job::LIMIT, || procfs::vm_pin() == Ok(0)),
        "VmPin goes back to 0"
    );
    Ok(())
}
