// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Handles that are not one's own, closed, or of a kind that an ioctl does not take.

use std::path::PathBuf;

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, ioctl, BlobOptions, Device, Errno, Exec, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, TestResult};
use crate::support::memory::small_pages;
use crate::support::unchanged::Refusing;
use crate::support::{raw, Env, PAGE};
use crate::{cases, check_err, skip};

pub(crate) const FAMILY: Family = Family {
    name: "handles",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        of_another_file,
        closed,
        closed_twice,
        user_memory_is_not_shared,
        not_by_name,
    ],
};

/// Every ioctl that takes a handle.
fn all(refusing: &Refusing, handle: u32) -> TestResult {
    refusing.refuse(Errno::NOENT, "BO_QUERY", |device| device.query(handle))?;
    refusing.refuse(Errno::NOENT, "RESOURCE_INFO", |device| {
        device.resource_info(handle)
    })?;
    refusing.refuse(Errno::NOENT, "MAP", |device| device.map_offset(handle))?;
    refusing.refuse(Errno::NOENT, "WAIT", |device| device.wait(handle))?;
    refusing.refuse(Errno::NOENT, "USERPTR_PREFETCH", |device| {
        let mut prefetch = uapi::UserptrPrefetch {
            bo_handle: handle,
            length: PAGE as u64,
            ..Default::default()
        };
        raw::call(device, uapi::nr::USERPTR_PREFETCH, &mut prefetch)
    })?;
    refusing.refuse(Errno::NOENT, "EXECBUFFER", |device| {
        let mut stream = compute::Stream::new();
        stream.delay(1);
        Exec::new(stream.as_bytes())
            .buffers(&[handle])
            .submit(device)
    })?;
    refusing.refuse(Errno::NOENT, "PRIME_HANDLE_TO_FD", |device| {
        device.prime_export(handle).map(drop)
    })?;
    refusing.refuse(Errno::INVAL, "GEM_CLOSE", |device| device.gem_close(handle))
}

fn of_another_file(env: &Env) -> TestResult {
    let other = env.compute()?;
    let memory = small_pages(PAGE)?;
    // More handles than this file has.
    let blobs = (0..8)
        .map(|_| other.create_blob(&BlobOptions::guest(PAGE as u64)))
        .collect::<Result<Vec<_>, _>>()?;
    let userptr = other.register(&memory, RegisterOptions::pinned())?;
    let refusing = Refusing::new(env)?;
    all(&refusing, userptr.handle())?;
    all(&refusing, blobs[7].handle())
}

fn closed(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memory = small_pages(PAGE)?;
    // Two, so that the probe of the state does not get the number of the second.
    let first = refusing
        .device
        .register(&memory, RegisterOptions::pinned())?;
    let second = refusing
        .device
        .register(&memory, RegisterOptions::pinned())?;
    let handle = second.handle();
    second.close()?;
    first.close()?;
    all(&refusing, handle)
}

fn closed_twice(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = small_pages(PAGE)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let handle = userptr.handle();
    userptr.close()?;
    check_err!(device.gem_close(handle), Errno::INVAL, "second GEM_CLOSE");
    check_err!(device.gem_close(handle), Errno::INVAL, "third GEM_CLOSE");
    check_err!(device.gem_close(0), Errno::INVAL, "handle 0");
    Ok(())
}

fn user_memory_is_not_shared(env: &Env) -> TestResult {
    let refusing = Refusing::new(env)?;
    let memory = small_pages(4 * PAGE)?;
    let userptr = refusing
        .device
        .register(&memory, RegisterOptions::pinned())?;
    let handle = userptr.handle();
    refusing.refuse(Errno::INVAL, "MAP", |device| device.map_offset(handle))?;
    refusing.refuse(Errno::INVAL, "PRIME_HANDLE_TO_FD", |device| {
        device.prime_export(handle).map(drop)
    })?;
    for nr in [uapi::nr::TRANSFER_TO_HOST, uapi::nr::TRANSFER_FROM_HOST] {
        refusing.refuse(Errno::INVAL, &format!("ioctl {nr}"), |device| {
            let mut transfer = uapi::Transfer {
                bo_handle: handle,
                ..Default::default()
            };
            raw::call(device, nr, &mut transfer)
        })?;
    }
    Ok(())
}

/// The primary node of the driver.
pub(crate) fn card() -> Option<PathBuf> {
    (0..64)
        .map(|minor| PathBuf::from(format!("/dev/dri/card{minor}")))
        .find(|path| {
            Device::open_path(path)
                .and_then(|device| device.version())
                .is_ok_and(|version| version.name == virtgpu_client::DRIVER_NAME)
        })
}

/// Two files of the primary node that may make and open global names, if there can be such. The
/// first one has stopped being the node's master, which the second one has become.
pub(crate) fn two_masters() -> TestResult<Option<[Device; 2]>> {
    const DROP_MASTER: u32 = ((b'd' as u32) << 8) | 0x1f;
    let Some(path) = card() else {
        return Ok(None);
    };
    let first = Device::open_path(&path)?;
    // SAFETY: The ioctl takes no argument.
    if let Err(error) = unsafe { ioctl::call(&first, DROP_MASTER, std::ptr::null_mut()) } {
        println!("    # cannot stop being master: {error}");
        return Ok(None);
    }
    Ok(Some([first, Device::open_path(&path)?]))
}

/// A global name of user memory opens for no one else.
fn not_by_name(_: &Env) -> TestResult {
    let Some([first, second]) = two_masters()? else {
        skip!("no primary node, or no way to stop being its master")
    };
    first.context_init_compute(1)?;
    second.context_init_compute(1)?;
    let memory = small_pages(PAGE)?;
    let userptr = first.register(&memory, RegisterOptions::pinned())?;
    let blob = first.create_blob(&BlobOptions::guest(PAGE as u64))?;
    // A blob shows that it is not for lack of authentication.
    let handle = second.gem_open(first.gem_flink(blob.handle())?)?;
    second.gem_close(handle)?;
    match first.gem_flink(userptr.handle()) {
        Ok(name) => check_err!(second.gem_open(name), Errno::ACCESS, "GEM_OPEN"),
        // No name at all is as good.
        Err(Errno::INVAL | Errno::ACCESS) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
