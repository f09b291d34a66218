// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A platform that bounces, as an encrypted guest does: the device works on copies of guest memory,
//! which are brought up to date by transfers only. One guest has `swiotlb=force` on its kernel's
//! command line, and a device that wants DMA addresses.

use std::os::fd::AsFd;

use virtgpu_client::protocol::uapi;
use virtgpu_client::protocol::virtio_gpu::blob_mem;
use virtgpu_client::{
    compute, BlobOptions, Bytes, Device, Errno, Exec, Image, Memory, Region, RegisterOptions,
};

use crate::greedy::Greedy;
use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::memory::small_pages;
use crate::support::unchanged::Refusing;
use crate::support::{eventually, gpu, job, raw, udmabuf, Env, Random, PAGE};
use crate::transfer::{
    boxes, buffer, closed_at_once, created, formats, in_order, layers, levels, many_pages, picture,
};
use crate::{cases, check, check_eq, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "bounce",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        bounces,
        nothing_is_shared,
        created,
        picture,
        boxes,
        levels,
        layers,
        buffer,
        many_pages,
        formats,
        in_order,
        closed_at_once,
        both_kinds_of_memory,
        memory_of_the_host,
        long_command,
        at_the_same_time,
        more_than_the_pool,
        jobs_leave_room: 200,
        unbound_with_buffers,
    ],
};

/// The platform maps at most so much in one piece.
const PIECE: usize = 256 << 10;

/// Skips where nothing bounces.
fn check_platform() -> TestResult {
    let command_line = std::fs::read_to_string("/proc/cmdline")?;
    if !command_line
        .split(' ')
        .any(|word| word.trim() == "swiotlb=force")
    {
        skip!("needs swiotlb=force on the kernel's command line");
    }
    Ok(())
}

/// What the driver says of itself.
fn bounces(env: &Env) -> TestResult {
    check_platform()?;
    let device = env.compute()?;
    check_eq!(device.userptr_modes()?, 0, "USERPTR_MODES");
    check_eq!(
        device.getparam(uapi::param::USERPTR_MEMORY_MODELS)?,
        0,
        "USERPTR_MEMORY_MODELS"
    );
    // There are blobs, of the host.
    check_eq!(
        device.getparam(uapi::param::RESOURCE_BLOB)?,
        1,
        "RESOURCE_BLOB"
    );
    check_eq!(
        device.getparam(uapi::param::HOST_VISIBLE)?,
        1,
        "HOST_VISIBLE"
    );
    Ok(())
}

/// What CPU and device would have to see at the same time is refused, and leaves nothing behind.
fn nothing_is_shared(env: &Env) -> TestResult {
    check_platform()?;
    let refusing = Refusing::new(env)?;
    let memory = small_pages(4 * PAGE)?;
    for (what, options) in [
        ("pinned", RegisterOptions::pinned()),
        ("pinned, read-only", RegisterOptions::pinned().read_only()),
        (
            "pinned, HOST3D_GUEST",
            RegisterOptions::pinned().host3d_guest(1),
        ),
        ("mirrored", RegisterOptions::mirrored()),
        ("mirrored, sparse", RegisterOptions::mirrored().sparse()),
    ] {
        refusing.refuse(Errno::OPNOTSUPP, what, |device| {
            device.register(&memory, options).map(drop)
        })?;
    }
    for mem in [blob_mem::GUEST, blob_mem::HOST3D_GUEST] {
        let addr = memory.as_ptr() as u64;
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: mem,
            blob_flags: uapi::BLOB_FLAG_USE_USERPTR,
            size: memory.len() as u64,
            blob_hints: addr as u32,
            pad2: (addr >> 32) as u32,
            ..Default::default()
        };
        refusing.refuse(Errno::OPNOTSUPP, "ROCm's form of registration", |device| {
            raw::call(device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob)
        })?;
    }
    for size in [PAGE, 2 * PIECE] {
        refusing.refuse(Errno::OPNOTSUPP, "a GUEST blob", |device| {
            device
                .create_blob(&BlobOptions::guest(size as u64))
                .map(drop)
        })?;
    }
    // What is wrong anyway is wrong here, too.
    refusing.refuse(Errno::INVAL, "a GUEST blob with an id", |device| {
        let options = BlobOptions {
            blob_id: 1,
            ..BlobOptions::guest(PAGE as u64)
        };
        device.create_blob(&options).map(drop)
    })?;
    let imported = udmabuf::new(4)?;
    refusing.refuse(Errno::OPNOTSUPP, "a dma-buf of another driver", |device| {
        device.prime_import(imported.fd.as_fd()).map(drop)
    })?;
    // One of its own is the buffer that it was.
    let device = env.compute()?;
    let image = device.create_buffer(PAGE as u32)?;
    let exported = device.prime_export(image.handle())?;
    check_eq!(
        device.prime_import(exported.as_fd())?,
        image.handle(),
        "the handle of an own dma-buf"
    );
    Ok(())
}

