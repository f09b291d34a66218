// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The user pointers of ROCm, which come by RESOURCE_CREATE_BLOB.

use virtgpu_client::protocol::uapi;
use virtgpu_client::{compute, Bytes, Errno, Memory};

use crate::ktap::TestResult;
use crate::support::memory::Malloc;
use crate::support::{job, raw, Env, Random, PAGE};
use crate::{check, check_eq, check_err};

/// `bytes` long, with the user pointer of ROCm at offset 48.
fn rocm(memory: u64, size: u64, flags: u32) -> uapi::ResourceCreateBlob {
    uapi::ResourceCreateBlob {
        blob_mem: virtgpu_client::protocol::virtio_gpu::blob_mem::HOST3D_GUEST,
        blob_flags: uapi::BLOB_FLAG_USE_USERPTR | flags,
        size,
        blob_id: 1,
        blob_hints: memory as u32,
        pad2: (memory >> 32) as u32,
        ..Default::default()
    }
}

pub(super) fn rocm_create_blob(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Malloc::new(16 * PAGE);
    for bytes in [56, 64, 72] {
        let data = Random(bytes as u64).bytes(memory.len());
        memory.write(0, &data);
        let mut create = rocm(memory.as_ptr() as u64, memory.len() as u64, 0);
        let value = raw::sized(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create, bytes)?;
        check_eq!(value, 0, "return value with {bytes} bytes");
        let info = device.resource_info(create.bo_handle)?;
        check_eq!(info.res_handle, create.res_handle, "resource");
        let at = virtgpu_client::protocol::compute::Operand::resource(create.res_handle, 0);
        let crc = job::crc(&device, at, memory.len() as u64, create.bo_handle)?;
        check_eq!(crc, compute::crc32c(0, &data), "CRC32C with {bytes} bytes");
        device.gem_close(create.bo_handle)?;
    }
    // In 48 bytes there is no pointer: it reads as NULL.
    let mut create = rocm(0, memory.len() as u64, 0);
    check_err!(
        raw::sized(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create, 48),
        Errno::INVAL,
        "48 bytes"
    );
    // The same layouts without the flag are ordinary blobs.
    for bytes in [48, 56, 64, 72] {
        let mut create = uapi::ResourceCreateBlob {
            blob_mem: virtgpu_client::protocol::virtio_gpu::blob_mem::GUEST,
            blob_flags: 1,
            size: PAGE as u64,
            ..Default::default()
        };
        raw::sized(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create, bytes)?;
        device.gem_close(create.bo_handle)?;
    }
    Ok(())
}

/// The pages around an unaligned range are registered; where in the first page the range starts is
/// the program's business.
pub(super) fn rocm_unaligned(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Malloc::new(16 * PAGE);
    let data = Random(11).bytes(memory.len());
    memory.write(0, &data);
    for (start, length) in [(100, 500), (4000, 200), (1, 3 * PAGE), (PAGE + 8, PAGE)] {
        let mut create = rocm(memory.as_ptr() as u64 + start as u64, length as u64, 0);
        raw::call(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create)?;
        let at = virtgpu_client::protocol::compute::Operand::resource(
            create.res_handle,
            (start % PAGE) as u64,
        );
        // The resource is `size` bytes from the start of the page on, as AMD's driver tells hosts.
        let reachable = length - (start % PAGE).min(length);
        if reachable > 0 {
            let crc = job::crc(&device, at, reachable as u64, create.bo_handle)?;
            check_eq!(
                crc,
                compute::crc32c(0, &data[start..start + reachable]),
                "CRC32C of {reachable} bytes at {start}"
            );
        }
        device.gem_close(create.bo_handle)?;
    }
    Ok(())
}

pub(super) fn rocm_read_only(env: &Env) -> TestResult {
    let device = env.compute()?;
    let memory = Malloc::new(4 * PAGE);
    let data = Random(12).bytes(memory.len());
    memory.write(0, &data);
    let mut create = rocm(
        memory.as_ptr() as u64,
        memory.len() as u64,
        uapi::BLOB_FLAG_USERPTR_RDONLY,
    );
    raw::call(&device, uapi::nr::RESOURCE_CREATE_BLOB, &mut create)?;
    let at = virtgpu_client::protocol::compute::Operand::resource(create.res_handle, 0);
    let crc = job::crc(&device, at, memory.len() as u64, create.bo_handle)?;
    check_eq!(crc, compute::crc32c(0, &data), "CRC32C");
    check!(
        device.query(create.bo_handle)?.flags & uapi::USERPTR_RDONLY != 0,
        "BO_QUERY says read-only"
    );
    device.gem_close(create.bo_handle)?;
    Ok(())
}
