// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Devices that offer other things than the usual one: DMA addresses, larger blobs only, no
//! host-visible memory, ROCm's capability set.

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, BlobOptions, Bytes, Errno, Memory, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::memory::{small_pages, Malloc};
use crate::support::{job, Env, Random, PAGE};
use crate::{cases, check_eq, check_err};

const fn family(
    name: &'static str,
    device: &'static str,
    cases: &'static [crate::ktap::Case],
) -> Family {
    Family {
        name,
        kernel: Kernel::Any,
        driver: Driver::Ours,
        device,
        leak_check: true,
        cases,
    }
}

/// The device wants DMA addresses.
pub(crate) const ACCESS_PLATFORM: Family =
    family("access_platform", "--access-platform", cases![computes]);

/// Sizes are multiples of 64 KiB.
pub(crate) const ALIGNMENT: Family = family(
    "blob_alignment",
    "--blob-alignment 65536",
    cases![alignment],
);

/// Less than a page, which is what there is in any case.
pub(crate) const SMALL_ALIGNMENT: Family = family(
    "small_blob_alignment",
    "--blob-alignment 512",
    cases![small_alignment, computes],
);

/// The device has no memory to show.
pub(crate) const NO_HOSTMEM: Family =
    family("no_hostmem", "--hostmem 0", cases![no_hostmem, computes]);

/// The device cannot follow page tables.
pub(crate) const NO_MIRROR: Family =
    family("no_mirror", "--no-mirror", cases![no_mirror, computes]);

/// The device looks like ROCm's.
pub(crate) const ROCM: Family = family("rocm_capset", "--capset 8:160", cases![rocm]);

fn computes(env: &Env) -> TestResult {
    let device = env.compute()?;
    for pages in [1, 16, 3000] {
        let memory = Malloc::new(pages * PAGE);
        let data = Random(pages as u64).bytes(memory.len());
        memory.write(0, &data);
        let userptr = device.register(&memory, RegisterOptions::pinned())?;
        let length = memory.len() as u64;
        let crc = job::crc(&device, userptr.at(0), length, userptr.handle())?;
        check_eq!(crc, compute::crc32c(0, &data), "CRC32C of {pages} pages");
        job::add(&device, userptr.at(0), length, 1, userptr.handle())?;
        let last = u32::from_le_bytes(data[data.len() - 4..].try_into().expect("4 bytes"));
        check_eq!(
            memory.read_u32(memory.len() - 4),
            last.wrapping_add(1),
            "the last word"
        );
    }
    Ok(())
}

fn alignment(env: &Env) -> TestResult {
    let device = env.compute()?;
    check_eq!(device.blob_alignment()?, 65536, "BLOB_ALIGNMENT");
    check_err!(
        device.create_blob(&BlobOptions::guest(4096)).map(drop),
        Errno::INVAL,
        "a blob of a page"
    );
    device.create_blob(&BlobOptions::guest(65536))?;
    let memory = small_pages(32 * PAGE)?;
    for pages in [1, 15, 17, 31] {
        check_err!(
            device
                .register_range(&memory, 0, pages * PAGE, RegisterOptions::pinned())
                .map(drop),
            Errno::INVAL,
            "{pages} pages of user memory"
        );
    }
    // The size only: the address may be any page's.
    let userptr = device.register_range(&memory, PAGE, 16 * PAGE, RegisterOptions::pinned())?;
    check_eq!(userptr.query()?.size, 65536, "size");
    Ok(())
}

fn small_alignment(env: &Env) -> TestResult {
    let device = env.compute()?;
    check_eq!(device.blob_alignment()?, PAGE as u32, "BLOB_ALIGNMENT");
    check_err!(
        device.create_blob(&BlobOptions::guest(512)).map(drop),
        Errno::INVAL,
        "a blob of 512 bytes"
    );
    device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    Ok(())
}

fn no_hostmem(env: &Env) -> TestResult {
    let device = env.compute()?;
    check_eq!(
        device.getparam(uapi::param::HOST_VISIBLE)?,
        0,
        "HOST_VISIBLE"
    );
    let blob = device.create_blob(&BlobOptions::host3d(4096, 1));
    if let Ok(blob) = blob {
        check_err!(blob.map().map(drop), Errno::INVAL, "mapping");
    }
    Ok(())
}

fn no_mirror(env: &Env) -> TestResult {
    let device = env.compute()?;
    check_eq!(
        device.userptr_modes()? & uapi::USERPTR_MODE_MIRRORED,
        0,
        "USERPTR_MODES"
    );
    let memory = small_pages(4 * PAGE)?;
    for options in [
        RegisterOptions::mirrored(),
        RegisterOptions::mirrored().read_only(),
        RegisterOptions::mirrored().sparse().events(1),
    ] {
        check_err!(
            device.register(&memory, options).map(drop),
            Errno::OPNOTSUPP,
            "a mirrored registration, {options:?}"
        );
    }
    Ok(())
}

/// The order of ioctls that ROCm's library uses.
fn rocm(env: &Env) -> TestResult {
    let device = env.open()?;
    let mut caps = [0; 160];
    device.caps(8, 0, &mut caps)?;
    let params = [(1, 8), (2, 64)].map(|(param, value)| uapi::ContextSetParam { param, value });
    // SAFETY: No parameter is an address.
    unsafe { device.context_init(&params)? };
    let memory = Malloc::new(16 * PAGE);
    let data = Random(8).bytes(memory.len());
    memory.write(0, &data);
    let addr = memory.as_ptr() as u64;
    let mut blob = uapi::ResourceCreateBlob {
        blob_mem: 3,
        blob_flags: uapi::BLOB_FLAG_USE_USERPTR,
        size: memory.len() as u64,
        blob_id: 1,
        blob_hints: addr as u32,
        pad2: (addr >> 32) as u32,
        ..Default::default()
    };
    check_eq!(
        crate::support::raw::call(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob)?,
        0,
        "return value"
    );
    let info = device.resource_info(blob.bo_handle)?;
    let at = virtgpu_client::protocol::compute::Operand::resource(info.res_handle, 0);
    let crc = job::crc(&device, at, memory.len() as u64, blob.bo_handle)?;
    check_eq!(crc, compute::crc32c(0, &data), "CRC32C");
    device.gem_close(blob.bo_handle)?;
    Ok(())
}