/// Jobs work on the copy of a HOST3D_GUEST blob, and transfers bring both up to date.
fn both_kinds_of_memory(env: &Env) -> TestResult {
    check_platform()?;
    let device = env.compute()?;
    // Several pieces, and not a whole number of them.
    let size = 2 * PIECE + 3 * PAGE;
    let blob = device.create_blob(&BlobOptions::host3d_guest(size as u64, 1))?;
    let map = blob.map()?;
    check!(
        map.to_vec(0, size).iter().all(|&byte| byte == 0),
        "new memory is zero"
    );
    let crc = job::crc(&device, blob.at(0), size as u64, blob.handle())?;
    check_eq!(
        crc,
        compute::crc32c(0, &vec![0; size]),
        "the CRC32C of new memory"
    );

    let data = Random(11).bytes(size);
    map.write(0, &data);
    let crc = job::crc(&device, blob.at(0), size as u64, blob.handle())?;
    check_eq!(
        crc,
        compute::crc32c(0, &vec![0; size]),
        "the CRC32C before the transfer"
    );
    let region = Region::bytes(0, size as u32);
    device.transfer_to_host(blob.handle(), &region)?;
    let crc = job::crc(&device, blob.at(0), size as u64, blob.handle())?;
    check_eq!(crc, compute::crc32c(0, &data), "the CRC32C after it");

    // The host has no other storage for it here, so that nothing comes back, and nothing is lost:
    // what a host does not write is what the guest had.
    let data = Random(13).bytes(size);
    map.write(0, &data);
    device.transfer_from_host(blob.handle(), &region)?;
    device.wait(blob.handle())?;
    check!(
        map.to_vec(0, size) == data,
        "the guest's bytes are still there"
    );
    Ok(())
}

/// Memory of the host bounces nowhere.
fn memory_of_the_host(env: &Env) -> TestResult {
    check_platform()?;
    let device = env.compute()?;
    let size = 2 * PIECE;
    let blob = device.create_blob(&BlobOptions::host3d(size as u64, 1))?;
    let map = blob.map()?;
    let data = Random(12).bytes(size);
    map.write(0, &data);
    let crc = job::crc(&device, blob.at(0), size as u64, blob.handle())?;
    check_eq!(crc, compute::crc32c(0, &data), "what the CPU has written");
    job::add(&device, blob.at(0), size as u64, 1, blob.handle())?;
    let first = u32::from_le_bytes(data[..4].try_into().expect("4 bytes"));
    check_eq!(
        map.read_u32(0),
        first.wrapping_add(1),
        "what a job has written"
    );
    Ok(())
}

/// A command longer than what the platform maps in one piece.
fn long_command(env: &Env) -> TestResult {
    check_platform()?;
    let device = env.compute()?;
    let blob = job::shared_blob(&device, PAGE)?;
    let map = blob.map()?;
    let mut stream = compute::Stream::new();
    // As many operations as the device takes in a job.
    let count = 4096;
    for count in 1..=count {
        stream.fill(blob.at(8 * (count % 512)), 8, count);
    }
    check!(stream.as_bytes().len() > PIECE, "it is long");
    job::run(&device, &stream, &[blob.handle()])?;
    for at in 0..512 {
        let last = count - (count - at) % 512;
        check_eq!(map.read_u64(8 * at as usize), last, "word {at}");
    }
    // One that does not fit is refused, and the next one works.
    let huge = vec![0; 40 << 20];
    check_err!(
        Exec::new(&huge)
            .buffers(&[blob.handle()])
            .submit(&device)
            .map(drop),
        Errno::NOMEM,
        "a command of 40 MiB"
    );
    job::run(&device, &stream, &[blob.handle()])
}

