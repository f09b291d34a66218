// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Blobs of each kind.

use virtgpu_client::protocol::virtio_gpu::blob_mem;
use virtgpu_client::protocol::{compute as wire, uapi};
use virtgpu_client::{compute, BlobOptions, Bytes, Device, Errno, Exec};

use super::context::params;
use super::{delay, HALF_SECOND};
use crate::ktap::TestResult;
use crate::support::{job, raw, Env, Random, PAGE};
use crate::{check, check_eq, check_err, skip};

/// Fills a blob by the CPU, lets the device compute on it, and looks at the result.
fn exercise(device: &Device, options: &BlobOptions<'_>) -> TestResult {
    let blob = device.create_blob(options)?;
    let map = blob.map()?;
    let length = options.size as usize;
    let data = Random(7).bytes(length);
    map.write(0, &data);
    let crc = job::crc(device, blob.at(0), options.size, blob.handle())?;
    check_eq!(crc, compute::crc32c(0, &data), "CRC32C by the device");
    let before = map.read_u32(length - 4);
    job::add(device, blob.at(0), options.size, 3, blob.handle())?;
    check_eq!(
        map.read_u32(length - 4),
        before.wrapping_add(3),
        "last word after ADD_U32"
    );
    let info = blob.info()?;
    check_eq!(info.bo_handle, blob.handle(), "handle in RESOURCE_INFO");
    check_eq!(
        info.res_handle,
        blob.resource(),
        "resource in RESOURCE_INFO"
    );
    check_eq!(info.size as u64, options.size, "size in RESOURCE_INFO");
    check_eq!(info.blob_mem, options.mem, "blob_mem in RESOURCE_INFO");
    check!(blob.resource() != 0 && blob.handle() != 0, "ids are not 0");
    // The mapping is a reference of its own.
    drop(blob);
    check_eq!(
        map.read_u32(length - 4),
        before.wrapping_add(3),
        "last word after the handle is closed"
    );
    Ok(())
}

pub(super) fn blob_guest(env: &Env) -> TestResult {
    let device = env.compute()?;
    for size in [PAGE, 3 * PAGE, 1 << 20] {
        exercise(&device, &BlobOptions::guest(size as u64))?;
    }
    Ok(())
}

pub(super) fn blob_host3d(env: &Env) -> TestResult {
    let device = env.compute()?;
    if device.getparam(uapi::param::HOST_VISIBLE)? == 0 {
        skip!("the device has no host-visible memory");
    }
    // Such memory is slow where it is emulated.
    for size in [PAGE, 4 * PAGE] {
        exercise(&device, &BlobOptions::host3d(size as u64, 1))?;
    }
    // The mapping is made at the first mmap.
    exercise(
        &device,
        &BlobOptions {
            hints: uapi::BLOB_HINT_DEFER_MAPPING,
            ..BlobOptions::host3d(PAGE as u64, 1)
        },
    )?;
    let hidden = device.create_blob(&BlobOptions {
        flags: 0,
        ..BlobOptions::host3d(PAGE as u64, 1)
    })?;
    check_err!(
        hidden.map().map(drop),
        Errno::INVAL,
        "mapping of a blob without MAPPABLE"
    );
    Ok(())
}

pub(super) fn blob_host3d_guest(env: &Env) -> TestResult {
    let device = env.compute()?;
    exercise(&device, &BlobOptions::host3d_guest(1 << 20, 1))
}

pub(super) fn blob_bad(env: &Env) -> TestResult {
    let device = env.compute()?;
    let good = BlobOptions::guest(PAGE as u64);
    let command = [0_u8; 8];
    for (what, options) in [
        ("blob_mem 0", BlobOptions { mem: 0, ..good }),
        ("blob_mem 4", BlobOptions { mem: 4, ..good }),
        (
            "flag 0x40",
            BlobOptions {
                flags: 0x40,
                ..good
            },
        ),
        (
            "flag 0x80000000",
            BlobOptions {
                flags: 1 << 31,
                ..good
            },
        ),
        (
            "blob_id of guest memory",
            BlobOptions { blob_id: 1, ..good },
        ),
        (
            "a command for guest memory",
            BlobOptions {
                command: &command,
                ..good
            },
        ),
        (
            "a command of 3 bytes",
            BlobOptions {
                command: &command[..3],
                ..BlobOptions::host3d(4096, 1)
            },
        ),
    ] {
        check_err!(
            device.create_blob(&options).map(drop),
            Errno::INVAL,
            "{what}"
        );
    }
    if env.ours {
        check_err!(
            device
                .create_blob(&BlobOptions { size: 0, ..good })
                .map(drop),
            Errno::INVAL,
            "size 0"
        );
        for size in [u64::MAX, u64::MAX - 4095, 1 << 63] {
            let result = device.create_blob(&BlobOptions { size, ..good }).map(drop);
            check!(
                matches!(
                    result,
                    Err(Errno::INVAL | Errno::NOMEM | Errno::NOSPC | Errno::TOOBIG)
                ),
                "size {size:#x} gives {result:?}"
            );
        }
    }
    Ok(())
}

