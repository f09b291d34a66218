// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! ioctls with arguments that the client library would not pass.

use virtgpu_client::protocol::{uapi, virtio_gpu::blob_mem};
use virtgpu_client::{ioctl, Device, Errno};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Calls virtgpu ioctl `nr` once with a structure of `size` bytes, the first of which are those of
/// `argument`.
pub(crate) fn sized<T: IntoBytes + FromBytes + Immutable>(
    device: &Device,
    nr: u32,
    argument: &mut T,
    size: usize,
) -> Result<i32, Errno> {
    let mut buffer = [0_u64; 128];
    let bytes = buffer.as_mut_bytes();
    let known = size_of::<T>();
    bytes[..known].copy_from_slice(argument.as_bytes());
    let number = ioctl::virtgpu(nr, size);
    // SAFETY: The buffer is larger than any size used here. Wrong addresses in it are for the
    // kernel to refuse.
    let result = unsafe { ioctl::call_once(device, number, bytes.as_mut_ptr().cast()) };
    argument.as_mut_bytes().copy_from_slice(&bytes[..known]);
    result
}

/// Calls virtgpu ioctl `nr` once.
pub(crate) fn call<T: IntoBytes + FromBytes + Immutable>(
    device: &Device,
    nr: u32,
    argument: &mut T,
) -> Result<i32, Errno> {
    sized(device, nr, argument, size_of::<T>())
}

/// A valid pinned registration of `size` bytes at `addr`, to be made invalid.
pub(crate) fn pinned(addr: u64, size: u64) -> uapi::UserptrRegister {
    uapi::UserptrRegister {
        addr,
        size,
        flags: uapi::USERPTR_PINNED,
        blob_mem: blob_mem::GUEST,
        ..Default::default()
    }
}

/// Registers, and returns the GEM handle.
pub(crate) fn register(device: &Device, mut register: uapi::UserptrRegister) -> Result<u32, Errno> {
    call(device, uapi::nr::USERPTR_REGISTER, &mut register)?;
    Ok(register.bo_handle)
}