/// Two threads transfer different parts of a buffer, one to the host and one from it, and neither
/// loses what the other has transferred.
fn at_the_same_time(env: &Env) -> TestResult {
    check_platform()?;
    let device = env.compute()?;
    let half = (PIECE + PAGE) as u32;
    let image = device.create_buffer(2 * half)?;
    let map = image.map()?;
    let (lower, upper) = (Region::bytes(0, half), Region::bytes(half, half));
    let rounds = env.iterations(60);
    for round in 0..rounds {
        // The upper half of the host's storage has bytes that the guest has not.
        let data = Random(round).bytes(2 * half as usize);
        map.write(0, &data);
        image.to_host(&upper)?;
        for at in (half as usize..2 * half as usize).step_by(PAGE) {
            map.write(at, &[0x5a; PAGE]);
        }
        let outcome: Vec<Result<(), Errno>> = std::thread::scope(|scope| {
            let there = scope.spawn(|| device.transfer_to_host(image.handle(), &lower));
            let back = scope.spawn(|| device.transfer_from_host(image.handle(), &upper));
            [there, back]
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        for result in outcome {
            result?;
        }
        device.wait(image.handle())?;
        let got = map.to_vec(half as usize, half as usize);
        let differs = (0..half as usize).find(|&at| got[at] != data[half as usize + at]);
        check!(
            differs.is_none(),
            "round {round}: byte {differs:?} was not transferred"
        );
        map.fill(0);
        image.from_host(&lower)?;
        let got = map.to_vec(0, half as usize);
        let differs = (0..half as usize).find(|&at| got[at] != data[at]);
        check!(
            differs.is_none(),
            "round {round}: byte {differs:?} was lost"
        );
    }
    Ok(())
}

/// To the host and back.
fn works(device: &Device, image: &Image<'_>, size: usize, seed: u64) -> TestResult {
    let map = image.map()?;
    let data = Random(seed).bytes(size);
    map.write(0, &data);
    let region = Region::bytes(0, size as u32);
    image.to_host(&region)?;
    map.fill(0x5a);
    image.from_host(&region)?;
    device.wait(image.handle())?;
    check!(map.to_vec(0, size) == data, "the bytes came back");
    Ok(())
}

/// The pool of bounce buffers is for everybody. One who takes all that may be taken keeps others
/// from nothing but buffers, and has it given back.
fn more_than_the_pool(env: &Env) -> TestResult {
    const STEP: u32 = 4 << 20;
    check_platform()?;
    let refusing = Refusing::new(env)?;
    refusing.refuse(Errno::NOMEM, "more than the pool", |device| {
        device.create_buffer(512 << 20).map(drop)
    })?;
    let greedy = env.compute()?;
    let other = env.compute()?;
    let early = other.create_buffer(2 * PIECE as u32)?;
    for _ in 0..2 {
        let mut taken = Vec::new();
        let mut outcome = Ok(());
        // What was closed before is given back by a worker.
        eventually(job::LIMIT, || {
            while outcome.is_ok() && taken.len() < 1000 {
                outcome = greedy.create_buffer(STEP).map(|image| taken.push(image));
            }
            let enough = taken.len() >= 8;
            if !enough && outcome == Err(Errno::NOMEM) {
                outcome = Ok(());
            }
            enough
        });
        check_err!(outcome, Errno::NOMEM, "a buffer too many");
        println!("    # {} buffers of {} bytes", taken.len(), STEP);
        check!(
            taken.len() >= 8,
            "there is room for {} buffers",
            taken.len()
        );
        works(&greedy, &taken[0], STEP as usize, 1)?;
        // Jobs and transfers of others go on.
        works(&other, &early, 2 * PIECE, 2)?;
        memory_of_the_host(env)?;
        long_command(env)?;
        drop(taken);
    }
    let mut again = Err(Errno::NOMEM);
    eventually(job::LIMIT, || {
        again = greedy.create_buffer(STEP);
        again.is_ok()
    });
    let again = again?;
    works(&greedy, &again, STEP as usize, 3)
}

/// Long jobs that wait for one that takes its time have a part of the pool, for each file, and
/// whoever has more of them waits. Others go on.
fn jobs_leave_room(env: &Env) -> TestResult {
    check_platform()?;
    let mut long = compute::Stream::new();
    for _ in 0..4096 {
        long.delay(1);
    }
    check!(long.as_bytes().len() > PIECE, "the jobs are long");
    let greedy = Greedy::start(env, 4, &long)?;
    println!(
        "    # {:?} jobs of {} bytes",
        greedy.wait()?,
        long.as_bytes().len()
    );
    let other = env.compute()?;
    let early = other.create_buffer(2 * PIECE as u32)?;
    works(&other, &early, 2 * PIECE, 2)?;
    memory_of_the_host(env)?;
    long_command(env)?;
    greedy.kill()?;
    long_command(env)
}

/// Buffers outlive the driver of their device; what was mapped for it does not.
fn unbound_with_buffers(env: &Env) -> TestResult {
    check_platform()?;
    let mut kept = Vec::new();
    for round in 0..3 {
        let device = env.compute()?;
        let image = device.create_buffer(5 * PIECE as u32)?;
        works(&device, &image, 5 * PIECE, round)?;
        let handle = image.into_handle();
        let gpu = gpu::find()?;
        gpu.unbind()?;
        check_err!(
            device.transfer_to_host(handle, &Region::bytes(0, 64)),
            Errno::NODEV,
            "a transfer after unbind"
        );
        kept.push(device);
        gpu.bind()?;
        gpu::wait_for_node(env)?;
    }
    // Closed when others use the pool.
    let device = env.compute()?;
    let image = device.create_buffer(5 * PIECE as u32)?;
    drop(kept);
    works(&device, &image, 5 * PIECE, 7)
}