pub(super) fn blob_pages_are_zero(env: &Env) -> TestResult {
    let device = env.compute()?;
    for _ in 0..8 {
        let blob = device.create_blob(&BlobOptions::guest(1 << 20))?;
        let map = blob.map()?;
        check!(
            map.to_vec(0, 1 << 20).iter().all(|&byte| byte == 0),
            "a new blob is zero"
        );
        map.fill(0xaa);
    }
    Ok(())
}

/// What Linux's driver does not look at may hold anything: programs are built against headers that
/// are older or newer.
pub(super) fn ignored_fields(env: &Env) -> TestResult {
    let ok = |what: &str, dirt: u32, result: Result<i32, Errno>| {
        check!(result == Ok(0), "{what} {dirt:#x}: {result:?}");
        Ok(())
    };
    for dirt in [1, 1 << 31, u32::MAX] {
        let device = env.open()?;
        let capset = (uapi::context_param::CAPSET_ID, u64::from(wire::CAPSET_ID));
        let list = params(&[capset]);
        let mut context = uapi::ContextInit {
            num_params: 1,
            pad: dirt,
            ctx_set_params: list.as_ptr() as u64,
        };
        let result = raw::call(&device, uapi::nr::CONTEXT_INIT, &mut context);
        ok("pad of CONTEXT_INIT", dirt, result)?;

        let mut bytes = [0_u8; 16];
        let mut caps = uapi::GetCaps {
            cap_set_id: wire::CAPSET_ID,
            cap_set_ver: wire::CAPSET_VERSION,
            addr: bytes.as_mut_ptr() as u64,
            size: bytes.len() as u32,
            pad: dirt,
        };
        let result = raw::call(&device, uapi::nr::GET_CAPS, &mut caps);
        ok("pad of GET_CAPS", dirt, result)?;

        // Without the hint that Linux knows, which is for memory of the host.
        let mut blob = uapi::ResourceCreateBlob {
            blob_mem: blob_mem::GUEST,
            blob_flags: 1,
            size: PAGE as u64,
            pad: dirt,
            blob_hints: dirt & !uapi::BLOB_HINT_DEFER_MAPPING,
            pad2: dirt,
            rocm: [u64::from(dirt); 2],
            ..Default::default()
        };
        let result = raw::call(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut blob);
        ok("padding and hints of RESOURCE_CREATE_BLOB", dirt, result)?;

        let mut map = uapi::Map {
            handle: blob.bo_handle,
            pad: dirt,
            ..Default::default()
        };
        let result = raw::call(&device, uapi::nr::MAP, &mut map);
        ok("pad of MAP", dirt, result)?;
        device.gem_close(blob.bo_handle)?;
    }

    let device = env.compute()?;
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let stream = delay(HALF_SECOND);
    Exec::new(stream.as_bytes())
        .ring(0)
        .buffers(&[blob.handle()])
        .submit(&device)?;
    let unknown = !uapi::WAIT_NOWAIT;
    check_err!(
        device.wait_with(blob.handle(), unknown | uapi::WAIT_NOWAIT),
        Errno::BUSY,
        "WAIT with NOWAIT and all unknown flags"
    );
    device.wait_with(blob.handle(), unknown)?;
    check!(!device.is_busy(blob.handle())?, "idle after WAIT");
    Ok(())
}

pub(super) fn map_bad(env: &Env) -> TestResult {
    let device = env.compute()?;
    for handle in [0, 12345, u32::MAX] {
        check_err!(device.map_offset(handle), Errno::NOENT, "handle {handle}");
    }
    let blob = device.create_blob(&BlobOptions::guest(PAGE as u64))?;
    let offset = blob.map_offset()?;
    // The offset of one file's buffer is of no use in another.
    let other = env.open()?;
    let mapping = virtgpu_client::Mapping::file(
        &other,
        offset,
        PAGE,
        rustix::mm::ProtFlags::READ,
        rustix::mm::MapFlags::SHARED,
    );
    check_err!(
        mapping.map(drop),
        Errno::ACCESS,
        "mmap through another file"
    );
    // Nor is more of it than there is.
    let mapping = virtgpu_client::Mapping::file(
        &device,
        offset,
        2 * PAGE,
        rustix::mm::ProtFlags::READ,
        rustix::mm::MapFlags::SHARED,
    );
    check_err!(mapping.map(drop), Errno::INVAL, "mmap of twice the size");
    Ok(())
}

pub(super) fn info_bad(env: &Env) -> TestResult {
    let device = env.compute()?;
    for handle in [0, 12345, u32::MAX] {
        check_err!(
            device.resource_info(handle),
            Errno::NOENT,
            "handle {handle}"
        );
        check_err!(
            device.wait(handle),
            Errno::NOENT,
            "WAIT for handle {handle}"
        );
    }
    Ok(())
}
