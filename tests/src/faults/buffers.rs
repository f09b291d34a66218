// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Buffers: their creation, transfers, mappings, and sharing.

use virtgpu_client::protocol::compute as wire;
use virtgpu_client::{BlobOptions, Device, Errno, Memory, Region};

use super::jobs::{fault_mode, list};
use super::{
    each_fault, each_fault_of_a_file, each_fault_of_a_handle, each_fault_on_a_buffer, nothing,
    FailNth,
};
use crate::ktap::TestResult;
use crate::support::memory::small_pages;
use crate::support::{eventually, job, procfs, raw, udmabuf, Env, PAGE};
use crate::{check, check_err};

fn create(env: &Env, what: &str, options: &BlobOptions<'_>) -> TestResult {
    let device = env.compute()?;
    each_fault_of_a_handle(what, &device, || {
        device
            .create_blob(options)
            .map(virtgpu_client::Blob::into_handle)
    })
}

pub(super) fn create_guest_blob(env: &Env) -> TestResult {
    create(env, "a guest blob", &BlobOptions::guest(64 << 10))
}

pub(super) fn create_host_blob(env: &Env) -> TestResult {
    create(env, "a host blob", &BlobOptions::host3d(64 << 10, 1))
}

pub(super) fn create_host3d_guest_blob(env: &Env) -> TestResult {
    create(
        env,
        "a blob of both",
        &BlobOptions::host3d_guest(64 << 10, 1),
    )
}

pub(super) fn create_picture(env: &Env) -> TestResult {
    let device = env.compute()?;
    each_fault_of_a_handle("RESOURCE_CREATE", &device, || {
        device
            .create_picture(128, 128)
            .map(virtgpu_client::Image::into_handle)
    })
}

pub(super) fn transfers(env: &Env) -> TestResult {
    let device = env.compute()?;
    let image = device.create_picture(64, 64)?;
    let region = Region::picture(64, 64);
    each_fault("TRANSFER_TO_HOST", || image.to_host(&region), nothing)?;
    each_fault("TRANSFER_FROM_HOST", || image.from_host(&region), nothing)
}

/// A handle that is there before the context: making the context attaches it, or fails.
pub(super) fn attached_later(env: &Env) -> TestResult {
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

pub(super) fn resource_info(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    each_fault("RESOURCE_INFO", || blob.info(), nothing)
}

pub(super) fn map(env: &Env) -> TestResult {
    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(4096))?;
    each_fault("MAP", || blob.map_offset(), nothing)
}

pub(super) fn mmap(env: &Env) -> TestResult {
    let device = env.compute()?;
    let guest = device.create_blob(&BlobOptions::guest(4096))?;
    each_fault("mmap of a guest blob", || guest.map(), nothing)?;
    let host = device.create_blob(&BlobOptions::host3d(4096, 1))?;
    each_fault("mmap of a host blob", || host.map(), nothing)
}

/// Giving memory back cannot fail, whatever it would like to allocate.
pub(super) fn gem_close(env: &Env) -> TestResult {
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

pub(super) fn prime(env: &Env) -> TestResult {
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

/// A buffer that could not be exported is not shared: jobs in fault mode can list it.
pub(super) fn prime_or_fault_mode(env: &Env) -> TestResult {
    /// Once there is a dma-buf the core keeps it, whatever fails then: noting it for the file, and
    /// the copy of the result.
    const AFTERWARDS: u32 = 2;
    let space = fault_mode(env)?;
    // SAFETY: The jobs use no memory.
    let device = unsafe { space.device() };
    let (mut failed, mut shared) = (0, 0);
    each_fault_on_a_buffer(
        device,
        |handle, result| {
            let listed = list(device, handle);
            match result {
                Ok(_) => check_err!(listed, Errno::OPNOTSUPP, "listing what was exported"),
                Err(_) if listed == Err(Errno::OPNOTSUPP) => shared += 1,
                Err(_) => {
                    listed?;
                    failed += 1;
                }
            }
            Ok(())
        },
        |handle| device.prime_export(handle),
    )?;
    println!("    # {failed} faults shared nothing, {shared} came later");
    check!(
        shared <= AFTERWARDS,
        "{shared} exports have failed and share the buffer"
    );
    Ok(())
}

pub(super) fn prime_import(env: &Env) -> TestResult {
    let device = env.compute()?;
    let buf = udmabuf::new(64)?;
    each_fault_of_a_handle("PRIME_FD_TO_HANDLE of a udmabuf", &device, || {
        device.prime_import(&buf.fd)
    })
}
